# SPDX-License-Identifier: MIT
"""An NPU, or what it needs, that somebody switched off: refused with who and why, until it is asked for."""

from __future__ import annotations

import subprocess
from pathlib import Path

import msgspec
import pytest

from bsp.base.errors import UserError
from bsp.catalog import load_board, npu_of
from bsp.dts.build import DtsResult, build_dts
from bsp.dts.npu.available import unavailable
from bsp.dts.npu.switched_off import on_upstream, refuse_forced_on
from bsp.dts.tree import Tree, read_tree
from bsp.profile import Board, Npu, NpuSettings

from ...support.kernel_tree import make_kernel
from .trees import (
    A311D,
    A311D_NPU,
    IMX8MP,
    IMX8MP_DOMAIN,
    IMX8MP_NPU,
    IMX8MP_PGC,
    compiled,
    switched_off,
)

DEBIX = load_board("imx8mp-debix-model-a")
VIM3 = load_board("vim3")


def npu(board: Board) -> Npu:
    found = npu_of(board)
    assert found is not None
    return found


def build(board: Board, dtb: Path, *, force: bool = False, kernel: str | None = None) -> DtsResult:
    target = dtb.parent / "out"
    return build_dts(
        board, kernel=kernel, base_dtb=dtb, target_dir=target, force_enable=force
    )  # fmt: skip


def tree_of(result: DtsResult) -> Tree:
    return read_tree(result.dtb.read_bytes(), "what was built")


def test_the_trees_as_they_are_need_no_question(tmp_path: Path) -> None:
    assert build(DEBIX, compiled(tmp_path / "imx8mp.dtb", IMX8MP)).changes == ()
    built = build(VIM3, compiled(tmp_path / "vim3.dtb", A311D))
    assert [(each.path, each.after) for each in built.changes] == [(A311D_NPU, "okay")]


@pytest.mark.parametrize("kernel", [None, "6.12"])
def test_what_u_boot_does_to_a_part_without_npu(tmp_path: Path, kernel: str | None) -> None:
    off = switched_off(IMX8MP_NPU) + switched_off(IMX8MP_DOMAIN)
    dtb = compiled(tmp_path / "lite.dtb", IMX8MP, off)
    with pytest.raises(UserError) as caught:
        build(DEBIX, dtb, kernel=kernel)
    message, hint = caught.value.message, caught.value.hint or ""
    assert caught.value.exit_code == 2
    assert f'{IMX8MP_NPU} (NPU) has the status "disabled"' in message
    assert f'{IMX8MP_DOMAIN} (power domain) has the status "disabled"' in message
    assert "U-Boot probably did" in message
    assert "fuses" in message
    assert "--force-enable" in hint
    assert not (tmp_path / "out").exists()
    # Asked for, both are switched on, and only they.
    built = build(DEBIX, dtb, force=True, kernel=kernel)
    assert [(each.path, each.before, each.after) for each in built.changes] == [
        (IMX8MP_NPU, "disabled", "okay"),
        (IMX8MP_DOMAIN, "disabled", "okay"),
    ]
    assert unavailable(tree_of(built), npu(DEBIX)) == []


@pytest.mark.parametrize(
    ("path", "role"),
    [
        (IMX8MP_DOMAIN, "(power domain)"),
        (f"{IMX8MP_PGC}/power-domain@5", "(power domain)"),  # the one above the NPU's
        (IMX8MP_PGC, "(above the power domain)"),
        ("/soc@0", "(above the NPU)"),
        ("/soc@0/bus@30000000", "(above the clock provider)"),
        ("/soc@0/bus@30000000/clock-controller@30380000", "(clock provider)"),
        ("/soc@0/bus@30000000/reset-controller@30390000", "(reset controller)"),
    ],
)
@pytest.mark.parametrize("status", ['"disabled"', '"fail"', '"reserved"', '"OKAY"', ""])
def test_whatever_the_npu_needs_is_looked_at(
    tmp_path: Path, path: str, role: str, status: str
) -> None:
    dtb = compiled(tmp_path / "off.dtb", IMX8MP, switched_off(path, status=status))
    with pytest.raises(UserError) as caught:
        build(DEBIX, dtb)
    assert path in caught.value.message
    assert role in caught.value.message or "power-domain" not in path
    assert "switched on, but not what it needs" in caught.value.message
    built = build(DEBIX, dtb, force=True)
    assert [each.path for each in built.changes] == [path]
    assert built.npu.supported


def test_a_node_that_somebody_took_out(tmp_path: Path) -> None:
    """The power domain is there, so the kernel's own tree had the NPU, too."""
    gone = compiled(tmp_path / "gone.dtb", IMX8MP)
    subprocess.run(["fdtput", "-r", gone, IMX8MP_NPU], check=True)
    for kernel in (None, "6.12"):
        with pytest.raises(UserError, match="somebody took the NPU's node out") as caught:
            build(DEBIX, gone, kernel=kernel)
        assert "U-Boot is known to switch it off" in caught.value.message
        assert "has an NPU" in (caught.value.hint or "")
    subprocess.run(["fdtput", "-r", gone, IMX8MP_DOMAIN], check=True)
    with pytest.raises(UserError, match="enabling it takes more than device tree"):
        build(DEBIX, gone)


