# SPDX-License-Identifier: MIT
"""Layouts in real U-Boots: each goes its own way to its kernel, which switches the machine off."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

import pytest

from bsp.base.process import run
from bsp.catalog import load_board
from bsp.kernel.packaged import PrebuiltKernel
from bsp.qemu.base_dtb import base_dtb
from bsp.qemu.emulator import u_boot
from tests.support.psci_kernel import LIVES, kernel, run_u_boot
from virtual.layouts import disk
from virtual.layouts.layout import LAYOUTS, Layout
from virtual.layouts.parts import Parts
from virtual.uboots.build import built
from virtual.uboots.like import memory_mib, uboot_like

pytestmark = [
    pytest.mark.slow,
    pytest.mark.network,
    pytest.mark.skipif(shutil.which("mformat") is None, reason="mformat is not installed (mtools)"),
]

SAID = {
    "armbian": ("uInitrd", "Verifying Checksum ... OK"),
    "extlinux-fat": (
        "Retrieving file: /vmlinuz-6.12.1-test",
        "append: root=UUID=",
    ),
    "toradex": ("Uncompressed size", "Bootargs:  root=PARTUUID="),
    "yocto": ("Running BSP bootcmd", "Booting using the fdt blob at 0x43000000"),
}
"""What the console shows of each one's own way."""


def small_disk(layout: Layout, folder: Path) -> Path:
    """A disk in a layout, with the small kernel, and nothing in its root file system."""
    boot, root, image = folder / "boot", folder / "root", folder / "disk.img"
    (root / "boot").mkdir(parents=True)
    (folder / "Image").write_bytes(kernel(LIVES))
    (folder / "initrd").write_bytes(b"initrd" * 1000)
    linux = PrebuiltKernel(
        series="6.12", release="6.12.1-test", image=folder / "Image", modules=folder, dtbs=folder,
        config=folder, package="linux-image-test", version="1",
    )  # fmt: skip
    where = disk.places(layout, uuid.UUID(int=7))
    dtb = base_dtb(load_board("virtual-a311d"))
    parts = Parts(linux, folder / "initrd", dtb, where.root_uuid, where.fat_uuid)
    boot = boot if layout.fat else root / "boot"
    boot.mkdir(exist_ok=True)
    layout.fill(parts, boot, root)
    with image.open("wb") as file:
        file.truncate(where.size_bytes)
    run(["sfdisk", "--quiet", image], stdin=disk.table_of(layout, where).encode())
    if layout.fat:
        at = f"{image}@@{where.fat_start_bytes}"
        run(
            [
                "mformat",
                "-i",
                at,
                "-T",
                str(where.fat_size_bytes // 512),
                "-h",
                "64",
                "-s",
                "32",
                "::",
            ]
        )
        run(["mcopy", "-s", "-i", at, *sorted(boot.iterdir()), "::"])
    options = f"offset={where.root_start_bytes},lazy_itable_init=1,nodiscard"
    size = f"{where.root_size_bytes >> 10}k"
    run(["mke2fs", "-q", "-t", "ext4", "-F", "-E", options, "-d", root, image, size])
    return image


@pytest.mark.parametrize("name", ["armbian", "extlinux-fat", "toradex"])
def test_in_the_distributions_u_boot(name: str, tmp_path: Path) -> None:
    console = run_u_boot(u_boot(), small_disk(LAYOUTS[name], tmp_path), tmp_path, memory_mib=1024)
    for words in (*SAID[name], "Starting kernel ..."):
        assert words in console, console
    # It has no fdt_addr_r: the tree that extlinux.conf names is left out.
    assert "virtual.dtb" not in console or name != "extlinux-fat"


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("name", "uboot"),
    [
        ("armbian", "like:khadas-vim3"),
        ("armbian", "like:rock5b-rk3588"),
        ("extlinux-fat", "like:khadas-vim3"),
        ("yocto", "like:imx8mp_evk"),
        ("toradex", "like:verdin-imx8mp"),
    ],
)
def test_in_a_boards_u_boot(name: str, uboot: str, tmp_path: Path) -> None:
    like = uboot_like(uboot)
    image = small_disk(LAYOUTS[name], tmp_path)
    console = run_u_boot(built(like), image, tmp_path, memory_mib=memory_mib(like, 1024))
    for words in (*SAID[name], "Starting kernel ..."):
        assert words in console, console
    if name == "extlinux-fat":
        assert "Retrieving file: /dtb/qemu/virtual.dtb" in console
