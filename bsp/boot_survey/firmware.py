# SPDX-License-Identifier: MIT
"""What starts a board, and whether that runs a script image named ``boot.scr``. Pure."""

from __future__ import annotations

import re

from ..uboot import UBoot
from .facts import BootFacts
from .layout import Layout

_FIT = "\ufffd\r\ufffd\ufffd"
"""A FIT's first bytes, d00dfeed, as the text that the facts have of a file."""
_STANDARD = re.compile(r"\bdistro_bootcmd\b|\bbootflow scan\b|\bscan_dev_for_scripts\b")
_OF_DISTRO = {"boot_scripts=", "scan_dev_for_scripts"}
_RUN = re.compile(r"\brun\s+([\w ]+)")
# Source: U-Boot v2018.09 and v2018.11, fs/fat/fat_write.c (split_filename is new in the latter).
_WRITES_IN_FOLDERS = (2018, 11)
# Source: configs/ of rockchip-linux/u-boot (rk3588), radxa/u-boot (rock-5b-rk3588) and
# orangepi-xunlong/u-boot-orangepi (orangepi_5); Armbian's vendor branch builds Radxa's.
_ROCKCHIPS = (2017, 9)


def runs_no_scripts(facts: BootFacts, layout: Layout, uboot: UBoot | None) -> str:
    """Return why what starts the board would not run a ``boot.scr`` of ours; "" if nothing says so."""
    if facts.chosen.barebox:
        return "barebox starts this board, and it runs no boot.scr"
    others = facts.firmware if "u-boot" not in facts.firmware.lower() else ""
    if facts.efi and others and not facts.chosen.uboot:
        return f"the EFI firmware of {facts.firmware} starts this board: no U-Boot, so no boot.scr"
    if "cros_secure" in facts.cmdline.split():
        return "a Chromebook's firmware (depthcharge) starts this board, and it runs no boot.scr"
    if uboot is not None and not uboot.legacy_scripts:
        return f"U-Boot's {uboot.name} runs no script images (boot.scr)"
    own_place = layout.mount.place.rstrip("/") if layout.mount else ""
    name = layout.first.lower().removeprefix(own_place)
    if own_place and re.fullmatch(r"/boot/boot\.scr(\.uimg)?", name):
        return (
            f"{layout.first} boots this board from a folder of its partition; a boot.scr of ours above it "
            "would be the only one that `bootflow scan` looks at"
        )
    if facts.files.get(layout.first, "").startswith(_FIT):
        return (
            f"{layout.first} is a FIT: whether this U-Boot also runs script images of the older form, as "
            "npu-bsp's is, is not known"
        )
    return ""


def spends_no_trial(facts: BootFacts, way: str) -> str:
    """Return why a U-Boot as old as this one cannot mark a trial as spent; "" if it may.

    Args:
        way: fat or raw.
    """
    versions = [facts.chosen.uboot] if facts.chosen.uboot else list(facts.bootloader_versions)
    numbers = [_number(version) for version in versions]
    name = versions[0].removeprefix("U-Boot").strip() if versions else ""
    rockchip = any(each.startswith("rockchip,") for each in facts.compatible)
    if rockchip and numbers and set(numbers) == {_ROCKCHIPS}:
        return f"Rockchip's own U-Boot, {name}, is built without itest, by which a trial is seen"
    if way != "fat" or not numbers or any(number >= _WRITES_IN_FOLDERS for number in numbers):
        return ""
    return f"U-Boot {name} writes to FAT in the root folder only (U-Boots before 2018.11 do)"


def _number(version: str) -> tuple[int, int]:
    digits = re.search(r"(20\d\d)\.(\d\d)", version)
    return (int(digits[1]), int(digits[2])) if digits else _WRITES_IN_FOLDERS


def has_no_sysboot(facts: BootFacts, uboot: UBoot | None, *, assured: bool) -> str:
    """Return why this U-Boot may be unable to go on with an extlinux.conf under another name; "" if it can.

    By ``distro_bootcmd`` that is how it boots one today; ``bootflow scan`` needs no command for it.

    Args:
        assured: somebody who knows the board says that our script is a way there.
    """
    if uboot is not None:
        return f"U-Boot's {uboot.name} has no sysboot" if "sysboot" in uboot.lacks else ""
    variables = facts.variables or {}
    by_distro = "boot_extlinux" in variables and "bootflow scan" not in variables.get("bootcmd", "")
    if assured or by_distro or _OF_DISTRO.intersection(facts.bootloader_words):
        return ""
    return "whether its U-Boot has sysboot is not known"


def loads_image_unknown(facts: BootFacts, uboot: UBoot | None, *, assured: bool) -> str:
    """Return why our script may be unable to go on with an ``Image`` that is loaded by name; "" if it can.

    Commands that look for a boot script first load nothing else once there is one: our script then runs
    ``loadimage`` and ``mmcboot`` of NXP's and many others' environments (images/deploy/boot/boot.cmd).
    """
    variables = facts.variables or {}
    known = {"loadimage", "mmcboot"} <= set(variables) or facts.bootloader_loads_image
    if assured or known or (uboot is not None and uboot.image_by_name):
        return ""
    return (
        "which of its commands load Image is not known: where a boot script takes its place, nothing would "
        "boot this board after a first trial that failed"
    )


def own_bootcmd(facts: BootFacts) -> str:
    """Return U-Boot's ``bootcmd`` where it is not the standard boot, which looks for scripts; else ""."""
    variables = facts.variables or {}
    bootcmd = variables.get("bootcmd", "")
    if not bootcmd:
        return ""
    text = _expanded(bootcmd, variables)
    scan = variables.get("scan_dev_for_boot")
    scans_scripts = scan is None or "scan_dev_for_scripts" in scan or "bootflow scan" in text
    return "" if _STANDARD.search(text) and scans_scripts else bootcmd


def _expanded(command: str, variables: dict[str, str]) -> str:
    """Return a command with the texts of the variables behind it that it runs."""
    texts, waiting = [], [command]
    names: set[str] = set()
    while waiting:
        text = waiting.pop()
        texts.append(text)
        for name in " ".join(_RUN.findall(text)).split():
            if name not in names and name in variables:
                names.add(name)
                waiting.append(variables[name])
    return "\n".join(texts)
