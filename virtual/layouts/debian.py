# SPDX-License-Identifier: MIT
"""Layouts that Debian's own packages make: its kernel, initramfs-tools, and u-boot-menu or GRUB.

The packages are installed into the root file system with the settings that an administrator would give
them; what they write below ``/boot`` is what boots. An update of the kernel writes it anew.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from bsp.base.errors import InfrastructureError
from bsp.base.packages.apt import Archive

from ..uboots.like import FDTFILE
from .parts import CONSOLE, Parts

ROOT_LABEL = "rootfs"

_MODULES = "virtio_pci\nvirtio_blk\nvirtio_net\next4\n"
_GRUB = "usr/lib/grub/arm64-efi/monolithic/grubaa64.efi"


def extlinux(parts: Parts, boot: Path, root: Path) -> None:
    """u-boot-menu has written ``/boot/extlinux/extlinux.conf`` when the kernel was installed."""


def extlinux_settings(parts: Parts) -> Mapping[str, bytes]:
    """Settings of u-boot-menu and initramfs-tools, and the board's tree beside the kernel's own trees."""
    lines = (
        f'U_BOOT_ROOT="root=LABEL={ROOT_LABEL}"',
        f'U_BOOT_PARAMETERS="rw rootwait {CONSOLE} panic=10"',
        f'U_BOOT_FDT="{FDTFILE}"',
        'U_BOOT_FDT_DIR="/usr/lib/linux-image-"',
        'U_BOOT_TIMEOUT="10"',
    )
    return {
        **_initramfs(),
        "etc/u-boot-menu/conf.d/virtual.conf": "".join(f"{line}\n" for line in lines).encode(),
        f"usr/lib/linux-image-{parts.release}/{FDTFILE}": parts.dtb.read_bytes(),
    }


def grub(parts: Parts, boot: Path, root: Path) -> None:
    """What ``grub-install --removable`` puts on the EFI system partition; a first ``grub.cfg``.

    GRUB asks the block device that its file system is on, so its own ``update-grub`` cannot run before the
    board does; from then on it writes ``/boot/grub/grub.cfg`` anew whenever a kernel is installed.
    """
    package = "grub-efi-arm64-unsigned"
    program = Archive("trixie", "arm64").unpacked([package]) / _GRUB
    if not program.is_file():
        raise InfrastructureError(f"{package} has no {_GRUB}")
    for name in ("EFI/BOOT", "EFI/debian"):
        (boot / name).mkdir(parents=True)
    shutil.copyfile(program, boot / "EFI/BOOT/BOOTAA64.EFI")
    shutil.copyfile(program, boot / "EFI/debian/grubaa64.efi")
    (boot / "EFI/debian/grub.cfg").write_text(
        f"search.fs_uuid {parts.root} root\n"
        "set prefix=($root)'/boot/grub'\n"
        "configfile $prefix/grub.cfg\n"
    )
    folder = root / "boot/grub"
    folder.mkdir(parents=True)
    if parts.initrd:  # on a root where no package of the kernel's has put them there
        shutil.copyfile(parts.kernel.image, root / f"boot/vmlinuz-{parts.release}")
        shutil.copyfile(parts.initrd, root / f"boot/initrd.img-{parts.release}")
    (folder / "grub.cfg").write_text(
        "set timeout=1\n"
        "menuentry 'Debian GNU/Linux' {\n"
        f"\tsearch --no-floppy --fs-uuid --set=root {parts.root}\n"
        f"\tlinux /boot/vmlinuz-{parts.release} root=UUID={parts.root} rw {CONSOLE} panic=10\n"
        f"\tinitrd /boot/initrd.img-{parts.release}\n"
        "}\n"
    )


def grub_settings(parts: Parts) -> Mapping[str, bytes]:
    """Settings of GRUB and initramfs-tools."""
    lines = (
        "GRUB_TIMEOUT=1",
        "GRUB_TERMINAL=console",
        f'GRUB_CMDLINE_LINUX="rw {CONSOLE} panic=10"',
        "GRUB_DISABLE_OS_PROBER=true",
    )
    return {
        **_initramfs(),
        "etc/default/grub.d/virtual.cfg": "".join(f"{line}\n" for line in lines).encode(),
    }


def _initramfs() -> Mapping[str, bytes]:
    """Only the modules that the board's disk needs: the RAM disk is made under emulation."""
    return {
        "etc/initramfs-tools/conf.d/virtual": b"MODULES=list\nCOMPRESS=gzip\n",
        "usr/share/initramfs-tools/modules.d/virtual": _MODULES.encode(),
    }
