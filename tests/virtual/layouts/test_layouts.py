# SPDX-License-Identifier: MIT
"""Other people's layouts: tables, names and scripts, by the tools that read them."""

from __future__ import annotations

import gzip
import shutil
import uuid
from pathlib import Path

import pytest

from bsp.base.errors import UserError
from bsp.base.process import run
from bsp.catalog import load_board
from bsp.kernel.packaged import PrebuiltKernel
from images.deploy.onboard.script_image import script_text
from images.disk.layout import MIB
from tests.support.foreign_board import Machine
from virtual.boards.way import way_named
from virtual.layouts import disk, foreign
from virtual.layouts.layout import LAYOUTS, Layout, layout_named, names
from virtual.layouts.parts import Parts

RELEASE = "6.12.1-test"
SEED = uuid.UUID(int=7)


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    for name in ("vmlinuz", "initrd", "board.dtb"):
        (tmp_path / name).write_bytes(name.encode() * 100)
    kernel = PrebuiltKernel(
        series="6.12", release=RELEASE, image=tmp_path / "vmlinuz", modules=tmp_path, dtbs=tmp_path,
        config=tmp_path, package="linux-image-test", version="1",
    )  # fmt: skip
    return Parts(kernel, tmp_path / "initrd", tmp_path / "board.dtb", uuid.UUID(int=1), "AB12-CD34")


def filled(name: str, parts: Parts, tmp_path: Path) -> Path:
    boot, root = tmp_path / "boot", tmp_path / "root"
    boot.mkdir()
    LAYOUTS[name].fill(parts, boot, root)
    return boot


def test_layouts_are_found_by_name() -> None:
    assert layout_named("") is layout_named("npu-bsp") is None
    assert names()[0] == "npu-bsp"
    with pytest.raises(UserError, match="did you mean 'armbian'"):
        layout_named("armbain")
    with pytest.raises(UserError) as error:
        layout_named("foo")  # two letters of yocto are no reason to name it
    assert "did you mean" not in error.value.message
    with pytest.raises(UserError, match="no U-Boot that reads a layout"):
        way_named(load_board("imx8mp-evk"), "armbian", "")


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=lambda each: each.name)
def test_partition_tables_are_as_the_tools_read_them(layout: Layout, tmp_path: Path) -> None:
    image, where = tmp_path / "disk.img", disk.places(layout, SEED)
    with image.open("wb") as file:
        file.truncate(where.size_bytes)
    run(["sfdisk", "--quiet", image], stdin=disk.table_of(layout, where).encode())
    said = run(["sfdisk", "--dump", image]).text
    assert f"label: {layout.table}" in said
    lines = [line for line in said.splitlines() if "start=" in line]
    assert len(lines) == (2 if layout.fat else 1)
    assert f"start={layout.start_bytes // 512}," in lines[0].replace(" ", "")
    # U-Boot looks at bootable partitions first; an EFI system partition it finds by its type.
    marked = "bootable" in lines[0] or "LegacyBIOSBootable" in lines[0]
    assert marked != bool(layout.fat and layout.fat.esp)
    mounts = disk.fstab(layout, where)
    assert f"UUID={where.root_uuid}  /  ext4" in mounts
    assert ("vfat" in mounts) == (layout.fat is not None)


@pytest.mark.skipif(
    shutil.which("mkimage") is None, reason="mkimage is not installed (u-boot-tools)"
)
def test_armbian(parts: Parts, tmp_path: Path) -> None:
    boot = filled("armbian", parts, tmp_path)
    assert (boot / "Image").resolve().name == f"vmlinuz-{RELEASE}"
    assert (boot / "dtb/qemu/virtual.dtb").read_bytes() == parts.dtb.read_bytes()
    said = run(["mkimage", "-l", boot / "uInitrd"]).text
    assert "AArch64 Linux RAMDisk Image (uncompressed)" in said
    settings = dict(
        line.split("=", 1) for line in (boot / "armbianEnv.txt").read_text().splitlines()
    )
    assert settings["rootdev"] == f"UUID={parts.root}"
    assert settings["fdtfile"] == "qemu/virtual.dtb"
    script = script_text((boot / "boot.scr").read_bytes())
    assert script == (boot / "boot.cmd").read_text()
    assert "fixup.scr" in script
    assert "user_overlays" in script


def test_extlinux_on_fat(parts: Parts, tmp_path: Path) -> None:
    boot = filled("extlinux-fat", parts, tmp_path)
    lines = [line.split() for line in (boot / "extlinux/extlinux.conf").read_text().splitlines()]
    for word in ("kernel", "initrd", "fdt"):
        (path,) = [line[1] for line in lines if line[:1] == [word]]
        assert (boot / path.lstrip("/")).is_file(), word


def test_yocto_has_no_release_in_its_names(parts: Parts, tmp_path: Path) -> None:
    boot = filled("yocto", parts, tmp_path)
    assert sorted(path.name for path in boot.iterdir()) == ["Image", "virtual.dtb"]


def test_toradex(parts: Parts, tmp_path: Path) -> None:
    boot = filled("toradex", parts, tmp_path)
    assert gzip.decompress((boot / "Image.gz").read_bytes()) == parts.kernel.image.read_bytes()
    assert (boot / "overlays.txt").read_text() == "fdt_overlays=\n"
    assert "overlays_file" in (script_text((boot / "boot.scr").read_bytes()) or "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "way"),
    [("armbian", "raw"), ("extlinux-fat", "fat"), ("yocto", "fat"), ("toradex", "fat")],
)
def test_the_survey_knows_each_and_has_a_way(
    name: str, way: str, parts: Parts, tmp_path: Path
) -> None:
    """As it would be found on the running board; the boots themselves are seen in tests/system."""
    layout, machine = LAYOUTS[name], Machine(tmp_path / "board")
    place = layout.fat.mount if layout.fat else "/boot"
    machine.disk("vda", ["vfat", "ext4"] if layout.fat else ["ext4"])
    machine.mount(f"/dev/vdap{2 if layout.fat else 1}", "/", "ext4")
    if layout.fat:
        machine.mount("/dev/vdap1", place, "vfat")
    boot = machine.root / place.lstrip("/")
    boot.mkdir(parents=True, exist_ok=True)
    layout.fill(parts, boot, machine.root)
    with (machine.root / "dev/vda").open("r+b") as file:
        file.truncate(disk.places(layout, SEED).size_bytes)
    table = disk.table_of(layout, disk.places(layout, SEED))
    run(["sfdisk", "--quiet", "--wipe=always", machine.root / "dev/vda"], stdin=table.encode())
    survey = machine.surveyed(layout.uboot.removeprefix("like:"))
    assert survey.layout.name == name
    assert survey.problems == ()
    assert survey.way == way, survey.text()


def test_a_ram_disk_of_any_size_gets_a_header_that_fits() -> None:
    for size in (0, 1, 511, 4096):
        wrapped = foreign.legacy_ramdisk(b"x" * size)
        assert len(wrapped) == 64 + size


@pytest.mark.parametrize("name", ["extlinux-ext4", "grub-efi"])
def test_debians_packages_get_settings(name: str, parts: Parts) -> None:
    layout = LAYOUTS[name]
    assert layout.settings
    given = layout.settings(parts)
    assert all(not path.startswith("/") for path in given)
    text = b"".join(given.values())
    assert b"console=ttyAMA0" in text
    assert b"virtio_blk" in text


def test_boot_partitions_have_room_for_generations() -> None:
    for layout in LAYOUTS.values():
        if layout.fat:
            assert layout.fat.size_bytes >= 256 * MIB
