# SPDX-License-Identifier: MIT
"""A compiler's run: its lines as they come, and why it failed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bsp.base.compile.make import LOG, compile_in
from bsp.base.errors import InfrastructureError, UserError
from bsp.base.process import ToolFailedError, run
from bsp.base.room import hint_of, require_room


def compile_lines(folder: Path, script: str) -> list[bytes]:
    seen: list[bytes] = []
    compile_in(folder, ["sh", "-c", script], what="Mesa", env={}, on_lines=seen.extend)
    return seen


def test_lines_come_whole_and_complaints_in_their_order(tmp_path: Path) -> None:
    script = "printf '[1/2] a'; sleep 0.7; echo '.o'; echo warning >&2; echo '[2/2] b.o'"
    assert compile_lines(tmp_path, script) == [b"[1/2] a.o", b"warning", b"[2/2] b.o"]
    assert (tmp_path / LOG).read_text() == "[1/2] a.o\nwarning\n[2/2] b.o\n"


@pytest.mark.parametrize(
    ("ending", "line", "error", "said"),
    [
        (
            "exit 1",
            "c.c:1: error: No space left on device",
            InfrastructureError,
            "the disk is full",
        ),
        (
            "exit 1",
            "gcc: fatal error: Killed signal terminated program cc1",
            InfrastructureError,
            "from outside",
        ),
        ("kill -9 $$", "[4/568] Compiling", InfrastructureError, "from outside"),
        ("exit 1", "../a.c:5:2: error: unknown type name x", UserError, "unknown type name"),
        ("exit 1", "ld: a.o: undefined reference to f", UserError, "undefined reference"),
        ("exit 1", "ninja: error: loading build.ninja: No such file", UserError, "ninja: error"),
    ],
)
def test_why_a_build_failed_is_said(
    tmp_path: Path, ending: str, line: str, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        compile_lines(
            tmp_path, f"echo '{line}'; echo 'build stopped: subcommand failed.'; {ending}"
        )


def test_work_does_not_begin_where_there_is_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_room(tmp_path, 1, "a build")
    usage = shutil.disk_usage(tmp_path)._replace(free=100 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InfrastructureError, match=r"100 MiB free in .*, 512 MiB needed") as error:
        require_room(tmp_path, 512 << 20, "a build")
    assert "NPU_BSP_CACHE" in error.value.hint


def test_a_program_that_filled_the_disk_says_so(tmp_path: Path) -> None:
    """/dev/full is a disk without room; tar has words of its own for a file that was cut off."""
    with pytest.raises(ToolFailedError, match="No space left on device") as full:
        run(["dd", "if=/dev/zero", "of=/dev/full", "count=1"], hint="check the network")
    assert full.value.hint.startswith("the disk is full: make room, or set NPU_BSP_CACHE")
    with pytest.raises(ToolFailedError) as other:
        run(["dd", f"if={tmp_path}/none"], hint="check the network")
    assert other.value.hint == "check the network"
    words = "tar: ./linux.tar.xz: Wrote only 3584 of 10240 bytes"
    assert hint_of(words, "").startswith("the disk is full")
