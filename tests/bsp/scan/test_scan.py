# SPDX-License-Identifier: MIT
"""Boards found by looking into a kernel tree; and every statement of a profile against what was found."""

from __future__ import annotations

import json
import time
from pathlib import Path

import msgspec
import pytest

from bsp import catalog
from bsp.base.errors import UserError
from bsp.base.progress import step
from bsp.board_record import all_boards
from bsp.catalog import board_names, load_board, load_soc
from bsp.dts.compiler.compile import compile_dts
from bsp.dts.npu.support import cannot_tell, lacking, verdict
from bsp.dts.tree import Tree
from bsp.kernel.distribution import all_series
from bsp.kernel.source import kernel_tree
from bsp.scan import scan as scanning
from bsp.scan import show
from bsp.scan.classify import classify, telling_words
from bsp.scan.drivers import compatible_strings, database_entries, drivers_of
from bsp.scan.scan import known_socs, look_at, scan, telling_sources
from bsp.scan.sources import Closures, all_sources

from ...support.kernel_tree import make_kernel

BOARDS = [name for name in board_names() if load_board(name).expect]

ENTRY = """
static const struct etnaviv_chip_identity etnaviv_chip_identities[] = {
	{
		.model = 0x8000,
		.revision = 0x7120,
		.product_id = 0x45080009,
		.customer_id = ~0U,
		.eco_id = 0,
		.nn_core_count = 8,
	},
};
"""


# --- profiles against kernels --------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.parametrize("name", BOARDS)
def test_what_a_profile_states_is_what_the_kernels_have(name: str) -> None:
    board, soc = load_board(name), load_soc(load_board(name).soc)
    source = f"{soc.dts_directory}/{board.dts}"
    found = {}
    for series in all_series():
        seen = scan(series)
        row = next((row for row in seen.rows if row.source == source), None)
        if any(source == other for other, _ in seen.failed):
            continue  # this machine's dtc cannot read the source: nothing is known, nothing may be stated
        if row is None:
            assert source not in seen.boards, f"Linux {series} has the board, and no NPU"
            found[series] = "no board"
        else:
            found[series] = row.expectation()
            assert row.soc == board.soc
            assert board.compatible[0] in row.compatible
    stated = {series: said for series, said in board.expect.items() if series in found}
    assert stated == found
    assert stated.get(board.kernel, "works") != "no board"


@pytest.mark.slow
@pytest.mark.network
def test_every_board_that_was_to_have_a_profile_has_one() -> None:
    have = show.profiles_by_source()
    for series in ("6.12", "7.3"):
        rows = scan(series).rows
        for row in rows:
            if row.soc in ("a311d", "imx8mp", "a523") or row.model == "Khadas VIM3L":
                assert row.source in have, series
    for driver, least in (("rocket", 3), ("ethosu", 3)):
        count = sum(row.driver == driver and row.source in have for row in scan("7.3").rows)
        assert count >= least


@pytest.mark.slow
@pytest.mark.network
def test_a_second_scan_comes_from_the_cache() -> None:
    first = scan("6.12")
    started = time.process_time()
    assert scan("6.12") == first
    assert time.process_time() - started < 2


@pytest.mark.full
@pytest.mark.network
def test_what_is_not_compiled_has_no_npu() -> None:
    tree = kernel_tree("6.12")
    every, telling = telling_sources(tree)
    others = [source for source in every if source not in set(telling)]
    assert len(others) > 1000
    with step("Compiling what a scan leaves out") as now:
        result = look_at(tree, (every, others), now)
    assert result.rows == ()
    assert result.failed == ()


# --- a small tree --------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NPU_BSP_CACHE", str(tmp_path / "cache"))
    folder = make_kernel(tmp_path / "linux")
    driver = folder / "drivers/gpu/drm/etnaviv"
    (driver / "etnaviv_gpu.c").write_text('{ .compatible = "vivante,gc" },')
    (driver / "etnaviv_hwdb.c").write_text(ENTRY)
    return folder


