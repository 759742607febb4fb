# SPDX-License-Identifier: MIT
"""Errors that a person can act on, and the exit codes that scripts rely on.

Two families: the user's (something must be changed; exit 2) and ours (infrastructure failed; exit 3),
plus the three outcomes of a deployment or validation that a script has to tell apart.
"""

from __future__ import annotations

from typing import ClassVar


class BspError(Exception):
    """An error printed as ``error:`` and ``hint:``, without a traceback.

    ``message`` says what was expected, what was found and where; ``hint`` is what to type next.
    """

    exit_code: ClassVar[int] = 3

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def lines(self) -> str:
        """Return the error as it is printed: ``error: ...``, ``hint: ...``."""
        return f"error: {self.message}" + (f"\nhint: {self.hint}" if self.hint else "")


class UserError(BspError):
    """The user must change something."""

    exit_code = 2


class InfrastructureError(BspError):
    """A tool, the network, a mirror or a disk failed."""

    exit_code = 3


class ValidationError(BspError):
    """The board answered, and the answer is wrong."""

    exit_code = 4


class RolledBackError(BspError):
    """A trial failed; the board runs what it ran before."""

    exit_code = 5


class BoardStateUnknownError(BspError):
    """The board was changed or rebooted, and does not answer."""

    exit_code = 6


def nearest(word: str, candidates: list[str], *, cutoff: float = 0.6) -> str:
    """Return ``; did you mean X?`` for the nearest candidate, or an empty string; case does not count.

    Args:
        cutoff: how alike the two have to be, between 0 and 1, as ``difflib`` measures it.
    """
    import difflib

    spellings = {candidate.lower(): candidate for candidate in reversed(candidates)}
    matches = difflib.get_close_matches(word.lower(), list(spellings), n=1, cutoff=cutoff)
    return f"; did you mean {spellings[matches[0]]!r}?" if matches else ""
