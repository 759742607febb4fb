# SPDX-License-Identifier: MIT
"""Help and wrong usage: each task explains itself; errors are in words, and end with exit code 2."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from invoke.exceptions import Exit

from bsp.base.cache import write_atomically
from bsp.base.errors import UserError
from bsp.base.project import PROJECT
from commands import collection, developers
from commands.face import help_text
from commands.face.command import errors_for_people
from commands.face.program import program

TASKS = sorted(collection().task_names)


@dataclass(frozen=True)
class Ended:
    """What a command line printed, and its exit code."""

    exit_code: int
    out: str
    error: str


@pytest.fixture
def inv(capsys: pytest.CaptureFixture[str]) -> Runner:
    return Runner(capsys)


class Runner:
    """Runs command lines in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *words: str) -> Ended:
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            program().run(["./inv", "--search-root", str(PROJECT), *words])
        printed = self._capsys.readouterr()
        return Ended(int(ended.value.code or 0), printed.out, printed.err)


# --- help ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["--help", "-h"])
@pytest.mark.parametrize("task", TASKS)
def test_help_is_printed_for_every_task(inv: Runner, task: str, flag: str) -> None:
    explains(inv(task, flag), task)


@pytest.mark.parametrize("task", ["deploy", "board", "lint", "virtual.up"])
@pytest.mark.parametrize(
    "words",
    [
        "--help TASK",
        "-h TASK",
        "TASK --json --help",
        "TASK --no-such-flag value -h",
        "TASK --help more --and=more",
        "--echo TASK --help",
        "TASK --timeout x --help",
    ],
)
def test_help_wherever_it_stands(inv: Runner, task: str, words: str) -> None:
    explains(inv(*words.replace("TASK", task).split()), task)


def explains(ended: Ended, task: str) -> None:
    assert ended.exit_code == 0
    assert ended.error == ""
    what, example = help_text.split(collection()[task].__doc__ or "")
    lines = ended.out.splitlines()
    assert lines[0].startswith(f"Usage: ./inv {task}")
    assert " ".join(ended.out.split()).count(what) == 1
    assert f"Example: {example}" in lines


def test_help_is_never_taken_for_a_value(inv: Runner) -> None:
    for words in (["deploy", "--host", "--help"], ["virtual.ssh", "--command", "-h"]):
        assert inv(*words).out.startswith(f"Usage: ./inv {words[0]}")
    assert inv("deploy", "--host=--help").exit_code == 2  # with = it is one


def test_help_says_what_has_to_be_given_and_what_flags_take(inv: Runner) -> None:
    text = inv("smoke-test", "--help").out
    assert "Usage: ./inv smoke-test TEST [flags]" in text
    rows = re.split(r"\n(?=  \S)", text)
    by_name = {row.split()[0]: " ".join(row.split()) for row in rows}
    assert by_name["TEST"].endswith("(must be given)")
    assert by_name["--budget=SECONDS"].endswith("(default: 20)")
    assert by_name["--timeout=SECONDS"].endswith("(default: 300)")
    assert by_name["--runs=N"].endswith("(default: 50)")
    assert "--quick" in by_name
    assert "Usage: ./inv deploy --host HOST [flags]" in inv("deploy", "--help").out
    job = " ".join(inv("npu.show", "--help").out.split())
    assert "default: -1" not in job


@pytest.mark.slow
def test_the_help_says_what_kind_of_value_a_flag_takes(inv: Runner) -> None:
    takes = {
        "rollback": "--to=GENERATION",
        "build-dts": "--apply=DTBO",
        "bundle": "--verify=BUNDLE",
        "smoke-test": "--record=FILE",
        "virtual.up": "--uboot=like:BOARD",
    }
    for task, flag in takes.items():
        assert f"  {flag} " in inv(task, "--help").out
    flags = {
        max(argument.names, key=len).replace("_", "-")
        for task in TASKS
        for argument in collection()[task].get_arguments()
    }
    assert set(help_text._VALUES) <= flags


