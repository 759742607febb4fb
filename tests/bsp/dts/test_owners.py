# SPDX-License-Identifier: MIT
"""Two drivers for one NPU: refused with both nodes named, wherever a tree is looked at."""

from __future__ import annotations

import subprocess
from pathlib import Path

import msgspec
import pytest

from bsp.base.errors import UserError
from bsp.catalog import load_board, npu_of
from bsp.dts.build import DtsResult, build_dts
from bsp.dts.npu.owners import other_owners
from bsp.dts.registers import Addresses, overlap
from bsp.dts.tree import Tree, read_tree
from bsp.new_board import new_board
from bsp.profile import Board, NpuSettings
from bsp.profile_source import source_of_dtb

from .trees import A311D, A311D_NPU, IMX8MP, IMX8MP_NPU, compiled

VIM3, DEBIX = load_board("vim3"), load_board("imx8mp-debix-model-a")

# As vendors' kernels describe the NPU.
GALCORE = """/ { vipdrv { compatible = "amlogic, galcore"; dev_name = "galcore"; status = "okay";
    interrupts = <0 147 4>; reg = <0x0 0xff100000 0x0 0x800>; reg-names = "NN_REG"; }; };"""
VIPSI = """/ { vipsi@38500000 { compatible = "fsl,imx8-vipsi"; reg = <0x0 0x38500000 0x0 0x20000>;
    status = "okay"; }; };"""


def build(board: Board, dtb: Path) -> DtsResult:
    return build_dts(board, kernel=None, base_dtb=dtb, target_dir=dtb.parent / "out")


@pytest.mark.parametrize(
    ("board", "source", "vendor", "own", "other"),
    [
        (VIM3, A311D, GALCORE, A311D_NPU, "/vipdrv (amlogic, galcore, for galcore"),
        (VIM3, A311D.replace("disabled", "okay"), GALCORE, A311D_NPU, "/vipdrv"),
        (
            VIM3,
            A311D,
            GALCORE.replace("c, g", "c,g"),
            A311D_NPU,
            "/vipdrv (amlogic,galcore, for galcore",
        ),
        (DEBIX, IMX8MP, VIPSI, IMX8MP_NPU, "/vipsi@38500000 (fsl,imx8-vipsi, for galcore"),
    ],
)
def test_both_are_named(
    tmp_path: Path, board: Board, source: str, vendor: str, own: str, other: str
) -> None:
    dtb = compiled(tmp_path / "both.dtb", source, vendor)
    with pytest.raises(UserError) as caught:
        build(board, dtb)
    assert caught.value.exit_code == 2
    assert "two owners" in caught.value.message
    assert own in caught.value.message
    assert other in caught.value.message
    assert "at the same registers" in caught.value.message
    assert not (tmp_path / "out").exists()
    # The hint mends it.
    assert caught.value.hint
    command = caught.value.hint.partition(": ")[2].partition(";")[0].replace("FILE.dtb", str(dtb))
    subprocess.run(command.split(), check=True)
    assert build(board, dtb).npu.status == "okay"


def test_one_node_for_two_drivers(tmp_path: Path) -> None:
    """A driver takes a node that has one of its strings at any place."""
    both = 'compatible = "vivante,gc", "amlogic, galcore"'
    dtb = compiled(tmp_path / "it.dtb", A311D.replace('compatible = "vivante,gc"', both))
    with pytest.raises(UserError, match="two owners") as caught:
        build(VIM3, dtb)
    assert f"{A311D_NPU} (vivante,gc; amlogic, galcore, for galcore" in caught.value.message
    assert caught.value.hint
    command = caught.value.hint.partition(": ")[2].partition(";")[0].replace("FILE.dtb", str(dtb))
    subprocess.run(command.split(), check=True)
    assert read_tree(dtb.read_bytes(), "it").strings(A311D_NPU, "compatible") == ["vivante,gc"]
    assert build(VIM3, dtb).changes


def test_a_vendors_node_that_is_off_or_below_one_that_is(tmp_path: Path) -> None:
    off = GALCORE.replace('"okay"', '"disabled"')
    assert build(VIM3, compiled(tmp_path / "off.dtb", A311D, off)).changes
    empty = GALCORE.replace('status = "okay"', "status")
    assert build(VIM3, compiled(tmp_path / "empty.dtb", A311D, empty)).changes
    below = '/ { nn { status = "disabled"; x { compatible = "amlogic, galcore"; }; }; };'
    assert build(VIM3, compiled(tmp_path / "below.dtb", A311D, below)).changes
    wanted_off = msgspec.structs.replace(VIM3, npu=NpuSettings(enabled=False))
    assert build(wanted_off, compiled(tmp_path / "on.dtb", A311D, GALCORE)).changes == ()


