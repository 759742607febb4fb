# SPDX-License-Identifier: MIT
"""How the text of a model's report is laid out: lines of at most 80 columns, short numbers, places."""

from __future__ import annotations

from collections.abc import Sequence

from bsp.base.words import filled

_WIDTH = 80
_MOST_NAMED = 6


def count(number: int) -> str:
    """Return a number in four characters or so: 1234, 56.8 k, 569 M."""
    if number < 10_000:
        return str(number)
    for unit in ("k", "M", "G", "T"):
        number_in_unit = number / 1000 ** ("kMGT".index(unit) + 1)
        if number_in_unit < 1000 or unit == "T":
            break
    return f"{number_in_unit:.3g} {unit}" if number_in_unit < 1000 else "many"


def line(words: str, rest: str = "  ") -> str:
    """Return words as lines; all but the first begin with ``rest``."""
    return filled(words, _WIDTH, rest=rest)


def section(title: str, lines: Sequence[str]) -> str:
    """Return a title and its lines; nothing without lines."""
    return "\n".join([f"{title}:", *lines]) if lines else ""


def item(words: str) -> str:
    """Return words as an item of a list."""
    return filled(words, _WIDTH, first="- ", rest="  ")


def places(indices: Sequence[int]) -> str:
    """Return some places of operations in brackets, a space before them."""
    if not indices:
        return ""
    named = ", ".join(map(str, indices[:_MOST_NAMED]))
    more = len(indices) - _MOST_NAMED
    return f" ({named}{f' and {more} more' if more > 0 else ''})"
