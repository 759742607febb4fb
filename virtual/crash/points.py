# SPDX-License-Identifier: MIT
"""The states that a power cut can leave a disk in, and the verdict on each.

A disk keeps what was written before the last flush that it completed. Of what came after, it keeps
anything: so the states are every prefix of the record of writes, and for the writes between two flushes
samples of the subsets of these (*reordered*), and prefixes whose last write stopped on the way (*torn*):
on the FAT partition at any sector, on the root at any block of 4096 bytes. ext4 relies on the latter: the
checksum of a superblock written by half is wrong, and the kernel does not mount it (fs/ext4/super.c).
A sector that is itself a trial (images/deploy/onboard/raw_sector.py) is torn at any byte, too.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .boot import BootPartition, Choice
from .disk_state import BLOCK_BYTES, OUR_PLACES, Medium, Places
from .ext4_boot import Ext4Boot
from .old_way import OldWay
from .root import Root
from .writelog import Write, WriteLog

_SECTOR_BYTES = 512
_THOROUGH_EVERY = 10
_SHOWN = 20
_TEARS = 8
_NAMED = re.compile(rb"setenv npu_sector ([0-9a-f]+)\n")


@dataclass(frozen=True)
class Point:
    """One state: the first ``prefix`` writes, then the ``more``, then a part of one (``torn``).

    Attributes:
        more: numbers of writes.
        torn: number of a write and how many bytes of it are there.
    """

    prefix: int
    more: tuple[int, ...] = ()
    torn: tuple[int, int] | None = None

    @property
    def kind(self) -> str:
        """prefix | reordered | torn."""
        return "torn" if self.torn else "reordered" if self.more else "prefix"

    def __str__(self) -> str:
        more = f" and {len(self.more)} of those up to the next flush" if self.more else ""
        torn = f" and {self.torn[1]} bytes of write {self.torn[0]}" if self.torn else ""
        return f"the first {self.prefix} writes{more}{torn}"


@dataclass
class Tally:
    """What was found.

    Attributes:
        kinds: how many points of each kind.
        slots: how many points boot which slot.
        evaluated: on how many the tools were run; on the others nothing had changed that they look at.
        failures: (point, why), the first of them.
    """

    kinds: Counter[str] = field(default_factory=Counter)
    slots: Counter[str] = field(default_factory=Counter)
    evaluated: int = 0
    unbootable: int = 0
    outside: int = 0
    failures: list[tuple[Point, str]] = field(default_factory=list)

    def add(self, point: Point, slot: str, problem: str) -> None:
        """Count one point."""
        self.kinds[point.kind] += 1
        if problem:
            self.unbootable += 1
            if len(self.failures) < _SHOWN:
                self.failures.append((point, problem))
        else:
            self.slots[slot] += 1

    def merge(self, other: Tally) -> None:
        """Add what another part of the run found."""
        self.kinds.update(other.kinds)
        self.slots.update(other.slots)
        self.evaluated += other.evaluated
        self.unbootable += other.unbootable
        self.outside += other.outside
        self.failures = (self.failures + other.failures)[:_SHOWN]


def trial_sectors(log: WriteLog) -> set[int]:
    """Where on the disk a trial lies that names its own sector: offsets in bytes."""
    offsets = set()
    for write in log.writes:
        data = log.data(write)
        for match in _NAMED.finditer(data):
            at = int(match[1], 16) * _SECTOR_BYTES
            if at == write.offset_bytes + match.start() // _SECTOR_BYTES * _SECTOR_BYTES:
                offsets.add(at)
    return offsets


def plan(
    writes: tuple[Write, ...],
    points: int,
    seed: int,
    places: Places = OUR_PLACES,
    sectors: Collection[int] = (),
) -> list[Point]:
    """All prefixes, and as many samples as make ``points`` of it; fewer prefixes if there are too many.

    The samples are spread over the record in proportion to the writes between two flushes.

    Args:
        sectors: where each write is torn at bytes, ``_TEARS`` times.
    """
    chance = random.Random(seed)  # noqa: S311 - reproducible, not secret
    prefixes: list[Point] = [Point(number) for number in range(len(writes) + 1)]
    tears = list(_tears(writes, sectors, chance))[: points // 10]
    if points <= len(prefixes) + len(tears):
        return sorted([*chance.sample(prefixes, points - len(tears)), *tears], key=_order)
    groups = [group for group in _groups(writes) if len(group) > 1]
    samples = points - len(prefixes)
    chosen: dict[Point, None] = dict.fromkeys(tears)
    weights = [len(group) for group in groups]
    for _ in range(20 * samples):
        if len(chosen) == samples or not groups:
            break
        group = chance.choices(groups, weights)[0]
        sample = _sample(writes, group, chance, places)
        if sample.kind != "prefix":
            chosen[sample] = None
    return sorted([*prefixes, *chosen], key=_order)


def _order(point: Point) -> int:
    return point.prefix


def _groups(writes: tuple[Write, ...]) -> Iterator[range]:
    """The writes between two flushes. A flush comes before the data of its own request."""
    first = 0
    for number, write in enumerate(writes):
        if write.flush and number > first:
            yield range(first, number)
            first = number
    if first < len(writes):
        yield range(first, len(writes))


def _tears(
    writes: tuple[Write, ...], sectors: Collection[int], chance: random.Random
) -> Iterator[Point]:
    """Each write to one of the sectors, stopped within it."""
    for number, write in enumerate(writes):
        for at in sorted(sectors):
            begin = at - write.offset_bytes
            if 0 <= begin <= write.size_bytes - _SECTOR_BYTES:
                for size_bytes in chance.sample(range(1, _SECTOR_BYTES), _TEARS):
                    yield Point(number, torn=(number, begin + size_bytes))


def _sample(
    writes: tuple[Write, ...], group: range, chance: random.Random, places: Places
) -> Point:
    cut = chance.randint(group.start + 1, group.stop)
    if chance.random() < 0.2:
        last = cut - 1
        write = writes[last]
        on_root = write.offset_bytes >= places.root_start_bytes
        unit = BLOCK_BYTES if on_root else _SECTOR_BYTES
        pieces = write.size_bytes // unit
        if pieces > 1:
            return Point(last, torn=(last, chance.randrange(1, pieces) * unit))
    share = chance.choice((0.1, 0.5, 0.9))
    kept = tuple(
        number
        for number in range(group.start, cut)
        if writes[number].size_bytes and (writes[number].fua or chance.random() < share)
    )
    return Point(group.start, kept)


class Judge:
    """Gives verdicts on the states of one medium, and remembers what did not change."""

    def __init__(self, medium: Medium, tally: Tally, old: OldWay | None = None) -> None:
        self._medium = medium
        self._tally = tally
        if medium.fat is medium.root and old is not None:
            self._boot: BootPartition = Ext4Boot(medium.fat, old)
        else:
            self._boot = BootPartition(medium.fat, old)
        self._root = Root(medium.root)
        self._fat_stale = self._root_stale = True
        self._choice = Choice("", "", "")
        self._wanted: tuple[str, ...] = ()
        self._problem = ""

    def touched(self, write: Write, size_bytes: int) -> None:
        """Note that (a part of) a write was put in or taken out."""
        fat, root = self._medium.fat, self._medium.root
        end = write.offset_bytes + size_bytes
        if write.offset_bytes < fat.start_bytes + fat.size_bytes and end > fat.start_bytes:
            self._fat_stale = True
        first, last = write.offset_bytes - root.start_bytes, end - root.start_bytes
        if size_bytes and last > 0:
            blocks = slice(max(first, 0) // BLOCK_BYTES, (last + BLOCK_BYTES - 1) // BLOCK_BYTES)
            self._root_stale |= bool(self._root.relevant[blocks].any())

    def verdict(self) -> tuple[str, str]:
        """The slot that boots now, and what is wrong; ``""`` if nothing is."""
        if self._fat_stale:
            self._choice = self._boot.choice()
            self._fat_stale = False
        choice = self._choice
        if choice.problem:
            return choice.slot, choice.problem
        names = [name for name in (choice.generation, choice.after_trial) if name]
        key = (*names, str(choice.overwrites))
        if self._root_stale or key != self._wanted:
            self._tally.evaluated += 1
            thorough = self._tally.evaluated % _THOROUGH_EVERY == 1
            with self._root.recovered(thorough=thorough) as problem:
                problems = [problem, *(self._root.problem(name) for name in names if not problem)]
                if choice.overwrites is not None and self._root.uses(choice.overwrites):
                    problems.append(
                        f"U-Boot overwrites block {choice.overwrites}, which is another file's"
                    )
            self._problem = next((each for each in problems if each), "")
            self._root_stale, self._wanted = False, key
        return choice.slot, self._problem


def judge_points(
    log_path: Path,
    image: Path,
    folder: Path,
    points: list[Point],
    tally: Tally,
    judged: Callable[[], None],
    places: Places = OUR_PLACES,
    old: OldWay | None = None,
) -> None:
    """Go through the points, in their order, on a copy of the disk in ``folder``.

    Args:
        judged: called after each point.
        places: where the partitions are.
        old: how the board booted before it was ours.
    """
    with WriteLog(log_path) as log:
        medium = Medium(image, folder, places)
        try:
            judge = Judge(medium, tally, old)
            there = 0
            for point in points:
                for write in log.writes[there : point.prefix]:
                    medium.put(log, write)
                    judge.touched(write, write.size_bytes)
                there = point.prefix
                extra = [
                    (log.writes[number], log.writes[number].size_bytes) for number in point.more
                ]
                if point.torn:
                    extra.append((log.writes[point.torn[0]], point.torn[1]))
                with medium.tentatively() as undo:
                    for write, size_bytes in extra:
                        undo += medium.put(log, write, size_bytes=size_bytes)
                        judge.touched(write, size_bytes)
                    slot, problem = judge.verdict()
                for write, size_bytes in extra:
                    judge.touched(write, size_bytes)
                tally.add(point, slot, problem)
                judged()
            tally.outside += medium.outside
        finally:
            medium.close()


def materialise(log: WriteLog, point: Point, disk: Path) -> None:
    """Put a point's writes into a whole disk image."""
    with disk.open("r+b") as file:
        for number in (*range(point.prefix), *point.more):
            write = log.writes[number]
            file.seek(write.offset_bytes)
            file.write(log.data(write))
        if point.torn:
            write = log.writes[point.torn[0]]
            file.seek(write.offset_bytes)
            file.write(log.data(write)[: point.torn[1]])
