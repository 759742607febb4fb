# SPDX-License-Identifier: MIT
"""Profiles: every shipped file is right, and every mistake in one is named."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import fdt
import msgspec
import pytest

from bsp import catalog, describe
from bsp.base.errors import UserError
from bsp.base.project import PROJECT
from bsp.board_record import all_boards, one_board
from bsp.catalog import board_names, load_board, load_soc, npu_of, read_board
from bsp.dts.build import build_dts
from bsp.dts.npu.support import lacking
from bsp.dts.tree import read_tree
from bsp.kernel.distribution import all_series, series_key, series_named
from bsp.kernel.source import kernel_tree
from bsp.profile import NpuSettings
from bsp.remote.inventory_file import read_inventory
from bsp.scan.drivers import database_entries

BOARDS = board_names()
SOCS = sorted(path.stem for path in catalog.SOCS_DIR.glob("*.toml"))


# --- every shipped file ----------------------------------------------------------------------


@pytest.mark.parametrize("name", BOARDS)
def test_a_shipped_board_loads_and_is_described(name: str) -> None:
    board = load_board(name)
    assert board.name == name
    assert series_named(board.kernel)
    document = one_board(name)
    assert set(document["kernels"]) == set(all_series())
    text = describe.board_text(name)
    assert board.title in " ".join(text.split())
    assert max(len(line) for line in text.splitlines()) <= 80


@pytest.mark.parametrize("name", SOCS)
def test_a_shipped_soc_loads_and_its_rates_are_reachable(name: str) -> None:
    soc = load_soc(name)
    assert soc.name == name
    for clock in soc.npu.clocks if soc.npu else ():
        assert clock.reachable_hz(), clock.name
        assert bool(clock.parents) != bool(clock.firmware_rates), clock.name
        assert clock.source, clock.name
        assert clock.rate_hz is None or clock.rate_hz in clock.reachable_hz()


def raw(item: object) -> bytes:
    """The bytes of a property as the package ``fdt`` holds it."""
    data = getattr(item, "data", [])
    if isinstance(item, fdt.PropStrings):
        return b"".join(text.encode() + b"\0" for text in data)
    if isinstance(item, fdt.PropWords):
        return struct.pack(f">{len(data)}I", *data)
    return bytes(data)


# One board of each driver in the fast tier, the others in the slow one.
QUICK = ("vim3", "imx8mp-evk")


@pytest.mark.network
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
        for name in BOARDS
        if load_board(name).dts
    ],
)
def test_a_shipped_board_builds_on_its_default_kernel(name: str, tmp_path: Path) -> None:
    board = load_board(name)
    result = build_dts(board, kernel=None, base_dtb=None, target_dir=tmp_path)
    blob = result.dtb.read_bytes()
    ours = read_tree(blob, name)
    assert ours.compatible == list(board.compatible)
    npu = npu_of(board)
    assert npu is not None
    assert result.npu.status == "okay"
    stated = board.expect[board.kernel]
    assert result.npu.supported == (stated in ("works", "enable")), result.npu.why
    if stated in ("works", "enable"):
        assert bool(result.changes) == (stated == "enable")
    # Where a profile asks for rates, or names the node that has them, the tree now has them.
    if npu.rates_node or any(clock.rate_hz for clock in npu.clocks):
        assert all(rate_hz for _, rate_hz in result.npu.clocks)
    if name in QUICK:
        # The package fdt reads every node and every byte as we do.
        theirs = {
            (path.rstrip("/") or "/"): {item.name: raw(item) for item in items}
            for path, _, items in fdt.parse_dtb(blob).walk()
        }
        assert theirs == ours.nodes


@pytest.mark.full
@pytest.mark.network
@pytest.mark.parametrize("name", [name for name in BOARDS if load_board(name).expect])
def test_every_kernel_does_to_a_board_what_its_profile_states(name: str, tmp_path: Path) -> None:
    board = load_board(name)
    for kernel, stated in board.expect.items():
        if stated in ("no board", "no node", "supply missing"):
            with pytest.raises(UserError):
                build_dts(board, kernel=kernel, base_dtb=None, target_dir=tmp_path)
            continue
        result = build_dts(board, kernel=kernel, base_dtb=None, target_dir=tmp_path)
        if stated != "not recognised":  # there it may be switched on, in vain
            assert bool(result.changes) == (stated == "enable")
        assert result.npu.supported == (stated in ("enable", "works"))


@pytest.mark.network
@pytest.mark.parametrize("name", [name for name in SOCS if load_soc(name).npu])
def test_the_facts_of_a_soc_are_those_of_the_kernel(name: str) -> None:
    npu = load_soc(name).npu
    assert npu is not None
    since = npu.kernel_since
    old = since is not None and series_key(since) <= series_key("6.12")
    tree = kernel_tree("6.12" if old else "7.3").path
    assert lacking(tree, npu) == (() if since else ("the NPU's entry in etnaviv_hwdb.c",))
    for clock in npu.clocks:
        header = (tree / "include/dt-bindings" / clock.header).read_text()
        assert re.search(rf"#define\s+{clock.symbol}\s+{clock.cell}\b", header), clock.name
        for parent in clock.parents:
            if parent.cell is not None:
                assert re.search(rf"#define\s+\w+\s+{parent.cell}\b", header), parent.name
        # The file that a clock's facts come from is there, and speaks of each parent.
        if clock.firmware_rates:
            continue  # not the kernel's to know
        named = re.search(r"drivers/\S+\.c", clock.source)
        assert named, clock.name
        driver = (tree / named.group()).read_text()
        for parent in clock.parents:
            bare = parent.name.replace("-", "[-_]")
            assert re.search(rf"(?i)\b(\w+_)?{bare}(_clk)?\b", driver), parent.name
    if npu.identity is None:
        assert npu.driver != "etnaviv"
        return
    known = database_entries((tree / "drivers/gpu/drm/etnaviv/etnaviv_hwdb.c").read_text())
    cores = [entry.nn_cores for entry in known if entry.knows(npu.identity)]
    assert cores == ([npu.identity.nn_cores] if since else [])


# --- what people see -------------------------------------------------------------------------


def test_the_table_of_boards_fits_80_columns() -> None:
    text = describe.boards_table(all_boards())
    assert all(name in text for name in BOARDS)
    assert max(len(line) for line in text.splitlines()) <= 80


def test_support_levels_of_the_vim3() -> None:
    assert one_board("vim3")["kernels"] == {
        "6.1": "no driver",
        "6.12": "works",
        "7.3": "works",
    }
    assert set(one_board("virtual")["kernels"].values()) == {"no npu"}


def test_a_board_is_explained_to_somebody_new_to_it() -> None:
    text = " ".join(describe.board_text("vim3").split())
    assert "An NPU (neural processing unit) is" in text
    assert "6.1 does not describe the NPU" in text
    assert "6.12 leaves the NPU switched off; ./inv build-dts switches it on" in text
    assert "7.3 has the NPU switched on" in text
    assert "etnaviv-gpu ff100000.npu: model: GC8000, revision: 7120" in text
    honest = " ".join(describe.board_text("vim3l").split())
    assert "etnaviv does not recognise this NPU" in honest
    assert "No network will run on this NPU" in honest
    assert one_board("vim3l")["kernels"]["7.3"] == "not recognised"
    other = " ".join(describe.board_text("imx93-11x11-evk").split())
    assert "dmesg | grep ethosu" in other
    assert "/dev/accel/accel0" in other


def test_series_are_ordered_by_number() -> None:
    assert sorted(["6.12", "6.8", "7.3", "6.1"], key=series_key) == ["6.1", "6.8", "6.12", "7.3"]
    with pytest.raises(UserError, match="not a kernel series"):
        series_key("six")


# --- mistakes --------------------------------------------------------------------------------


def broken(tmp_path: Path, change: str, by: str, name: str = "vim3") -> Path:
    text = (catalog.BOARDS_DIR / f"{name}.toml").read_text()
    assert change in text
    file = tmp_path / f"{name}.toml"
    file.write_text(text.replace(change, by, 1))
    return file


@pytest.mark.parametrize(
    ("change", "by", "expected"),
    [
        ('soc = "', 'socc = "', r"unknown key 'socc'.*did you mean 'soc'"),
        ("[boot]", "[bootl]", r"unknown key 'bootl'.*did you mean 'boot'"),
        ("fat_mount", "fat_mnt", r"unknown key 'fat_mnt' in \[boot\].*did you mean 'fat_mount'"),
        ('kernel = "6.12"', "kernel = 6.12", r"key 'kernel'.*Expected `str`"),
        ('title = "Khadas VIM3"', "", r"key 'title' is missing"),
        ('compatible = ["khadas', 'compatible = ["khadas\n', r"not valid TOML.*line"),
        (
            'soc = "a311d"',
            'soc = "a331d"',
            r"vim3\.toml: unknown SoC 'a331d'.*did you mean 'a311d'",
        ),
        ('"6.12" = "enable"', '"6.12" = "enabel"', r"key 'expect.*enabel"),
        ("format = 1", "format = 99", r"format is 99, this version reads format 1"),
        ("format = 1", "", r"format is None"),
        ('name = "vim3"', 'name = "vim4"', r"name is 'vim4', but the file is 'vim3\.toml'"),
        ('name = "vim3"', 'name = "VIM 3"', r"key 'name'"),
        ("[boot]", "[npu]\nrates_hz = { core = -1 }\n[boot]", r"key 'npu\.rates_hz.*>= 1"),
    ],
)
def test_a_mistake_in_a_board_is_named(tmp_path: Path, change: str, by: str, expected: str) -> None:
    file = broken(tmp_path, change, by)
    with pytest.raises(UserError, match=re.compile(expected, re.DOTALL)) as caught:
        read_board(file)
    assert caught.value.exit_code == 2
    assert str(file) in caught.value.message or "SoC" in caught.value.message


def test_a_mistake_in_a_soc_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (catalog.SOCS_DIR / "a311d.toml").read_text()
    monkeypatch.setattr(catalog, "SOCS_DIR", tmp_path)
    for change, by, expected in [
        ("max_divider = 128", "max_dividor = 128", r"unknown key 'max_dividor'.*'max_divider'"),
        ("cell = 267", "cell = -1", r"npu\.clocks\[.*>= 0"),
        ('node = "/npu@ff100000"', 'node = "npu@ff100000"', r"npu\.node"),
        ('kernel_since = "6.7"', 'kernel_since = "new"', r"npu\.kernel_since"),
    ]:
        (tmp_path / "a311d.toml").write_text(text.replace(change, by, 1))
        load_soc.cache_clear()
        with pytest.raises(UserError, match=re.compile(expected, re.DOTALL)):
            load_soc("a311d")
    load_soc.cache_clear()


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        read_board(tmp_path / "none.toml")
    (tmp_path / "bytes.toml").write_bytes(b"a\0\xff\xfe")
    with pytest.raises(UserError, match="is not a text"):
        read_board(tmp_path / "bytes.toml")
    os.mkfifo(tmp_path / "pipe.toml")
    with pytest.raises(UserError, match="is a pipe"):
        read_board(tmp_path / "pipe.toml")
    for text in ("[boot]\n[boot]\n", 'kernel = "6.12"\nkernel = "7.3"\n'):
        (tmp_path / "twice.toml").write_text(text)
        with pytest.raises(UserError, match="not valid TOML") as caught:
            read_board(tmp_path / "twice.toml")
        assert "twice" in caught.value.hint  # and nothing about quotes


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "latin-1"])
def test_a_file_as_any_editor_writes_it(tmp_path: Path, encoding: str) -> None:
    text = (PROJECT / "bsp/boards/vim3.toml").read_text()
    changed = re.sub('title = ".*"', 'title = "Mülheim"', text, count=1)
    (tmp_path / "vim3.toml").write_bytes(changed.replace("\n", "\r\n").encode(encoding))
    assert read_board(tmp_path / "vim3.toml").title == "Mülheim"
    inventory = tmp_path / "inventory.toml"
    inventory.write_bytes('[hosts.desk]\nuser = "jürgen"\n'.encode(encoding))
    host, _ = read_inventory(inventory)["desk"]
    assert host.user == "jürgen"


def test_what_editors_leave_beside_profiles_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Emacs marks a file that is being edited with a hidden link that leads nowhere."""
    monkeypatch.setenv("NPU_BSP_CONFIG", str(tmp_path))
    (tmp_path / "boards").mkdir()
    before = catalog.board_names()
    (tmp_path / "boards/.#mine.toml").symlink_to("user@desk.1234")
    (tmp_path / "boards/folder.toml").mkdir()
    assert catalog.board_names() == before
    file = tmp_path / "boards/My board.toml"
    file.write_bytes((PROJECT / "bsp/boards/vim3.toml").read_bytes())
    with pytest.raises(UserError, match=r"name is .vim3., but the file is .My board\.toml."):
        load_board("My board")
    for name in ("../boards/gone", ".", "..", ".#mine", "a/b"):
        with pytest.raises(UserError, match="unknown board"):
            load_board(name)


