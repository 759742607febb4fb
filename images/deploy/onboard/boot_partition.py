# SPDX-License-Identifier: MIT
"""Boot files that U-Boot may read at any moment: given other content, or other names."""

from __future__ import annotations

import os

from .files import PARTIAL, flush, make_way, write_beside, write_whole
from .frames import RefusedError

TYPE_CHECKING = False  # see frames.py
if TYPE_CHECKING:
    from .board import Board


def replace(board: Board, path: str, content: bytes | str) -> None:
    """Give a boot file other content, or the file ``content``: U-Boot finds the old or the new at any time.

    On ext4 it reads what lies in place, without the journal: each block of the tables there may be older or
    newer by itself. So a step changes names only, of files that are there before and after it.
    """
    beside, spare = path + PARTIAL, path + ".spare"
    if not board.on_ext:
        if isinstance(content, str):
            raise RefusedError("FAT has no links")
        write_whole(path, content)
        board.settle()
        return
    for name in (beside, spare):
        make_way(name)
    if isinstance(content, str):
        os.link(content, beside)
    else:
        write_beside(beside, content)
    if os.path.exists(path):
        os.link(path, spare)
    settle(board)
    os.rename(beside, path)
    settle(board)
    make_way(spare)
    settle(board)


def move(board: Board, old: str, new: str) -> None:
    """Give a boot file another name; on ext4 it has both in between, see ``replace``."""
    if not board.on_ext:
        os.rename(old, new)
        return
    if not (os.path.exists(new) and os.path.samefile(old, new)):
        make_way(new)
        os.link(old, new)
    settle(board)
    os.unlink(old)
    settle(board)


def settle(board: Board) -> None:
    """Have all that was written to the boot partition where U-Boot reads it."""
    flush(board.fat)
    board.settle()
