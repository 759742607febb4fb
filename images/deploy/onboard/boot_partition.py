# SPDX-License-Identifier: MIT
"""Replaces and renames boot files, which U-Boot may read at any moment."""

from __future__ import annotations

import os

from .files import PARTIAL, held, make_way, write_beside, write_whole
from .frames import RefusedError

TYPE_CHECKING = False  # see frames.py
if TYPE_CHECKING:
    from .board import Board


def replace(board: Board, path: str, content: bytes | str) -> None:
    """Replace a boot file's content, or put the file ``content`` there: U-Boot finds the old or the new.

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
    board.settle()
    os.rename(beside, path)
    board.settle()
    make_way(spare)
    board.settle()


def move(board: Board, old: str, new: str) -> None:
    """Rename a boot file; it has both names in between, see ``replace``.

    On FAT, Linux writes the new name first without its content's place (fs/fat/namei_vfat.c, vfat_rename):
    it gets a copy there.
    """
    if not board.on_ext:
        with open(old, "rb") as file:
            write_whole(new, file.read())
        with held(old):
            os.unlink(old)
            board.settle()
        return
    if not (os.path.exists(new) and os.path.samefile(old, new)):
        make_way(new)
        os.link(old, new)
    board.settle()
    os.unlink(old)
    board.settle()
