# SPDX-License-Identifier: MIT
"""A disk between two writes: its partitions as files that writes are put into, and taken out of again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from images.disk import FAT_SIZE_BYTES, FAT_START_BYTES, ROOT_START_BYTES

from .writelog import Write, WriteLog

BLOCK_BYTES = 4096
Blocks = NDArray[np.int64]
"""Numbers of blocks."""
_COPY_BYTES = 1 << 20


class Places(NamedTuple):
    """Where the partitions of a disk lie: a FAT boot partition (of no size: there is none), the root."""

    fat_start_bytes: int = FAT_START_BYTES
    fat_size_bytes: int = FAT_SIZE_BYTES
    root_start_bytes: int = ROOT_START_BYTES


OUR_PLACES = Places()


class Partition:
    """One partition: a file, and for each of its blocks the number of the change that wrote it last."""

    def __init__(self, path: Path, start_bytes: int, size_bytes: int) -> None:
        self.path = path
        self.start_bytes = start_bytes
        self.size_bytes = size_bytes
        self.handle = os.open(path, os.O_RDWR)
        self.changed = np.zeros(size_bytes // BLOCK_BYTES, dtype=np.int64)

    def read(self, block: int, count: int = 1) -> bytes:
        """Some blocks of it."""
        return os.pread(self.handle, count * BLOCK_BYTES, block * BLOCK_BYTES)

    def newest(self, blocks: Blocks) -> int:
        """The number of the last change to any of these blocks."""
        return int(self.changed[blocks].max(initial=0))


class Medium:
    """The disk of a board after some of its writes. ``root`` and ``fat`` are its partitions, or one.

    Attributes:
        change: counts up with each write that is put in or taken out.
        outside: writes that went to neither partition (a partition table, say): there should be none.
    """

    def __init__(self, image: Path, folder: Path, places: Places = OUR_PLACES) -> None:
        """Copy the partitions of a factory disk into ``folder``, holes left as holes."""
        size_bytes = image.stat().st_size
        start, size, root_start = places
        root_bytes = size_bytes - root_start
        root_bytes -= root_bytes % BLOCK_BYTES
        self.root = _split(image, folder / "root.img", root_start, root_bytes)
        self.fat = _split(image, folder / "fat.img", start, size) if size else self.root
        self._partitions = (self.fat, self.root) if size else (self.root,)
        self.change = 0
        self.outside = 0

    def close(self) -> None:
        """Close the files."""
        for partition in self._partitions:
            os.close(partition.handle)

    def put(self, log: WriteLog, write: Write, *, size_bytes: int | None = None) -> list[_Undo]:
        """Do one write, or the first ``size_bytes`` of it; return what takes it out again."""
        data = log.data(write)[:size_bytes]
        undo = []
        reached = 0
        for partition in self._partitions:
            first = max(write.offset_bytes, partition.start_bytes)
            last = min(write.offset_bytes + len(data), partition.start_bytes + partition.size_bytes)
            if first >= last:
                continue
            part = data[first - write.offset_bytes : last - write.offset_bytes]
            at = first - partition.start_bytes
            undo.append((partition, at, os.pread(partition.handle, len(part), at)))
            self._change(partition, at, part)
            reached += len(part)
        self.outside += reached < len(data)
        return undo

    @contextmanager
    def tentatively(self) -> Iterator[list[_Undo]]:
        """Take out again, at the end, all that is added to the list."""
        undo: list[_Undo] = []
        try:
            yield undo
        finally:
            for partition, at, before in reversed(undo):
                self._change(partition, at, before)

    def _change(self, partition: Partition, at: int, data: bytes) -> None:
        self.change += 1
        os.pwrite(partition.handle, data, at)
        last = (at + len(data) + BLOCK_BYTES - 1) // BLOCK_BYTES
        partition.changed[at // BLOCK_BYTES : last] = self.change


_Undo = tuple[Partition, int, bytes]


def _split(image: Path, target: Path, start_bytes: int, size_bytes: int) -> Partition:
    """Copy a part of a sparse file into a sparse file."""
    with image.open("rb") as source, target.open("wb") as sink:
        sink.truncate(size_bytes)
        at, end = start_bytes, start_bytes + size_bytes
        while at < end:
            try:
                data_at = os.lseek(source.fileno(), at, os.SEEK_DATA)
            except OSError:
                break  # only a hole is left
            if data_at >= end:
                break
            hole_at = min(os.lseek(source.fileno(), data_at, os.SEEK_HOLE), end)
            for piece in range(data_at, hole_at, _COPY_BYTES):
                data = os.pread(source.fileno(), min(_COPY_BYTES, hole_at - piece), piece)
                os.pwrite(sink.fileno(), data, piece - start_bytes)
            at = hole_at
    return Partition(target, start_bytes, size_bytes)
