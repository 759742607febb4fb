# SPDX-License-Identifier: MIT
"""Whether a generation fits where the boot script loads it: checked before anything is sent."""

from __future__ import annotations

import struct
from pathlib import Path

from bsp.base.errors import UserError
from bsp.catalog import load_soc
from bsp.profile import Addresses, Board

# Linux Documentation/arch/arm64/booting.rst: the header of an Image has its magic at 56, and at 16 the
# size that it takes in memory, with what it clears behind its end.
_MAGIC_AT, _MAGIC = 56, b"ARM\x64"
_IMAGE_SIZE_AT = 16


def image_bytes(kernel: bytes, size_bytes: int) -> int:
    """Return what a kernel takes in memory.

    Args:
        kernel: its first 64 bytes, uncompressed.
        size_bytes: of the file.
    """
    if kernel[_MAGIC_AT : _MAGIC_AT + 4] != _MAGIC:
        return size_bytes
    (stated,) = struct.unpack_from("<Q", kernel, _IMAGE_SIZE_AT)
    return max(int(stated), size_bytes)


def check_fits(board: Board, kernel: Path, dtb: bytes) -> None:
    """Check that kernel and DTB end before what is loaded behind them.

    Raises:
        UserError: one of them does not.
    """
    where = load_soc(board.soc).addresses
    if where is None:
        return
    with kernel.open("rb") as file:
        head = file.read(64)
    _check(board, where, "kernel", image_bytes(head, kernel.stat().st_size))
    _check(board, where, "dtb", len(dtb))


def _check(board: Board, where: Addresses, what: str, size_bytes: int) -> None:
    room = where.room_bytes(what)
    if room is not None and size_bytes > room:
        at = getattr(where, what)
        raise UserError(
            f"the {'kernel' if what == 'kernel' else 'device tree'} takes {size_bytes / 2**20:.1f} MiB in "
            f"memory, and {board.name} has {room / 2**20:.1f} MiB for it at {at:#x} before the next file",
            hint=f"a smaller one; the addresses are in bsp/socs/{board.soc}.toml, [addresses]",
        )