BOARD = "amlogic/meson-g12b-a311d-khadas-vim3"


def edit(tree: Path, change: str, by: str) -> None:
    file = tree / "arch/arm64/boot/dts/amlogic/soc.dtsi"
    text = file.read_text()
    assert change in text
    file.write_text(text.replace(change, by))


def test_a_scan_says_what_is_missing_for_each_board(tree: Path) -> None:
    result = scan(f"path:{tree}")
    assert result.failed == ()
    row = next(row for row in result.rows if row.source == BOARD)
    assert row.node == "/npu@ff100000"
    assert row.status == "disabled"
    assert dict(row.clocks) == {"core": 800_000_000, "bus": 800_000_000}
    assert row.driver == "etnaviv"
    assert row.in_database is True
    assert row.gap == ("node disabled",)
    assert row.expectation() == "enable"


@pytest.mark.parametrize(
    ("change", "by", "gap", "expected"),
    [
        ('status = "disabled"', 'status = "okay"', (), "works"),
        ("assigned-clock-rates = <800000000>, <800000000>;", "",
         ("node disabled", "rates missing"), "enable"),
        ('compatible = "vivante,gc"', 'compatible = "other"', ("no node",), "no node"),
        ("power-domains = <&pwrc 2>;", "", ("no power-domains", "node disabled"),
         "supply missing"),
        ("interrupts = <0 147 4>;", "",
         ("no working node: /npu@ff100000 has no interrupts", "node disabled"), "supply missing"),
    ],
)  # fmt: skip
def test_each_gap_has_its_name(
    tree: Path, change: str, by: str, gap: tuple[str, ...], expected: str
) -> None:
    edit(tree, change, by)
    row = scan(f"path:{tree}", limit=[BOARD]).rows[0]
    assert row.gap == gap
    assert row.expectation() == expected


def test_a_driver_that_does_not_know_the_chip(tree: Path) -> None:
    hwdb = tree / "drivers/gpu/drm/etnaviv/etnaviv_hwdb.c"
    hwdb.write_text(ENTRY.replace("0x7120", "0x7121"))
    row = scan(f"path:{tree}", limit=[BOARD]).rows[0]
    assert row.in_database is False
    assert row.gap == ("not in the hardware database", "node disabled")
    (tree / "drivers/gpu/drm/etnaviv/etnaviv_gpu.c").unlink()
    assert scan(f"path:{tree}", limit=[BOARD]).rows[0].expectation() == "no driver"


# --- trees of vendors' kernels, and trees for two drivers


def vendors(tree: Path, root: str, nodes: str) -> tuple[str, ...]:
    """Return the gap of a board with this root and these nodes; ``none`` where it is not listed."""
    file = tree / "arch/arm64/boot/dts/amlogic/vendor.dts"
    file.write_text(
        f'/dts-v1/;\n/ {{ compatible = {root}; model = "TV";\n'
        f"#address-cells = <2>; #size-cells = <1>; {nodes} }};"
    )
    result = scan(f"path:{tree}")
    row = next((row for row in result.rows if row.source == "amlogic/vendor"), None)
    if row is None:
        return ("none",)
    assert row.node is None
    assert row.expectation() == "no node"
    assert show.short(row) == ("no node" if "no node" in row.gap else "vendor")
    assert any(row.gap[-1][:20] in line for line in show.text([result]).splitlines())
    return row.gap


VIPSI = 'vipsi@38500000 { compatible = "fsl,imx8-vipsi"; status = "okay"; };'
MIX = 'mix_gpu_ml { compatible = "fsl,imx8mp-gpu", "fsl,imx8-gpu-ss"; };'


def npu(address: str) -> str:
    """An NPU as Allwinner's kernels describe those of several chips."""
    return f'npu@{address} {{ compatible = "allwinner,npu"; reg = <0 0x{address} 0x1000>; }};'


GALCORE = 'galcore { compatible = "amlogic, galcore"; };'


