# SPDX-License-Identifier: MIT
"""Why the virtual NPU and a list disagree, as far as it is known to be the list's fault."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import msgspec

from bsp.base.errors import InfrastructureError

from .lists import FAIL, PASS, Lists
from .suites import SiliconTest
from .synthetic import Synthetic

_KNOWN = Path(__file__).with_name("known.toml")
_PADDING = ("padding_same_0", "padding_same_1")


class _Exception(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    npu: str
    test: str
    versions: list[str]
    why: str


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    exception: list[_Exception]


def explain(test: SiliconTest, npu: str, lists: Lists, mesa: str) -> str:
    """Return why a list is not reliable about a test; "" if that is not known.

    Args:
        mesa: version of Mesa: ``25.0.7``.
    """
    return _contradiction(test, lists) or _known().get((npu, test.name, mesa), "").strip()


def _contradiction(test: SiliconTest, lists: Lists) -> str:
    """Return how a list contradicts itself: padding means nothing to a 1x1 kernel."""
    if not isinstance(test.source, Synthetic) or test.source.kernel != 1:
        return ""
    first, second = _PADDING
    if first not in test.name and second not in test.name:
        return ""
    twin = (
        test.name.replace(first, second) if first in test.name else test.name.replace(second, first)
    )
    if {lists.verdict(twin), lists.verdict(test.name)} != {PASS, FAIL}:
        return ""
    return (
        f"the list contradicts itself: it has the same model, whose 1x1 kernel no padding changes, as "
        f"{lists.verdict(twin)}ing under the name {twin}"
    )


@functools.cache
def _known() -> Mapping[tuple[str, str, str], str]:
    try:
        file = msgspec.toml.decode(_KNOWN.read_bytes(), type=_File)
    except msgspec.MsgspecError as error:
        raise InfrastructureError(f"{_KNOWN}: {error}") from error
    return {
        (each.npu, each.test, version): each.why
        for each in file.exception
        for version in each.versions
    }
