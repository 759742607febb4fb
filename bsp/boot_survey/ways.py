# SPDX-License-Identifier: MIT
"""The ways in which a deployment can be tried once on a board, and why each one works there or not. Pure.

``fat``: a boot script on the FAT partition that U-Boot scans; it marks the trial as spent there.
``raw``: the same on ext4, where the mark is one sector of a preallocated file that U-Boot overwrites.
``kexec``: the running kernel starts the trial; nothing on the disk changes, any reset ends in it.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from ..uboot import UBoot
from .facts import BootFacts, Mount, Partition
from .firmware import has_no_sysboot, loads_image_unknown, runs_no_scripts, spends_no_trial
from .layout import EXT, Layout, is_scanned
from .told import bars, explained, lacks_in

# CPU parts without 52-bit addresses (FEAT_LPA2, FEAT_LVA): Cortex-A53, A35, A55, A57, A72, A73, A75, A76,
# A78. Source: Arm's technical reference manuals, ID_AA64MMFR0_EL1 and ID_AA64MMFR2_EL1.
_NARROW_CORES = {"0xd03", "0xd04", "0xd05", "0xd07", "0xd08", "0xd09", "0xd0a", "0xd0b", "0xd41"}


_CHECKPOINT_SINCE = (5, 14)
"""EXT4_IOC_CHECKPOINT (Linux fs/ext4/ioctl.c)."""


class Way(NamedTuple):
    """A way of trial: whether it works on this board, and why."""

    name: str
    works: bool
    why: str


def ways(
    facts: BootFacts,
    layout: Layout,
    uboot: UBoot | None,
    need_bytes: int,
    *,
    assured: bool = False,
) -> list[Way]:
    """Return all ways, best first.

    Args:
        assured: whoever knows the board says that its U-Boot serves our script; no configuration does.
        need_bytes: what the boot partition has to have room for.
    """
    return [
        _fat(facts, layout, uboot, need_bytes, assured=assured),
        _raw(facts, layout, uboot, need_bytes, assured=assured),
        _kexec(facts),
    ]


def _fat(
    facts: BootFacts, layout: Layout, uboot: UBoot | None, need_bytes: int, *, assured: bool
) -> Way:
    def no(why: str) -> Way:
        return Way("fat", False, why)

    if refusal := runs_no_scripts(facts, layout, uboot) or _lacking(facts, "fat"):
        return no(refusal)
    candidates = fat_candidates(facts)
    if not candidates:
        unmounted = [
            each.name
            for each in facts.partitions
            if each.kind == "vfat" and not any(each.name == mount.device for mount in facts.mounts)
        ]
        if unmounted:
            return no(
                f"{', '.join(unmounted)} is FAT and is not mounted: mount it (/boot/firmware, say)"
            )
        return no("there is no FAT partition")
    scanned = [each for each in candidates if each[1] is None or is_scanned(facts, each[1])]
    if not scanned:
        names = ", ".join(mount.place for mount, _ in candidates)
        return no(
            f"U-Boot does not look at {names}: another partition is marked as bootable, or is the first"
        )
    same = [each for each in scanned if layout.mount and each[0].device == layout.mount.device]
    if layout.mount and not layout.is_fat and not same:
        return no(f"U-Boot reads {layout.first} first, which is on {layout.mount.kind}")
    if layout.is_fat and layout.mount and not same:
        return no(f"U-Boot's standard boot does not look at {layout.mount.place}")
    if layout.name == "unknown":
        return no(f"what boots this board is not known: {layout.why}")
    unsure = loads_image_unknown(facts, uboot, assured=assured) if layout.name == "yocto" else ""
    if unsure:
        return no(unsure)
    if layout.name in ("grub-efi", "systemd-boot") and uboot and uboot.boots_by == "bootflow scan":
        return no(f"U-Boot's {uboot.name} starts EFI programs before it looks for scripts")
    mount, _ = (same or scanned)[0]
    if refusal := spends_no_trial(facts, "fat") or _not_writable(facts, mount, need_bytes):
        return no(refusal)
    return Way("fat", True, f"U-Boot looks at {mount.place} ({mount.device}), and can write to FAT")


def _not_writable(facts: BootFacts, mount: Mount, need_bytes: int) -> str:
    """Return why what is needed cannot be written to a mount; "" if it can."""
    if not mount.writable:
        return f"{mount.place} is mounted read-only"
    free = facts.space.get(mount.place)
    if free is not None and need_bytes > free:
        return (
            f"{mount.place} has room for {free / 1e6:.0f} MB, this takes {need_bytes / 1e6:.0f} MB"
        )
    return ""


def fat_candidates(facts: BootFacts) -> list[tuple[Mount, Partition | None]]:
    """Return the FAT partitions that are mounted, each once."""
    mount_of = {each.device: each for each in reversed(facts.mounts) if each.kind == "vfat"}
    return [(mount, facts.partition(name)) for name, mount in mount_of.items()]


def _raw(
    facts: BootFacts, layout: Layout, uboot: UBoot | None, need_bytes: int, *, assured: bool
) -> Way:
    def no(why: str) -> Way:
        return Way("raw", False, why)

    if refusal := runs_no_scripts(facts, layout, uboot) or _lacking(facts, "raw"):
        return no(refusal)
    mount, partition = layout.mount, layout.partition
    if mount is None:
        return no("it is not known what U-Boot reads")
    if mount.kind not in EXT:
        return no(
            f"{layout.first} is on {mount.kind}; one sector of a file keeps its place on ext4 only"
        )
    if partition is None or not partition.disk or partition.on:
        stack = (
            f" ({partition.stack or 'stacked'} on {', '.join(partition.on)})" if partition else ""
        )
        return no(
            f"{mount.device} is not a partition of a disk{stack}: U-Boot cannot find its sectors"
        )
    if "data=journal" in mount.options.split(","):
        return no(
            f"{mount.place} is mounted with data=journal: what is written is not where U-Boot reads"
        )
    boot = facts.mount_of("/boot/boot.scr")
    if boot is None or boot.device != mount.device:
        return no(f"U-Boot reads {layout.first}, and /boot is on another file system")
    if refusal := spends_no_trial(facts, "raw") or _keeps_its_journal(facts.release):
        return no(refusal)
    if not is_scanned(facts, partition):
        return no(
            f"U-Boot's standard boot does not look at {partition.name}: another partition is marked as "
            f"bootable, or is the first; what reads {layout.first} there is not known"
        )
    if refusal := _not_writable(facts, mount, need_bytes):
        return no(refusal)
    unsure = has_no_sysboot(facts, uboot, assured=assured) if layout.name == "extlinux-ext4" else ""
    if unsure:
        return no(
            f"{unsure}: after a first trial that failed our script could not go on with {layout.first}"
        )
    if not layout.first.startswith("/boot/"):
        return no(f"U-Boot reads {layout.first} first, which is not below /boot")
    why = f"U-Boot reads {layout.first} on {mount.device}, and can write sectors there"
    return Way("raw", True, why)


def _keeps_its_journal(release: str) -> str:
    """Return why the running kernel cannot have ext4 write its journal back; "" if nothing says so."""
    numbers = re.match(r"(\d+)\.(\d+)", release)
    if numbers is None or (int(numbers[1]), int(numbers[2])) >= _CHECKPOINT_SINCE:
        return ""
    return f"Linux {numbers[0]} cannot have ext4 write its journal back (5.14 can), and U-Boot reads none"


def _kexec(facts: BootFacts) -> Way:
    kexec = facts.kexec
    narrow = bool(facts.cores) and set(facts.cores) <= _NARROW_CORES
    if kexec.load is False:
        why = "the running kernel has no kexec (CONFIG_KEXEC)"
    elif facts.systemd is False:
        why = "systemd does not run this system, and is what starts the kernel that was loaded"
    elif kexec.disabled:
        why = "kexec is switched off until the next boot (kernel.kexec_load_disabled)"
    elif kexec.lockdown not in ("", "none"):
        why = f"the kernel is locked down ({kexec.lockdown}), which bars kexec of unsigned kernels"
    elif kexec.wide_addresses:
        why = "the kernel runs with 52-bit addresses, with which loading a kernel crashes it (Linux 6.12)"
    elif kexec.wide_addresses is None and not narrow:
        why = "whether the kernel runs with 52-bit addresses, which crash it then, cannot be seen"
    elif "kexec" not in facts.programs:
        why = "the program kexec is missing there (package kexec-tools)"
    else:
        return Way(
            "kexec", True, "the running kernel can start another; nothing on the disk changes"
        )
    return Way("kexec", False, why)


def _lacking(facts: BootFacts, way: str) -> str:
    """Return what the boot script missed in U-Boot for a way at the last boot; "" if nothing is told."""
    lacks = tuple(name for name in lacks_in(facts.cmdline) if bars(name, way))
    return f"{explained(lacks)}: so npu-bsp's boot script found at the last boot" if lacks else ""