@pytest.mark.parametrize(
    ("root", "nodes", "gap"),
    [
        ('"acme,one", "fsl,imx8mp"', VIPSI, ("vendor node /vipsi@38500000",)),
        ('"acme,one", "fsl,imx8mp"', MIX + VIPSI, ("vendor node /vipsi@38500000",)),
        ('"acme,one", "fsl,imx8mp"', MIX, ("vendor node /mix_gpu_ml",)),
        ('"acme,one", "fsl,imx8mp"', "", ("no node",)),
        ('"acme,one"', VIPSI, ("vendor node /vipsi@38500000",)),  # the node tells the chip
        ('"acme,one"', MIX, ("none",)),  # and this one does not: relatives without an NPU have it
        ('"amlogic, g12b"', GALCORE, ("vendor node /galcore",)),
        ('"khadas,vim3", "amlogic,a311d"', GALCORE, ("vendor node /galcore",)),
        ('"x,y", "amlogic,s922x"', GALCORE, ("none",)),
        ('"amlogic, s922x"', GALCORE, ("none",)),
        ('"acme,two"', npu("7122000"), ("vendor node /npu@7122000",)),
        ('"acme,two", "arm,sun60iw2p1"', npu("3600000"), ("none",)),  # another chip's NPU
        ('"x,y", "rockchip,rk3588"', 'npu { compatible = "rockchip,rk3588-rknpu"; };',
         ("no driver", "vendor node /npu")),
    ],
)  # fmt: skip
def test_a_vendors_node_is_named(tree: Path, root: str, nodes: str, gap: tuple[str, ...]) -> None:
    found = vendors(tree, root, nodes)
    # The small tree's etnaviv knows the A311D alone.
    assert tuple(each for each in found if each != "not in the hardware database") == gap


def test_two_owners_are_said(tree: Path) -> None:
    edit(tree, 'status = "disabled"', 'status = "okay"')
    edit(tree, "npu: npu@", f"{GALCORE}\n\tnpu: npu@")
    result = scan(f"path:{tree}", limit=[BOARD])
    assert result.rows[0].gap == ("second owner /galcore",)
    assert result.rows[0].expectation() == "two owners"
    assert "2 owners" in show.text([result, result])


def test_something_that_the_npu_needs_is_off(tree: Path) -> None:
    edit(tree, 'status = "disabled"', 'status = "okay"')
    edit(tree, "pwrc: power-controller {", 'pwrc: power-controller { status = "disabled";')
    row = scan(f"path:{tree}", limit=[BOARD]).rows[0]
    assert row.gap == ("power domain disabled",)
    assert row.expectation() == "enable"


def test_an_empty_status_is_off(tree: Path) -> None:
    edit(tree, 'status = "disabled"', "status")
    assert scan(f"path:{tree}", limit=[BOARD]).rows[0].gap == ("node disabled",)


# --- what the kernel's own source says of an NPU


def entry(**numbers: str) -> str:
    values = {
        "model": "0x9000", "revision": "0x9003", "product_id": "0x5090009",
        "customer_id": "0x10000016", "eco_id": "0", "nn_core_count": "6", **numbers,
    }  # fmt: skip
    body = "".join(f"\t\t.{name} = {value},\n" for name, value in values.items())
    return f"\t{{\n{body}\t}},\n"


