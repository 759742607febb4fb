# SPDX-License-Identifier: MIT
"""The error of a run, with the stage in which it happened. Shipped to boards beside ``runner.py``."""

from __future__ import annotations


class StageError(Exception):
    """Something that the caller is to read: the stage in which it went wrong, what, and what helps."""

    def __init__(self, stage: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.stage = stage
        self.hint = hint

    def record(self) -> dict[str, str]:
        """Return it for a document."""
        return {"stage": self.stage, "message": str(self), "hint": self.hint}