@pytest.mark.parametrize("columns", [200, 80, 40, 20])
def test_no_word_of_the_help_is_broken(
    inv: Runner, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setattr("commands.face.program.pty_size", lambda: (columns, 24))
    for task in TASKS:
        text = inv(task, "--help").out
        words = set(text.split())
        for argument in collection()[task].get_arguments():
            assert set((argument.help or "").split()) <= words, (task, argument.names)
        long = [line for line in text.splitlines() if len(line) > columns and " " in line.strip()]
        # The usage and the example are to be copied, in one line; a single word may be longer.
        assert (
            not [row for row in long if not row.startswith(("Usage:", "Example:"))] or columns < 40
        )


def test_inv_alone_says_where_to_begin(inv: Runner) -> None:
    ended = inv()
    assert ended.exit_code == 0
    for command in (
        "./inv bringup",
        "./inv boards",
        "./inv doctor --host HOST",
        "./inv TASK --help",
    ):
        assert command in ended.out
    listed = re.findall(r"^  (\S+)  ", ended.out.partition("Tasks:")[2], re.MULTILINE)
    assert listed == TASKS
    assert max(len(line) for line in ended.out.splitlines()) <= 80
    asked = inv("--help")
    assert asked.exit_code == 0
    assert asked.out.startswith(ended.out)
    assert "--list-depth" in asked.out


def test_list_names_each_task(inv: Runner) -> None:
    text = inv("--list").out
    assert all(f"  {task}  " in text for task in TASKS)
    assert ".show" in inv("--list", "npu").out


# --- wrong usage -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("deplyo", "no task 'deplyo'; did you mean 'deploy'?"),
        ("Deploy --host x", "no task 'Deploy'; did you mean 'deploy'?"),
        ("build_dts --board vim3", "no task 'build_dts'; did you mean 'build-dts'?"),
        ("virtual-up", "no task 'virtual-up'; did you mean 'virtual.up'?"),
        ("qqqqq", "no task 'qqqqq'"),
        ("--help deplyo", "no task 'deplyo'; did you mean 'deploy'?"),
        ("--list virtul", "no group of tasks 'virtul'; did you mean 'virtual'?"),
        ("deploy", "--host is missing. Example: ./inv deploy --host vim3"),
        ("deploy --json --dry-run", "--host is missing. Example: ./inv deploy --host vim3"),
        ("deploy --host=", "--host is missing. Example: ./inv deploy --host vim3"),
        ("status --verify boards --json", "unknown host"),  # a word without its flag is the host
        ("board", "NAME is missing. Example: ./inv board vim3"),
        ("flash", "--device and --image are missing. Example: ./inv flash --host vim3"),
        ("deploy --host", "--host needs a value. Example: ./inv deploy --host vim3"),
        ("deploy --host --json", "deploy: --host needs a value, found '--json'"),
        ("deploy --hots x", "deploy has no flag '--hots'; did you mean '--host'?"),
        ("deploy --host x --DRY_RUN", "deploy has no flag '--DRY_RUN'; did you mean '--dry-run'?"),
        ("deploy --host x -j4", "deploy has no flag '-j4'"),
        ("bringup --yes", "--yes is a flag of ./inv itself: it stands before the task"),
        ("--yes bringup", "--yes is a flag of ./inv itself: it stands before the task"),
        ("boards --json=yes", "boards: --json takes no value, found 'yes'"),
        ("boards vim3", "boards takes no 'vim3' without a flag, and no task has that name"),
        ("--json boards", "'--json' stands before the task; a task's flags come after it"),
        ("--host vim3 deploy", "'--host' stands before the task; a task's flags come after it"),
        ("smoke-test label_image --runs x", "smoke-test: --runs takes a whole number, found 'x'"),
        (
            "smoke-test label_image --runs 1.5",
            "smoke-test: --runs takes a whole number, found '1.5'",
        ),
        ("smoke-test label_image --budget=", "smoke-test: --budget takes a number, found ''"),
        ("smoke-test label_image --budget inf", "smoke-test: --budget takes a number, found 'inf'"),
        (
            "smoke-test label_image --timeout nan",
            "smoke-test: --timeout takes a number, found 'nan'",
        ),
        ("smoke-test label_image --runs 1 --runs 2", "smoke-test: --runs is given twice"),
        ("smoke-test label_image --test detect", "smoke-test: --test is given twice"),
        ("board vim3 -- --whatever", "board takes nothing after --, found '--whatever'"),
        ("virtual.ssh -- uname -a", "virtual.ssh takes nothing after --, found 'uname -a'"),
        ("-- boards", "./inv takes nothing after --, found 'boards'"),
        ("--list-depth x", "not a whole number"),
        ("--config", "--config needs a value"),
    ],
)
def test_wrong_usage_ends_with_2_and_words(inv: Runner, words: str, error: str) -> None:
    ended = inv(*words.split())
    assert ended.exit_code == 2, ended
    assert ended.error.startswith(f"error: {error}"), ended.error
    assert "\nhint: " in ended.error
    for word in ("Argument", "Traceback", "No idea"):
        assert word not in ended.error
    if "--json" in words.split():
        document = json.loads(ended.out)
        assert document["exit_code"] == 2
        assert document["error"].startswith(error)
    else:
        assert ended.out == ""


