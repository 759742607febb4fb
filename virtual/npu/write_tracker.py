# SPDX-License-Identifier: MIT
"""Knows which bytes the jobs have written: a job that begins to read among them and reads on past them
takes what nobody has put there.

So shows a job that is missing from a submission (Mesa folds the kernel of a strided convolution, and leaves
out the job that folds its image), where each job that is there means something by itself.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator

from .finding import Blame, Finding


class Written:
    """The bytes that one client's jobs have written so far, as disjoint ranges."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def add(self, address: int, size_bytes: int) -> None:
        """A job has written these bytes."""
        start, end = address, address + size_bytes
        first = bisect.bisect_left(self._ends, start)
        last = bisect.bisect_right(self._starts, end)
        if first < last:
            start = min(start, self._starts[first])
            end = max(end, self._ends[last - 1])
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]

    def read(self, address: int, size_bytes: int, described: str) -> Iterator[Finding]:
        """Return what is wrong with a job's read.

        Args:
            described: what it reads, in words.
        """
        index = bisect.bisect_right(self._starts, address) - 1
        if index < 0 or not self._starts[index] <= address < self._ends[index]:
            return  # the CPU has written it
        past = address + size_bytes - self._ends[index]
        if past > 0:
            yield Finding(
                "in_image",
                f"at most the {self._ends[index] - address} bytes at {address:#x} that jobs have written",
                f"{size_bytes} bytes ({described})",
                blame=Blame.SUBMISSION,
                evidence="no job before it writes the rest",
            )
