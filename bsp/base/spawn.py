# SPDX-License-Identifier: MIT
"""Starts a program whose path is known, and sees to its end; ``process.run`` is what others call."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from .at_once import ended_by
from .errors import InfrastructureError
from .room import hint_of


@dataclass(frozen=True)
class Completed:
    """A program that ended: its arguments, exit code and what it printed."""

    argv: tuple[str, ...]
    exit_code: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """Standard output as text."""
        return self.stdout.decode(errors="replace")


class ToolFailedError(InfrastructureError):
    """A program ended with an exit code other than 0; carries the whole result."""

    def __init__(self, completed: Completed, *, hint: str = "") -> None:
        output = (completed.stderr or completed.stdout).decode(errors="replace").strip()
        last_lines = "\n".join(output.splitlines()[-12:])
        command = shlex.join(completed.argv)
        if len(command) > 300:
            command = command[:297] + "..."
        super().__init__(
            f"command failed with exit code {completed.exit_code}: {command}\n{last_lines}".rstrip(),
            hint=hint,
        )
        self.completed = completed


def find_tool(name: str) -> str | None:
    """Return the path of a program, also in sbin, which Debian leaves out of an ordinary user's PATH."""
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")


def spawn(
    argv: Sequence[str | Path],
    *,
    program: str = "",
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: bytes | IO[bytes] | None = None,
    stdout: IO[bytes] | None = None,
    timeout_s: float | None = None,
    check: bool = True,
    hint: str = "",
    meanwhile: Callable[[], object] | None = None,
) -> Completed:
    """Run a program to its end; as ``process.run``, which finds the program first.

    Args:
        program: path of what is started; ``argv[0]`` is what it is called in messages.
    """
    words = [program or str(argv[0]), *(str(word) for word in argv[1:])]
    let_go = _hold_signals()
    try:
        process = subprocess.Popen(
            words,
            cwd=cwd,
            env={**os.environ, **env} if env else None,
            stdin=subprocess.PIPE
            if isinstance(stdin, bytes)
            else (stdin if stdin else subprocess.DEVNULL),
            stdout=stdout if stdout is not None else subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except BaseException:
        let_go()
        raise
    with process:
        try:
            let_go()
            with ended_by(lambda: _end_group(process)):
                if meanwhile is not None:
                    meanwhile()
                out, err = process.communicate(
                    stdin if isinstance(stdin, bytes) else None, timeout=timeout_s
                )
        except subprocess.TimeoutExpired:
            _end_group(process)
            raise InfrastructureError(
                f"command did not end within {timeout_s:g} s: {shlex.join(words)}", hint=hint
            ) from None
        except BaseException:
            _end_group(process)
            raise
    completed = Completed(
        tuple(str(word) for word in argv), process.returncode, out or b"", err or b""
    )
    if check and completed.exit_code != 0:
        error = ToolFailedError(completed)
        error.hint = hint_of(error, hint)
        raise error
    return completed


def _hold_signals() -> Callable[[], None]:
    """Hold back what interrupts us while a program is being started: it could not be ended yet.

    Returns:
        What lets the signals through again; it raises what one that came meanwhile would have raised.
    """
    if threading.current_thread() is not threading.main_thread():
        return lambda: None  # Python interrupts the main thread only
    held: list[int] = []
    handlers = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        handler = signal.getsignal(number)
        if callable(handler):
            handlers[number] = handler
            signal.signal(number, lambda number, _: held.append(number))

    def let_go() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for came in held:
            signal.raise_signal(came)

    return let_go


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process group that we started: first asked, then forced."""
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, signal_number)
        except ProcessLookupError:
            return
        try:
            process.wait(timeout=3)
        except subprocess.TimeoutExpired:
            continue
        return
