# SPDX-License-Identifier: MIT
"""A real terminal for tests: tmux with a server of its own, whose window can be resized and read."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from bsp.base.project import PROJECT

needs_tmux = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")


class Terminal:
    """One window that runs a Python program; rows are read as a person sees them."""

    def __init__(self, folder: Path, program: str, columns: int, **environment: str) -> None:
        self._socket = folder / "tmux"
        script = folder / "program.py"
        script.write_text(program)
        words = [f"{key}={value}" for key, value in environment.items()]
        command = shlex.join(["env", *words, sys.executable, str(script)])
        shell = f"cd {shlex.quote(str(PROJECT))}; PYTHONPATH=. {command}; echo ended $?; sleep 600"
        size = ["-x", str(columns), "-y", "24"]
        self._tmux("-f", "/dev/null", "new-session", "-d", *size, shell)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self._tmux("kill-server")

    def rows(self) -> list[str]:
        """The rows that are not empty, with those that have scrolled away."""
        shown = self._tmux("capture-pane", "-p", "-S", "-")
        return [row for row in shown.split("\n") if row.strip()]

    def resize(self, columns: int) -> None:
        """Make the window wider or narrower, as somebody who drags its edge."""
        self._tmux("resize-window", "-x", str(columns), "-y", "24")

    def type(self, text: str) -> None:
        """Type a line."""
        self._tmux("send-keys", "-l", text)
        self._tmux("send-keys", "Enter")

    def wait(self, what: str | Callable[[list[str]], bool], timeout_s: float = 60) -> list[str]:
        """Wait until a pattern is found in a row, or the rows are as a function wants them."""

        def seen(rows: list[str]) -> bool:
            if isinstance(what, str):
                return any(re.search(what, row) for row in rows)
            return what(rows)

        deadline = time.monotonic() + timeout_s
        while True:
            rows = self.rows()
            if seen(rows):
                return rows
            assert time.monotonic() < deadline, f"never seen: {what}; the terminal shows {rows}"
            time.sleep(0.05)

    def _tmux(self, *words: str) -> str:
        without = {k: v for k, v in os.environ.items() if k not in ("TMUX", "NO_COLOR", "COLUMNS")}
        environment: Mapping[str, str] = {**without, "LC_ALL": "C.UTF-8"}
        ended = subprocess.run(["tmux", "-S", str(self._socket), *words],
                               capture_output=True, text=True, env=environment, check=True)  # fmt: skip
        return ended.stdout
