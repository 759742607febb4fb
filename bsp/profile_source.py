# SPDX-License-Identifier: MIT
"""What a new board's profile is filled in from: a device tree, or a running board."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from .dts.inputs.given import board_tree
from .dts.running import without_boot
from .dts.tree import Tree, read_tree

_FAT_MOUNTS = ("/boot/firmware", "/boot/efi", "/boot")


@dataclass(frozen=True)
class Source:
    """What a profile is filled in from.

    Attributes:
        tree: the board's device tree; None where there is only a board like it.
        blob: the same as a file.
        what: what it is, for errors and comments.
        fat_mounts: where the running board has FAT file systems mounted; None if it was not asked.
        modules: modules that the running board reaches its root file system by; None if it was not asked.
    """

    what: str
    tree: Tree | None = None
    blob: bytes = b""
    fat_mounts: tuple[str, ...] | None = None
    modules: tuple[str, ...] | None = None


def source_of_dtb(path: Path) -> Source:
    """Return what a DTB tells.

    Raises:
        UserError: it cannot be read, or is not a device tree.
    """
    blob, tree = board_tree(path, flag="--from-dtb")
    return Source(path.name, tree, blob)


def source_of_host(host: str, *, accept_new_key: bool = False, root: str = "") -> Source:
    """Return what a running board tells, over SSH; nothing is changed there.

    Raises:
        UserError: as ``connect``, or its tree cannot be read.
    """
    from .remote.facts import read_fdt
    from .remote.inventory import resolve
    from .remote.ssh import connect

    with connect(resolve(host), accept_new_key=accept_new_key) as connection:
        blob = without_boot(read_fdt(connection, root=root), host)
        mounts = connection.run(["cat", f"{root}/proc/mounts"], check=False).text
        loaded = connection.run(["cat", f"{root}/proc/modules"], check=False).text
    return Source(
        f"the running tree of {host}",
        read_tree(blob, host),
        blob,
        parse_fat_mounts(mounts),
        parse_root_modules(mounts, loaded),
    )


def parse_fat_mounts(mounts: str) -> tuple[str, ...]:
    """Return where FAT file systems are mounted, from ``/proc/mounts``: likely boot partitions first."""
    words = [line.split() for line in mounts.splitlines()]
    places = {each[1] for each in words if len(each) > 2 and each[2] == "vfat"}
    return tuple(sorted(places, key=lambda path: (path not in _FAT_MOUNTS, path)))


# Drivers of storage have no common mark in /proc/modules; these are of the SoCs that have an NPU.
_STORAGE = re.compile(
    r"(meson_gx_mmc|sdhci_\w+|mmc_block|dw_mmc\w*|sunxi_mmc|nvme|virtio_(blk|pci|mmio)|ufs\w*)$"
)


def parse_root_modules(mounts: str, loaded: str) -> tuple[str, ...]:
    """Return modules for the initial RAM disk: loaded storage drivers and the root's file system."""
    names = [line.split()[0] for line in loaded.splitlines() if line]
    kinds = [line.split()[2] for line in mounts.splitlines() if line.split()[1:2] == ["/"]]
    wanted = [name for name in reversed(names) if _STORAGE.match(name)]
    return tuple(dict.fromkeys([*wanted, *(kind for kind in kinds if kind in names)]))