@pytest.mark.parametrize(
    ("text", "known"),
    [
        (entry(), True),
        (entry(product_id="0X5090009U", eco_id="~0U", customer_id="~0U"), True),
        (entry() + entry(revision="0x8302"), True),
        (entry(revision="0x8302"), False),
        (entry(customer_id="0x9f"), False),
        (entry(nn_core_count="0"), False),  # a GPU
        ("", False),
        (f"/*\n{entry()}*/", False),
        ("".join(f"// {line}\n" for line in entry().splitlines()), False),
        (f"#if 0\n{entry()}#endif\n", False),
        (
            entry(product_id="0x5090009, /* a comment */") + f"#if 0\n{entry(eco_id='1')}#endif",
            True,
        ),
        (entry(model="chip_model_VIP9000"), False),  # a name that is defined elsewhere
        (f"#define VIP 0x9000U\n{entry(model='VIP')}", True),
        (entry(model="(0x9000)", eco_id="00"), True),
        (f"#if 0\n#ifdef CONFIG_X\n#endif\n{entry()}#endif\n", False),
        (f"#if 0\n#else\n{entry()}#endif\n", True),
        (f"#if 1\n#else\n{entry()}#endif\n", False),
        (f"#ifdef NOT_YET\n{entry()}#endif\n", False),
        (f"#ifdef CONFIG_X\n{entry()}#endif\n", True),
    ],
)
def test_the_source_decides_whether_the_driver_knows_an_npu(
    tree: Path, text: str, known: bool
) -> None:
    """No released kernel knows the T527's NPU; a kernel of one's own may."""
    hwdb = tree / "drivers/gpu/drm/etnaviv/etnaviv_hwdb.c"
    hwdb.write_text(ENTRY.replace("identities[] = {\n", "identities[] = {\n" + text))
    npu = load_soc("a523").npu
    assert npu is not None
    assert lacking(tree, npu) == (() if known else ("the NPU's entry in etnaviv_hwdb.c",))
    works, why = verdict(load_board("orangepi-4a"), npu, series="7.3", lacks=lacking(tree, npu))
    assert works is known
    assert ("knows the NPU" in why) is known
    folder = tree / "arch/arm64/boot/dts/allwinner"
    folder.mkdir()
    (folder / "board.dts").write_text(
        '/dts-v1/; / { compatible = "xunlong,orangepi-4a", "allwinner,sun55i-t527"; soc { '
        'npu@7122000 { compatible = "vivante,gc"; clocks = <0>; power-domains = <0>; }; }; };'
    )
    row = scan(f"path:{tree}", limit=["allwinner/board"]).rows[0]
    assert row.in_database is known
    assert ("not in the hardware database" in row.gap) is not known


@pytest.mark.parametrize("around", ["/*\n{}\n*/", "#if 0\n{}\n#endif", "// {}"])
def test_a_driver_whose_line_is_left_out_is_lacking(tree: Path, around: str) -> None:
    npu = load_soc("a311d").npu
    assert npu is not None
    assert "the driver etnaviv" not in lacking(tree, npu)
    source = tree / "drivers/gpu/drm/etnaviv/etnaviv_gpu.c"
    line = '{ .compatible = "vivante,gc" },'
    assert line in source.read_text()
    source.write_text(source.read_text().replace(line, around.format(line)))
    assert "the driver etnaviv" in lacking(tree, npu)


@pytest.mark.parametrize(
    "left_out", ["/* {} is not there yet */\n", "#if 0\n#define {} 1\n#endif\n"]
)
def test_what_is_not_compiled_is_not_there(left_out: str, tree: Path) -> None:
    npu = load_soc("a311d").npu
    assert npu is not None
    header = tree / "include/dt-bindings/reset/amlogic,meson-g12a-reset.h"
    header.parent.mkdir(parents=True, exist_ok=True)
    header.write_text("#ifndef _RESET_H\n#define _RESET_H\n#define RESET_NNA 1\n#endif\n")
    assert "the reset RESET_NNA" not in lacking(tree, npu)
    header.write_text(left_out.format("RESET_NNA"))
    assert "the reset RESET_NNA" in lacking(tree, npu)


@pytest.mark.parametrize("around", ["/* {} */\n", "#if 0\n{}\n#endif\n"])
def test_a_node_that_is_left_out_of_the_source_is_lacking(around: str, tree: Path) -> None:
    npu = load_soc("imx8mp").npu
    assert npu is not None
    source = tree / "arch/arm64/boot/dts/freescale/imx8mp.dtsi"
    source.parent.mkdir(parents=True, exist_ok=True)
    domain = "pgc_mlmix: power-domain@24 { reg = <24>; };"
    for text, is_there in ((f"{domain}\n", True), (around.format(domain), False)):
        source.write_text(f"#include <a.h>\n/ {{ #size-cells = <1>;\n{text}}};\n")
        assert ("the power domain pgc_mlmix in imx8mp.dtsi" in lacking(tree, npu)) != is_there


