# SPDX-License-Identifier: MIT
"""A broken file among the user's profiles is named, and does not stop what is not about it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from bsp import catalog
from bsp.base.errors import UserError
from bsp.board_record import all_boards
from bsp.catalog import board_names, load_board
from bsp.identify import identify
from bsp.new_board import new_board
from bsp.profile_source import Source
from bsp.readable_boards import _say_passed_over, readable_boards
from commands.face.program import program

GOOD = (catalog.BOARDS_DIR / "vim3.toml").read_text()


def loop(file: Path) -> None:
    file.symlink_to(file.name)


def gone(file: Path) -> None:
    file.symlink_to("nowhere.toml")


def huge(file: Path) -> None:
    with file.open("wb") as stream:
        stream.write(b"# ")
        stream.truncate(100 << 20)


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "not-toml": (lambda file: file.write_text("format = 1\nname = \n"), "not valid TOML"),
    "of-later": (lambda file: file.write_text("format = 99\n"), "this version reads format 1"),
    "unknown-key": (
        lambda file: file.write_text(GOOD.replace('"vim3"', '"unknown-key"') + "\n[npus]\n"),
        "npus",
    ),
    "no-clock": (
        lambda file: file.write_text(
            GOOD.replace('"vim3"', '"no-clock"') + "\n[npu]\nrates_hz = { warp = 1 }\n"
        ),
        "no clock 'warp'",
    ),
    "other-name": (lambda file: file.write_text(GOOD), "name is 'vim3'"),
    "binary": (lambda file: file.write_bytes(b"\0\1\2"), "is not a text"),
    "deep": (lambda file: file.write_text("a = " + "[" * 2000 + "]" * 2000), "nested too deep"),
    "escape": (
        lambda file: file.write_text(
            GOOD.replace('"vim3"', '"escape"').replace('dts = "', 'dts = "\\u001b[31m')
        ),
        "dts has the control character",
    ),
    "nul": (
        lambda file: file.write_text(
            GOOD.replace('"vim3"', '"nul"').replace('dts = "', 'dtb = "a\\u0000')
        ),
        "dtb has the control character",
    ),
    "long": (
        lambda file: file.write_text(
            GOOD.replace('"vim3"', '"long"').replace('dts = "', 'dts = "' + "a" * 300)
        ),
        "dts is longer than a file's name can be",
    ),
    "empty": (lambda file: file.write_text(""), "format is None"),
    "loop": (loop, "symbolic links"),
    "gone": (gone, "No such file"),
    "huge": (huge, "too long for a profile"),
    "two\nlines": (lambda file: file.write_text(""), "format is None"),
    "ünï côde": (lambda file: file.write_text(GOOD), "name is 'vim3'"),
}


# One of each kind in the fast tier: not read, not understood, contradicting its SoC, no file at all.
_QUICK = ("not-toml", "unknown-key", "no-clock", "gone", "two\nlines")


@pytest.fixture(
    params=[pytest.param(name, marks=[] if name in _QUICK else pytest.mark.slow) for name in BROKEN]
)
def broken(
    request: pytest.FixtureRequest, own_profiles: Path, capsys: pytest.CaptureFixture[str]
) -> tuple[str, str]:
    """The name of a profile that is broken, beside a good one; and what is said of it."""
    name: str = request.param
    make, why = BROKEN[name]
    make(own_profiles / f"{name}.toml")
    (own_profiles / "mine.toml").write_text(
        GOOD.replace('"vim3"', '"mine"').replace("khadas,vim3", "acme,mine")
    )
    _say_passed_over.cache_clear()
    return name, why


def test_the_others_work_and_it_is_named_once(
    broken: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, why = broken
    assert name in board_names()
    assert identify(["acme,mine"], what="h").name == "mine"
    assert {"vim3", "mine"} <= {board.name for board in readable_boards()}
    new_board("another", Source(""), like="vim3", output=str(tmp_path), dry_run=True)
    printed = capsys.readouterr().err.splitlines()
    if name == "no-clock":  # it can be read; what is wrong is said where its NPU is asked for
        assert printed == []
    else:
        assert len(printed) == 1
        assert why in printed[0]
        assert "passed over" in printed[0]


def test_asked_for_by_name_it_is_an_error(broken: tuple[str, str]) -> None:
    name, why = broken
    with pytest.raises(UserError, match=why):
        catalog.npu_of(load_board(name))


def test_the_list_has_it_with_the_reason(
    broken: tuple[str, str], own_profiles: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, why = broken
    row = next(row for row in all_boards() if row["name"] == name)
    assert row["problem"] is not None
    assert why in row["problem"]
    assert "\n" not in row["problem"]
    with pytest.raises(SystemExit) as ended:
        program().run(["./inv", "boards", "--json"])
    printed = capsys.readouterr()
    assert ended.value.code == 2
    problems = {row["name"]: row["problem"] for row in json.loads(printed.out)}
    assert len(problems) == len(board_names())
    assert {each for each, problem in problems.items() if problem} == {name}
    errors = [line for line in printed.err.splitlines() if not line.startswith("hint: ")]
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert why in errors[0]
    with pytest.raises(SystemExit):
        program().run(["./inv", "boards"])
    assert " mine " in f" {' '.join(capsys.readouterr().out.split())} "


def test_without_broken_ones_the_list_ends_well(
    own_profiles: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program().run(["./inv", "boards", "--json"])  # any other code than 0 is raised
    assert {row["problem"] for row in json.loads(capsys.readouterr().out)} == {None}


def test_a_shipped_one_that_is_broken_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "BOARDS_DIR", tmp_path)
    monkeypatch.setattr("bsp.readable_boards.BOARDS_DIR", tmp_path)
    (tmp_path / "vim9.toml").write_text("format = 1\n")
    with pytest.raises(UserError, match="vim9"):
        readable_boards()


def test_two_of_the_users_own_that_their_models_tell_apart_are_no_mistake(
    own_profiles: Path,
) -> None:
    for name in ("one", "two"):
        (own_profiles / f"{name}.toml").write_text(
            GOOD.replace('"vim3"', f'"{name}"') + f'\n[identity]\nmodels = ["{name}"]\n'
        )
    assert not any(row["problem"] for row in all_boards())
