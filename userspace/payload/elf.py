# SPDX-License-Identifier: MIT
"""Reads which libraries ELF files need, for any machine.

Layout as in elf(5): 64-bit, little-endian; that is all that boards with these NPUs are.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path

_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_NEEDED, _DT_STRTAB = 1, 5


def needed_libraries(files: Iterable[Path]) -> list[str]:
    """Return the names in the DT_NEEDED entries of ELF files, each once, sorted.

    Files that are not 64-bit little-endian ELF are left out.
    """
    names: set[str] = set()
    for file in files:
        names.update(_needed(file.read_bytes()))
    return sorted(names)


def _needed(content: bytes) -> list[str]:
    if content[:6] != b"\x7fELF\x02\x01":
        return []
    (table,) = struct.unpack_from("<Q", content, 32)
    size, count = struct.unpack_from("<HH", content, 54)
    loads: list[tuple[int, int, int]] = []  # address, offset, size in the file
    dynamic: tuple[int, int] | None = None
    for index in range(count):
        kind, _, offset, address, _, in_file, _, _ = struct.unpack_from(
            "<IIQQQQQQ", content, table + index * size
        )
        if kind == _PT_LOAD:
            loads.append((address, offset, in_file))
        elif kind == _PT_DYNAMIC:
            dynamic = (offset, in_file)
    if dynamic is None:
        return []
    entries = [
        struct.unpack_from("<QQ", content, place)
        for place in range(dynamic[0], dynamic[0] + dynamic[1], 16)
    ]
    strings_address = next((value for tag, value in entries if tag == _DT_STRTAB), None)
    if strings_address is None:
        return []
    strings = next(
        offset + strings_address - address
        for address, offset, in_file in loads
        if address <= strings_address < address + in_file
    )
    starts = [strings + value for tag, value in entries if tag == _DT_NEEDED]
    return [content[start : content.index(b"\0", start)].decode() for start in starts]
