# SPDX-License-Identifier: MIT
"""Words around numbers: ``1 run``, ``2 runs``."""

from __future__ import annotations


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return a number and its noun.

    Args:
        number: how many.
        noun: for one of them.
        plural: for several, where that is not the noun and an "s".
    """
    return f"{number} {noun if number == 1 else plural or f'{noun}s'}"
