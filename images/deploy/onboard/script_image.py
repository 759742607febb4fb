# SPDX-License-Identifier: MIT
"""Script images of U-Boot, as ``source`` runs them: written and read on both sides of a deployment."""

from __future__ import annotations

import struct
import zlib

# U-Boot include/image.h, struct legacy_img_hdr: magic, header's checksum, time, size, load address, entry
# point, data's checksum, then system (Linux), architecture (arm64), type (script), compression, name.
HEADER = struct.Struct(">7I4B32s")
MAGIC = 0x27051956
KIND = (5, 22, 6, 0)
TIME_S = 946_684_800
# A script's data: its length, and a zero that ends the list of lengths.
LENGTHS = struct.Struct(">2I")


def script_image(text: str, name: bytes = b"npu-bsp") -> bytes:
    """Return a script image, as ``mkimage -A arm64 -O linux -T script -C none -n NAME`` makes it."""
    data = LENGTHS.pack(len(text), 0) + text.encode("ascii")
    fields = (TIME_S, len(data), 0, 0, zlib.crc32(data), *KIND, name)
    checksum = zlib.crc32(HEADER.pack(MAGIC, 0, *fields))
    return HEADER.pack(MAGIC, checksum, *fields) + data


def script_text(image: bytes) -> str | None:
    """Return the text of a script image; None where U-Boot would not run it."""
    if len(image) < HEADER.size + LENGTHS.size:
        return None
    magic, checksum, _, size, _, _, data_checksum, *_ = HEADER.unpack_from(image)
    header = image[:4] + bytes(4) + image[8 : HEADER.size]
    data = image[HEADER.size : HEADER.size + size]
    whole = len(data) == size and zlib.crc32(data) == data_checksum
    if magic != MAGIC or zlib.crc32(header) != checksum or not whole:
        return None
    length, _ = LENGTHS.unpack_from(data)
    return data[LENGTHS.size : LENGTHS.size + length].decode("ascii", errors="replace")
