# SPDX-License-Identifier: MIT
"""What every layout is made of."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path

from bsp.kernel.packaged import PrebuiltKernel

CONSOLE = "console=ttyAMA0"


@dataclass(frozen=True)
class Parts:
    """What boots a board, before it is put in anybody's order.

    Attributes:
        kernel: the distribution's, or one that was built here.
        initrd: the initial RAM disk; None for boards that boot without one.
        dtb: the device tree that the board is born with.
        root: identifier of the root file system.
        fat: identifier of the FAT partition's, as ``blkid`` writes it.
    """

    kernel: PrebuiltKernel
    initrd: Path | None
    dtb: Path
    root: uuid.UUID
    fat: str

    @property
    def release(self) -> str:
        """As ``uname -r`` prints it on the board."""
        return self.kernel.release
