# SPDX-License-Identifier: MIT
"""Where on its disk a file of one sector lies, for a U-Boot that cannot write to ext4.

U-Boot overwrites that sector of the disk, and only if it holds what it has read by name. It replays no
journal: whatever it is to read must have been written to its place before (``checkpoint`` of files.py).
"""

from __future__ import annotations

import os
import struct

from .files import SECTOR_BYTES, flush, read, read_text
from .frames import RefusedError
from .script_image import script_image, script_text

TYPE_CHECKING = False  # see frames.py
if TYPE_CHECKING:
    from .board import Board

# Linux include/uapi/linux/fiemap.h, fs.h: header (start, length, flags, mapped, count, reserved), extents
# (logical, physical, length, two reserved, flags, three reserved).
_FIEMAP = 0xC020660B
_FLAG_SYNC, _LAST = 1, 1
_HEAD = struct.Struct("=QQIIII")
_EXTENT = struct.Struct("=QQQQQIIII")
_ASKED = 2


def with_sector(board: Board, path: str, sector: bytes) -> bytes:
    """Return a trial's script with the sector in it that the file ``path`` lies in.

    Raises:
        RefusedError: that is not one place on a disk, or the disk has something else there.
    """
    text = script_text(sector)
    if text is None:
        raise RefusedError("the state of a trial is not a script")
    image = script_image(f"{text}setenv npu_sector {sector_of(board, path):x}\n")
    if len(image) > SECTOR_BYTES:
        raise RefusedError("the state of a trial does not fit into a sector")
    return image.ljust(SECTOR_BYTES, b"\0")


def sector_of(board: Board, path: str) -> int:
    """Return the number of the sector that a file lies in, from the beginning of its disk.

    Raises:
        RefusedError: it has no single place there.
    """
    flush(path)
    offset = offset_in(_extents(path), path)
    number = os.stat(path).st_dev
    folder = board.at(f"sys/dev/block/{os.major(number)}:{os.minor(number)}")
    partition = os.path.basename(os.path.realpath(folder))
    start = read_text(f"{folder}/start")
    if not start.isdigit():
        raise RefusedError(f"{path} lies on {partition}, which is not a partition of a disk")
    disk = os.path.dirname(os.path.realpath(folder))
    block = read_text(f"{disk}/queue/logical_block_size")
    if block != str(SECTOR_BYTES):
        raise RefusedError(f"{os.path.basename(disk)} has sectors of {block} bytes, expected 512")
    sector = int(start) + offset // SECTOR_BYTES
    if _on_disk(board.at(f"dev/{os.path.basename(disk)}"), sector) != read(path):
        raise RefusedError(
            f"sector {sector} of {os.path.basename(disk)} is not what {path} says: it lies elsewhere"
        )
    return sector


def _extents(path: str) -> bytes:
    import fcntl

    handle = os.open(path, os.O_RDONLY)
    try:
        question = _HEAD.pack(0, SECTOR_BYTES, _FLAG_SYNC, 0, _ASKED, 0)
        room = question + bytes(_ASKED * _EXTENT.size)
        return fcntl.ioctl(handle, _FIEMAP, room)
    except OSError as error:
        raise RefusedError(f"where {path} lies on the disk is not told: {error}") from error
    finally:
        os.close(handle)


def offset_in(answer: bytes, path: str) -> int:
    """Return where on its partition a file begins, in bytes, from FIEMAP's answer.

    Raises:
        RefusedError: it has not exactly one extent, or that may move or is not a place of its own.
    """
    count = _HEAD.unpack_from(answer)[3]
    if count != 1:
        raise RefusedError(f"{path} has {count} extents, expected one")
    logical, physical, _, _, _, flags, *_ = _EXTENT.unpack_from(answer, _HEAD.size)
    if flags != _LAST or logical or not physical or physical % SECTOR_BYTES:
        raise RefusedError(
            f"{path} has no fixed place of its own on the disk (extent at {physical}, flags {flags:#x})"
        )
    return int(physical)


def _on_disk(device: str, sector: int) -> bytes:
    handle = os.open(device, os.O_RDONLY)
    try:
        at = sector * SECTOR_BYTES
        os.posix_fadvise(handle, at, SECTOR_BYTES, os.POSIX_FADV_DONTNEED)
        return os.pread(handle, SECTOR_BYTES, at)
    finally:
        os.close(handle)
