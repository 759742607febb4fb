# SPDX-License-Identifier: MIT
"""``build-dts --apply``: overlays on the base tree, with the real fdtoverlay."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from bsp.base.errors import UserError
from bsp.base.project import PROJECT
from bsp.catalog import load_board
from bsp.dts.build import DtsResult, build_dts
from bsp.dts.tree import read_tree
from bsp.profile import NpuSettings

from ...support.kernel_tree import make_kernel
from .trees import A311D, A311D_NPU, compiled

VIM3 = load_board("vim3")
PLUGIN = "/dts-v1/;\n/plugin/;\n"
ON = PLUGIN + '&npu { status = "okay"; test,first = <1>; };'
SECOND = PLUGIN + '&npu { test,second = <2>; }; &{/} { added { compatible = "test,added"; }; };'


def build(base: Path, *overlays: Path) -> DtsResult:
    return build_dts(
        VIM3, kernel=None, base_dtb=base, target_dir=base.parent / "out", apply=overlays
    )


def test_several_in_their_order(tmp_path: Path) -> None:
    base = compiled(tmp_path / "base.dtb", A311D, symbols=True)
    first = compiled(tmp_path / "first.dtbo", ON)
    second = compiled(tmp_path / "second.dtbo", SECOND.replace("test,second", "test,first"))
    built = build(base, first, second)
    tree = read_tree(built.dtb.read_bytes(), "it")
    assert tree.cells(A311D_NPU, "test,first") == [2]
    assert tree.strings("/added", "compatible") == ["test,added"]
    assert tree.is_available(A311D_NPU)
    assert built.changes == ()  # the overlay has switched it on already
    document = built.document()
    assert document["applied"] == [str(first), str(second)]
    assert f"applied  {second}" in built.text()
    # As fdtoverlay does it alone.
    expected = tmp_path / "expected.dtb"
    subprocess.run(["fdtoverlay", "-i", base, "-o", expected, first, second], check=True)
    assert read_tree(expected.read_bytes(), "it") == tree


def test_what_an_overlay_has_broken_is_said_to_be_of_the_tree_with_it(tmp_path: Path) -> None:
    base = compiled(tmp_path / "base.dtb", A311D, symbols=True)
    other = compiled(tmp_path / "other.dtbo", PLUGIN + '&{/} { compatible = "acme,other"; };')
    with pytest.raises(UserError, match=r"\(with other.dtbo applied\) is of another board"):
        build(base, other)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('&npu { status = "disabled"; };', f'{A311D_NPU} (NPU) has the status "disabled"'),
        ("&pwrc { status; };", "/power-controller (power domain) has the status empty"),
    ],
)
def test_an_overlay_that_switches_the_npu_off_is_not_undone_in_silence(
    tmp_path: Path, text: str, named: str
) -> None:
    on = A311D.replace('status = "disabled"', 'status = "okay"')
    base = compiled(tmp_path / "base.dtb", on, symbols=True)
    off = compiled(tmp_path / "off.dtbo", PLUGIN + text)
    with pytest.raises(UserError, match=r"off.dtbo switches off what the NPU needs") as caught:
        build(base, off)
    assert named in caught.value.message
    forced = build_dts(
        VIM3, kernel=None, base_dtb=base, target_dir=tmp_path, apply=[off], force_enable=True
    )
    assert forced.npu.status == "okay"
    assert len(forced.changes) == 1
    unwanted = msgspec.structs.replace(VIM3, npu=NpuSettings(enabled=False))
    built = build_dts(unwanted, kernel=None, base_dtb=base, target_dir=tmp_path, apply=[off])
    assert not built.npu.supported


def test_an_overlay_for_others_is_said_to_be_that(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = compiled(tmp_path / "base.dtb", A311D, symbols=True)
    header = "/ {{ compatible = {}; }};"
    for said, mine in (('"radxa,zero2"', False), ('"radxa,zero2", "amlogic, a311d"', True)):
        overlay = compiled(tmp_path / "it.dtbo", PLUGIN + header.format(said) + ON[len(PLUGIN) :])
        build(base, overlay)
        assert ("says that it is for radxa,zero2" in capsys.readouterr().err) is not mine


def test_what_the_npu_lacks_is_added_behind_them(tmp_path: Path) -> None:
    base = compiled(tmp_path / "base.dtb", A311D, symbols=True)
    built = build(base, compiled(tmp_path / "second.dtbo", SECOND))
    assert [(each.path, each.after) for each in built.changes] == [(A311D_NPU, "okay")]
    assert read_tree(built.dtb.read_bytes(), "it").cells(A311D_NPU, "test,second") == [2]


def test_a_base_without_symbols(tmp_path: Path) -> None:
    base = compiled(tmp_path / "base.dtb", A311D)
    with pytest.raises(UserError) as caught:
        build(base, compiled(tmp_path / "first.dtbo", ON))
    assert "was compiled without symbols" in caught.value.message
    assert "npu" in caught.value.message
    assert "-@" in (caught.value.hint or "")
    assert not (tmp_path / "out").exists()
    by_path = PLUGIN + f"&{{{A311D_NPU}}} {{ test,first = <1>; }};"
    built = build(base, compiled(tmp_path / "path.dtbo", by_path))  # needs none
    assert read_tree(built.dtb.read_bytes(), "it").cells(A311D_NPU, "test,first") == [1]


def test_labels_that_the_base_does_not_have(tmp_path: Path) -> None:
    base = compiled(tmp_path / "base.dtb", A311D, symbols=True)
    other = compiled(tmp_path / "other.dtbo", PLUGIN + "&npus { x; };")
    with pytest.raises(UserError, match=r"has no label npus.*did you mean .*npu|has no label npus"):
        build(base, other)
    nowhere = compiled(tmp_path / "nowhere.dtbo", PLUGIN + "&{/no/such/node} { x; };")
    with pytest.raises(UserError, match="cannot be applied to"):
        build(base, nowhere)


def test_what_is_no_overlay(tmp_path: Path) -> None:
    base = compiled(tmp_path / "base.dtb", A311D, symbols=True)
    with pytest.raises(UserError, match=r"is a whole device tree .* not an overlay"):
        build(base, base)
    (tmp_path / "text.dtbo").write_text(ON)
    with pytest.raises(UserError, match="the source of a device tree overlay"):
        build(base, tmp_path / "text.dtbo")
    with pytest.raises(UserError, match="cannot read"):
        build(base, tmp_path / "none.dtbo")


def test_an_overlay_that_brings_a_second_owner(tmp_path: Path) -> None:
    base = compiled(tmp_path / "base.dtb", A311D, symbols=True)
    galcore = PLUGIN + '&{/} { vip { compatible = "amlogic, galcore"; }; };'
    with pytest.raises(UserError, match="two owners"):
        build(base, compiled(tmp_path / "galcore.dtbo", galcore))


@pytest.mark.parametrize("symbols", [True, False])
def test_a_kernels_source_is_compiled_with_symbols_for_it(tmp_path: Path, symbols: bool) -> None:
    linux = make_kernel(tmp_path / "linux", symbols=symbols)
    built = build_dts(
        VIM3, kernel=f"path:{linux}", base_dtb=None, target_dir=tmp_path / "out",
        apply=[compiled(tmp_path / "first.dtbo", ON)],
    )  # fmt: skip
    assert read_tree(built.dtb.read_bytes(), "it").cells(A311D_NPU, "test,first") == [1]


@pytest.mark.slow
def test_as_it_is_typed(tmp_path: Path) -> None:
    base = compiled(tmp_path / "base.dtb", A311D, symbols=True)
    first, second = compiled(tmp_path / "1.dtbo", ON), compiled(tmp_path / "2.dtbo", SECOND)
    words = ["--board", "vim3", "--base-dtb", str(base), "--output", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-m", "invoke", "build-dts", *words, "--apply", first, "--apply", second],
        cwd=PROJECT, env={**os.environ, "NPU_BSP_CACHE": str(tmp_path / "cache")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"applied  {first}\napplied  {second}" in done.stdout
    done = subprocess.run(
        [sys.executable, "-m", "invoke", "build-dts", "--board", "vim3", "--base-dtb", first],
        cwd=PROJECT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "is a device tree overlay (it has /fragment@0/__overlay__)" in done.stderr
    assert "--apply" in done.stderr
