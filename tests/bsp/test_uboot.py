# SPDX-License-Identifier: MIT
"""What is known of boards' U-Boots: the shipped files, and how a board finds its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from bsp import uboot
from bsp.base.errors import UserError
from bsp.catalog import board_names, load_board

EVERYWHERE = {"fatwrite", "source", "itest", "booti", "part", "bootflow", "unzip"}
"""Commands that all known boards have (``mmc`` too, but not QEMU's)."""


@pytest.mark.parametrize("each", uboot.uboots(), ids=lambda each: each.name)
def test_each_file_is_sound(each: uboot.UBoot) -> None:
    assert each.source.startswith("U-Boot 20")
    assert not EVERYWHERE & set(each.lacks)
    assert (each.bootcmd != "") == (each.boots_by == "the maker's own")
    for name, address in each.addresses.items():
        assert address % 0x1000 == 0, name


def test_no_device_tree_has_two() -> None:
    trees = [tree for each in uboot.uboots() for tree in each.device_trees]
    assert len(trees) == len(set(trees))


def test_each_device_tree_is_a_boards() -> None:
    known = {load_board(name).dts for name in board_names()}
    assert {tree for each in uboot.uboots() for tree in each.device_trees} <= known


@pytest.mark.parametrize(
    ("board", "name", "lacks"),
    [
        ("vim3", "khadas-vim3", {"setexpr", "ext4write"}),
        ("vim3l", "khadas-vim3", {"setexpr", "ext4write"}),
        ("imx8mp-evk", "imx8mp_evk", {"env import", "sysboot"}),
        ("imx8mp-venice-gw74xx", "imx8mp_venice", {"env import"}),
        ("imx8mp-verdin-wifi-dahlia", "verdin-imx8mp", set()),
        ("rk3588-rock-5b", "rock5b-rk3588", {"setexpr", "ext4write", "sysboot"}),
    ],
)
def test_boards_find_theirs(board: str, name: str, lacks: set[str]) -> None:
    found = uboot.uboot_of(load_board(board))
    assert found is not None
    assert found.name == name
    assert set(found.lacks) - {"cat", "fdt apply"} == lacks


def test_which_apply_overlays() -> None:
    """Armbian's and Toradex' scripts need it (CONFIG_OF_LIBFDT_OVERLAY)."""
    for board, applies in (("vim3", True), ("imx8mp-evk", False), ("rk3588-rock-5b", True)):
        found = uboot.uboot_of(load_board(board))
        assert found is not None
        assert ("fdt apply" not in found.lacks) == applies


def test_a_board_that_upstream_does_not_have() -> None:
    assert uboot.uboot_of(load_board("imx8mp-frdm")) is None


def test_a_configuration_is_found_by_its_own_name_and_by_those_that_are_alike() -> None:
    for name in ("khadas-vim3", "khadas-vim3l", "radxa-zero2"):
        found = uboot.uboot_named(name)
        assert found is not None
        assert found.name == "khadas-vim3"
    assert uboot.uboot_named("none_such") is None


def test_a_broken_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uboot, "UBOOTS_DIR", tmp_path)
    good = (Path(uboot.__file__).parent / "uboots/imx8mp_evk.toml").read_text()
    for text, message in (
        (good.replace("lacks", "laks"), "unknown key 'laks'.*did you mean 'lacks'"),
        (good.replace("format = 1", "format = 2"), "reads format 1"),
        (good, "expected that of the file"),
        ("[", "not valid TOML"),
    ):
        (tmp_path / "other.toml").write_text(text)
        uboot.uboots.cache_clear()
        with pytest.raises(UserError, match=message):
            uboot.uboots()
    uboot.uboots.cache_clear()


@pytest.mark.parametrize(
    ("board", "way"),
    [
        ("vim3", "fat"),
        ("imx8mp-evk", "fat"),
        ("virtual", "fat"),
        ("imx8mp-frdm", "asked"),
        ("imx8mp-beacon-kit", "asked"),
        ("imx8mp-phyboard-pollux-rdk", "none"),
    ],
)
def test_how_a_deployment_is_tried(board: str, way: str) -> None:
    found = uboot.trial_of(load_board(board))
    assert found.way == way
    assert found.why


def test_each_physical_board_has_a_place_to_deploy_to() -> None:
    for name in board_names():
        board = load_board(name)
        assert board.boot is not None, name
        assert "ext4" in board.boot.initrd_modules, name
