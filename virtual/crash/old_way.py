# SPDX-License-Identifier: MIT
"""How a board boots before it is ours, and after it was given back: judged on its FAT boot partition.

U-Boot looks for ``extlinux/extlinux.conf``, then for ``boot.scr``; then it starts an EFI program, or, where
its ``bootcmd`` goes on like that, loads ``Image`` by name. The old way boots if all that the factory disk
had there is as it was; only what says how to boot may lie under the name that adoption gives it
(images/deploy/onboard/adopt.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from images.deploy.onboard.script_image import script_text

EXTLINUX = "extlinux/extlinux.conf"
SCRIPT = "boot.scr"
EFI_PROGRAM = "EFI/BOOT/BOOTAA64.EFI"
KEPT = {EXTLINUX: "extlinux/before-npu-bsp.conf", SCRIPT: "boot-before-npu-bsp.scr"}

Reader = Callable[[str], bytes]
"""Returns a file's content by its path on the partition (no slash first); nothing if it is not there."""

First = Literal["ours", "old", "nothing"]


@dataclass(frozen=True)
class OldWay:
    """The factory's boot partition: path to SHA-256 of each file."""

    files: Mapping[str, str]

    @property
    def by_name(self) -> bool:
        """Whether U-Boot starts something by its name where it finds neither configuration nor script."""
        if SCRIPT in self.files or EXTLINUX in self.files:
            return False
        return "Image" in self.files or EFI_PROGRAM in self.files

    def first(self, read: Reader) -> First:
        """Return whose way U-Boot finds first."""
        if EXTLINUX in self.files and read(EXTLINUX):
            return "old"
        text = script_text(read(SCRIPT))
        if text is not None:
            return "ours" if "npu_good" in text else "old"
        return "old" if self.by_name else "nothing"

    def problem(self, sha256: Callable[[str], str]) -> str:
        """Return what keeps the old way from booting; ``""`` if nothing does.

        Args:
            sha256: hash of a file's content by its path; nothing if it is not there.
        """
        for path, expected in self.files.items():
            names = [path, KEPT[path]] if path in KEPT else [path]
            if not any(sha256(name) == expected for name in names):
                return f"/{path} is not what it was"
        return ""


def old_way_of(files: Mapping[str, bytes]) -> OldWay:
    """Return the old way of a boot partition with these files."""
    return OldWay({path: hashlib.sha256(data).hexdigest() for path, data in files.items()})
