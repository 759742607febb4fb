# SPDX-License-Identifier: MIT
"""Bundles: what is deployed, as one signed unit; and lock files of their inputs."""

from __future__ import annotations

from invoke.context import Context

from bsp.base.result import Result

from .face.command import command
from .face.flags import BOARD, FORCE_ENABLE, MESA


@command(
    help={
        "board": BOARD,
        "kernel": "series of the distribution's kernel, or build:ID (default: the profile's)",
        "dtb": "use this DTB unchanged instead of the one that build-dts makes",
        "mesa": MESA,
        "force-enable": FORCE_ENABLE,
        "output": "folder for the bundle (default: the cache; RAUC: the file build/BOARD.raucb)",
        "key": "sign with this private key (default: yours, made on first use)",
        "verify": "make none: verify this bundle's manifest, signature and every file's hash",
        "sign": "make none: sign this bundle",
        "reproduce": "make it twice, in different folders and at different times, and compare the bytes",
        "format": "npu-bsp, or rauc: a whole root for a device with A/B slots",
        "rauc-cert": "certificate to sign a RAUC bundle with (default: one for development, made here)",
        "rauc-key": "the private key of --rauc-cert",
        "rauc-keyring": "certificates that the device trusts (default: that of --rauc-cert)",
        "rauc-system": "the device's system.conf (default: slots rootfs-a and rootfs-b)",
        "ssh-key": "with --format rauc: public key that may log in as root (default: your usual one)",
        "dry-run": "with --format rauc: check the arguments; make nothing",
    }
)
def bundle(
    _: Context,
    board: str = "",
    kernel: str = "",
    dtb: str = "",
    mesa: str = "",
    force_enable: bool = False,
    output: str = "",
    key: str = "",
    verify: str = "",
    sign: str = "",
    reproduce: bool = False,
    format: str = "npu-bsp",
    rauc_cert: str = "",
    rauc_key: str = "",
    rauc_keyring: str = "",
    rauc_system: str = "",
    ssh_key: str = "",
    dry_run: bool = False,
) -> Result:
    """Make what deploy sends: kernel, device tree, userspace. Example: ./inv bundle --board vim3."""
    from images.bundle import command

    flags = command.BundleFlags(kernel, dtb, mesa, key, force_enable)
    rauc = command.RaucFlags(rauc_cert, rauc_key, rauc_keyring, rauc_system, ssh_key, dry_run)
    command.check_format(format, rauc, alone=bool(verify or sign or reproduce))
    if verify:
        return command.verify(verify)
    if sign:
        return command.sign(sign, key)
    if reproduce:
        return command.reproduce(board, flags)
    if format == "rauc":
        return command.make_rauc(board, rauc, flags, output=output)
    return command.make(board, flags, output=output)


@command(
    help={
        "board": BOARD,
        "kernel": "series of the distribution's kernel, or build:ID (default: the profile's)",
        "update": "take the newest versions, and show what changed",
        "file": "lock file (default: build/BOARD.lock.json)",
        "dry-run": "show what would be written",
    }
)
def lock(
    _: Context,
    board: str,
    kernel: str = "",
    update: bool = False,
    file: str = "",
    dry_run: bool = False,
) -> Result:
    """Record version and hash of all inputs of a bundle. Example: ./inv lock --board vim3."""
    from bsp.catalog import load_board
    from images.bundle import lock as locks

    return locks.lock(
        load_board(board), kernel=kernel or None, file=file, update=update, dry_run=dry_run
    )
