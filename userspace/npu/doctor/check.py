# SPDX-License-Identifier: MIT
"""One check's result, as the command line's contract has it."""

from __future__ import annotations

from dataclasses import dataclass

Outcome = tuple[str, str, str, str]
"""Status, what was found, what was expected, the next command."""


@dataclass(frozen=True)
class Check:
    """One link of the chain.

    Attributes:
        status: ``ok``, ``broken`` or ``unknown`` (cannot be seen, which breaks nothing by itself).
        next: one command to type, where it is not ok; may be empty.
    """

    name: str
    status: str
    found: str
    expected: str
    next: str


def ok(found: str, expected: str) -> Outcome:
    """Return the outcome of a check that passed."""
    return "ok", found, expected, ""


def broken(found: str, expected: str, next_command: str) -> Outcome:
    """Return the outcome of a check that failed."""
    return "broken", found, expected, next_command


def unknown(found: str, expected: str, next_command: str = "") -> Outcome:
    """Return the outcome of a check whose facts are not available."""
    return "unknown", found, expected, next_command
