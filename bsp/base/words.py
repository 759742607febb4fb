# SPDX-License-Identifier: MIT
"""Words around numbers (``1 run``, ``2 runs``), and text in lines that break between words only."""

from __future__ import annotations

import textwrap


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return a number and its noun.

    Args:
        number: how many.
        noun: for one of them.
        plural: for several, where that is not the noun and an "s".
    """
    return f"{number} {noun if number == 1 else plural or f'{noun}s'}"


def filled(text: str, width: int = 80, *, first: str = "", rest: str = "") -> str:
    """Return text in lines of at most ``width`` columns, unless a word alone is longer.

    Names with hyphens, addresses and paths stay whole, so that they can be copied and searched for.

    Args:
        text: one paragraph.
        width: columns.
        first: what the first line begins with.
        rest: what the other lines begin with.
    """
    return textwrap.fill(
        text, width, initial_indent=first, subsequent_indent=rest,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
