# SPDX-License-Identifier: MIT
"""A node that no driver could take is refused with the reason, wherever a tree is looked at."""

from __future__ import annotations

from pathlib import Path

import pytest

from bsp.base.errors import UserError
from bsp.catalog import load_board, npu_of
from bsp.dts.build import build_dts
from bsp.dts.inputs.identity import dtb_of_board
from bsp.dts.npu.resources import defects
from bsp.dts.tree import read_tree

from .trees import A311D, A311D_NPU, IMX8MP, IMX8MP_NPU, compiled

VIM3, DEBIX = load_board("vim3"), load_board("imx8mp-debix-model-a")
REG, INTERRUPTS = "reg = <0x0 0xff100000 0x0 0x20000>;", "interrupts = <0 147 4>;"
CLOCKS, POWER = "clocks = <&clkc 267>, <&clkc 264>;", "power-domains = <&pwrc 2>;"
GIC = "gic: interrupt-controller { #interrupt-cells = <3>; };"
PARENT = "interrupt-parent = <&gic>;"


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (REG, "", "has no registers"),
        (REG, "reg;", "has no registers"),
        (REG, REG.replace("ff1", "ff2"), "has its registers at 0xff200000, not at 0xff100000"),
        (REG, "reg = <0x1 0xff100000 0x0 0x20000>;", "has its registers at 0x1ff100000"),
        (REG, "reg = <0xff100000 0x20000>;", "reg of 2 cells, and its bus has 2 for an address"),
        (REG, "reg = <0x0 0xff100000 0x0 0x20000 0>;", "reg of 5 cells"),
        (REG, "reg = [00 ff 10];", "reg of 0.75 cells"),
        (REG, "reg = <0x0 0xff100000 0x0 0x0>;", "at no address of the CPU"),
        (INTERRUPTS, "", "has no interrupts"),
        (INTERRUPTS, "interrupts;", "has no interrupts"),
        (INTERRUPTS, "interrupts = <147>;", "has interrupts of 1 cells"),
        (INTERRUPTS, "interrupts = <0 147 4 0>;", "has interrupts of 4 cells"),
        (INTERRUPTS, "interrupts-extended = <&gic 0 147>;", "name no interrupt of a controller"),
        (INTERRUPTS, "interrupts-extended = <0x77 0 147 4>;", "name no interrupt of a controller"),
        (PARENT, "", "no node above it names a controller"),
        (PARENT, "interrupt-parent = <0x77>;", "no node above it names a controller"),
        (GIC, "gic: interrupt-controller { };", "no node above it names a controller"),
        (CLOCKS, "clocks = <&clkc 267>, <&clkc>;", "has clocks that end within an entry"),
        (CLOCKS, "clocks = <&clkc 267>;", "has 2 clock-names for 1 clocks"),
        ('"core", "bus"', '"bus", "reg"', "has no clock 'core' (clock-names: bus, reg)"),
        ('clock-names = "core", "bus";', "", "has no clock 'core' (clock-names: none)"),
        (POWER, "power-domains = <&pwrc>;", "has power-domains that end within an entry"),
        ("pwrc: power-controller { #power-domain-cells = <1>; };", "pwrc: power-controller { };",
         "which has no #power-domain-cells"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("status", ["disabled", "okay"])
def test_what_no_driver_can_take(tmp_path: Path, old: str, new: str, why: str, status: str) -> None:
    assert old in A311D
    source = A311D.replace(old, new).replace('"disabled"', f'"{status}"')
    dtb = compiled(tmp_path / "it.dtb", source)
    with pytest.raises(UserError) as caught:
        build_dts(VIM3, kernel=None, base_dtb=dtb, target_dir=tmp_path / "out")
    assert why in caught.value.message
    assert A311D_NPU in caught.value.message
    assert caught.value.hint
    assert not (tmp_path / "out").exists()


def test_a_tree_that_is_taken_as_it_is(tmp_path: Path) -> None:
    """``--dtb``: one with the NPU off is the user's choice, one that says it is on has to be right."""
    on = A311D.replace('"disabled"', '"okay"')
    for source, good in ((on, True), (A311D.replace(REG, ""), True), (on.replace(REG, ""), False)):
        dtb = compiled(tmp_path / "it.dtb", source)
        if good:
            assert dtb_of_board(dtb, VIM3) == dtb.read_bytes()
            continue
        with pytest.raises(UserError, match="has no registers"):
            dtb_of_board(dtb, VIM3)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("ranges = <0 0 0 0x3e000000>", "ranges = <0 0x1 0 0x3e000000>"),  # 4 GiB above
        ("ranges = <0 0 0 0x3e000000>", "ranges = <0 0 0 0x3000000>"),  # a window that ends before
        ("ranges = <0 0 0 0x3e000000>;", ""),
    ],
)
def test_the_buses_above_count(tmp_path: Path, old: str, new: str) -> None:
    assert old in IMX8MP
    dtb = compiled(tmp_path / "it.dtb", IMX8MP.replace(old, new))
    with pytest.raises(UserError, match="no driver can take the NPU"):
        build_dts(DEBIX, kernel=None, base_dtb=dtb, target_dir=tmp_path / "out")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (INTERRUPTS, "interrupts-extended = <&gic 0 147 4>;"),
        (INTERRUPTS, "interrupts = <0 147 4>, <0 148 4>;"),
        (INTERRUPTS, f"{INTERRUPTS} interrupt-parent = <&gic>;"),
        (REG, "reg = <0x0 0xff100000 0x0 0x20000>, <0x0 0xff120000 0x0 0x20>;"),
        (POWER, f"{POWER} resets = <0>;"),
        # A node that hands its parent's on.
        (f"{PARENT} {GIC}",
         f"interrupt-parent = <&gpc>; {GIC} gpc: gpc {{ interrupt-parent = <&gic>; }};"),
    ],
)  # fmt: skip
def test_what_a_driver_can(tmp_path: Path, old: str, new: str) -> None:
    assert old in A311D
    npu = npu_of(VIM3)
    assert npu is not None
    tree = read_tree(compiled(tmp_path / "it.dtb", A311D.replace(old, new)).read_bytes(), "it")
    assert defects(tree, npu) == []


def test_interrupt_parents_in_a_circle_end(tmp_path: Path) -> None:
    circle = "interrupt-parent = <&one>; one: one { interrupt-parent = <&two>; }; "
    source = A311D.replace(
        f"{PARENT} {GIC}", f"{circle} two: two {{ interrupt-parent = <&one>; }};"
    )
    npu = npu_of(VIM3)
    assert npu is not None
    tree = read_tree(compiled(tmp_path / "it.dtb", source).read_bytes(), "it")
    assert "no node above it" in " ".join(defects(tree, npu))


def test_a_bus_that_does_not_count_its_cells_has_those_above(tmp_path: Path) -> None:
    """As Linux reads it; the specification would have 2 and 1 there."""
    source = IMX8MP.replace(
        "#address-cells = <1>; #size-cells = <1>; ranges = <0 0 0 0x3e000000>;", "ranges;"
    ).replace("reg = <0x38500000 0x200000>;", "reg = <0 0x38500000 0 0x200000>;")
    npu = npu_of(DEBIX)
    assert npu is not None
    tree = read_tree(compiled(tmp_path / "it.dtb", source).read_bytes(), "it")
    assert not [each for each in defects(tree, npu) if IMX8MP_NPU in each]
