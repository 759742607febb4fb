# SPDX-License-Identifier: MIT
"""Virtual boards: QEMU machines with a real bootloader, Debian and OpenSSH."""

from __future__ import annotations

import os
import sys

from invoke.context import Context

from bsp.base.result import Result

from .face.command import command, session
from .face.flags import BOARD

_VIRTUAL = "name of the virtual board (default: the board's)"


@command(
    help={
        "board": f"{BOARD}; default: virtual",
        "name": "name of the virtual board; several run side by side (default: the board's)",
        "port": "port on 127.0.0.1 for SSH (default: a free one)",
        "kernel": "series of the distribution's kernel (default: the profile's)",
        "watchdog": "give it a hardware watchdog that resets it when its kernel hangs",
        "dtb": "device tree, for boards that QEMU starts without a bootloader",
        "disk": "boot from a copy of this image (of build-image, or a flashed one)",
        "identity": "private key that logs in to --disk (default: the image's)",
        "extra-disk": "attach this file as a second, writable disk; FILE:SIZE creates it",
        "layout": "give it the disk layout of another distribution: armbian, extlinux-ext4, extlinux-fat, "
        "grub-efi, yocto, toradex (default: npu-bsp, as our images are)",
        "uboot": "a U-Boot with the commands and addresses that BOARD's has (like:khadas-vim3, "
        "like:imx8mp_evk)",
        "record": "write a trace of its NPU's jobs to this file (npu.show, npu.replay)",
        "timeout": "seconds until it must answer over SSH",
        "dry-run": "say what would be done",
    }
)
def up(
    _: Context,
    board: str = "virtual",
    name: str = "",
    port: int = 0,
    kernel: str = "",
    disk: str = "",
    identity: str = "",
    extra_disk: str = "",
    watchdog: bool = False,
    layout: str = "",
    uboot: str = "",
    dtb: str = "",
    record: str = "",
    timeout: float = 300.0,
    dry_run: bool = False,
) -> Result:
    """Start a virtual board, and wait until it answers. Example: ./inv virtual.up."""
    from pathlib import Path

    from virtual.boards import boards as virtual_boards

    if dry_run:
        return virtual_boards.plan_up(board, name=name or None, layout=layout, uboot=uboot)
    return virtual_boards.up(
        board,
        name=name or None,
        port=port or None,
        disk=Path(disk) if disk else None,
        identity=Path(identity) if identity else None,
        extra_disk=extra_disk or None,
        watchdog=watchdog,
        layout=layout,
        uboot=uboot,
        kernel=kernel or None,
        dtb=Path(dtb) if dtb else None,
        record=Path(record) if record else None,
        timeout_s=timeout,
    )


@command(
    help={
        "name": _VIRTUAL,
        "board": "board profile, for a virtual board that was started without --name",
        "timeout": "seconds to wait for a clean end before QEMU is ended",
        "dry-run": "say what would be done",
    }
)
def down(
    _: Context,
    name: str = "",
    board: str = "virtual",
    timeout: float = 60.0,
    dry_run: bool = False,
) -> Result:
    """Shut a virtual board down and remove it. Example: ./inv virtual.down."""
    from virtual.boards import boards as virtual_boards

    return virtual_boards.down(name or board, timeout_s=timeout, dry_run=dry_run)


@session(
    help={
        "name": _VIRTUAL,
        "board": "board profile, for a virtual board that was started without --name",
        "command": "run this there instead of a shell",
    }
)
def ssh(_: Context, name: str = "", board: str = "virtual", command: str = "") -> int:
    """Log in to a virtual board. Example: ./inv virtual.ssh --command 'uname -a'."""
    from virtual.boards import boards as virtual_boards

    words = virtual_boards.ssh_command(name or board, command)
    sys.stdout.flush()
    os.execv(words[0], words)  # noqa: S606 # this terminal becomes the board's


@command(help={}, name="list")
def list_virtual(_: Context) -> Result:
    """List the virtual boards that are up. Example: ./inv virtual.list."""
    from virtual.boards import boards as virtual_boards

    return virtual_boards.listed()
