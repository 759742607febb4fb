# SPDX-License-Identifier: MIT
"""The QEMU and the U-Boot that virtual boards run with: the distribution's, in a folder of their own.

The host's packages stay as they are. QEMU is started through the dynamic linker that comes with it, so
that it finds its own C library whatever the host has.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from bsp.base.errors import UserError
from bsp.base.packages.apt import Archive, unpacked_program
from bsp.base.packages.host_system import host_architecture

# The first suite with -M imx8mp-evk and vfio-user-pci in one QEMU (11.1).
_QEMU_SUITE = "trixie-backports"
_UBOOT_SUITE = "trixie"


@dataclass(frozen=True)
class Emulator:
    """A QEMU, unpacked.

    Attributes:
        root: folder with its ``usr``.
        version: version of the package.
    """

    root: Path
    version: str

    def command(self, program: str) -> list[str]:
        """The start of a command line that runs ``program`` (``qemu-system-aarch64``, ``qemu-img``)."""
        return unpacked_program(self.root, f"usr/bin/{program}")

    @property
    def data(self) -> Path:
        """Folder of its firmware files (``-L``)."""
        return self.root / "usr/share/qemu"


@functools.cache
def emulator() -> Emulator:
    """Return QEMU for arm64 machines, fetched on first use.

    Raises:
        UserError: the distribution has none for this machine.
    """
    host = host_architecture()
    archive = Archive(_QEMU_SUITE, host)
    try:
        version = archive.version("qemu-system-arm")
        root = archive.unpacked(["qemu-system-arm", "qemu-utils"], with_dependencies=True)
    except UserError as error:
        raise UserError(
            f"virtual boards need QEMU 10 or later; Debian {_QEMU_SUITE} has none for {host}: "
            f"{error.message}",
            hint="NPU_BSP_DEBIAN_MIRROR sets the mirror that packages come from",
        ) from error
    return Emulator(root, version.partition(":")[2] or version)


@functools.cache
def u_boot() -> Path:
    """Return U-Boot for QEMU's virt machine, as the distribution built it."""
    host = host_architecture()
    root = Archive(_UBOOT_SUITE, host).unpacked(["u-boot-qemu"])
    return root / "usr/lib/u-boot/qemu_arm64/u-boot.bin"
