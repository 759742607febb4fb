# SPDX-License-Identifier: MIT
"""What U-Boot reads first on a board, and so which layout this is. Pure.

U-Boot looks at the partitions that are marked as bootable (an EFI partition counts as marked), else at
the first one, and on each for these files, below / and then below /boot: extlinux.conf, boot.scr.uimg,
boot.scr; then for an EFI program (U-Boot include/config_distro_bootcmd.h; ``bootflow scan`` keeps that
order with its default methods).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from .facts import BootFacts, Mount, Partition

Name = Literal[
    "npu-bsp",
    "armbian",
    "extlinux-ext4",
    "extlinux-fat",
    "grub-efi",
    "systemd-boot",
    "yocto",
    "toradex",
    "script-ext4",
    "script-fat",
    "unknown",
]
SCANNED = ("extlinux/extlinux.conf", "boot.scr.uimg", "boot.scr")
_EFI = ("EFI/BOOT/BOOTAA64.EFI", "EFI/boot/BOOTAA64.EFI")
_KERNELS = ("Image", "Image.gz", "KERNEL")
# What a maker's own U-Boot reads: Amlogic's and Hardkernel's of 2015.
_MAKERS_SCRIPTS = ("cfgload", "s905_autoscript", "aml_autoscript", "emmc_autoscript", "boot.ini")
EXT = ("ext2", "ext3", "ext4")


class Layout(NamedTuple):
    """How a board boots today.

    Attributes:
        first: path on the running board of what U-Boot reads first; empty: not found.
        mount: the file system that it lies on.
        partition: the partition of that; None: it cannot be seen.
        folder: the folder that U-Boot's paths begin at, as the running board has it.
        why: what the name was decided by.
    """

    name: Name
    first: str
    mount: Mount | None
    partition: Partition | None
    why: str

    @property
    def is_fat(self) -> bool:
        """Whether U-Boot reads it from FAT, which it can also write to."""
        return self.mount is not None and self.mount.kind == "vfat"


def layout_of(facts: BootFacts) -> Layout:
    """Return the layout of a board."""
    for mount, partition in scanned(facts):
        for prefix in ("", "boot/"):
            for name in SCANNED:
                path = _path_if_present(facts, mount, prefix + name)
                if path:
                    return _by_file(facts, path, mount, partition)
        for name in _EFI:
            if path := _path_if_present(facts, mount, name):
                return _by_efi(facts, path, mount, partition)
        for name in _MAKERS_SCRIPTS:
            if path := _path_if_present(facts, mount, name):
                why = f"{path} is for a maker's own U-Boot; there is nothing for the standard boot"
                return Layout("unknown", "", None, None, why)
        for name in _KERNELS:
            path = _path_if_present(facts, mount, name)
            if path and mount.kind == "vfat":
                why = "kernel and device tree lie in FAT by name; no script and no extlinux.conf"
                return Layout("yocto", path, mount, partition, why)
    why = "none of the files that U-Boot looks for was found on what is mounted"
    return Layout("unknown", "", None, None, why)


def scanned(facts: BootFacts) -> list[tuple[Mount, Partition | None]]:
    """Return the mounted file systems that U-Boot may look at, in its order; the others after those."""
    marked = {each.disk for each in facts.partitions if each.bootable}
    ranked: dict[str, tuple[tuple[int, int, int], Mount, Partition | None]] = {}
    root = facts.mount_of("/")
    root_disk = _disk(facts, root)
    for mount in facts.mounts:
        if mount.kind not in ("vfat", *EXT, "btrfs", "f2fs", "xfs") or mount.device in ranked:
            continue
        partition = facts.partition(mount.device)
        looked_at = partition is None or (
            partition.bootable if partition.disk in marked else partition.number == 1
        )
        elsewhere = bool(partition and root_disk and partition.disk != root_disk)
        order = (int(elsewhere), int(not looked_at), partition.number if partition else 0)
        ranked[mount.device] = (order, mount, partition)
    return [
        (mount, partition)
        for _, mount, partition in sorted(ranked.values(), key=lambda one: one[0])
    ]


def is_scanned(facts: BootFacts, partition: Partition) -> bool:
    """Whether U-Boot's standard boot looks at a partition: it is marked, or none is and it is the first.

    Or the table could not be read, by an ordinary user: then it may.
    """
    on_disk = [each for each in facts.partitions if each.disk == partition.disk]
    if not any(each.table for each in on_disk):
        return True
    marked = any(each.bootable for each in on_disk)
    return partition.bootable if marked else partition.number == 1


def unseen_before(facts: BootFacts, layout: Layout) -> list[Partition]:
    """Return the partitions that U-Boot looks at before a layout's own, and that are not mounted."""
    ours = layout.partition
    mounted = {each.device for each in facts.mounts}
    if ours is None or not ours.disk:
        return []
    return [
        each
        for each in facts.partitions
        if each.disk == ours.disk and each.name not in mounted and each.kind in ("vfat", *EXT)
        if is_scanned(facts, each) and (each.number < ours.number or not is_scanned(facts, ours))
    ]


def _disk(facts: BootFacts, mount: Mount | None) -> str:
    partition = facts.partition(mount.device) if mount else None
    return partition.disk if partition else ""


def _path_if_present(facts: BootFacts, mount: Mount, below: str) -> str:
    """The path of a file of a file system, if it is there and no other file system is mounted over it."""
    path = f"{mount.place.rstrip('/')}/{below}"
    folder, _, name = path.rpartition("/")
    top = facts.mount_of(path)
    if top is None or top.device != mount.device:
        return ""
    names = facts.folders.get(folder or "/", ())
    if mount.kind == "vfat":  # as U-Boot, FAT does not tell BOOT.SCR from boot.scr
        name = next((each for each in names if each.lower() == name.lower()), name)
    return f"{folder}/{name}" if name in names else ""


def _by_file(facts: BootFacts, path: str, mount: Mount, partition: Partition | None) -> Layout:
    folder, _, name = path.rpartition("/")
    beside = facts.folders.get(folder, ())
    fat = mount.kind == "vfat"
    if name.lower() == "extlinux.conf":
        why = f"U-Boot reads {path} first, on {mount.kind}"
        return Layout("extlinux-fat" if fat else "extlinux-ext4", path, mount, partition, why)
    if "npu-bsp boot script" in facts.files.get(path, ""):
        return Layout("npu-bsp", path, mount, partition, f"{path} is npu-bsp's")
    if "armbianEnv.txt" in beside or "/etc/armbian-release" in facts.settings:
        why = f"{path} is Armbian's, with armbianEnv.txt, on {mount.kind}"
        return Layout("armbian", path, mount, partition, why)
    if "overlays.txt" in beside:
        why = f"{path} is Toradex', with overlays.txt beside it"
        return Layout("toradex", path, mount, partition, why)
    maker = " of flash-kernel" if "flash-kernel" in facts.programs else ""
    why = f"{path} is a script{maker}, on {mount.kind}"
    return Layout("script-fat" if fat else "script-ext4", path, mount, partition, why)


def _by_efi(facts: BootFacts, path: str, mount: Mount, partition: Partition | None) -> Layout:
    loader = f"{mount.place.rstrip('/')}/loader"
    grub = any(name.startswith("grub") for name in facts.folders.get("/boot", ()))
    if not grub and "loader.conf" in facts.folders.get(loader, ()):
        why = f"{path} and loader.conf: systemd-boot, by EFI"
        return Layout("systemd-boot", path, mount, partition, why)
    return Layout("grub-efi", path, mount, partition, f"{path}: GRUB, by EFI")
