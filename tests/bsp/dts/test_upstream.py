# SPDX-License-Identifier: MIT
"""Trees of vendors, and kernels without a board: what is said, and hints that lead on."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import msgspec
import pytest

from bsp.base.errors import UserError
from bsp.catalog import board_names, load_board
from bsp.dts.bindings.schema import check_dts
from bsp.dts.build import build_dts
from bsp.dts.inputs.identity import dtb_of_board
from bsp.dts.inputs.upstream import kernels_with
from bsp.kernel.command import Options, build_kernel_for
from bsp.kernel.distribution import all_series

from ...support.fake_boot import compile_dtb
from ...support.kernel_tree import make_kernel

pytestmark = pytest.mark.skipif(shutil.which("dtc") is None, reason="dtc is not installed")

GALCORE = 'nn { compatible = "amlogic, galcore"; status = "okay"; reg = <0 0xff100000 0 0x800>; };'
RKNPU = 'npu@fdab0000 { compatible = "rockchip,rk3588-rknpu"; };'
# The NPUs of other chips, for the same drivers.
A5 = GALCORE.replace("0xff100000", "0xfdb00000")
A733 = """soc@3000000 { #address-cells = <2>; #size-cells = <2>; ranges;
npu@3600000 { compatible = "allwinner,npu"; reg = <0 0x3600000 0 0x1000>; }; };"""
VIPSI = 'vipsi@38500000 { compatible = "fsl,imx8-vipsi"; };'


def tree(folder: Path, compatible: str, body: str) -> Path:
    cells = "#address-cells = <2>; #size-cells = <2>;"
    source = f"/dts-v1/;\n/ {{ compatible = {compatible}; {cells}\n{body}\n}};"
    return compile_dtb(source, folder / "it.dtb")


@pytest.mark.parametrize(
    ("board", "compatible", "body", "driver"),
    [
        ("vim3", '"amlogic, g12b"', GALCORE, "galcore"),
        ("vim3l", '"amlogic, g12a"', GALCORE, "galcore"),  # as Khadas' trees say
        ("libretech-a311d-cc", '"vendor,box", "amlogic, g12b"', GALCORE, "galcore"),
        ("rk3588-rock-5b", '"rockchip,rk3588-evb", "rockchip,rk3588"', RKNPU, "rknpu"),
        ("imx8mp-cubox-m", '"vendor,carrier", "fsl,imx8mp"', VIPSI, "galcore"),
        ("imx8mp-evk", '"fsl,imx8mp-evk", "fsl,imx8mp"', VIPSI, "galcore"),
    ],
)
def test_a_vendors_tree_is_called_one(
    tmp_path: Path, board: str, compatible: str, body: str, driver: str
) -> None:
    profile = load_board(board)
    with pytest.raises(UserError, match="is for a vendor's kernel") as caught:
        build_dts(
            profile, kernel=None, base_dtb=tree(tmp_path, compatible, body), target_dir=tmp_path
        )
    assert caught.value.exit_code == 2
    assert f"driver {driver}" in caught.value.message
    assert "of another board" not in caught.value.message
    if board != "imx8mp-evk":  # whose string it has; what is in the tree is then the user's affair
        with pytest.raises(UserError, match="is for a vendor's kernel"):
            dtb_of_board(tree(tmp_path, compatible, body), profile)
    named = re.search(r"--kernel (\S+)", caught.value.hint)
    if named:  # then without the DTB
        assert "leave --base-dtb out" in caught.value.hint
        assert named[1] in kernels_with(profile)


@pytest.mark.parametrize(
    ("board", "compatible", "body"),
    [
        ("vim3", '"fsl,imx8mp-evk", "fsl,imx8mp"', VIPSI),
        ("vim3", '"radxa,zero2", "amlogic,a311d"', GALCORE),
        ("imx8mp-evk", '"amlogic, g12b"', GALCORE),
        ("imx8mp-evk", '"solidrun,imx8mp-cubox-m", "fsl,imx8mp"', VIPSI),
        ("rk3588-rock-5b", '"vendor,box", "amlogic,a311d"', GALCORE),
        ("vim3", '"amlogic, sm1"', GALCORE),
        ("vim3", '"amlogic, a5"', A5),
        ("orangepi-4a", '"vendor,board", "arm,sun60iw2p1"', A733),
    ],
)
def test_a_tree_of_another_board_is_called_that(
    tmp_path: Path, board: str, compatible: str, body: str
) -> None:
    with pytest.raises(UserError, match="is of another board"):
        build_dts(
            load_board(board),
            kernel=None,
            base_dtb=tree(tmp_path, compatible, body),
            target_dir=tmp_path,
        )


def test_a_tree_that_a_board_is_to_boot_with_is_its_own(tmp_path: Path) -> None:
    vim3 = load_board("vim3")
    own = tree(tmp_path, '"khadas,vim3", "amlogic,a311d"', "")
    assert dtb_of_board(own, vim3) == own.read_bytes()
    derived = tree(tmp_path, '"vendor,carrier", "khadas,vim3"', "")
    with pytest.raises(UserError, match="derived from vim3: its root says vendor,carrier"):
        dtb_of_board(derived, vim3)
    with pytest.raises(UserError, match="derived from vim3"):
        build_dts(vim3, kernel=None, base_dtb=derived, target_dir=tmp_path)
    with pytest.raises(UserError, match="is of another board"):
        dtb_of_board(tree(tmp_path, '"radxa,zero2", "amlogic,a311d"', ""), vim3)


def test_a_kernel_without_the_board_names_the_one_that_has_it(tmp_path: Path) -> None:
    linux = f"path:{make_kernel(tmp_path / 'linux', release='6.12')}"
    young = [
        name
        for name in board_names()
        if load_board(name).expect.get("6.12") == "no board" and load_board(name).dts
    ]
    assert "avaota-a1" in young
    for name in young:
        board = load_board(name)
        with pytest.raises(UserError, match=f"does not have the board {name}") as caught:
            build_dts(board, kernel=linux, base_dtb=None, target_dir=tmp_path / "out")
        assert "did you mean" not in caught.value.message
        named = re.search(r"--kernel (\S+);", caught.value.hint)
        assert named, caught.value.hint
        assert board.expect[named[1]] != "no board"
    with pytest.raises(UserError, match="does not have the board avaota-a1"):
        check_dts(load_board("avaota-a1"), kernel=linux)


def test_of_several_kernels_the_one_that_works_is_named(tmp_path: Path) -> None:
    vim3 = load_board("vim3")
    assert kernels_with(vim3) == ["6.12", "7.3", "6.1"]
    assert kernels_with(msgspec.structs.replace(vim3, expect={})) == []
    later = msgspec.structs.replace(
        vim3, dts="later", expect={"6.12": "no board", "6.1": "no node", "7.3": "works"}
    )
    linux = f"path:{make_kernel(tmp_path / 'linux', release='6.12')}"
    with pytest.raises(UserError) as caught:
        build_dts(later, kernel=linux, base_dtb=None, target_dir=tmp_path / "out")
    assert "7.3 and 6.1 have it: --kernel 7.3" in caught.value.hint


@pytest.mark.parametrize(
    ("stem", "suggestion"),
    [
        ("meson-g12b-a311d-khadas-vim4", "did you mean 'meson-g12b-a311d-khadas-vim3'"),
        ("meson-g12b-a311d-khadasvim3", "did you mean 'meson-g12b-a311d-khadas-vim3'"),
        ("sun55i-t527-avaota-a1", ""),
        ("imx8mp-evk", ""),
    ],
)
def test_only_a_misspelt_source_is_suggested(tmp_path: Path, stem: str, suggestion: str) -> None:
    linux = f"path:{make_kernel(tmp_path / 'linux')}"
    board = msgspec.structs.replace(load_board("vim3"), dts=stem, expect={})
    with pytest.raises(UserError, match=f"{stem}\\.dts") as caught:
        build_dts(board, kernel=linux, base_dtb=None, target_dir=tmp_path / "out")
    assert suggestion in caught.value.message
    assert suggestion or "did you mean" not in caught.value.message


@pytest.mark.parametrize(
    ("kernel", "ways"),
    [
        ("7.2", ["kernel/v7.x/linux-7.2.tar.xz#sha256=HASH", "sha256sums.asc"]),
        ("6.13", ["kernel/v6.x/linux-6.13.tar.xz#sha256=HASH"]),
        ("5.15.167", ["kernel/v5.x/linux-5.15.167.tar.xz"]),
        ("6.12.5", ["--kernel 6.12;", "linux-6.12.5.tar.xz"]),
        ("v6.12", ["--kernel 6.12;"]),
        ("6.12.y", ["--kernel 6.12;"]),
        ("7.4-rc2", ["git:URL@v7.4-rc2"]),
        ("newest", ["take one of these", "tarball:URL"]),
    ],
)
def test_a_kernel_that_no_suite_has(tmp_path: Path, kernel: str, ways: list[str]) -> None:
    with pytest.raises(UserError, match=f"unknown kernel '{re.escape(kernel)}'") as caught:
        build_dts(load_board("vim3"), kernel=kernel, base_dtb=None, target_dir=tmp_path)
    dry = Options(kernel=kernel, dry_run=True)
    with pytest.raises(UserError, match=f"unknown kernel '{re.escape(kernel)}'"):
        build_kernel_for(load_board("vim3"), dry)
    for series, where in all_series().items():
        assert series in caught.value.message
        assert where.suite in caught.value.message
    for way in ways:
        assert way in caught.value.hint
