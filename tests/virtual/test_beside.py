# SPDX-License-Identifier: MIT
"""Work beside other work: it runs at the same time, is told of, waited for, and ended."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from virtual.beside import beside

_STEP = "from bsp.base.progress import step\nwith step('Making it'): import time; time.sleep(1.2)\n"


def written(path: Path, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_two_run_at_once_and_are_told_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each waits for what the other writes: one after the other they would never end."""
    meet = (
        "import pathlib, time\n"
        "mine, other = pathlib.Path({!r}), pathlib.Path({!r})\n"
        "mine.touch()\n"
        "while not other.exists(): time.sleep(0.05)\n"
    )
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    jobs = {"one": meet.format(first, second) + _STEP, "two": meet.format(second, first)}
    with beside(jobs) as running:
        running.wait("one")
        running.wait("two")
        running.wait("two")  # has ended
    said = capsys.readouterr().err
    assert "beside: Making it: 1." in said


def test_what_fails_is_left_to_who_needs_it(capfd: pytest.CaptureFixture[str]) -> None:
    with beside({"bad": "raise ValueError('no')"}) as running:
        running.wait("bad")
    out, error = capfd.readouterr()
    assert "Traceback" not in out + error


def test_they_end_with_the_block_and_clean_up(tmp_path: Path) -> None:
    program = (
        "import pathlib, time\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "try:\n"
        "    (folder / 'begun').touch()\n"
        "    time.sleep(600)\n"
        "finally:\n"
        "    (folder / 'cleaned').touch()\n"
    )
    started = time.monotonic()

    def interrupted() -> None:
        with beside({"long": program}):
            written(tmp_path / "begun")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (tmp_path / "cleaned").exists()
    assert time.monotonic() - started < 300
