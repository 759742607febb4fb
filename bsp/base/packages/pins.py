# SPDX-License-Identifier: MIT
"""Pinned answers: what the archive was asked once is answered the same way, and files have a hash.

While a lock file is written, every question that goes to the archive is recorded; while one is followed,
it is answered from there. See docs/bundles.md.
"""

from __future__ import annotations

import contextlib
import contextvars
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import InfrastructureError, UserError


@dataclass
class Pins:
    """Questions, their answers, and the SHA-256 of files.

    Attributes:
        recording: answers are asked for and noted, not taken from here.
        fresh_since: while recording, package lists older than this (Unix time) are read anew; 0: any do.
        where: what they were read from, for messages.
    """

    recording: bool = False
    fresh_since: float = 0.0
    where: str = ""
    answers: dict[str, list[str]] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

    def answer(self, question: str, ask: Callable[[], list[str]]) -> list[str]:
        """Return the pinned answer, or ask; recording, note it."""
        if not self.recording and question in self.answers:
            return self.answers[question]
        answer = ask()
        if self.recording:
            self.answers[question] = answer
        return answer

    def knows(self, question: str) -> bool:
        """Whether a question needs no asking."""
        return not self.recording and question in self.answers

    def check(self, file: Path) -> None:
        """Compare a file with its hash; recording, note it.

        Raises:
            InfrastructureError: it has another content.
        """
        from ..download import sha256_of

        if self.recording:
            self.files[file.name] = sha256_of(file)
        elif file.name in self.files and sha256_of(file) != self.files[file.name]:
            raise InfrastructureError(
                f"{file} is not the file that {self.where} names\n"
                f"  expected sha256 {self.files[file.name]}\n  found    sha256 {sha256_of(file)}",
                hint=f"rm {file}, and run the same command again",
            )

    def gone(self, name: str) -> UserError:
        """The error for a pinned package that the mirror no longer has."""
        return UserError(
            f"the mirror no longer has {name}, which {self.where} names: Debian's mirrors keep the last "
            "point release only",
            hint="./inv lock --board B --update takes what there is now and shows what changes; or set "
            "NPU_BSP_DEBIAN_MIRROR to an archive of old releases (snapshot), or put the .deb there",
        )


_current: contextvars.ContextVar[Pins | None] = contextvars.ContextVar("npu_bsp_pins", default=None)


def current() -> Pins | None:
    """The pins in force."""
    return _current.get()


@contextlib.contextmanager
def using(pins: Pins | None) -> Iterator[None]:
    """Have pins in force for a block."""
    token = _current.set(pins)
    try:
        yield
    finally:
        _current.reset(token)


def recorder(*, fresh: bool) -> Pins:
    """Return pins that record; ``fresh``: what is newest now, not what was remembered."""
    return Pins(recording=True, fresh_since=time.time() if fresh else 0.0)
