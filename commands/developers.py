# SPDX-License-Identifier: MIT
"""What developers of this project run: tests, linters, measurements, documents, power cuts."""

from __future__ import annotations

from invoke.context import Context

from bsp.base.result import FAILED_VALIDATION, Result

from .face.command import command, session
from .face.flags import JSON

_NO_TEST = 5
"""Of pytest (pytest.ExitCode)."""


@command(
    help={
        "points": "how many states of the disk to judge",
        "boot": "how many of the judged states to boot in QEMU, too (half a minute each, on an "
        "idle machine)",
        "broken": "record a deployment that has this fault on purpose, to see it found: no-fsync, "
        "switch-first; with --layout: rename-first, no-comparison",
        "layout": "record a board with the disk layout of another distribution: armbian, extlinux-fat...",
        "uboot": "record a board with a U-Boot that can do what BOARD's can",
        "seed": "seed of the sample: another one judges other states",
        "recording": "folder: keep the recording there; where one is there already, judge that one again",
    }
)
def crash_test(
    _: Context,
    points: int = 10_000,
    boot: int = 4,
    broken: str = "",
    layout: str = "",
    uboot: str = "",
    seed: int = 1,
    recording: str = "",
) -> Result:
    """Cut the power at each write of a deployment. Example: ./inv crash-test --points 10000."""
    from pathlib import Path

    from virtual.crash import harness

    return harness.crash_test(
        points=points, boot=boot, broken=broken, layout=layout, uboot=uboot, seed=seed,
        keep=Path(recording) if recording else None,
    )  # fmt: skip


@session(
    help={
        "fast": "only the fast tier (under 2 minutes)",
        "full": "the long tests too: real kernel builds, whole sweeps (hours)",
        "select": "only tests whose names match (pytest -k)",
        "durations": "list the N slowest tests",
        "python": "with another Python of this machine, in an environment of its own: 3.13, or a path",
    }
)
def test(
    _: Context,
    fast: bool = False,
    full: bool = False,
    select: str = "",
    durations: int = 0,
    python: str = "",
) -> int:
    """Run the tests. Example: ./inv test --fast."""
    tier = "not slow and not full" if fast else "" if full else "not full"
    flags = [*(["-m", tier] if tier else []), *(["-k", select] if select else [])]
    # Each test has folders and servers of its own; tests/conftest.py says which of the slow ones share a
    # board, and puts the longest first.
    flags += ["-n", "auto", *([] if fast else ["--dist", "loadfile", "--no-loadscope-reorder"])]
    if durations:
        flags.append(f"--durations={durations}")
    if not python:
        return _pytest(*flags)
    from bsp.base.packages.optional_env import extra_python, find_python

    interpreter = extra_python("dev", module="pytest", python=find_python(python))
    return _pytest(*flags, python=str(interpreter))


@session(help={})
def faults(_: Context) -> int:
    """Interrupt hundreds of deployments, each by one fault; write docs/faults.md. Example: ./inv faults."""
    import os

    from bsp.base.project import PROJECT

    os.environ["NPU_BSP_FAULT_TABLE"] = str(PROJECT / "docs/faults.md")
    return _pytest("tests/images/deploy/test_faults.py")


@session(help={})
def lint(_: Context) -> int:
    """Check style and types with ruff and mypy. Example: ./inv lint."""
    failed = _tool("ruff", "check", ".") or _tool("ruff", "format", "--check", ".") or _tool("mypy")
    return FAILED_VALIDATION if failed else 0


@session(
    help={
        "name": "measurement: a file of bench/; `list` prints their names",
        "host": "measure on this board; adopt and doctor take one, which has to be up",
        "rounds": "how often to repeat (default: the measurement's own)",
        "json": JSON,
    },
    positional=["name"],
)
def bench(_: Context, name: str, host: str = "", rounds: int = 0, json: bool = False) -> int:
    """Measure the speed of one part, beside other tools. Example: ./inv bench startup."""
    from bsp.base.errors import UserError
    from bsp.base.output import print_json, print_text
    from bsp.base.project import PROJECT

    texts = {file.stem: file.read_text() for file in (PROJECT / "bench").glob("[!_]*.py")}
    names = sorted(name for name, text in texts.items() if "def main(" in text)
    if name == "list":
        print_json(names) if json else print_text("\n".join(names))
        return 0
    if name not in names:
        raise UserError(
            f"there is no measurement {name!r}", hint=f"one of: list, {', '.join(names)}"
        )
    on_boards = [each for each in names if '"--host"' in texts[each]]
    if host and name not in on_boards:
        raise UserError(
            f"the measurement {name} runs on this machine, not on a board",
            hint=f"leave --host out; those on a board: {', '.join(on_boards)}",
        )
    flags = [*(["--host", host] if host else []), *(["--rounds", str(rounds)] if rounds else [])]
    flags += ["--json"] if json else []
    return _tool("commands.face.module", f"bench.{name}", *flags)


@session(help={"check": "write nothing; fail if something would change", "json": JSON})
def docs(_: Context, check: bool = False, json: bool = False) -> int:
    """Regenerate the pages of commands and formats; check all links. Example: ./inv docs."""
    flags = [*(["--check"] if check else []), *(["--json"] if json else [])]
    return _tool("commands.face.module", "docs.make", *flags)


def _pytest(*arguments: str, python: str = "") -> int:
    """Run pytest; its exit codes mean something else than ours, and are translated.

    Raises:
        UserError: no test matches.
    """
    from bsp.base.errors import UserError

    code = _tool("pytest", *arguments, python=python)
    if code == _NO_TEST:
        raise UserError("no test matches", hint="./inv test --select PART_OF_ITS_NAME")
    return {1: FAILED_VALIDATION, 2: 130, 4: UserError.exit_code}.get(code, code)


def _tool(module: str, *arguments: str, python: str = "") -> int:
    """Run a developer's tool of our virtual environment in the project folder; return its exit code."""
    import subprocess
    import sys

    from bsp.base.project import PROJECT

    # What it prints goes where ours goes, so that it sees a terminal, and a pipe that is closed.
    ended = subprocess.run(
        [python or sys.executable, "-m", module, *arguments], cwd=PROJECT, check=False
    )
    return ended.returncode if ended.returncode >= 0 else 128 - ended.returncode
