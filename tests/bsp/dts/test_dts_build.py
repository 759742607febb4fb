# SPDX-License-Identifier: MIT
"""Device trees, built with the real tools: from a small kernel tree, and from the real ones."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fdt
import msgspec
import pytest

from bsp.base import process
from bsp.base.errors import InfrastructureError, UserError
from bsp.base.project import PROJECT
from bsp.catalog import load_board
from bsp.dts.build import DtsResult, build_dts, default_target
from bsp.dts.compiler.compile import compile_dts, has_symbols
from bsp.dts.compiler.newer_dtc import needs_newer_dtc
from bsp.dts.npu.required_changes import Change
from bsp.dts.tree import Tree, read_tree
from bsp.dts.verify import diff_text, verify
from bsp.kernel.packaged import prebuilt_kernel
from bsp.kernel.source import KernelTree, kernel_tree
from bsp.profile import Board, NpuSettings
from tests.support.kernel_tree import make_kernel

from .trees import A311D, compiled

NODE = "/npu@ff100000"
RATES = (800_000_000, 800_000_000)
STATUS = Change(NODE, "status", "disabled", "okay")


@pytest.fixture
def vim3() -> Board:
    return load_board("vim3")


def build(board: Board, tmp_path: Path, kernel: Path | str, **options: Any) -> DtsResult:
    name = kernel if isinstance(kernel, str) else f"path:{kernel}"
    return build_dts(board, kernel=name, base_dtb=None, target_dir=tmp_path / "out", **options)


def plain(tree: Path, tmp_path: Path, stem: str = "meson-g12b-a311d-khadas-vim3") -> Path:
    """Compile a board of a small tree, without any change."""
    target = tmp_path / f"{stem}.plain.dtb"
    compile_dts(kernel_tree(f"path:{tree}"), "amlogic", stem, target)
    return target


# --- what comes out, for each state of the kernel --------------------------------------------


def test_like_7_3_nothing_changes_and_the_bytes_are_the_compilers(
    vim3: Board, tmp_path: Path
) -> None:
    tree = make_kernel(tmp_path / "linux", release="7.3", status="okay")
    result = build(vim3, tmp_path, tree, keep_overlay=True)
    assert result.changes == ()
    assert result.overlay is None
    assert result.dtb.read_bytes() == plain(tree, tmp_path).read_bytes()
    assert "nothing had to change" in result.text()


@pytest.mark.parametrize("symbols", [True, False])
def test_like_6_12_one_property_changes(vim3: Board, tmp_path: Path, symbols: bool) -> None:
    tree = make_kernel(tmp_path / "linux", symbols=symbols)
    result = build(vim3, tmp_path, tree)
    assert result.changes == (STATUS,)
    assert result.npu.supported
    assert ("/__symbols__" in read_tree(result.dtb.read_bytes(), "it").nodes) is symbols


def test_like_6_5_the_rates_change_too(vim3: Board, tmp_path: Path) -> None:
    tree = make_kernel(tmp_path / "linux", release="6.5", rates=False)
    result = build(vim3, tmp_path, tree)
    assert result.changes == (STATUS, Change(NODE, "assigned-clock-rates", None, RATES))
    assert result.npu.clocks == (("core", RATES[0]), ("bus", RATES[1]))


@pytest.mark.parametrize("symbols", [True, False])
def test_without_assigned_clocks_they_are_added(vim3: Board, tmp_path: Path, symbols: bool) -> None:
    tree = make_kernel(tmp_path / "linux", assigned=False, rates=False, symbols=symbols)
    result = build(vim3, tmp_path, tree, keep_overlay=True)
    assert [change.property for change in result.changes] == [
        "status", "assigned-clocks", "assigned-clock-rates",
    ]  # fmt: skip
    built = read_tree(result.dtb.read_bytes(), "it")
    assert built.get(NODE, "assigned-clocks") == built.get(NODE, "clocks")
    # The overlay that is kept does the same to the plain tree.
    assert result.overlay is not None
    merged = tmp_path / "merged.dtb"
    subprocess.run(
        ["fdtoverlay", "-i", plain(tree, tmp_path), "-o", merged, result.overlay], check=True
    )
    assert merged.read_bytes() == result.dtb.read_bytes()


def test_like_6_1_it_is_refused_with_what_the_driver_lacks(vim3: Board, tmp_path: Path) -> None:
    tree = make_kernel(tmp_path / "linux", release="6.1", npu=False, driver=False)
    with pytest.raises(UserError, match=r"Linux 6\.1\.0") as caught:
        build(vim3, tmp_path, tree)
    for lack in ("PWRC_G12A_NNA_ID", "RESET_NNA", "etnaviv_hwdb.c"):
        assert lack in caught.value.message
    assert "CLKID" not in caught.value.message  # that is there
    assert not (tmp_path / "out").exists()


def test_a_driver_that_does_not_know_the_npu_is_said(vim3: Board, tmp_path: Path) -> None:
    tree = make_kernel(tmp_path / "linux", release="6.5", driver=False)
    result = build(vim3, tmp_path, tree)
    assert not result.npu.supported
    assert "etnaviv_hwdb.c" in result.npu.why


# --- board settings --------------------------------------------------------------------------


def test_a_rate_of_the_boards_own_takes_effect(vim3: Board, tmp_path: Path) -> None:
    slow = msgspec.structs.replace(vim3, npu=NpuSettings(rates_hz={"core": 400_000_000}))
    result = build(slow, tmp_path, make_kernel(tmp_path / "linux"))
    assert result.npu.clocks == (("core", 400_000_000), ("bus", 800_000_000))


def test_an_npu_that_is_switched_off(vim3: Board, tmp_path: Path) -> None:
    off = msgspec.structs.replace(vim3, npu=NpuSettings(enabled=False))
    result = build(off, tmp_path, make_kernel(tmp_path / "linux", status=""))
    assert result.changes == (Change(NODE, "status", None, "disabled"),)
    assert (result.npu.status, result.npu.supported) == ("disabled", False)


def test_an_unreachable_rate_is_refused(vim3: Board, tmp_path: Path) -> None:
    odd = msgspec.structs.replace(vim3, npu=NpuSettings(rates_hz={"bus": 799_000_000}))
    with pytest.raises(UserError, match="reachable near it: 800000000, 666666666"):
        build(odd, tmp_path, make_kernel(tmp_path / "linux"))


def test_a_fixed_tree_is_compiled_once(
    vim3: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NPU_BSP_CACHE", str(tmp_path / "cache"))
    make_kernel(tmp_path / "linux-6.12")
    subprocess.run(["tar", "-cf", "linux.tar", "linux-6.12"], cwd=tmp_path, check=True)
    tarball = tmp_path / "linux.tar"
    kernel = f"tarball:{tarball}#sha256={hashlib.sha256(tarball.read_bytes()).hexdigest()}"
    calls: list[tuple[str, bool]] = []

    def counted(
        tree: KernelTree, directory: str, stem: str, target: Path, *, symbols: bool
    ) -> None:
        calls.append((stem, symbols))
        compile_dts(tree, directory, stem, target, symbols=symbols)

    monkeypatch.setattr("bsp.dts.compiler.compile.compile_dts", counted)
    results = [build(vim3, tmp_path, kernel) for _ in range(2)]
    assert len(calls) == 1
    assert results[0].sha256 == results[1].sha256
    assert results[0].sha256 == build(vim3, tmp_path, tmp_path / "linux-6.12").sha256


# --- from an existing DTB --------------------------------------------------------------------


@pytest.mark.parametrize("symbols", [True, False])
def test_a_base_dtb_takes_the_same_changes(vim3: Board, tmp_path: Path, symbols: bool) -> None:
    tree = make_kernel(tmp_path / "linux", rates=False, symbols=symbols)
    base = plain(tree, tmp_path)
    result = build_dts(vim3, kernel=None, base_dtb=base, target_dir=tmp_path / "out")
    assert result.changes == (STATUS, Change(NODE, "assigned-clock-rates", None, RATES))
    assert result.kernel is None
    assert result.sha256 == build(vim3, tmp_path, tree).sha256
    again = build_dts(vim3, kernel=None, base_dtb=result.dtb, target_dir=tmp_path / "again")
    assert again.changes == ()
    assert again.dtb.read_bytes() == result.dtb.read_bytes()


@pytest.mark.parametrize(("kernel", "supported"), [("6.1", False), ("6.12", True), (None, True)])
def test_a_base_dtb_and_the_kernel_it_will_run_with(
    vim3: Board, tmp_path: Path, kernel: str | None, supported: bool
) -> None:
    base = plain(make_kernel(tmp_path / "linux"), tmp_path)
    result = build_dts(vim3, kernel=kernel, base_dtb=base, target_dir=tmp_path / "out")
    assert result.npu.supported is supported
    assert "6.7" in result.npu.why or supported


def test_a_base_dtb_of_another_board(vim3: Board, tmp_path: Path) -> None:
    base = plain(make_kernel(tmp_path / "linux"), tmp_path, "other-board")
    with pytest.raises(UserError, match="test,other"):
        build_dts(vim3, kernel=None, base_dtb=base, target_dir=tmp_path / "out")


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda blob: b"", "is not a device tree blob"),
        (lambda blob: b"#!/bin/sh\n" + blob, "is not a device tree blob"),
        (lambda blob: blob[:-20], "truncated"),
        (lambda blob: blob[:100] + b"\xff" * 40 + blob[140:], "damaged"),
    ],
)
def test_a_base_dtb_that_is_damaged(
    vim3: Board, tmp_path: Path, damage: Callable[[bytes], bytes], expected: str
) -> None:
    base = plain(make_kernel(tmp_path / "linux"), tmp_path)
    base.write_bytes(damage(base.read_bytes()))
    with pytest.raises(UserError, match=expected):
        build_dts(vim3, kernel=None, base_dtb=base, target_dir=tmp_path / "out")


def test_a_base_dtb_that_is_not_there(vim3: Board, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        build_dts(vim3, kernel=None, base_dtb=tmp_path / "none", target_dir=tmp_path)


def test_a_board_without_npu_is_left_alone(vim3: Board, tmp_path: Path) -> None:
    board = load_board("virtual")
    base = tmp_path / "base.dtb"
    source = '/dts-v1/; / { compatible = "linux,dummy-virt"; };'
    subprocess.run(["dtc", "-q", "-o", base, "-O", "dtb", "-"], input=source.encode(), check=True)
    result = build_dts(board, kernel=None, base_dtb=base, target_dir=tmp_path / "out")
    assert result.dtb.read_bytes() == base.read_bytes()
    assert (result.npu.node, result.npu.supported) == (None, False)
    with pytest.raises(UserError, match="no device tree source"):
        build_dts(board, kernel=None, base_dtb=None, target_dir=tmp_path / "out")


# --- bad input -------------------------------------------------------------------------------


def test_a_kernel_without_the_board_names_the_nearest(vim3: Board, tmp_path: Path) -> None:
    board = msgspec.structs.replace(vim3, dts="meson-g12b-a311d-khadas-vim4")
    with pytest.raises(UserError, match="did you mean 'meson-g12b-a311d-khadas-vim3'"):
        build(board, tmp_path, make_kernel(tmp_path / "linux"))


def test_source_that_does_not_compile_names_the_place(vim3: Board, tmp_path: Path) -> None:
    tree = make_kernel(tmp_path / "linux")
    file = tree / "arch/arm64/boot/dts/amlogic/meson-g12b-a311d-khadas-vim3.dts"
    file.write_text(file.read_text() + "oops\n")
    with pytest.raises(UserError, match=r"khadas-vim3\.dts:\d+") as caught:
        build(vim3, tmp_path, tree)
    assert caught.value.exit_code == 2
    file.write_text('#include "absent.dtsi"\n')
    with pytest.raises(UserError, match=r"absent\.dtsi"):
        build(vim3, tmp_path, tree)


def test_a_profile_that_names_what_the_tree_lacks(
    vim3: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bsp import catalog

    tree = make_kernel(tmp_path / "linux", release="6.12")
    text = (catalog.SOCS_DIR / "a311d.toml").read_text()
    monkeypatch.setattr(catalog, "SOCS_DIR", tmp_path)
    for change, by, expected in [
        ('node = "/npu@ff100000"', 'node = "/npu@ff200000"', "has no NPU at /npu@ff200000"),
        ('node = "/npu@ff100000"', 'node = "/npu@ff100000"\nmore_nodes = ["/iommu@1"]',
         "has no node /iommu@1, which the NPU needs"),
        ('name = "core"', 'name = "kernel"', "has no clock 'kernel' \\(clock-names: core, bus\\)"),
    ]:  # fmt: skip
        (tmp_path / "a311d.toml").write_text(
            text.replace(change, by, 1).replace(
                "rate_hz = 800_000_000\n", "rate_hz = 400_000_000\n"
            )
        )
        catalog.load_soc.cache_clear()
        with pytest.raises(UserError, match=expected) as caught:
            build(vim3, tmp_path, tree)
        assert caught.value.exit_code == 2
    catalog.load_soc.cache_clear()
    assert not (tmp_path / "out").exists()


def test_a_reference_by_label_and_path_needs_a_newer_dtc(tmp_path: Path) -> None:
    (tmp_path / "x.dtsi").write_text("/ { };\n/delete-node/ &{table/opp-1};\n&{/path} { };\n")
    assert needs_newer_dtc(tmp_path, "Error: x.dtsi:2.15-16 syntax error\nFATAL ERROR")
    for said in ("x.dtsi:1.1-2 syntax error", "x.dtsi:3.1-2 syntax error", "x.dtsi:9.1 syntax error",
                 "y.dtsi:2.1-2 syntax error", "x.dtsi:2.1-2 is wrong"):  # fmt: skip
        assert not needs_newer_dtc(tmp_path, f"Error: {said}")


@pytest.mark.parametrize("tool", ["cpp", "dtc", "fdtoverlay"])
def test_a_missing_tool_is_named_with_its_package(
    vim3: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tool: str
) -> None:
    tree = make_kernel(tmp_path / "linux")
    found = shutil.which
    gone = (tool, "apt-get")  # without apt, nothing is taken out of its package either
    monkeypatch.setattr(
        shutil, "which", lambda name, path=None: None if name in gone else found(name, path=path)
    )
    with pytest.raises(UserError, match=f"'{tool}' is needed") as caught:
        build(vim3, tmp_path, tree)
    assert caught.value.hint.startswith("sudo apt-get install ")
    assert "device-tree-compiler" in caught.value.hint or tool == "cpp"
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written(vim3: Board, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file where a folder should be")
    with pytest.raises(UserError, match="cannot write"):
        build(vim3, tmp_path, make_kernel(tmp_path / "linux"))


def test_a_dry_run_writes_nothing(vim3: Board, tmp_path: Path) -> None:
    tree = make_kernel(tmp_path / "linux")
    result = build(vim3, tmp_path, tree, dry_run=True, keep_overlay=True)
    assert result.changes == (STATUS,)
    assert not (tmp_path / "out").exists()
    assert "not written" in result.text()
    assert build(vim3, tmp_path, tree).sha256 == result.sha256


def test_an_overlay_of_an_earlier_run_does_not_stay(vim3: Board, tmp_path: Path) -> None:
    tree = make_kernel(tmp_path / "linux")
    kept = build(vim3, tmp_path, tree, keep_overlay=True).overlay
    assert kept is not None
    assert kept.exists()
    build(vim3, tmp_path, tree)
    assert not kept.exists()


def test_verification_sees_what_nobody_asked_for(tmp_path: Path) -> None:
    tree = read_tree(plain(make_kernel(tmp_path / "linux"), tmp_path).read_bytes(), "it")
    verify(tree, tree, [])
    with pytest.raises(InfrastructureError, match=f"differs at {NODE}: status"):
        verify(tree, tree, [STATUS])
    nodes = {path: dict(node) for path, node in tree.nodes.items()}
    nodes[NODE]["status"] = b"okay\0"
    verify(tree, Tree(nodes), [STATUS])
    nodes["/"]["extra"] = b""
    with pytest.raises(InfrastructureError, match="differs at /: extra"):
        verify(tree, Tree(nodes), [STATUS])
    del nodes["/"]["extra"]
    nodes["/new"] = {}
    with pytest.raises(InfrastructureError, match="differs at /new"):
        verify(tree, Tree(nodes), [STATUS])


def test_the_diff_reads_like_device_tree_source() -> None:
    changes = [STATUS, Change(NODE, "assigned-clock-rates", None, RATES)]
    assert diff_text(changes).splitlines() == [
        f"  {NODE}",
        '  -   status = "disabled";',
        '  +   status = "okay";',
        "  +   assigned-clock-rates = <800000000 800000000>;",
    ]


# --- the reader ------------------------------------------------------------------------------


def test_nops_are_skipped(tmp_path: Path) -> None:
    base = plain(make_kernel(tmp_path / "linux"), tmp_path)
    blob = bytearray(base.read_bytes())
    tree = read_tree(bytes(blob), "it")
    # As libfdt's fdt_nop_property does: a bootloader that took the NPU's status out.
    needle = b"\0\0\0\x03\0\0\0\x09"  # FDT_PROP, 9 bytes
    at = blob.index(b"disabled\0") - 12
    assert blob[at : at + 8] == needle
    blob[at : at + 24] = b"\0\0\0\x04" * 6
    assert tree.status(NODE) == "disabled"
    assert read_tree(bytes(blob), "it").get(NODE, "status") is None


# --- as the kernel's Makefiles have it -------------------------------------------------------


@pytest.mark.parametrize(
    ("makefile", "expected"),
    [
        ("dtb-y += b.dtb\n", False),
        ("x-dtbs := b.dtb o.dtbo\ndtb-$(CONFIG_X) += x.dtb\n", True),
        ("x-dtbs := b.dtb o.dtbo\n", False),  # x.dtb is built by nobody
        ("x-dtbs := bb.dtb o.dtbo\ndtb-y += x.dtb\n", False),
        ("x-dtbs += \\\n\tb.dtb \\\n\to.dtbo\ndtb-y += y.dtb \\\n\tx.dtb\n", True),
        ("DTC_FLAGS := -@\n", True),
        ("DTC_FLAGS_b := -@\n", True),
        ("DTC_FLAGS_c := -@\n", False),
        ("# DTC_FLAGS := -@\n", False),
        ("", False),
    ],
)
def test_which_boards_get_symbols(makefile: str, expected: bool) -> None:
    assert has_symbols(makefile, "b") is expected


MAKE_QUESTION = """\
include $(MAKEFILE)
suffix-search = $(strip $(foreach s, $3, $($(1:%$(strip $2)=%$s))))
dtbs := $(foreach v,$(filter dtb-%,$(.VARIABLES)),$($v))
multi := $(sort $(foreach m, $(dtbs), $(if $(call suffix-search, $m, .dtb, -dtbs -), $m)))
real := $(foreach m,$(multi),$(call suffix-search, $m, .dtb, -dtbs))
all: ; @echo "$(filter %.dtb,$(real))" "$(if $(filter -@,$(DTC_FLAGS)),$(patsubst %.dts,%.dtb,\\
$(notdir $(wildcard $(DIR)/*.dts))))" $(foreach v,$(filter DTC_FLAGS_%,$(.VARIABLES)),\\
$(if $(filter -@,$($v)),$(v:DTC_FLAGS_%=%).dtb))
"""


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.parametrize("kernel", ["6.12"])
def test_symbols_are_where_make_itself_would_put_them(kernel: str, tmp_path: Path) -> None:
    question = tmp_path / "question.mk"
    question.write_text(MAKE_QUESTION)
    tree = kernel_tree(kernel).path / "arch/arm64/boot/dts"
    for makefile in sorted(tree.glob("*/Makefile")):
        said = subprocess.run(
            ["make", "-s", "-f", question, f"MAKEFILE={makefile}", f"DIR={makefile.parent}", "all"],
            check=True, capture_output=True,
        ).stdout.decode().split()  # fmt: skip
        stems = [file.stem for file in makefile.parent.glob("*.dts")]
        ours = {f"{stem}.dtb" for stem in stems if has_symbols(makefile.read_text(), stem)}
        assert ours == {name for name in said if name[:-4] in stems}, makefile.parent.name


# --- the real kernels ------------------------------------------------------------------------


@pytest.mark.network
def test_vim3_on_6_12(vim3: Board, tmp_path: Path) -> None:
    result = build(vim3, tmp_path, "6.12")
    assert result.changes == (STATUS,)
    blob = result.dtb.read_bytes()
    assert result.sha256 == hashlib.sha256(blob).hexdigest()
    document = result.document()
    assert json.loads(json.dumps(document))["npu"] == {
        "node": NODE,
        "status": "okay",
        "driver": "etnaviv",
        "clocks": [{"name": "core", "rate_hz": RATES[0]}, {"name": "bus", "rate_hz": RATES[1]}],
        "supported": True,
        "why": document["npu"]["why"],
    }
    # A referee that is neither libfdt nor ours.
    read: Any = fdt.parse_dtb(blob)
    assert read.get_property("status", NODE).value == "okay"
    assert list(read.get_property("assigned-clock-rates", NODE).data) == list(RATES)


@pytest.mark.network
def test_vim3_on_a_kernel_like_6_5(vim3: Board, tmp_path: Path) -> None:
    """6.12 with the NPU's rates taken out of meson-g12-common.dtsi: what the NPU's first kernels had."""
    real = kernel_tree("6.12").path
    tree = tmp_path / "linux"
    dts = Path("arch/arm64/boot/dts/amlogic")
    (tree / dts).mkdir(parents=True)
    for name in ("include", "scripts", "drivers", "Makefile"):
        (tree / name).symlink_to(real / name)
    for file in (real / dts).iterdir():
        (tree / dts / file.name).symlink_to(file)
    common = tree / dts / "meson-g12-common.dtsi"
    text = common.read_text()
    common.unlink()
    at = text.index("npu@ff100000")
    common.write_text(text[:at] + text[at:].replace(
        "\t\tassigned-clock-rates = <800000000>, <800000000>;\n", "", 1))  # fmt: skip
    result = build(vim3, tmp_path, tree)
    assert result.changes == (STATUS, Change(NODE, "assigned-clock-rates", None, RATES))


@pytest.mark.network
def test_imx8mp_evk_at_400_mhz_on_6_12(tmp_path: Path) -> None:
    board = msgspec.structs.replace(
        load_board("imx8mp-evk"), npu=NpuSettings(rates_hz={"core": 400_000_000})
    )
    result = build(board, tmp_path, "6.12")
    (change,) = result.changes
    assert change.property == "assigned-clock-rates"
    assert change.after == (400_000_000, 800_000_000, 300_000_000)
    assert dict(result.npu.clocks)["core"] == 400_000_000


@pytest.mark.slow
@pytest.mark.network
def test_vim3_on_7_3_and_6_1(vim3: Board, tmp_path: Path) -> None:
    result = build(vim3, tmp_path, "7.3")
    assert result.changes == ()
    compile_dts(kernel_tree("7.3"), "amlogic", str(vim3.dts), tmp_path / "plain.dtb")
    assert result.dtb.read_bytes() == (tmp_path / "plain.dtb").read_bytes()
    with pytest.raises(UserError, match=r"Linux 6\.1\..*lacks|missing: .*PWRC_G12A_NNA_ID"):
        build(vim3, tmp_path, "6.1")
    imx = build(load_board("imx8mp-evk"), tmp_path, "7.3")
    assert imx.changes == ()
    assert dict(imx.npu.clocks)["core"] == 1_000_000_000  # 7.3 runs it in overdrive


BOARDS_OF_MAKE = [
    ("amlogic", "meson-g12b-a311d-khadas-vim3"),
    ("amlogic", "meson-sm1-khadas-vim3l"),
    ("freescale", "imx8mp-evk"),
    ("freescale", "imx8mp-venice-gw74xx"),
    ("freescale", "imx8mm-evk"),  # no composite's base: without symbols
]


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.parametrize("kernel", ["6.12"])
def test_the_kernels_own_make_gives_the_same_bytes(kernel: str, tmp_path: Path) -> None:
    for tool in ("bison", "flex", "make", "gcc"):
        process.require_tool(tool)
    whole = kernel_tree(kernel, whole=True)
    make: list[str | Path] = ["make", "-s", "-C", whole.path, f"O={tmp_path / 'o'}", "ARCH=arm64"]
    process.run([*make, "defconfig"])
    # One after the other: with -j, targets that are bases of composites race in the kernel's rules.
    process.run([*make, *(f"{folder}/{stem}.dtb" for folder, stem in BOARDS_OF_MAKE)])
    tree: KernelTree = kernel_tree(kernel)
    for folder, stem in BOARDS_OF_MAKE:
        compile_dts(tree, folder, stem, tmp_path / "ours.dtb")
        theirs = tmp_path / "o/arch/arm64/boot/dts" / folder / f"{stem}.dtb"
        assert (tmp_path / "ours.dtb").read_bytes() == theirs.read_bytes(), stem


@pytest.mark.network
@pytest.mark.parametrize("kernel", ["6.12", pytest.param("7.3", marks=pytest.mark.slow)])
def test_the_distributions_packages_hold_the_same_bytes(kernel: str, tmp_path: Path) -> None:
    tree, packaged = kernel_tree(kernel), prebuilt_kernel(kernel)
    if packaged.version != tree.origin.split()[1]:
        pytest.skip(f"Debian's source ({tree.origin}) and image ({packaged.version}) differ now")
    for folder, stem in BOARDS_OF_MAKE:
        compile_dts(tree, folder, stem, tmp_path / "ours.dtb")
        theirs = packaged.dtbs / folder / f"{stem}.dtb"
        assert (tmp_path / "ours.dtb").read_bytes() == theirs.read_bytes(), stem


# --- the command -----------------------------------------------------------------------------


def command(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "invoke", "build-dts", *arguments],
        cwd=PROJECT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def test_the_command_prints_one_document(tmp_path: Path) -> None:
    tree = make_kernel(tmp_path / "linux")
    done = command(tmp_path, "--board", "vim3", "--kernel", f"path:{tree}", "--json", "--overlay",
                   "--output", str(tmp_path / "out"))  # fmt: skip
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["board"] == "vim3"
    assert document["changes"] == [
        {"path": NODE, "property": "status", "before": "disabled", "after": "okay"}
    ]
    assert Path(document["overlay"]).exists()
    assert document["sha256"] == hashlib.sha256(Path(document["dtb"]).read_bytes()).hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--board", "vim4"], "did you mean 'vim3'"),
        (["--board", "vim3", "--kernel", "5.10"], "unknown kernel '5.10'"),
        (["--board", "vim3", "--base-dtb", "/etc/hostname"], "not a device tree blob"),
    ],
)
def test_the_command_ends_with_2_for_bad_input(
    tmp_path: Path, arguments: list[str], expected: str
) -> None:
    done = command(tmp_path, *arguments, "--output", str(tmp_path / "out"))
    assert done.returncode == 2
    assert f"error: {expected}" in done.stderr or expected in done.stderr
    assert "hint: " in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_commands_at_once(tmp_path: Path) -> None:
    tree = make_kernel(tmp_path / "linux")
    arguments = [sys.executable, "-m", "invoke", "build-dts", "--board", "vim3", "--kernel",
                 f"path:{tree}", "--output", str(tmp_path / "out")]  # fmt: skip
    runs = [subprocess.Popen(arguments, cwd=PROJECT, stdout=subprocess.PIPE) for _ in range(2)]
    assert [(run.communicate(timeout=60), run.returncode)[1] for run in runs] == [0, 0]
    assert [path.suffix for path in (tmp_path / "out").iterdir()] == [".dtb"]


