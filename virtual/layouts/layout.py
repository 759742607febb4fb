# SPDX-License-Identifier: MIT
"""The layouts that there are: partition table, file systems, where what lies, which U-Boot boots it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bsp.base.errors import UserError, nearest
from images.disk.layout import MIB

from . import debian, foreign
from .parts import Parts

OURS = "npu-bsp"
"""The layout of our own images, which is not built here."""


@dataclass(frozen=True)
class Fat:
    """A FAT boot partition.

    Attributes:
        mount: where the system mounts it.
        esp: whether the partition table calls it an EFI system partition.
    """

    size_bytes: int
    bits: Literal[16, 32]
    label: str
    mount: str
    esp: bool = False


@dataclass(frozen=True)
class Layout:
    """How somebody else's image is laid out.

    Attributes:
        about: whose images are so, in words.
        start_bytes: where the first partition begins; the room before it is for bootloaders.
        fat: None where the root file system holds ``/boot``.
        root_label: label of the root file system.
        initrd: whether it boots with an initial RAM disk.
        uboot: what boots it by default: ``like:BOARD``, or nothing for the distribution's.
        fill: writes what boots it into folders: the files of the boot partition (or below ``/boot``), and
            of the root file system.
        settings: files that the distribution's own packages read when they are installed.
        packages: the distribution's packages on it, beside those of every virtual board. Where there are
            ``settings``, they make it boot, and its kernel comes with them.
    """

    name: str
    about: str
    table: Literal["dos", "gpt"]
    start_bytes: int
    fat: Fat | None
    root_label: str
    initrd: bool
    uboot: str
    fill: Callable[[Parts, Path, Path], None]
    settings: Callable[[Parts], Mapping[str, bytes]] | None = None
    packages: tuple[str, ...] = ()


# Debian's U-Boot for QEMU has no fdt_addr_r, and leaves out what extlinux.conf says of a device tree.
_READS_FDT = "like:khadas-vim3"

LAYOUTS: Mapping[str, Layout] = {
    each.name: each
    for each in (
        Layout(
            "armbian",
            "Armbian: boot.scr and armbianEnv.txt below /boot of the only partition (ext4)",
            "dos", 4 * MIB, None, "armbi_root", True, "", foreign.armbian,
        ),
        Layout(
            "extlinux-ext4",
            "Debian with u-boot-menu: extlinux.conf below /boot of the only partition (ext4)",
            "gpt", 16 * MIB, None, "rootfs", True, _READS_FDT, debian.extlinux,
            debian.extlinux_settings, ("u-boot-menu", "initramfs-tools"),
        ),
        Layout(
            "extlinux-fat",
            "Khadas' fenix, LibreELEC, mainline Yocto: extlinux.conf on a FAT partition",
            "dos", 16 * MIB, Fat(256 * MIB, 16, "BOOT", "/boot"), "ROOTFS", True, _READS_FDT,
            foreign.extlinux_fat,
        ),
        Layout(
            "grub-efi",
            "Debian, Fedora and others by EFI: GRUB on the EFI system partition",
            "gpt", 1 * MIB, Fat(256 * MIB, 32, "ESP", "/boot/efi", esp=True), "rootfs", True, "",
            debian.grub, debian.grub_settings, ("grub-efi-arm64", "initramfs-tools"),
        ),
        Layout(
            "yocto",
            "NXP's Yocto: Image and the device tree by name on a FAT partition, no RAM disk",
            "dos", 8 * MIB, Fat(256 * MIB, 32, "boot", "/run/media/boot-vda1"), "root", False,
            "like:imx8mp_evk", foreign.yocto,
        ),
        Layout(
            "toradex",
            "Toradex' BSP: boot.scr, overlays.txt and Image.gz on a FAT partition, no RAM disk",
            "dos", 4 * MIB, Fat(256 * MIB, 32, "BOOT", "/boot"), "RFS", False, "",
            foreign.toradex,
        ),
    )
}  # fmt: skip


def names() -> tuple[str, ...]:
    """Return the names of all layouts, ours first."""
    return (OURS, *LAYOUTS)


def layout_named(name: str) -> Layout | None:
    """Return a layout; None for our own.

    Raises:
        UserError: there is none of that name.
    """
    if name in ("", OURS):
        return None
    layout = LAYOUTS.get(name)
    if layout is None:
        raise UserError(
            f"there is no layout {name!r}{nearest(name, list(names()))}",
            hint="--layout " + " | ".join(names()),
        )
    return layout
