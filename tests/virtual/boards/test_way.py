# SPDX-License-Identifier: MIT
"""Which U-Boot and kernel a layout is booted with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bsp.base.errors import UserError
from bsp.catalog import load_board
from bsp.qemu.machine import Machine, arguments
from virtual.boards import boards
from virtual.boards.way import Way, way_named

VIRTUAL = load_board("virtual")


def built_kernel(folder: Path, config: str) -> str:
    """A folder as build-kernel leaves one, as far as its configuration is asked for."""
    (folder / "boot").mkdir(parents=True)
    (folder / "lib/modules/6.12.1").mkdir(parents=True)
    (folder / "boot/Image").touch()
    (folder / "boot/config").write_text(config)
    (folder / "lib/modules/6.12.1/modules.dep").touch()
    record = {"release": "6.12.1", "version": "6.12.1", "origin": "test", "build_id": "1"}
    (folder / "build.json").write_text(json.dumps(record))
    return f"build:{folder}"


def test_layouts_bring_the_u_boot_that_they_need() -> None:
    assert way_named(VIRTUAL, "", "") == Way()
    assert way_named(VIRTUAL, "yocto", "").uboot_name == "like:imx8mp_evk"
    assert way_named(VIRTUAL, "yocto", "like:imx93_frdm").uboot_name == "like:imx93_frdm"
    assert way_named(VIRTUAL, "armbian", "").uboot_name == ""
    assert way_named(VIRTUAL, "npu-bsp", "like:vim3").layout_name == "npu-bsp"


def test_a_board_gets_the_memory_that_its_u_boots_addresses_are_in() -> None:
    assert VIRTUAL.qemu
    assert Way().fitted(VIRTUAL) == VIRTUAL
    vim3 = way_named(VIRTUAL, "", "like:vim3").fitted(VIRTUAL).qemu
    evk = way_named(VIRTUAL, "", "like:imx8mp_evk").fitted(VIRTUAL).qemu
    assert vim3
    assert evk
    assert vim3.memory_mib == VIRTUAL.qemu.memory_mib
    assert evk.memory_mib == 2048  # kernel_comp_addr_r is 1 GiB above the start


def test_without_a_ram_disk_the_kernel_has_the_disk_built_in(tmp_path: Path) -> None:
    way = way_named(VIRTUAL, "toradex", "")
    whole = "CONFIG_VIRTIO_PCI=y\nCONFIG_VIRTIO_BLK=y\nCONFIG_EXT4_FS=y\n"
    good = built_kernel(tmp_path / "good", whole)
    assert way.kernel(VIRTUAL, good) == good
    bad = built_kernel(tmp_path / "bad", whole.replace("BLK=y", "BLK=m"))
    with pytest.raises(UserError, match="does not have built in: CONFIG_VIRTIO_BLK") as raised:
        way.kernel(VIRTUAL, bad)
    assert "builtin.config" in raised.value.hint
    assert way_named(VIRTUAL, "armbian", "").kernel(VIRTUAL, bad) == bad


def test_the_boot_loader_finds_the_boards_own_tree() -> None:
    words = arguments(Machine(VIRTUAL, Path("u-boot.bin"), Path("d.qcow2"), dtb=Path("board.dtb")))
    assert words[words.index("-dtb") + 1] == "board.dtb"
    assert "-dtb" not in arguments(Machine(VIRTUAL, Path("u-boot.bin"), Path("d.qcow2")))


def test_an_image_of_the_users_has_its_own_layout(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--disk has its own layout"):
        boards.up("virtual", disk=tmp_path / "a.img", layout="armbian")


def test_the_plan_names_both() -> None:
    would = boards.plan_up("virtual", name="none-such", layout="yocto").text()
    assert "as yocto" in would
    assert "like:imx8mp_evk" in would
    assert "-m 2048" in would
