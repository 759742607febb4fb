# SPDX-License-Identifier: MIT
"""Disk images: built, and written to storage."""

from __future__ import annotations

from typing import Any

from invoke.context import Context

from bsp.base.result import Answer, Result

from .face.command import command
from .face.flags import BOARD, FORCE_ENABLE, HOST


@command(
    help={
        "board": BOARD,
        "bundle": "folder that ./inv bundle made (default: one is made for the board)",
        "kernel": "series of the distribution's kernel (default: the profile's)",
        "distribution": "trixie or bookworm (default: the profile's)",
        "package": "additional Debian package to install; may be repeated",
        "hostname": "name of the board (default: npu-BOARD)",
        "ssh-key": "public key that may log in as root (default: your usual one)",
        "host-key": "the board's own private key, so that it survives flashing (ed25519)",
        "bootloader": "bootloader to write where the SoC's boot ROM looks for it (default: none: the "
        "board has its own)",
        "size": "size of the disk: 4G, 3800M",
        "force-enable": FORCE_ENABLE,
        "output": "the image (default: build/images/BOARD.img)",
        "dry-run": "say what would be built; write nothing",
    },
    iterable=["package"],
)
def build_image(
    _: Context,
    board: str,
    bundle: str = "",
    kernel: str = "",
    distribution: str = "",
    package: Any = (),
    hostname: str = "",
    ssh_key: str = "",
    host_key: str = "",
    bootloader: str = "",
    size: str = "4G",
    force_enable: bool = False,
    output: str = "",
    dry_run: bool = False,
) -> Result:
    """Build a bootable disk image. Example: ./inv build-image --board vim3 --ssh-key ~/.ssh/id.pub."""
    from pathlib import Path

    from bsp.catalog import load_board
    from images.disk import image, image_report

    def path(name: str) -> Path | None:
        return Path(name).expanduser() if name else None

    built_image = image.build_image(
        image.ImageRequest(
            board=load_board(board),
            bundle=path(bundle),
            kernel=kernel or None,
            distribution=distribution or None,
            packages=tuple(package),
            hostname=hostname or None,
            ssh_key=path(ssh_key),
            host_key=path(host_key),
            bootloader=path(bootloader),
            size=size,
            output=path(output),
            force_enable=force_enable,
        ),
        dry_run=dry_run,
    )
    return Answer(built_image.document(), image_report.text_of(built_image))


@command(
    help={
        "device": "block device to write to: /dev/mmcblk1, /dev/sdb",
        "image": "image of a disk, also .xz .zst .gz .bz2; the block map beside it is used",
        "host": f"where the device is: {HOST}; this machine if left out",
        "board": "refuse if the host is not this board (default: what the image says)",
        "any-device": "also accept devices that cannot be removed from this machine, and plain files",
        "raw": "write the image even if it holds no disk with a partition table",
        "timeout": "seconds that the board may take to answer",
        "accept-new-key": "on first contact, trust the host's key without asking",
        "yes": "do not ask before overwriting the device",
        "dry-run": "say what would be written where; write nothing",
    }
)
def flash(
    _: Context,
    device: str,
    image: str,
    host: str = "",
    board: str = "",
    any_device: bool = False,
    raw: bool = False,
    timeout: float = 60.0,
    accept_new_key: bool = False,
    yes: bool = False,
    dry_run: bool = False,
) -> Result:
    """Write an image to storage. Example: ./inv flash --host vim3 --device /dev/mmcblk1 --image F."""
    from pathlib import Path

    from bsp.catalog import load_board
    from bsp.remote.inventory import resolve
    from images.flash import command, show

    result = command.flash(
        command.FlashRequest(
            device=device,
            image=Path(image).expanduser(),
            host=resolve(host) if host else None,
            board=load_board(board) if board else None,
            any_device=any_device,
            raw=raw,
            accept_new_key=accept_new_key,
            timeout_s=timeout,
        ),
        dry_run=dry_run,
        yes=yes,
    )
    return Answer(result.document(), show.result_text(result))
