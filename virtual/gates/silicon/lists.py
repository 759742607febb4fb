# SPDX-License-Identifier: MIT
"""The lists beside Mesa's CI: what a test answered on a real board.

They are written for deqp-runner. ``NPU-fails.txt`` has a test's full name and its result (``name,Fail``);
``-skips.txt`` and ``-flakes.txt`` have regular expressions, found anywhere in a name. All other tests pass.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from bsp.base.errors import UserError

PASS, FAIL, UNJUDGED = "pass", "fail", "unjudged"
_RESULTS = ("Fail", "Crash", "Timeout")


@dataclass(frozen=True)
class Lists:
    """The lists of one NPU.

    Attributes:
        name: their common prefix: ``etnaviv-vipnano``.
        fails: names of tests that do not pass.
        unjudged: patterns of tests that are skipped there, or whose result changes from run to run.
    """

    name: str
    fails: frozenset[str]
    unjudged: tuple[re.Pattern[str], ...]

    def verdict(self, test: str) -> str:
        """Return what silicon says of a test: ``PASS``, ``FAIL`` or ``UNJUDGED``."""
        if any(pattern.search(test) for pattern in self.unjudged):
            return UNJUDGED
        return FAIL if test in self.fails else PASS


def read_lists(folder: Path, name: str) -> Lists:
    """Read the lists of one NPU.

    Raises:
        UserError: the folder has none of that name, or a line is not understood.
    """
    path = folder / f"{name}-fails.txt"
    if not path.is_file():
        raise UserError(f"this Mesa has no list {path.name}, so nothing to compare the NPU with")
    fails = set()
    for line in _lines(path):
        test, _, result = line.rpartition(",")
        if result not in _RESULTS:
            raise UserError(
                f"{path}: expected a test's name and one of {', '.join(_RESULTS)}, found {line!r}"
            )
        fails.add(test)
    patterns = []
    for kind in ("skips", "flakes"):
        path = folder / f"{name}-{kind}.txt"
        if path.is_file():
            patterns += [_pattern(path, line) for line in _lines(path)]
    return Lists(name, frozenset(fails), tuple(patterns))


def _lines(path: Path) -> list[str]:
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def _pattern(path: Path, line: str) -> re.Pattern[str]:
    try:
        return re.compile(line)
    except re.error as error:
        raise UserError(f"{path}: {line!r} is not a regular expression: {error}") from error