def test_numbers_that_nobody_has_written_down(tree: Path) -> None:
    npu = load_soc("a523").npu
    assert npu is not None
    unknown = msgspec.structs.replace(npu, identity=None)
    assert lacking(tree, unknown) == ()
    works, why = verdict(load_board("orangepi-4a"), unknown, series="7.3", lacks=())
    assert not works
    assert "this profile does not know the NPU's numbers, so it cannot be told" in why
    assert "no kernel" not in why
    folder = tree / "arch/arm64/boot/dts/other"
    folder.mkdir()
    (folder / "x.dts").write_text(
        '/dts-v1/; / { compatible = "some,board"; npu@1 { compatible = "vivante,gc"; }; };'
    )
    result = scan(f"path:{tree}", limit=["other/x"])
    assert result.rows[0].gap[0] == "the NPU's numbers are not known"
    assert result.rows[0].in_database is None
    assert result.rows[0].expectation() == "cannot be told"
    assert "untold" in show.text([result, result])


def test_a_driver_that_is_not_there_is_lacking(tree: Path) -> None:
    for name, driver in (("a311d", "etnaviv"), ("rk3588", "rocket"), ("imx93", "ethosu")):
        npu = load_soc(name).npu
        assert npu is not None
        (tree / "drivers/gpu/drm/etnaviv/etnaviv_gpu.c").unlink(missing_ok=True)
        assert f"the driver {driver}" in lacking(tree, npu)


def test_every_shipped_npu_that_its_driver_knows_by_numbers_has_some() -> None:
    for name in catalog.soc_names():
        npu = load_soc(name).npu
        assert npu is None or not cannot_tell(npu), name


# --- sources that do not compile


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("x = <CLKID_NNA_AXI_CLOCK>;", "the macro CLKID_NNA_AXI_CLOCK is not defined; did you mean "
         "'CLKID_NNA_AXI_CLK'?"),
        ("x = <&clkc CLKID_NNA_AXI_CLK>, <&clkc NOT_THERE>;", "the macro NOT_THERE is not defined"),
        ("x = <1>,\n\t<NOT_THERE>;", "the macro NOT_THERE is not defined"),
        ('x = "SOME_TEXT", <NOT_THERE 1>; /* SOME_WORD */', "the macro NOT_THERE is not defined"),
    ],
)  # fmt: skip
def test_an_undefined_macro_is_named(tree: Path, line: str, reason: str) -> None:
    good = (tree / f"arch/arm64/boot/dts/{BOARD}.dts").read_text()
    broken = tree / "arch/arm64/boot/dts/amlogic/broken.dts"
    broken.write_text(f"{good}/ {{\n\t{line}\n}};\n")
    number = broken.read_text().split("\n").index(next(
        row for row in broken.read_text().split("\n") if "NOT_THERE" in row or "AXI_CLOCK" in row
    )) + 1  # fmt: skip
    with pytest.raises(UserError) as caught:
        compile_dts(kernel_tree(f"path:{tree}"), "amlogic", "broken", tree / "out.dtb")
    assert f"broken.dts:{number}: {reason}" in caught.value.message
    assert "dtc 1.7" not in caught.value.hint
    assert "include/dt-bindings" in caught.value.hint
    result = scan(f"path:{tree}")
    said = " ".join(show.text([result]).split())
    assert "broken: not known, as it does not compile on this machine" in said
    assert reason.partition(";")[0].replace("-", "") in said.replace("- ", "").replace("-", "")
    assert "newer dtc" not in said


