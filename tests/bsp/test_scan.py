# SPDX-License-Identifier: MIT
"""Boards found by looking into a kernel tree; and every statement of a profile against what was found."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from bsp import profile
from bsp.base.errors import UserError
from bsp.base.progress import step
from bsp.dts.tree import Tree
from bsp.kernel.distribution import all_series
from bsp.kernel.source import kernel_tree
from bsp.profile import board_names, by_compatible, load_board, load_soc
from bsp.scan import show
from bsp.scan.classify import look, telling_words
from bsp.scan.drivers import compatible_strings, database_entries, drivers_of
from bsp.scan.scan import known_socs, look_at, scan, telling_sources
from bsp.scan.sources import Closures, all_sources

from ..support.kernel_tree import make_kernel

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


def test_a_source_that_changes_is_scanned_again(tree: Path) -> None:
    assert scan(f"path:{tree}").rows[0].status == "disabled"
    assert scan(f"path:{tree}").rows[0].status == "disabled"
    edit(tree, 'status = "disabled"', 'status = "okay"')
    assert scan(f"path:{tree}").rows[0].status == "okay"


def test_a_board_that_does_not_compile_is_named_and_the_others_are_found(tree: Path) -> None:
    good = tree / f"arch/arm64/boot/dts/{BOARD}.dts"
    good.with_name("broken.dts").write_text(good.read_text() + "/ { this is no device tree };")
    result = scan(f"path:{tree}")
    assert [source for source, _ in result.failed] == ["amlogic/broken"]
    assert BOARD in [row.source for row in result.rows]
    assert "broken: not known" in " ".join(show.text([result]).split())


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
    assert look("x", Tree(nodes), {}, known_socs()) is None


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
    text = (profile.BOARDS_DIR / "vim3.toml").read_text()
    monkeypatch.setattr(profile, "BOARDS_DIR", tmp_path)
    (tmp_path / "vim3.toml").write_text(text)
    (tmp_path / "vim3-again.toml").write_text(text.replace('"vim3"', '"vim3-again"'))
    with pytest.raises(UserError, match="vim3 and vim3-again both claim 'khadas,vim3'"):
        by_compatible()


def test_no_shipped_boards_claim_one_string() -> None:
    assert len(by_compatible()) == len(board_names())
