# SPDX-License-Identifier: MIT
"""Disks that the user brings for a virtual board: an image to boot from, a second one to write to."""

from __future__ import annotations

import re
from pathlib import Path

from bsp.base.errors import UserError
from bsp.profile import Board
from bsp.qemu.machine import qemu_of
from images.disk import Disk
from images.disk.image import parse_size, read_description
from images.flash.source import refuse_no_disk

_HOST_KEY = re.compile(rb"npu-bsp: host key (ssh-ed25519 [A-Za-z0-9+/]+=*)\s")


def own_disk(image: Path, identity: Path | None, board: Board) -> tuple[Disk, str]:
    """Return an image of the user's as a disk to boot from, and the kernel that it says it has.

    Raises:
        UserError: it is not there, not a disk's image or another board's, or no key that logs in is known.
    """
    if not image.is_file():
        raise UserError(f"there is no disk image {image}", hint="./inv build-image --board B")
    if not qemu_of(board).bootloader:
        raise UserError(
            f"QEMU's {board.name} has no bootloader to read a disk image with",
            hint="--board virtual boots images through U-Boot",
        )
    refuse_no_disk(image)
    described = read_description(image)
    if described and described.compatible[0] != board.compatible[0]:
        raise UserError(
            f"{image} is for {described.board} ({described.compatible[0]}), the virtual board is "
            f"{board.name} ({board.compatible[0]})",
            hint=f"--board {described.board}",
        )
    chosen = identity or (
        Path(described.identity_file) if described and described.identity_file else None
    )
    if chosen is None or not chosen.is_file():
        raise UserError(
            f"there is no private key to log in to {image} with: {chosen or 'none is known'}",
            hint="--identity FILE",
        )
    disk = Disk(
        image=image.absolute(),
        identity_file=chosen.absolute(),
        host_key=(described.host_key if described else None) or "",
        boot=image.parent,
        cmdline="",
    )
    return disk, (described.kernel_release if described else None) or "of its disk"


def prepare_extra(text: str) -> Path:
    """Return the file of a second disk, made where a size is given and it is not there.

    Raises:
        UserError: it is not there and no size is given, or it has another one.
    """
    name, colon, size = text.rpartition(":")
    if not colon:
        path = Path(text)
        if not path.is_file():
            raise UserError(f"there is no disk {path}", hint=f"--extra-disk {text}:4G makes it")
        return path.absolute()
    path, size_bytes = Path(name), parse_size(size)
    if path.exists() and path.stat().st_size != size_bytes:
        raise UserError(
            f"{path} is there and has {path.stat().st_size} bytes, expected {size_bytes}",
            hint=f"--extra-disk {name}, or another file",
        )
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            file.truncate(size_bytes)
    return path.absolute()


def key_on_console(console_log: Path) -> str | None:
    """The host key that a board of ours has printed on its console; the last one, None if there is none."""
    try:
        keys = _HOST_KEY.findall(console_log.read_bytes())
    except FileNotFoundError:
        return None
    return keys[-1].decode() if keys else None
