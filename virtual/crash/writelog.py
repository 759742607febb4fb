# SPDX-License-Identifier: MIT
"""Reads what QEMU's ``blklogwrites`` driver wrote down: each write to a disk, in order, with its flushes.

The format is that of Linux's dm-log-writes (drivers/md/dm-log-writes.c): a superblock, then for each
request an entry of one sector and the data.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

from bsp.base.errors import InfrastructureError

_MAGIC = 0x6A736677736872
_SUPER = struct.Struct("<QQQI")
_ENTRY = struct.Struct("<QQQQ")
_FLUSH, _FUA, _DISCARD, _MARK = 1, 2, 4, 8


@dataclass(frozen=True)
class Write:
    """One request.

    Attributes:
        offset_bytes: where on the disk.
        at: where its data lies in the log; ``size_bytes`` of it. 0 bytes for a bare flush.
        flush: all writes that were complete before it are on the medium once it is.
        fua: it is itself on the medium once it is complete.
    """

    offset_bytes: int
    at: int
    size_bytes: int
    flush: bool
    fua: bool


class WriteLog:
    """A record of writes, mapped into memory; a context manager."""

    def __init__(self, path: Path) -> None:
        """Read the entries; their data stays in the file.

        Raises:
            InfrastructureError: it is no such record, or it is cut off.
        """
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        self.writes = tuple(self._read(path))

    def __enter__(self) -> WriteLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._map.close()

    def data(self, write: Write) -> bytes:
        """The bytes that a request wrote."""
        return self._map[write.at : write.at + write.size_bytes]

    def _read(self, path: Path) -> list[Write]:
        if len(self._map) < _SUPER.size:
            raise InfrastructureError(f"{path} is not a record of writes: it is too short")
        magic, version, count, sector_bytes = _SUPER.unpack_from(self._map)
        if magic != _MAGIC or version != 1 or sector_bytes < _ENTRY.size:
            raise InfrastructureError(
                f"{path} is not a record of writes: expected the magic number {_MAGIC:#x} and version 1, "
                f"found {magic:#x} and {version}"
            )
        writes: list[Write] = []
        at = sector_bytes
        for _ in range(count):
            if at + sector_bytes > len(self._map):
                raise InfrastructureError(
                    f"{path} is cut off after {len(writes)} of {count} writes"
                )
            sector, sectors, flags, _ = _ENTRY.unpack_from(self._map, at)
            at += sector_bytes
            size_bytes = 0 if flags & (_DISCARD | _MARK) else sectors * sector_bytes
            if at + size_bytes > len(self._map):
                raise InfrastructureError(
                    f"{path} is cut off after {len(writes)} of {count} writes"
                )
            if size_bytes or flags & (_FLUSH | _FUA):  # a discard promises nothing: left out
                flush, fua = bool(flags & _FLUSH), bool(flags & _FUA)
                writes.append(Write(sector * sector_bytes, at, size_bytes, flush, fua))
            at += size_bytes
        return writes


def entries_so_far(path: Path) -> int:
    """How many requests a record that is being written holds by now."""
    with path.open("rb") as file:
        head = file.read(_SUPER.size)
    return int(_SUPER.unpack(head)[2]) if len(head) == _SUPER.size else 0
