# SPDX-License-Identifier: MIT
"""The partition table of an image: its kind, whether a kernel would accept it, and where it ends.

GPT: UEFI specification, chapter 5.3; MBR: chapter 5.2.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Literal

_SECTOR_SIZES = (512, 4096)
_MBR_ENTRIES = range(446, 510, 16)
_PROTECTIVE = 0xEE
_MAX_ENTRIES_BYTES = 1 << 20


@dataclass(frozen=True)
class Table:
    """A partition table.

    Attributes:
        end_bytes: where its last partition ends, or the GPT's second copy.
        problem: why a kernel would reject it; empty if it would not.
        sector_bytes: in which it counts; 0: it does not tell (MBR).
    """

    kind: Literal["gpt", "dos"]
    end_bytes: int
    problem: str = ""
    sector_bytes: int = 0


def read_table(head: bytes) -> Table | None:
    """Return the partition table of a disk that begins with ``head``; None if there is none.

    The boot sector of a FAT file system ends as an MBR does, and mformat and mkfs.fat write one entry
    into it that begins at sector 0: that is not a partition table. ISO 9660 images for USB sticks do have
    such an entry.
    """
    for sector_bytes in _SECTOR_SIZES:
        if head[sector_bytes : sector_bytes + 8] == b"EFI PART":
            return _gpt(head, sector_bytes)
    return _mbr(head)


def _gpt(head: bytes, sector_bytes: int) -> Table:
    header = head[sector_bytes : 2 * sector_bytes]
    if len(header) < 92:
        return Table("gpt", 2 * sector_bytes)
    header_size, crc, _, _, alternate = struct.unpack_from("<IIIQQ", header, 12)
    entries_lba, count, size, entries_crc = struct.unpack_from("<QIII", header, 72)
    own = header[:16] + bytes(4) + header[20:header_size]
    if not 92 <= header_size <= len(header) or zlib.crc32(own) != crc:
        return Table("gpt", 0, "its GPT is damaged: the checksum of the header is wrong")
    end = (alternate + 1) * sector_bytes
    start = entries_lba * sector_bytes
    entries = head[start : start + count * size]
    if count * size > _MAX_ENTRIES_BYTES or size < 128 or size % 8:
        return Table("gpt", end, f"its GPT is damaged: {count} entries of {size} bytes")
    if len(entries) < count * size:
        return Table("gpt", max(end, start + count * size))
    if zlib.crc32(entries) != entries_crc:
        return Table("gpt", end, "its GPT is damaged: the checksum of the partitions is wrong")
    ends = [
        (int.from_bytes(entries[at + 40 : at + 48], "little") + 1) * sector_bytes
        for at in range(0, count * size, size)
        if entries[at : at + 16].strip(b"\0")
    ]
    if not ends:
        return Table("gpt", end, "its GPT has no partitions")
    return Table("gpt", max(end, *ends), sector_bytes=sector_bytes)


def _mbr(head: bytes) -> Table | None:
    if head[510:512] != b"\x55\xaa":
        return None
    first = 0 if head[32769:32774] == b"CD001" else 1
    ends = []
    protective = False
    for at in _MBR_ENTRIES:
        start, count = struct.unpack_from("<II", head, at + 8)
        kind = head[at + 4]
        if head[at] not in (0, 0x80):
            return None
        if kind == 0 or count == 0:
            continue
        if start < first:
            return None
        protective |= kind == _PROTECTIVE
        ends.append((start + count) * 512)
    if not ends:
        return None
    if protective:
        return Table("dos", 512, "its MBR refers to a GPT, which is missing")
    return Table("dos", max(ends))
