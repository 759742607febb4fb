# SPDX-License-Identifier: MIT
"""Progress as a person sees it: in terminals of several widths, and where nothing may be drawn over."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bsp.base.project import PROJECT
from bsp.base.terminal import screen

from ...support.tmux import Terminal, needs_tmux

# The counter at the end of a drawn line: it was drawn several times when it has come this far.
AFTER_A_WHILE = r"\.\.\..* [1-9] s$"

STEP = """
import time
from bsp.base.progress import step
with step({name!r}) as now:
    now.note({detail!r})
    time.sleep(600)
"""
NAMES = {
    "short": ("Compiling", "3 of 8 MB"),
    "long": ("Compiling the device tree of a board whose name is long " * 3, ""),
    "long-detail": ("Fetching", "a file whose name is longer than any terminal is wide " * 4),
    "wide": ("コンパイル中" * 12, "名前の長いファイル" * 9),
    "combining": ("e\u0301a\u0308" * 60, "o\u0302" * 80),
    "control": ("one\ntwo\x1b[31m\tthree\r" * 9, "four\x07\n"),
}


@pytest.mark.slow
@needs_tmux
@pytest.mark.parametrize("columns", [80, 40, 12])
def test_a_running_step_is_one_row(tmp_path: Path, columns: int) -> None:
    with contextlib.ExitStack() as stack:
        terminals = {}
        for kind, (name, detail) in NAMES.items():
            (tmp_path / kind).mkdir()
            program = STEP.format(name=name, detail=detail)
            terminals[kind] = stack.enter_context(Terminal(tmp_path / kind, program, columns))
        for kind, terminal in terminals.items():
            rows = terminal.wait(AFTER_A_WHILE)
            assert len(rows) == 1, (kind, rows)
            assert screen.cells(rows[0]) < columns, (kind, rows)
            detail = NAMES[kind][1]
            if detail and columns >= 40:
                assert detail[:4].strip() in rows[0], (kind, rows)


# tmux moves rows that were broken into more out of a window, even where rows below them are empty.
FULL = "for number in range(30): print('line', number)\n"


@pytest.mark.slow
@needs_tmux
def test_resizing_leaves_nothing_behind(tmp_path: Path) -> None:
    name = "Compiling the device tree of a board whose name is long, 長い " * 3
    program = FULL + STEP.format(name=name, detail="")
    with Terminal(tmp_path, program, 80) as terminal:
        terminal.wait(r" \d s$")
        for columns in (30, 80, 40, 12, 100, 80, 79, 78, 60, 41):
            terminal.resize(columns)
            # It is drawn anew at its new width, and what it took at the old one is clear.
            terminal.wait(
                lambda rows, c=columns: (  # type: ignore[misc]
                    c - 3 <= screen.cells(rows[-1]) < c
                    and rows[:-1] == [f"line {number}" for number in range(30)]
                ),
                timeout_s=20,
            )


NESTED = """
import sys, time
from bsp.base.progress import say, step
def wait_for_enter(): sys.stdin.readline()
with step("outer") as outer:
    outer.note("counts, too")
    with step("middle"):
        with step("inner"):
            wait_for_enter()
        say("said")
        wait_for_enter()
"""


@needs_tmux
def test_only_the_innermost_step_is_drawn(tmp_path: Path) -> None:
    with Terminal(tmp_path, "import os; os.system('stty -echo')\n" + NESTED, 80) as terminal:
        for _ in range(10):
            rows = terminal.wait(r"inner \.\.\. +\d+ s$")
            assert len(rows) == 1, rows
        terminal.type("")
        rows = terminal.wait(r"middle \.\.\.")
        assert re.fullmatch(r"    inner: [\d.]+ s", rows[0])
        assert rows[1] == "    said"
        assert re.fullmatch(r"  middle \.\.\. \d+ s", rows[2])
        assert len(rows) == 3
        terminal.type("")
        rows = terminal.wait("ended 0")
        assert [row.split()[0] for row in rows] == ["inner:", "said", "middle:", "outer", "ended"]


SIDE_BY_SIDE = """
import threading, time
from bsp.base.progress import step
def work(number):
    with step(f"worker {number} with a name that is longer than this terminal"):
        time.sleep(2)
    if number == 5: time.sleep(600)
for number in range(6):
    threading.Thread(target=work, args=(number,)).start()
with step("waits for all of them, and is drawn when they have ended"):
    time.sleep(600)
"""


@pytest.mark.slow
@needs_tmux
def test_steps_of_several_threads_take_turns(tmp_path: Path) -> None:
    with Terminal(tmp_path, SIDE_BY_SIDE, 40) as terminal:
        rows = terminal.wait(lambda rows: sum(": 2." in row for row in rows) >= 6)
        text = "".join(terminal.wait(r"^waits .* s$"))
        for number in range(6):
            assert text.count(f"worker {number}") == 1, rows
        assert text.count("waits") == 1


TABLE = """
import time
from bsp.base.terminal.live_table import LiveTable
from bsp.base.progress import step
with LiveTable(lambda: "2 under way, 端末の幅より長い行" + " and so on" * 20) as table:
    for name in ("b00", "b01", "b02"):
        table.show(name, "sending " + "a file with a long name " * 5)
    table.end("b00", "b00: done")
    time.sleep(600)
