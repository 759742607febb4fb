# SPDX-License-Identifier: MIT
"""How a virtual board is to boot: whose layout its disk has, and which U-Boot reads it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import msgspec

from bsp.base.cache import cache_dir, make_once, write_atomically
from bsp.base.errors import UserError
from bsp.base.project import PROJECT
from bsp.kernel.distribution import packaged
from bsp.kernel.select import is_build
from bsp.profile import Board
from bsp.qemu.emulator import u_boot
from bsp.qemu.machine import qemu_of
from bsp.uboot import UBoot
from virtual.layouts.layout import OURS, Layout, layout_named
from virtual.uboots.build import built
from virtual.uboots.like import memory_mib, uboot_like

from .instance import Record

BUILT_IN = PROJECT / "virtual/layouts/builtin.config"


@dataclass(frozen=True)
class Way:
    """How a board boots.

    Attributes:
        layout: None for our own.
        like: the U-Boot that it is to be like; None for the distribution's.
    """

    layout: Layout | None = None
    like: UBoot | None = None

    @property
    def layout_name(self) -> str:
        """As ``--layout`` takes it."""
        return self.layout.name if self.layout else OURS

    @property
    def uboot_name(self) -> str:
        """As ``--uboot`` takes it; nothing for the distribution's."""
        return f"like:{self.like.name}" if self.like else ""

    def is_of(self, record: Record) -> bool:
        """Whether a board that runs was started so."""
        return (self.layout_name, self.uboot_name) == (record.layout, record.uboot)

    def firmware(self) -> Path:
        """Return the U-Boot, built on first use.

        Raises:
            InfrastructureError: it cannot be fetched or built.
        """
        return built(self.like) if self.like else u_boot()

    def fitted(self, board: Board) -> Board:
        """Return the board with as much memory as the U-Boot's addresses need."""
        if self.like is None or board.qemu is None:
            return board
        size = memory_mib(self.like, board.qemu.memory_mib)
        qemu = msgspec.structs.replace(board.qemu, memory_mib=size)
        return msgspec.structs.replace(board, qemu=qemu)

    def kernel(self, board: Board, series: str) -> str:
        """Return the name of the kernel that is booted: one that needs no RAM disk, where there is none.

        Raises:
            UserError: the one that was asked for has what it needs as modules.
        """
        if self.layout is None or self.layout.initrd:
            return series
        if not is_build(series):
            return f"build:{_without_modules(board, series)}"
        from bsp.kernel.config.compare import read_config
        from bsp.kernel.select import kernel_named

        config = read_config(kernel_named(series).config)
        lacks = [
            each for each in ("VIRTIO_PCI", "VIRTIO_BLK", "EXT4_FS") if config.get(each) != "y"
        ]
        if lacks:
            raise UserError(
                f"--layout {self.layout.name} boots without a RAM disk; {series} does not have built in: "
                + ", ".join(f"CONFIG_{each}" for each in lacks),
                hint="leave --kernel out, or build it with --fragment virtual/layouts/builtin.config",
            )
        return series


def way_named(board: Board, layout: str, uboot: str) -> Way:
    """Return the way that ``--layout`` and ``--uboot`` stand for.

    Raises:
        UserError: there is no such layout or U-Boot, or QEMU's board has no bootloader.
    """
    chosen = layout_named(layout)
    uboot_name = uboot or (chosen.uboot if chosen else "")
    if (chosen or uboot_name) and not qemu_of(board).bootloader:
        raise UserError(
            f"QEMU starts the kernel of {board.name} itself: there is no U-Boot that reads a layout",
            hint="--board virtual, or --board virtual-a311d",
        )
    return Way(chosen, uboot_like(uboot_name) if uboot_name else None)


def _without_modules(board: Board, series: str) -> Path:
    """The folder of a kernel that has the disk's drivers built in; built on first use (ten minutes)."""
    from bsp.kernel.compile import KernelRequest, build_kernel, prepare

    digest = hashlib.sha256(f"{board.name}\0{packaged(series, image=False)}".encode())
    fragments = (PROJECT / "bsp/kernel/fragments").glob("*.config")
    for path in (BUILT_IN, *sorted(fragments)):
        digest.update(path.read_bytes())
    folder = cache_dir() / "kernels"
    folder.mkdir(parents=True, exist_ok=True)
    stamp = folder / f"no-ram-disk-{board.name}-{digest.hexdigest()[:16]}"

    def make(target: Path) -> None:
        folder_of_build = build_kernel(prepare(KernelRequest(board, series, fragments=(BUILT_IN,))))
        write_atomically(target, str(folder_of_build).encode())

    folder_of_build = Path(make_once(stamp, make).read_text())
    if not folder_of_build.is_dir():
        stamp.unlink()
        folder_of_build = Path(make_once(stamp, make).read_text())
    return folder_of_build
