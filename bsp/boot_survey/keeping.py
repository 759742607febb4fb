# SPDX-License-Identifier: MIT
"""How a device tree that was tried is kept, in the way that the distribution itself keeps one. Pure.

These are places that kernel updates of the distribution leave alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Literal

from .facts import BootFacts
from .layout import Layout
from .owners import Owner
from .problems import script_settings

Keeper = Literal["", "armbian", "dietpi", "toradex", "u-boot-menu", "grub", "flash-kernel"]
"""What can be told to keep a device tree by ``deploy --try --persist``; "": nothing."""
_OF_OVERLAYS = ("armbian", "dietpi", "toradex")

_FAT_WAY = "or let npu-bsp keep it: ./inv deploy --host {host} --adopt --dtb-only"


def keeper_of(facts: BootFacts, layout: Layout) -> Keeper:
    """Return what of the distribution's can be told to keep a device tree."""
    # With a fitImage the names are those of its configurations: with one that it has not nothing boots.
    beside = facts.folders.get("/boot", ())
    images = any(name.startswith("Image") for name in beside) and "fitImage" not in beside
    if layout.name == "toradex" and layout.first == "/boot/boot.scr" and images:
        return "toradex"
    by_settings: dict[str, Keeper] = {
        "/boot/armbianEnv.txt": "armbian",
        "/boot/dietpiEnv.txt": "dietpi",
    }
    by_script = by_settings.get(script_settings(facts, layout))
    if by_script and _restores_the_tree(facts.files.get(layout.first, "")):
        return by_script
    # As grub-mkconfig writes it with 41_custom.
    if layout.name == "grub-efi" and "custom.cfg" in facts.files.get("/boot/grub/grub.cfg", ""):
        return "grub"
    whole = facts.mount_of("/boot") == facts.mount_of("/")
    # The head of each file that it writes names it; one by hand would be overwritten.
    menus = "u-boot-update" in facts.programs and "u-boot-update" in facts.files.get(
        layout.first, ""
    )
    on = facts.setting("/etc/default/u-boot", "U_BOOT_UPDATE") != "false"
    if layout.name == "extlinux-ext4" and whole and menus and on:
        return "u-boot-menu"
    if layout.name == "script-ext4" and "flash-kernel" in facts.programs:
        return "flash-kernel"
    return ""


def _restores_the_tree(script: str) -> bool:
    """Whether a boot script loads the tree again after an overlay that failed; else nothing boots then.

    As Armbian's do, but for A733, mvebu and H616; in Orange Pi's for RK3588 that is commented out.
    """
    failed = r'(?m)^[ \t]*if test "\$\{overlay_error\}" = "?true"? *; then\n'
    loads_again = r"(?:[^\n]*\n){0,6}?\s*(?:if )?load "
    return not script or bool(re.search(failed + loads_again, script))


def keeps_overlay(keeper: Keeper, overlays: Sequence[str]) -> bool:
    """Return whether an overlay of what was changed is kept; else a whole tree is.

    u-boot-menu names overlays beside any tree: one that ran has them already, and would get them twice.

    Args:
        overlays: those that the boot files name.
    """
    return keeper in _OF_OVERLAYS or (keeper == "u-boot-menu" and bool(overlays))


def how_to_keep(
    layout: Layout,
    host: str,
    keeper: Keeper = "",
    overlays: Sequence[str] = (),
    owner: Owner | None = None,
) -> str:
    """Return what to type, so that a device tree that was tried stays; in words.

    Args:
        overlays: those that the boot files name.
        owner: the system that decides what boots there.
    """
    if owner:
        return (
            "the next reset ends in the system as it was. To keep it, give it to what decides what boots "
            f"there ({owner.system}): {owner.instead}"
        )
    if keeper:
        return (
            f"the next reset ends in the system as it was. To have {keeper} keep it: ./inv deploy --host "
            f"{host} --try --persist"
        )
    folder = layout.first.rpartition("/")[0] or "/boot"
    extlinux = _in_extlinux(layout, overlays) if layout.name.startswith("extlinux") else ""
    script = (
        "with flash-kernel: the tree in /etc/flash-kernel/dtbs, then `flash-kernel`; with a script like "
        "Armbian's: an overlay as overlay-user/npu.dtbo, and user_overlays=npu, if boot.cmd restores the "
        "tree after an overlay that failed (Orange Pi's does not: nothing boots then)"
    )
    ways = {
        "armbian": (
            f"an overlay of `build-dts --from-host --overlay`, as overlay-user/npu.dtbo in {folder}, and "
            f"user_overlays=npu in {folder}/armbianEnv.txt"
        ),
        "extlinux-ext4": extlinux,
        "extlinux-fat": extlinux,
        "script-ext4": script,
        "script-fat": script,
        "grub-efi": (
            "the tree in /boot and a `devicetree` line in custom.cfg beside grub.cfg "
            "(/boot/grub/custom.cfg, or grub2), or in its entry in /boot/loader/entries"
        ),
        "systemd-boot": f"the tree on the ESP and a `devicetree` line in its entry{_without(overlays)}",
        "toradex": (
            f"an overlay in {folder}/overlays, named in {folder}/overlays.txt (fdt_overlays=); where a "
            "fitImage boots it, in that image alone"
        ),
        "yocto": f"the tree in {folder} in place of the one that U-Boot loads (fdtfile)",
        "npu-bsp": f"./inv deploy --host {host} --dtb-only",
    }
    kept = ways.get(layout.name, "by whatever names its device tree today")
    if layout.is_fat and layout.name != "npu-bsp":
        kept = f"{kept}; {_FAT_WAY.format(host=host)}"
    return f"the next reset ends in the system as it was. To keep it: {kept}"


def _without(overlays: Sequence[str]) -> str:
    names = " ".join(overlays)
    return f", without {names}, which the tree that ran has already" if overlays else ""


def _in_extlinux(layout: Layout, overlays: Sequence[str]) -> str:
    """Return what extlinux.conf has to say: of a tree, or of one overlay more where it names some."""
    folder = PurePosixPath(layout.first).parent.parent
    if overlays:
        return (
            "an overlay of `build-dts --from-host --overlay`, beside the others and as the last name of "
            f"`fdtoverlays` in {layout.first} (a whole tree would get {' '.join(overlays)} twice)"
        )
    mount = layout.mount.place.rstrip("/") if layout.mount else ""
    tree = f"{folder}/npu.dtb"
    menu = (
        ""
        if layout.is_fat
        else "; with u-boot-menu: U_BOOT_FDT in /etc/default/u-boot, then `u-boot-update`"
    )
    return f"the tree at {tree} and `fdt {tree.removeprefix(mount)}` in {layout.first}{menu}"
