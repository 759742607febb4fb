# SPDX-License-Identifier: MIT
"""The one way in which this project starts another program on the host."""

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

from .errors import InfrastructureError, UserError

# Debian package that holds each tool we may miss; the launcher installs them all.
PACKAGE_OF_TOOL = {
    "aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu",
    "aarch64-linux-gnu-gcc": "gcc-aarch64-linux-gnu",
    "apt-get": "apt",
    "bzip2": "bzip2",
    "cpio": "cpio",
    "cpp": "cpp",
    "depmod": "kmod",
    "dpkg-deb": "dpkg",
    "dtc": "device-tree-compiler",
    "fdtoverlay": "device-tree-compiler",
    "git": "git",
    "ld.lld": "lld",
    "llvm-ar": "llvm",
    "mcopy": "mtools",
    "mformat": "mtools",
    "mke2fs": "e2fsprogs",
    "mkimage": "u-boot-tools",
    "mmdebstrap": "mmdebstrap",
    "newuidmap": "uidmap",
    "ninja": "ninja-build",
    "pkg-config": "pkgconf",
    "sfdisk": "fdisk",
    "ssh-keygen": "openssh-client",
    "tar": "tar",
    "xz": "xz-utils",
    "zstd": "zstd",
}


# What a compressed file begins with, and the program that tar unpacks it with.
_UNPACKERS = {
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\x1f\x8b": "gzip",
}


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
        said = (completed.stderr or completed.stdout).decode(errors="replace").strip()
        last_lines = "\n".join(said.splitlines()[-12:])
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


def require_tool(name: str) -> str:
    """Return the path of a program, or say which package has it.

    Raises:
        UserError: the program is not installed.
    """
    path = find_tool(name)
    if path is None:
        package = PACKAGE_OF_TOOL.get(name, name)
        raise UserError(
            f"the program {name!r} is needed and was not found on this machine",
            hint=f"sudo apt-get install {package}",
        )
    return path


def require_unpacker(file: Path) -> None:
    """See to the program that ``tar`` unpacks a compressed file with; its own words for it are a riddle.

    Raises:
        UserError: it is not installed.
    """
    with file.open("rb") as opened:
        start = opened.read(6)
    for magic, program in _UNPACKERS.items():
        if start.startswith(magic):
            require_tool(program)


def run(
    argv: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: bytes | IO[bytes] | None = None,
    stdout: IO[bytes] | None = None,
    timeout_s: float | None = None,
    check: bool = True,
    hint: str = "",
    meanwhile: Callable[[], object] | None = None,
) -> Completed:
    """Run a program to its end and return what it printed.

    The program gets a process group of its own, which is ended on a time-out, on Ctrl-C and on any
    other exception, so that no grandchild survives.

    Args:
        env: additions to this process's environment.
        stdin: bytes, or an open file, to feed it; nothing by default.
        stdout: an open file that takes standard output in place of ``Completed.stdout``.
        meanwhile: called once the program runs. Until it returns nobody reads what the program
            prints, so that may not be more than a pipe holds (64 KiB).

    Raises:
        UserError: the program is not installed.
        ToolFailedError: it ended with a code other than 0 and ``check`` is true.
        InfrastructureError: ``timeout_s`` passed.
    """
    words = [require_tool(str(argv[0])), *(str(word) for word in argv[1:])]
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
        raise ToolFailedError(completed, hint=hint)
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
