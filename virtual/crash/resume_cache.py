# SPDX-License-Identifier: MIT
"""What was found out about a kept recording, so that a run which was interrupted goes on where it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from bsp.base.cache import write_atomically

from .points import Point, Tally


class Known:
    """What earlier runs on a kept recording found out about the same points, in files beside it."""

    def __init__(self, folder: Path, points: int, seed: int) -> None:
        self._tally = folder / f"judged-{points}-{seed}.json"
        self._boots = folder / f"booted-{points}-{seed}.jsonl"

    @staticmethod
    def forget(folder: Path) -> None:
        """Remove what was found out about another recording, which is about to be replaced."""
        for path in (*folder.glob("judged-*.json"), *folder.glob("booted-*.jsonl")):
            path.unlink()

    def judged(self) -> tuple[Tally, float] | None:
        """All verdicts and what they took in seconds; None: they are not there yet."""
        try:
            content = self._tally.read_bytes()
        except FileNotFoundError:
            return None
        return msgspec.json.decode(content, type=tuple[Tally, float], dec_hook=_counter)

    def judge(self, tally: Tally, seconds: float) -> None:
        """Remember all verdicts."""
        write_atomically(self._tally, msgspec.json.encode((tally, seconds)))

    def booted(self) -> dict[Point, str]:
        """The points that were booted, with what went wrong; ``""`` if nothing did."""
        try:
            lines = self._boots.read_bytes().splitlines()
        except FileNotFoundError:
            return {}
        return dict(msgspec.json.decode(line, type=tuple[Point, str]) for line in lines)

    def boot(self, point: Point, problem: str) -> None:
        """Remember one boot."""
        with self._boots.open("ab") as file:
            file.write(msgspec.json.encode((point, problem)) + b"\n")


def _counter(kind: type, value: Any) -> Any:
    """A counter again, from the JSON object that it was written as."""
    return kind(value)