"""


@pytest.mark.slow
@needs_tmux
def test_a_table_stays_in_its_place(tmp_path: Path) -> None:
    with Terminal(tmp_path, FULL + TABLE, 80) as terminal:
        terminal.wait(r"b02 +2 s")
        for columns in (50, 34, 90):
            terminal.resize(columns)
            terminal.wait(
                lambda rows, c=columns: (  # type: ignore[misc]
                    c - 3 <= screen.cells(rows[-1]) < c
                    and [row.split()[0] for row in rows[30:]] == ["b00:", "b01", "b02", "2"]
                ),
                timeout_s=20,
            )


QUESTION = """
from bsp.base.terminal.ask import confirm
from bsp.base.progress import step
with step("A step in which somebody is asked"):
    import time; time.sleep(1)
    said = confirm("Trust this host?")
    print("the answer is", said, flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
@needs_tmux
def test_a_question_is_not_drawn_over(tmp_path: Path) -> None:
    with Terminal(tmp_path, QUESTION, 60) as terminal:
        terminal.wait("Trust this host")
        terminal.wait(lambda rows: rows == ["Trust this host? [y/N]"])
        terminal._tmux("run-shell", "sleep 1")  # long enough to be drawn over several times
        assert terminal.rows() == ["Trust this host? [y/N]"]
        terminal.type("yes")
        rows = terminal.wait(r"asked \.\.\. \d+ s")
        assert rows[:2] == ["Trust this host? [y/N] yes", "the answer is True"]


RESULT = """
import time
from bsp.base.output import print_text
from bsp.base.progress import step
with step("A step with a long name in which a result is printed"):
    time.sleep(1)
    print_text("result")
    time.sleep(600)
"""


@pytest.mark.slow
@needs_tmux
def test_results_do_not_mix_with_what_is_drawn(tmp_path: Path) -> None:
    with Terminal(tmp_path, RESULT, 70) as terminal:
        terminal.wait("result$")
        rows = terminal.wait(r" [2-9] s$")
        assert rows[0] == "result"
        assert len(rows) == 2


SHORT = """
import time
from bsp.base.terminal.live_table import LiveTable
from bsp.base.progress import step
with step("outer"), step("inner") as now:
    now.note("half of it")
    time.sleep(0.8)
with LiveTable(lambda: "summary") as table:
    table.show("row", "text")
    time.sleep(0.5)
    table.end("row", "row: done")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "drawn"),
    [
        ({"TERM": "xterm"}, True),
        ({"TERM": "xterm", "NO_COLOR": ""}, True),  # no-color.org: set and not empty
        ({"TERM": "xterm", "NO_COLOR": "1"}, False),
        ({"TERM": "dumb"}, False),
        ({"TERM": ""}, False),
        ({}, False),
    ],
)
def test_what_is_asked_for_in_the_environment(environment: dict[str, str], drawn: bool) -> None:
    near, far = pty.openpty()
    clean = {k: v for k, v in os.environ.items() if k not in ("TERM", "NO_COLOR")}
    with subprocess.Popen(
        [sys.executable, "-c", SHORT], cwd=PROJECT, stderr=far, env={**clean, **environment}
    ) as process:
        os.close(far)
        data = b""
        try:
            while piece := os.read(near, 4096):
                data += piece
        except OSError:  # Linux' way to say that the other end is closed
            pass
    os.close(near)
    assert process.returncode == 0
    assert (b"\x1b" in data) is drawn
    text = data.decode().replace("\r\n", "\n")
    assert ("\r" in text) is drawn
    if not drawn:
        lines = re.sub(r"[\d.]+ s", "N s", text).splitlines()
        begin, end = sorted(lines[:2]), lines[2:]  # each step has a thread of its own that logs
        assert begin == ["  inner ...", "outer ..."]
        assert end == ["  inner (half of it): N s", "outer: N s", "row: done"]


@pytest.mark.slow
def test_a_log_file_has_no_control_characters(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log:
        subprocess.run(
            [sys.executable, "-c", SHORT], cwd=PROJECT, stderr=log, check=True,
            env={**os.environ, "TERM": "xterm"},
        )  # fmt: skip
    assert not re.search(rb"[\x00-\x09\x0b-\x1f]", (tmp_path / "log").read_bytes())


@pytest.mark.parametrize(
    ("text", "columns", "cut"),
    [
        ("plain", 5, "plain"),
        ("plain", 4, "p..."),
        ("plain", 2, ".."),
        ("plain", 0, ""),
        ("日本語", 6, "日本語"),
        ("日本語", 5, "日..."),
        ("日本語", 4, "..."),
        ("a\u0301b\u0301c\u0301", 3, "a\u0301b\u0301c\u0301"),
        ("a\nb\tc\x1b", 6, "a b c "),
    ],
)
def test_cut(text: str, columns: int, cut: str) -> None:
    assert screen.cut(text, columns) == cut