def test_a_measurement_on_this_machine_takes_no_board(inv: Runner) -> None:
    ended = inv("bench", "startup", "--host", "vim3")
    assert ended.exit_code == 2
    assert "the measurement startup runs on this machine, not on a board" in ended.error
    assert "those on a board: adopt, doctor" in ended.error


def test_a_flag_of_the_launcher_behind_the_task_is_answered_with_the_line_to_type(
    inv: Runner,
) -> None:
    ended = inv("deploy", "--host", "my board", "--yes", "--dry-run")
    assert "hint: ./inv --yes deploy --host 'my board' --dry-run\n" in ended.error
    # The tasks that have such a flag themselves keep it.
    assert "--device is missing" in inv("flash", "--yes", "--image", "x").error


@pytest.mark.parametrize(
    "words",
    [
        "board vim3",
        "board --name vim3 --json",
        "boards --json board vim3",
        "--echo board vim3",
        "board vim3 --echo",
        "board vim3 --hide both --json",
        "board vim3 --",
    ],
)
def test_what_is_right_is_left_alone(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    program().run(["./inv", "--search-root", str(PROJECT), *words.split()])
    printed = capsys.readouterr()
    assert "vim3" in printed.out
    assert printed.err == ""


def test_a_fault_of_ours_is_told_from_an_error_of_the_user(
    inv: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bsp import board_record

    def broken() -> None:
        raise KeyError("vim9")

    monkeypatch.setattr(board_record, "all_boards", broken)
    ended = inv("boards", "--json")
    assert ended.exit_code == 3
    assert ended.error.startswith("error: a fault of npu-bsp itself: KeyError: 'vim9' (tests/")
    assert "NPU_BSP_DEBUG=1" in ended.error
    assert "Traceback" not in ended.error
    assert json.loads(ended.out)["exit_code"] == 3
    monkeypatch.setenv("NPU_BSP_DEBUG", "1")
    assert "Traceback" in inv("boards").error


def test_what_was_not_installed_is_named_when_a_task_fails(
    inv: Runner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from bsp import board_record
    from bsp.base import project
    from bsp.base.errors import InfrastructureError, UserError

    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv/.npu-bsp-missing").write_text("libc6-dev zstd\n")
    monkeypatch.setattr(project, "PROJECT", tmp_path)
    for error, said in (
        (InfrastructureError("sys/types.h: No such file"), True),
        (UserError("x"), False),
    ):

        def fail(error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(board_record, "all_boards", fail)
        note = "note: these Debian packages are not installed: libc6-dev zstd"
        assert (note in inv("boards").error) is said


def test_a_cache_that_cannot_be_written_to_may_be_another_folder(
    inv: Runner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from bsp import board_record

    monkeypatch.setenv("NPU_BSP_CACHE", str(tmp_path))

    def read_only() -> None:
        raise OSError(errno.EROFS, "Read-only file system", f"{tmp_path}/some.lock")

    monkeypatch.setattr(board_record, "all_boards", read_only)
    ended = inv("boards")
    assert ended.exit_code == 3
    assert "hint: set NPU_BSP_CACHE to a folder that you can write to" in ended.error


def test_invoke_itself_is_the_same_program(tmp_path: Path) -> None:
    """In an activated environment ``invoke TASK`` is ``./inv TASK``."""
    invoke = Path(sys.executable).with_name("invoke")

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([invoke, *words], cwd=PROJECT, capture_output=True, text=True)

    assert run("deploy", "--help").stdout.startswith("Usage: ./inv deploy --host HOST")
    missing = run("deploy")
    assert (missing.returncode, missing.stdout) == (2, "")
    assert missing.stderr.startswith("error: --host is missing")
    assert run("deplyo").returncode == 2
    assert run().stdout == subprocess.run(
        [PROJECT / "inv"], capture_output=True, text=True, cwd=tmp_path
    ).stdout  # fmt: skip


# --- what is printed to nobody ---------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", ["boards", "boards --json", "board vim3", "", "--help", "--list", "deploy --help",
              "--list --list-format json", "bench list", "docs --check"],
)  # fmt: skip
def test_a_closed_pipe_ends_quietly(words: str) -> None:
    ended, error = _without_reader(*words.split())
    assert ended == 128 + 13
    assert error == ""


def test_a_closed_pipe_does_not_hide_an_error() -> None:
    ended, error = _without_reader("board", "vim4", "--json")
    assert ended == 128 + 13
    assert error.startswith("error: unknown board 'vim4'")
    assert error.count("\n") == 2


def _without_reader(*words: str) -> tuple[int, str]:
    reading, writing = os.pipe()
    os.close(reading)
    with subprocess.Popen(
        [PROJECT / "inv", *words], stdout=writing, stderr=subprocess.PIPE, text=True
    ) as process:
        os.close(writing)
        _, error = process.communicate(timeout=60)
    return process.returncode, error


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("words", ["boards", "--list", "boards --json"])
def test_a_full_disk_is_an_error_in_one_line(words: str) -> None:
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [PROJECT / "inv", *words.split()], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert ended.returncode == 3
    assert ended.stderr == "error: cannot write the result: No space left on device\n"


@pytest.mark.slow
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_closed_streams_do_no_harm(closed: str) -> None:
    ended = subprocess.run(
        ["sh", "-c", f"exec ./inv boards {closed}"], cwd=PROJECT, capture_output=True, text=True
    )
    assert ended.returncode == 0
    assert ended.stderr == ""
    assert ("vim3" in ended.stdout) is not (closed.startswith(">"))


def test_a_full_disk_is_named_by_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))  # stands in for a full disk
    try:
        with pytest.raises(Exit) as ended, errors_for_people(as_json=False):
            write_atomically(tmp_path / "page.html", bytes(4096))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert ended.value.code == 3
    assert f"error: {tmp_path}/page.html: File too large\n" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


GOING_ON = """
import sys, time
from pathlib import Path
from commands.face.command import errors_for_people
from bsp.base.progress import say, step
from invoke.exceptions import Exit
try:
    with errors_for_people(as_json=False):
        try:
            for number in range(1000):
                with step(f"step {number}"):
                    time.sleep(0.05)
        finally:
            with step("cleaning up"):
                Path(sys.argv[1]).write_text("clean")
except Exit as ended:
    sys.exit(ended.code)
"""


def test_when_nobody_reads_the_progress_it_ends_and_cleans_up(tmp_path: Path) -> None:
    """``./inv TASK 2>&1 | head -1``: as with Ctrl-C, what was started ends and is put in order."""
    with subprocess.Popen(
        [sys.executable, "-c", GOING_ON, str(tmp_path / "clean")],
        cwd=PROJECT, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stderr
        assert process.stderr.readline().startswith("step 0")
        process.stderr.close()
        assert process.wait(timeout=60) == 128 + 13
    assert (tmp_path / "clean").read_text() == "clean"


@pytest.mark.slow
def test_no_test_of_that_name_is_no_roll_back() -> None:
    with pytest.raises(UserError, match="no test matches"):
        developers._pytest("tests/bsp/base/test_at_once.py", "-k", "no_such_test_is_here")
    assert developers._pytest("--no-such-flag") == UserError.exit_code
