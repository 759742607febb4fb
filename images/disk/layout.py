# SPDX-License-Identifier: MIT
"""How a disk is divided: a partition table, a FAT boot partition, the root partition behind it."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bsp.base.process import run

MIB = 1 << 20
SECTOR_BYTES = 512

_GPT_END_BYTES = 1 * MIB

# Partition types of the UEFI and Discoverable Partitions specifications; of an MBR.
_TYPE_BASIC_DATA = "EBD0A0A2-B9E5-4433-87C0-68B6B72699C7"
_TYPE_ROOT_ARM64 = "B921B045-1DF0-41C3-AF44-4C6F280D3FAE"
_TYPE_FAT32_LBA = "c"
_TYPE_LINUX = "83"


@dataclass(frozen=True)
class Layout:
    """Where things lie on a disk.

    Attributes:
        fat_start_bytes: the partition table, and a bootloader if any, are before it.
        table: ``dos`` where the boot ROM reads the bootloader from sector 1, which a GPT would occupy.
        seed: all identifiers on the disk are derived from it.
    """

    size_bytes: int
    fat_start_bytes: int
    fat_size_bytes: int
    seed: uuid.UUID
    table: Literal["gpt", "dos"] = "gpt"

    @property
    def root_start_bytes(self) -> int:
        """Start of the root partition."""
        return self.fat_start_bytes + self.fat_size_bytes

    @property
    def root_size_bytes(self) -> int:
        """Size of the root partition: up to the end, or to the second copy of the GPT."""
        return self.size_bytes - self.root_start_bytes - _GPT_END_BYTES

    @property
    def root_uuid(self) -> uuid.UUID:
        """UUID of the root file system."""
        return self.identifier("root file system")

    @property
    def fat_serial(self) -> int:
        """Serial number of the FAT file system (32 bits)."""
        return self.identifier("boot file system").int & 0xFFFFFFFF

    @property
    def fat_uuid(self) -> str:
        """The serial number as ``blkid`` and fstab write it."""
        return f"{self.fat_serial >> 16:04X}-{self.fat_serial & 0xFFFF:04X}"

    def identifier(self, name: str) -> uuid.UUID:
        """Return the identifier of a named part of this disk."""
        return uuid.uuid5(self.seed, name)


def make_empty(image: Path, layout: Layout) -> None:
    """Make a sparse file with the partition table."""
    with image.open("wb") as file:
        file.truncate(layout.size_bytes)
    fat_start = layout.fat_start_bytes // SECTOR_BYTES
    fat_size = layout.fat_size_bytes // SECTOR_BYTES
    root_start = layout.root_start_bytes // SECTOR_BYTES
    root_size = layout.root_size_bytes // SECTOR_BYTES
    # U-Boot looks for boot scripts on partitions with the legacy-boot attribute (or flag) first.
    if layout.table == "gpt":
        script = f"""\
label: gpt
label-id: {layout.identifier("disk")}
start={fat_start}, size={fat_size}, type={_TYPE_BASIC_DATA}, name=boot, attrs=LegacyBIOSBootable, \
uuid={layout.identifier("boot")}
start={root_start}, size={root_size}, type={_TYPE_ROOT_ARM64}, name=root, uuid={layout.identifier("root")}
"""
    else:
        script = f"""\
label: dos
label-id: 0x{layout.identifier("disk").int & 0xFFFFFFFF:08x}
start={fat_start}, size={fat_size}, type={_TYPE_FAT32_LBA}, bootable
start={root_start}, size={root_size}, type={_TYPE_LINUX}
"""
    run(["sfdisk", "--quiet", image], stdin=script.encode())