@pytest.mark.parametrize(
    "node",
    [
        'x { compatible = "amlogic, galcore"; };',  # no registers
        'x { compatible = "test,unheard-of"; reg = <0x0 0xff110000 0x0 0x20>; };',  # the NPU's
        'bus { #address-cells = <1>; #size-cells = <1>; ranges = <0x1000 0x0 0xff100000 0x1000>; '
        'x@1000 { compatible = "test,unheard-of"; reg = <0x1000 4>; }; };',  # the same, through a bus
    ],
)  # fmt: skip
def test_what_else_would_take_it(tmp_path: Path, node: str) -> None:
    with pytest.raises(UserError, match="two owners"):
        build(VIM3, compiled(tmp_path / "both.dtb", A311D, f"/ {{ {node} }};"))


@pytest.mark.parametrize(
    "node",
    [
        'x { compatible = "test,other"; reg = <0x0 0xff120000 0x0 0x20>; };',  # just behind it
        'x { compatible = "test,other"; reg = <0x1 0xff100000 0x0 0x20>; };',  # 4 GiB above
        "x { reg = <0x0 0xff100000 0x0 0x20>; };",  # no driver would take it
        'bus { #address-cells = <1>; #size-cells = <1>; x { compatible = "test,other"; '
        "reg = <0xff100000 0x1000>; }; };",  # not the CPU's addresses
        'i2c { #address-cells = <1>; #size-cells = <0>; x { compatible = "test,other"; '
        "reg = <0xff100000>; }; };",
    ],
)  # fmt: skip
def test_what_does_not_take_it(tmp_path: Path, node: str) -> None:
    assert build(VIM3, compiled(tmp_path / "it.dtb", A311D, f"/ {{ {node} }};")).changes


def test_no_profile_is_written_for_such_a_tree(tmp_path: Path) -> None:
    source = A311D.replace("khadas,vim3", "acme,one")
    dtb = compiled(tmp_path / "both.dtb", source, GALCORE)
    with pytest.raises(UserError) as caught:
        new_board(
            "acme", source_of_dtb(dtb), output=str(tmp_path / "boards"), kernel="6.12", like="vim3"
        )
    assert "two owners" in caught.value.message
    assert "/vipdrv" in caught.value.message
    assert A311D_NPU in caught.value.message
    assert not (tmp_path / "boards").exists()


def read(tmp_path: Path, source: str, more: str = "") -> Tree:
    return read_tree(compiled(tmp_path / "it.dtb", source, more).read_bytes(), "it")


def test_addresses_are_the_cpus(tmp_path: Path) -> None:
    more = """/ { pcie@1 { compatible = "test,bus"; reg = <0x1 0 0x0 0x1000>;
        #address-cells = <2>; #size-cells = <2>; ranges = <0x7 0x0 0x0 0x60000000 0x0 0x10000>;
        inner { #address-cells = <1>; #size-cells = <1>; ranges = <0x0 0x7 0x100 0x1000>;
            deep@20 { reg = <0x20 0x10>, <0x2000 0x10>; }; }; }; };"""
    addresses = Addresses(read(tmp_path, IMX8MP, more))
    assert addresses.of(IMX8MP_NPU) == [(0x38500000, 0x38700000)]
    assert addresses.of("/pcie@1") == [(1 << 32, (1 << 32) + 0x1000)]
    assert addresses.of("/pcie@1/inner/deep@20") == [
        (0x60000120, 0x60000130)
    ]  # the second: nowhere
    assert addresses.of("/") == addresses.of("/soc@0") == addresses.of("/no/such") == []


def test_overlap() -> None:
    assert overlap([(0, 4)], [(3, 5)])
    assert not overlap([(0, 4)], [(4, 5)])
    assert not overlap([], [(4, 5)])


def test_a_tree_without_the_free_drivers_node_is_another_matter(tmp_path: Path) -> None:
    source = A311D.replace("vivante,gc", "test,none")
    with pytest.raises(UserError, match="is for a vendor's kernel"):
        build(VIM3, compiled(tmp_path / "vendor.dtb", source, GALCORE))


def test_shipped_boards_have_no_second_owner(tmp_path: Path) -> None:
    npu = npu_of(DEBIX)
    assert npu is not None
    assert other_owners(read(tmp_path, IMX8MP), npu) == []