@pytest.mark.slow
def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    tree = make_kernel(tmp_path / "linux")
    # A preprocessor that never ends: a FIFO that nobody writes to.
    fifo = tree / "arch/arm64/boot/dts/amlogic/soc.dtsi"
    fifo.unlink()
    os.mkfifo(fifo)
    work = tmp_path / "tmp"
    work.mkdir()
    run = subprocess.Popen(
        [sys.executable, "-m", "invoke", "build-dts", "--board", "vim3", "--kernel",
         f"path:{tree}", "--output", str(tmp_path / "out")],
        cwd=PROJECT, env={**os.environ, "TMPDIR": str(work)}, stderr=subprocess.PIPE,
    )  # fmt: skip
    deadline = time.monotonic() + 20
    while not list(work.glob("npu-bsp-dts-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.2)
    run.send_signal(signal.SIGINT)
    said = run.communicate(timeout=20)[1].decode()
    assert run.returncode == 130, said
    assert "Traceback" not in said
    assert list(work.glob("npu-bsp-*")) == []
    assert not (tmp_path / "out").exists()
    with pytest.raises(OSError, match="No such device or address"):  # nobody reads it any more
        os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)


def test_where_results_go(vim3: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)
    assert default_target(vim3, None, None) == Path("build/vim3/6.12")
    assert default_target(vim3, "7.3", None) == Path("build/vim3/7.3")
    assert default_target(vim3, None, Path("x.dtb")) == Path("build/vim3/base-dtb")
    monkeypatch.chdir(tmp_path)
    assert default_target(vim3, None, None) == PROJECT / "build/vim3/6.12"


@pytest.mark.parametrize("behind", [bytes(1000), b"garbage!" * 100])
@pytest.mark.parametrize("status", ["okay", "disabled"])
def test_what_lies_behind_a_tree_is_left_out_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], behind: bytes, status: str
) -> None:
    """As in a file that was read from a partition; the same is written whether something changes or not."""
    plain = compiled(tmp_path / "plain.dtb", A311D.replace('"disabled"', f'"{status}"'))
    longer = tmp_path / "longer.dtb"
    longer.write_bytes(plain.read_bytes() + behind)
    results = [
        build_dts(
            load_board("vim3"), kernel=None, base_dtb=file, target_dir=tmp_path / file.stem
        ).dtb.read_bytes()
        for file in (plain, longer)
    ]
    assert results[0] == results[1]
    lines = [line for line in capsys.readouterr().err.splitlines() if "behind" in line]
    assert len(lines) == 1
    assert f"longer.dtb has {len(behind)} bytes behind the device tree's end" in lines[0]