def test_an_unknown_board_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'vim3'"):
        load_board("vim33")


def test_settings_for_a_clock_that_is_not_there() -> None:
    board = msgspec.structs.replace(load_board("vim3"), npu=NpuSettings(rates_hz={"cor": 1}))
    with pytest.raises(UserError, match="no clock 'cor'; did you mean 'core'"):
        npu_of(board)
    board = msgspec.structs.replace(load_board("virtual"), npu=NpuSettings(enabled=False))
    with pytest.raises(UserError, match="its SoC has no NPU"):
        npu_of(board)


# --- the commands ----------------------------------------------------------------------------


def invoke(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "invoke", *arguments]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=60)


@pytest.mark.slow
def test_boards_and_board_print_documents_and_text() -> None:
    assert [row["name"] for row in json.loads(invoke("boards", "--json").stdout)] == BOARDS
    assert json.loads(invoke("board", "vim3", "--json").stdout)["npu"]["nn_cores"] == 8
    assert "Khadas VIM3" in invoke("board", "vim3").stdout


def test_an_unknown_board_ends_with_2() -> None:
    done = invoke("board", "vim33")
    assert done.returncode == 2
    assert done.stderr == (
        "error: unknown board 'vim33'; did you mean 'vim3'?\nhint: ./inv boards lists the boards\n"
    )