def test_another_fault_is_no_macro(tree: Path) -> None:
    good = (tree / f"arch/arm64/boot/dts/{BOARD}.dts").read_text()
    broken = tree / "arch/arm64/boot/dts/amlogic/broken.dts"
    for line in ("x = <&clkc CLKID_NNA_AXI_CLK;", "this is not a source", "x = <&no_such_label>;"):
        broken.write_text(f"{good}/ {{\n\t{line}\n}};\n")
        with pytest.raises(UserError) as caught:
            compile_dts(kernel_tree(f"path:{tree}"), "amlogic", "broken", tree / "out.dtb")
        assert "the macro" not in caught.value.message
        assert "dtc 1.7" not in caught.value.hint


def test_a_dtc_that_is_too_old_is_said_where_it_is(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bsp.dts.compiler.compile.newer_dtc", lambda: ())
    monkeypatch.setattr("bsp.dts.compiler.compile.needs_newer_dtc", lambda *_: True)
    broken = tree / "arch/arm64/boot/dts/amlogic/broken.dts"
    broken.write_text("/dts-v1/; / { x = <&{label/path}; };")
    with pytest.raises(UserError) as caught:
        compile_dts(kernel_tree(f"path:{tree}"), "amlogic", "broken", tree / "out.dtb")
    assert "dtc 1.7 or later" in caught.value.hint


def test_a_source_that_changes_is_scanned_again(tree: Path) -> None:
    assert scan(f"path:{tree}").rows[0].status == "disabled"
    assert scan(f"path:{tree}").rows[0].status == "disabled"
    edit(tree, 'status = "disabled"', 'status = "okay"')
    assert scan(f"path:{tree}").rows[0].status == "okay"


def test_a_board_that_does_not_compile_is_named_and_the_others_are_found(tree: Path) -> None:
    good = tree / f"arch/arm64/boot/dts/{BOARD}.dts"
    good.with_name("broken.dts").write_text(good.read_text() + "/ { this is not a device tree };")
    result = scan(f"path:{tree}")
    assert [source for source, _ in result.failed] == ["amlogic/broken"]
    assert BOARD in [row.source for row in result.rows]
    assert "broken: not known" in " ".join(show.text([result]).split())


def test_what_is_no_board_among_the_sources(tree: Path) -> None:
    """Vendors' trees have overlays there, called .dts too, and links that lead nowhere."""
    folder = tree / "arch/arm64/boot/dts/amlogic"
    (folder / "overlay").mkdir()
    (folder / "overlay/uart.dts").write_text(
        '/dts-v1/; /plugin/; / { compatible = "amlogic,a311d"; }; &uart { status = "okay"; };'
    )
    (folder / "gone.dts").symlink_to("nowhere.dts")
    result = scan(f"path:{tree}")
    assert [row.source for row in result.rows if "overlay" in row.source] == []
    assert [source for source, _ in result.failed] == ["amlogic/gone"]
    assert "did you mean" not in result.failed[0][1]


def test_a_damaged_memory_is_scanned_again(tree: Path, tmp_path: Path) -> None:
    before = scan(f"path:{tree}")
    (memory,) = (tmp_path / "cache/scans").glob("*.json")
    for content in ("{", "[]", '{"boards": 3}', json.dumps({**before.document(), "all": None})):
        memory.write_text(content)
        assert scan(f"path:{tree}") == before


# --- which sources are compiled ------------------------------------------------------------------


def test_only_what_may_have_an_npu_is_compiled(tree: Path) -> None:
    folder = tree / "arch/arm64/boot/dts/other"
    folder.mkdir()
    (folder / "plain.dts").write_text('/dts-v1/; / { compatible = "a,b"; };')
    (folder / "deep.dts").write_text('/dts-v1/;\n#include "one.dtsi"\n')
    (folder / "one.dtsi").write_text('/include/ "two.dtsi"\n')
    (folder / "two.dtsi").write_text('/ { npu@1 { compatible = "vivante,gc"; }; };')
    (folder / "gpu.dts").write_text('/dts-v1/; / { gpu@1 { compatible = "vivante,gc"; }; };')
    (folder / "macro.dts").write_text(
        "/dts-v1/;\n#define WHICH <arm64/other/two.dtsi>\n#include WHICH\n"
    )
    (folder / "lost.dts").write_text('/dts-v1/;\n#include "not-here.dtsi"\n')
    closures = Closures(tree, telling_words(drivers_of(tree).values(), known_socs()))
    chosen = {
        source.name.removeprefix("other/")
        for source in all_sources(tree)
        if source.directory == "other" and closures.may_have(folder / f"{source.stem}.dts")
    }
    # What cannot be followed is compiled to be sure.
    assert chosen == {"deep", "macro", "lost"}
    rows = {row.source: row for row in scan(f"path:{tree}").rows}
    assert rows["other/deep"].node == rows["other/macro"].node == "/npu@1"
    assert rows["other/deep"].soc is None


# --- what is read --------------------------------------------------------------------------------


def test_driver_tables_are_read() -> None:
    assert compatible_strings('x = "a"; .compatible = "b,c" }, { .compatible="d,e", .data') == (
        "b,c",
        "d,e",
    )
    (entry,) = database_entries(ENTRY)
    assert entry.nn_cores == 8
    identity = load_soc("a311d").npu
    assert identity is not None
    assert identity.identity is not None
    assert entry.knows(identity.identity)  # ~0U matches any customer
    other = load_soc("imx8mp").npu
    assert other is not None
    assert other.identity is not None
    assert not entry.knows(other.identity)


def test_a_chip_without_an_npu_is_left_out_although_its_tree_has_the_node() -> None:
    nodes = {
        "/": {"compatible": b"khadas,vim3\0amlogic,s922x\0amlogic,g12b\0"},
        "/npu@ff100000": {"compatible": b"vivante,gc\0", "status": b"okay\0"},
    }
    assert classify("x", Tree(nodes), {}, known_socs()) is None


def test_an_answer_counts_where_the_cache_cannot_keep_it(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cache").mkdir(exist_ok=True)
    (tmp_path / "cache/scans").write_text("a file where a folder should be")
    assert scan(f"path:{tree}").rows
    assert "not kept for the next time" in capsys.readouterr().err


def test_tables_fit_80_columns(tree: Path) -> None:
    result = scan(f"path:{tree}")
    for text in (show.text([result]), show.text([result, result, result])):
        assert max(len(line) for line in text.splitlines()) <= 80
        assert "khadas-vim3" in text
    document = show.document([result])["scans"][0]
    row = next(row for row in document["boards"] if row["source"] == BOARD)
    assert row["profile"] == "vim3"
    assert set(row) >= {
        "source", "compatible", "node", "status", "clocks", "driver", "in_database", "gap",
    }  # fmt: skip


# --- profiles that are wrong ---------------------------------------------------------------------


def test_two_boards_that_claim_one_string(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (catalog.BOARDS_DIR / "vim3.toml").read_text()
    monkeypatch.setattr(catalog, "BOARDS_DIR", tmp_path)
    (tmp_path / "vim3.toml").write_text(text)
    (tmp_path / "vim3-again.toml").write_text(text.replace('"vim3"', '"vim3-again"'))
    for row in all_boards():
        assert "vim3 and vim3-again both claim 'khadas,vim3'" in (row["problem"] or "")


def test_no_shipped_boards_claim_one_string() -> None:
    names = board_names()
    assert len({load_board(name).compatible[0] for name in names}) == len(names)


def test_links_that_lead_nowhere_do_not_end_a_scan(tmp_path: Path) -> None:
    """A part of a kernel tree was copied; headers in it are links to the rest."""
    (tmp_path / "a.h").write_text("1")
    before = scanning._state(tmp_path)
    (tmp_path / "b.h").symlink_to("../uapi/b.h")
    after = scanning._state(tmp_path)
    assert before != after
    assert after.endswith("b.h leads nowhere")
