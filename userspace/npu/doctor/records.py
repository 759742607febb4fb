# SPDX-License-Identifier: MIT
"""The fields of the doctor's document: plain data, as it is in JSON."""

from __future__ import annotations

from typing import Any, TypedDict


class CheckRecord(TypedDict):
    """A check: ``ok``, ``broken`` or ``unknown``, what was seen and expected, and what to type next."""

    name: str
    status: str
    found: str
    expected: str
    next: str


class DoctorDocument(TypedDict, total=False):
    """``boot``: how the board boots; None where that was not seen. ``seconds`` as the examination took."""

    host: str
    board: str | None
    stack: str
    kernel: str
    generation: str | None
    checks: list[CheckRecord]
    first_broken: str | None
    next: str
    verdict: str
    boot: dict[str, Any] | None
    seconds: float
