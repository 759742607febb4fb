# SPDX-License-Identifier: MIT
"""QEMU's own device tree, for boards that have no source for one: the base that is then patched."""

from __future__ import annotations

import hashlib
from pathlib import Path

from bsp.base.cache import cache_dir, make_once
from bsp.base.errors import InfrastructureError, UserError
from bsp.base.process import run
from bsp.dts.overlay import compiled_overlay, merge
from bsp.profile import Board

from . import npu
from .emulator import emulator, u_boot
from .machine import machine_arguments, qemu_of


def base_dtb(board: Board) -> Path:
    """Return the device tree that QEMU describes the board's machine with, cached; or the profile's own.

    Started with the same firmware as the board: without it QEMU describes a GPIO controller that the
    machine then does not have. Random seeds are left out, so that the same machine gives the same bytes.
    A virtual NPU's node is added, switched off.

    Raises:
        UserError: QEMU has no such machine.
        InfrastructureError: QEMU failed.
    """
    if board.dtb is not None:
        return Path(board.dtb)
    if board.qemu is None:
        raise UserError(
            f"the profile of {board.name} names no device tree: neither a source in the kernel (dts) nor a "
            "file (dtb)",
            hint="name one of them in the profile; or give a tree with --base-dtb FILE",
        )
    qemu = qemu_of(board)
    qemu_version = emulator().version
    words = machine_arguments(board, dtb_randomness=False)
    words[1] += ",dumpdtb={target}"
    if qemu.bootloader:
        words += ["-bios", str(u_boot())]
    overlay = npu.node_source(board)
    described = [qemu_version, *words, *([overlay] if overlay else [])]
    key = hashlib.sha256("\0".join(described).encode()).hexdigest()[:16]
    folder = cache_dir() / "dtbs"
    folder.mkdir(parents=True, exist_ok=True)

    def make(target: Path) -> None:
        command = [*emulator().command("qemu-system-aarch64"), "-L", str(emulator().data)]
        options = [word.replace("{target}", str(target)) for word in words]
        run([*command, *options, "-nodefaults", "-display", "none"], timeout_s=60)
        if not target.exists():
            raise InfrastructureError(f"QEMU {qemu_version} wrote no device tree for {board.name}")
        if overlay:
            bare = target.with_suffix(".qemu")
            target.rename(bare)
            merge(bare, compiled_overlay(overlay), target)

    return make_once(folder / f"{board.name}-{key}.dtb", make)