def test_what_the_npu_does_not_need_is_none_of_our_business(tmp_path: Path) -> None:
    off = switched_off(f"{IMX8MP_PGC}/power-domain@6") + switched_off("/regulator")
    assert build(DEBIX, compiled(tmp_path / "off.dtb", IMX8MP, off)).changes == ()


def test_an_empty_status_is_not_okay(tmp_path: Path) -> None:
    source = A311D.replace('status = "disabled"', "status")
    built = build(VIM3, compiled(tmp_path / "empty.dtb", source))
    assert [(each.before, each.after) for each in built.changes] == [("", "okay")]
    assert tree_of(built).status(A311D_NPU) == "okay"
    okay = A311D.replace("disabled", "ok")
    assert build(VIM3, compiled(tmp_path / "ok.dtb", okay)).changes == ()


def test_a_supply_that_is_off(tmp_path: Path) -> None:
    supply = '/ { vdd: vdd { status = "disabled"; }; }; &npu { npu-supply = <&vdd>; };'
    dtb = compiled(tmp_path / "supply.dtb", IMX8MP, supply)
    with pytest.raises(UserError, match=r"/vdd \(supply\) has the status"):
        build(DEBIX, dtb)


def test_power_domains_in_a_circle_end(tmp_path: Path) -> None:
    circle = "&above { power-domains = <&mlmix>; };"
    assert build(DEBIX, compiled(tmp_path / "circle.dtb", IMX8MP, circle)).changes == ()


def test_where_a_kernel_leaves_it_off_it_is_switched_on_unasked(tmp_path: Path) -> None:
    """6.12's VIM3 has its NPU off, 7.3's on: a tree for 7.3 with it off was changed."""
    dtb = compiled(tmp_path / "vim3.dtb", A311D)
    assert build(VIM3, dtb, kernel="6.12").changes
    with pytest.raises(UserError, match="somebody switched it off"):
        build(VIM3, dtb, kernel="7.3")
    assert build(VIM3, dtb, kernel="7.3", force=True).changes


@pytest.mark.parametrize(
    ("board", "series", "on"),
    [
        ("imx8mp-evk", None, True),
        ("imx8mp-evk", "6.12", True),
        ("imx8mp-evk", "6.18", True),  # nothing is stated of it
        ("vim3", None, False),
        ("vim3", "6.12", False),
        ("vim3", "7.3", True),
        ("bananapi-m2s", None, True),  # on in each kernel that has the node
        ("orangepi-4a", "7.3", True),
        ("virtual-a311d", None, False),
    ],
)
def test_what_the_kernels_own_tree_has(board: str, series: str | None, on: bool) -> None:
    profile = load_board(board)
    assert on_upstream(profile, npu(profile), series) is on


def test_a_profile_that_wants_the_npu_off_asks_nothing(tmp_path: Path) -> None:
    board = msgspec.structs.replace(DEBIX, npu=NpuSettings(enabled=False))
    off = switched_off(IMX8MP_NPU) + switched_off(IMX8MP_DOMAIN)
    assert build(board, compiled(tmp_path / "lite.dtb", IMX8MP, off)).changes == ()


def test_a_boards_own_source_that_switches_something_off(tmp_path: Path) -> None:
    linux = make_kernel(tmp_path / "linux")
    soc = linux / "arch/arm64/boot/dts/amlogic/soc.dtsi"
    soc.write_text(soc.read_text() + '&pwrc { status = "disabled"; };\n')
    with pytest.raises(UserError, match="the board's own source switches it off"):
        build_dts(VIM3, kernel=f"path:{linux}", base_dtb=None, target_dir=tmp_path / "out")
    built = build_dts(
        VIM3, kernel=f"path:{linux}", base_dtb=None, target_dir=tmp_path / "out", force_enable=True
    )
    assert [each.path for each in built.changes] == [A311D_NPU, "/power-controller"]


def test_a_deployment_asks_where_the_running_tree_has_it_off(tmp_path: Path) -> None:
    def tree(more: str = "") -> Tree:
        blob = compiled(tmp_path / "it.dtb", IMX8MP, more).read_bytes()
        return read_tree(blob, "it")

    off = tree(switched_off(IMX8MP_NPU))
    found = npu(DEBIX)
    with pytest.raises(UserError, match="the running device tree of desk has the NPU switched off"):
        refuse_forced_on(off, tree(), DEBIX, found, host="desk")
    refuse_forced_on(tree(), tree(), DEBIX, found, host="desk")
    refuse_forced_on(off, off, DEBIX, found, host="desk")  # nothing would be switched on


def test_a_hostile_name_does_not_get_into_the_overlay(tmp_path: Path) -> None:
    """Paths of a given tree are written into an overlay's source."""
    dtb = compiled(tmp_path / "it.dtb", A311D, switched_off("/clock-controller"))
    name = b'x} { y="1"; };{ '
    dtb.write_bytes(dtb.read_bytes().replace(b"clock-controller\0", name + b"\0"))
    with pytest.raises(UserError, match="impossible name"):
        build(VIM3, dtb, force=True)
