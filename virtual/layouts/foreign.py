# SPDX-License-Identifier: MIT
"""Layouts of images that are not Debian's: files, names and scripts as others have them, written anew.

What is named in each function is where its facts come from. The scripts are files of their own, in
``scripts/``.
"""

from __future__ import annotations

import gzip
import shutil
import struct
import zlib
from pathlib import Path

from images.deploy.onboard.script_image import script_image

from ..uboots.like import FDTFILE
from .parts import CONSOLE, Parts

_SCRIPTS = Path(__file__).parent / "scripts"
_VENDOR = "qemu"  # kernels keep their device trees in a folder for each maker

# U-Boot include/image.h: a legacy image's header.
_LEGACY = struct.Struct(">7I4B32s")
_LEGACY_MAGIC, _LINUX, _ARM64, _RAMDISK, _NOT_PACKED = 0x27051956, 5, 22, 3, 0


def armbian(parts: Parts, boot: Path, root: Path) -> None:
    """armbian/build of August 2026: config/bootscripts/boot-meson64.cmd, packages/bsp.

    ``/boot`` of the one partition; what has a release in its name has a link without one.
    """
    if parts.initrd is None:
        raise RuntimeError("the foreign layout was given no RAM disk")
    shutil.copyfile(parts.kernel.image, boot / f"vmlinuz-{parts.release}")
    (boot / "Image").symlink_to(f"vmlinuz-{parts.release}")
    shutil.copyfile(parts.initrd, boot / f"initrd.img-{parts.release}")
    wrapped = legacy_ramdisk(parts.initrd.read_bytes())
    (boot / f"uInitrd-{parts.release}").write_bytes(wrapped)
    (boot / "uInitrd").symlink_to(f"uInitrd-{parts.release}")
    trees = boot / f"dtb-{parts.release}"
    (trees / _VENDOR / "overlay").mkdir(parents=True)
    shutil.copyfile(parts.dtb, trees / _VENDOR / FDTFILE)
    (boot / "dtb").symlink_to(trees.name)
    (boot / "overlay-user").mkdir()
    (boot / ".next").touch()
    (boot / "armbianEnv.txt").write_text(
        "verbosity=1\nbootlogo=false\nconsole=serial\noverlay_prefix=virtual\n"
        f"fdtfile={_VENDOR}/{FDTFILE}\nrootdev=UUID={parts.root}\nrootfstype=ext4\nextraargs=panic=10\n"
        "usbstoragequirks=0x2537:0x1066:u,0x2537:0x1068:u\n"
    )
    _script(boot, "armbian.cmd", "boot.cmd")


def extlinux_fat(parts: Parts, boot: Path, root: Path) -> None:
    """khadas/fenix (mainline): kernel, RAM disk and DTB on the FAT partition that ``/boot`` is."""
    if parts.initrd is None:
        raise RuntimeError("the foreign layout was given no RAM disk")
    shutil.copyfile(parts.kernel.image, boot / f"vmlinuz-{parts.release}")
    shutil.copyfile(parts.initrd, boot / f"initrd.img-{parts.release}")
    (boot / "dtb" / _VENDOR).mkdir(parents=True)
    shutil.copyfile(parts.dtb, boot / "dtb" / _VENDOR / FDTFILE)
    (boot / "extlinux").mkdir()
    (boot / "extlinux/extlinux.conf").write_text(
        "timeout 10\n\nlabel Linux\n"
        f"\tkernel /vmlinuz-{parts.release}\n"
        f"\tinitrd /initrd.img-{parts.release}\n"
        f"\tfdt /dtb/{_VENDOR}/{FDTFILE}\n"
        f"\tappend root=UUID={parts.root} rootfstype=ext4 rootwait rw {CONSOLE} panic=10\n"
    )


def yocto(parts: Parts, boot: Path, root: Path) -> None:
    """meta-freescale's wic/imx-uboot-bootpart.wks.in: what ``bsp_bootcmd`` of imx8mp_evk loads by name."""
    shutil.copyfile(parts.kernel.image, boot / "Image")
    shutil.copyfile(parts.dtb, boot / FDTFILE)


def toradex(parts: Parts, boot: Path, root: Path) -> None:
    """meta-toradex-bsp-common's recipes-bsp/u-boot/u-boot-distro-boot: boot.cmd.in; images of TEZI."""
    with gzip.GzipFile(boot / "Image.gz", "wb", compresslevel=6, mtime=0) as packed:
        packed.write(parts.kernel.image.read_bytes())
    shutil.copyfile(parts.dtb, boot / FDTFILE)
    (boot / "overlays").mkdir()
    (boot / "overlays.txt").write_text("fdt_overlays=\n")
    _script(boot, "toradex.cmd", None)


def legacy_ramdisk(content: bytes) -> bytes:
    """Return a RAM disk with the header that ``mkimage -T ramdisk`` puts before it."""

    def header(own_crc: int) -> bytes:
        return _LEGACY.pack(
            _LEGACY_MAGIC, own_crc, 0, len(content), 0, 0, zlib.crc32(content),
            _LINUX, _ARM64, _RAMDISK, _NOT_PACKED, b"uInitrd",
        )  # fmt: skip

    return header(zlib.crc32(header(0))) + content


def _script(boot: Path, name: str, kept_as: str | None) -> None:
    """Put a script there, compiled; its text beside it where others keep it so."""
    text = (_SCRIPTS / name).read_text(encoding="ascii")
    # Not by our name: that is how a script of ours is known.
    (boot / "boot.scr").write_bytes(script_image(text, b"boot script"))
    if kept_as:
        (boot / kept_as).write_text(text)
