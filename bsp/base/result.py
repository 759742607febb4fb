# SPDX-License-Identifier: MIT
"""What a command returns: one document for machines, a text for people, and an exit code.

``commands/face/command.py`` prints it; nothing else writes to stdout.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

FAILED_VALIDATION = 4
"""The exit code of a command that ran to its end, and whose answer is bad (see ``bsp.base.errors``)."""


class Result(ABC):
    """The result of a command. Records derive from it."""

    @abstractmethod
    def document(self) -> Any:
        """Return the document that ``--json`` prints: dicts, lists, strings, numbers."""

    @abstractmethod
    def text(self) -> str:
        """Return the text for people, at most 80 columns wide; an empty one is not printed."""

    @property
    def exit_code(self) -> int:
        """The exit code of the process."""
        return 0

    def complaint(self) -> str:
        """Return what goes to stderr after the text or document: ``error: ...``, ``hint: ...``."""
        return ""


@dataclass(frozen=True)
class Answer(Result):
    """A result whose document and text were made by functions.

    Attributes:
        contents: the document.
        words: the text.
        code: the exit code.
        problems: what goes to stderr behind it.
    """

    contents: Any
    words: str
    code: int = 0
    problems: str = ""

    def document(self) -> Any:
        """Return the document."""
        return self.contents

    def text(self) -> str:
        """Return the text."""
        return self.words

    @property
    def exit_code(self) -> int:
        """The exit code."""
        return self.code

    def complaint(self) -> str:
        """Return what goes to stderr."""
        return self.problems
