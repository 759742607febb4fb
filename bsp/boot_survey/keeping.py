# SPDX-License-Identifier: MIT
"""How a device tree that was tried is kept, in the way that the distribution itself keeps one. Pure.

These are places that kernel updates of the distribution leave alone.
"""

from __future__ import annotations

from typing import Literal

from .facts import BootFacts
from .layout import Layout

Keeper = Literal["", "armbian", "toradex", "u-boot-menu", "grub", "flash-kernel"]
"""What can be told to keep a device tree by ``deploy --try --persist``; "": nothing."""
OF_OVERLAYS = ("armbian", "toradex")
"""Those that keep an overlay of what was changed; the others keep a whole tree."""

_FAT_WAY = "or let npu-bsp keep it: ./inv deploy --host {host} --adopt, then --dtb-only"


def keeper_of(facts: BootFacts, layout: Layout) -> Keeper:
    """Return what of the distribution's can be told to keep a device tree."""
    if layout.name in ("armbian", "toradex") and layout.first == "/boot/boot.scr":
        return layout.name
    # As grub-mkconfig writes it with 41_custom.
    if layout.name == "grub-efi" and "custom.cfg" in facts.files.get("/boot/grub/grub.cfg", ""):
        return "grub"
    whole = facts.mount_of("/boot") == facts.mount_of("/")
    if layout.name == "extlinux-ext4" and whole and "u-boot-update" in facts.programs:
        return "u-boot-menu"
    if layout.name == "script-ext4" and "flash-kernel" in facts.programs:
        return "flash-kernel"
    return ""


def how_to_keep(layout: Layout, host: str, keeper: Keeper = "") -> str:
    """Return what to type, so that a device tree that was tried stays; in words."""
    if keeper:
        return (
            f"the next reset ends in the system as it was. To have {keeper} keep it: ./inv deploy --host "
            f"{host} --try --persist"
        )
    folder = layout.first.rpartition("/")[0] or "/boot"
    ways = {
        "armbian": (
            f"an overlay of `build-dts --from-host --overlay`, as overlay-user/npu.dtbo in {folder}, and "
            f"user_overlays=npu in {folder}/armbianEnv.txt"
        ),
        "extlinux-ext4": (
            f"the tree at {folder}/../npu.dtb and `fdt /boot/npu.dtb` in {layout.first}; with u-boot-menu: "
            "U_BOOT_FDT in /etc/default/u-boot, then `u-boot-update`"
        ),
        "extlinux-fat": f"the tree beside the kernel and an `fdt` line in {layout.first}",
        "script-ext4": "with flash-kernel: the tree in /etc/flash-kernel/dtbs, then `flash-kernel`",
        "script-fat": "with flash-kernel: the tree in /etc/flash-kernel/dtbs, then `flash-kernel`",
        "grub-efi": "the tree in /boot and a `devicetree` line in /boot/grub/custom.cfg",
        "systemd-boot": "the tree on the ESP and a `devicetree` line in its entry",
        "toradex": f"an overlay in {folder}/overlays, named in {folder}/overlays.txt (fdt_overlays=)",
        "yocto": f"the tree in {folder} in place of the one that U-Boot loads (fdtfile)",
        "npu-bsp": f"./inv deploy --host {host} --dtb-only",
    }
    kept = ways.get(layout.name, "by whatever names its device tree today")
    if layout.is_fat and layout.name != "npu-bsp":
        kept = f"{kept}; {_FAT_WAY.format(host=host)}"
    return f"the next reset ends in the system as it was. To keep it: {kept}"
