# SPDX-License-Identifier: MIT
"""Which board is recorded, and how its disk is laid out: ours, or one in somebody else's layout."""

from __future__ import annotations

import functools
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path

from bsp.base.errors import UserError
from bsp.base.process import run
from bsp.catalog import load_board
from bsp.kernel.select import kernel_named
from bsp.profile import Board
from bsp.qemu.base_dtb import base_dtb
from images.disk import Disk, build_disk
from virtual.boards.way import Way, way_named
from virtual.layouts.disk import build_layout, places

from .disk_state import OUR_PLACES, Places
from .ext4_boot import old_way_on_ext4
from .old_way import OldWay, old_way_of

OURS = "virtual"
THEIRS = "virtual-a311d"
"""The board of other people's layouts: the one whose disks and kernel the layouts' tests make anyway."""


@dataclass(frozen=True)
class Recorded:
    """The board that is recorded.

    Attributes:
        disk: its factory disk.
        places: where its partitions are.
        old: how it booted before it was ours; None for one that always was.
    """

    board: Board
    way: Way
    disk: Disk
    places: Places = OUR_PLACES
    old: OldWay | None = None

    @property
    def name(self) -> str:
        """Of the layout."""
        return self.way.layout_name


def recorded(layout: str, uboot: str = "") -> Recorded:
    """Return the board that a layout is recorded on, with its disk; made on first use.

    Args:
        uboot: ``like:BOARD``; default: the layout's.

    Raises:
        UserError: there is no such layout, or its states cannot be judged.
    """
    board = load_board(OURS if layout in ("", "npu-bsp") else THEIRS)
    way = way_named(board, layout, uboot)
    board = way.fitted(board)
    if way.layout is None:
        disk = build_disk(board, kernel_named(board.kernel), base_dtb(board))
        return Recorded(board, way, disk)
    if (
        way.layout.fat
        and way.layout.fat.esp
        and (not way.like or way.like.boots_by != "distro_bootcmd")
    ):
        raise UserError(
            f"--layout {layout} cannot be adopted with this U-Boot, which starts EFI programs before it "
            "looks for scripts: there is nothing to record",
            hint=f"--layout {layout} --uboot like:khadas-vim3",
        )
    kernel = kernel_named(way.kernel(board, board.kernel))
    disk = build_layout(way.layout, board, kernel, base_dtb(board))
    where = places(way.layout, uuid.UUID(int=0))
    partitions = Places(where.fat_start_bytes, where.fat_size_bytes, where.root_start_bytes)
    if not partitions.fat_size_bytes:
        old = old_way_on_ext4(disk.image, partitions.root_start_bytes)
        return Recorded(board, way, disk, partitions, old)
    return Recorded(board, way, disk, partitions, _old_way(disk.image, partitions.fat_start_bytes))


@functools.cache
def _old_way(image: Path, start_bytes: int) -> OldWay:
    """How a factory disk boots: the files of its boot partition."""
    with tempfile.TemporaryDirectory(prefix="npu-bsp-boot-") as name:
        run(["mcopy", "-s", "-i", f"{image}@@{start_bytes}", "::*", name],
            env={"MTOOLS_SKIP_CHECK": "1"})  # fmt: skip
        folder = Path(name)
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        return old_way_of(
            {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
        )
