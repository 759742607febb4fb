# SPDX-License-Identifier: MIT
"""A virtual board on this machine: its folder, its record, its QEMU process."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from bsp.base.cache import remove, state_dir, write_atomically
from bsp.base.errors import UserError
from bsp.qemu.machine import CONSOLE_LOG, PID_FILE, QMP_SOCKET

from . import qmp

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,40}")
_LAST_LINES = 15
_UBOOT_PROMPT = "=>"


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """``instance.json``: what a running virtual board was started with.

    Attributes:
        pid: QEMU's process.
        started_ticks: its start time as the kernel counts it: with the pid, an identity.
        ssh_port: on 127.0.0.1.
        started: ISO 8601.
        layout: whose images its disk is laid out like.
        uboot: ``like:BOARD``; nothing for the distribution's.
    """

    name: str
    board: str
    kernel: str
    pid: int
    started_ticks: int
    ssh_port: int
    disk: str
    started: str
    layout: str = "npu-bsp"
    uboot: str = ""


@dataclass(frozen=True)
class Instance:
    """A virtual board by name; it may run or not."""

    name: str

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UserError(
                f"{self.name!r} is not a name for a virtual board",
                hint="letters, digits, dots and dashes, 41 at most",
            )

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return state_dir() / "virtual" / self.name

    @property
    def lock(self) -> Path:
        """Lock file that starting and stopping hold."""
        return state_dir() / "virtual" / f".{self.name}.lock"

    @property
    def console_log(self) -> Path:
        """What its serial console has printed."""
        return self.folder / CONSOLE_LOG

    def record(self) -> Record | None:
        """Return what it was started with; None if there is no such board."""
        try:
            return msgspec.json.decode((self.folder / "instance.json").read_bytes(), type=Record)
        except (FileNotFoundError, msgspec.DecodeError):
            return None

    def save(self, record: Record) -> None:
        """Keep the record."""
        write_atomically(self.folder / "instance.json", msgspec.json.encode(record) + b"\n")

    def pid(self) -> int | None:
        """QEMU's process, as it wrote it down itself."""
        try:
            return int((self.folder / PID_FILE).read_text())
        except (FileNotFoundError, ValueError):
            return None

    def running(self) -> bool:
        """Whether its QEMU runs: this process, not another one that got its number."""
        record = self.record()
        return record is not None and start_ticks(record.pid) == record.started_ticks

    def command(self, name: str, **arguments: Any) -> Any:
        """Send one command to QEMU (``system_reset``, ``quit``)."""
        return qmp.command(self.folder / QMP_SOCKET, name, **arguments)

    @property
    def kept_log(self) -> Path:
        """The console's log of a start that failed, after the board's folder is gone."""
        return self.folder.with_name(f"{self.name}.console.log")

    def keep_console_log(self) -> None:
        """Keep the console's log where it can be read after the folder is gone."""
        with contextlib.suppress(FileNotFoundError):
            self.console_log.replace(self.kept_log)

    def last_console_lines(self) -> str:
        """The end of what the console has printed, for error messages."""
        lines = self._console_lines()
        return "\n".join(f"  | {line[:160]}" for line in lines[-_LAST_LINES:]) or "(nothing)"

    def at_bootloader_prompt(self) -> bool:
        """Whether U-Boot has given up and waits for somebody to type: the board will not come up."""
        return self._console_lines()[-1:] == [_UBOOT_PROMPT]

    def _console_lines(self) -> list[str]:
        try:
            data = self.console_log.read_bytes()[-8192:]
        except FileNotFoundError:
            return []
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", data.decode(errors="replace"))
        return [line.rstrip() for line in text.replace("\r", "\n").splitlines() if line.strip()]

    def wait_until_gone(self, *, timeout_s: float) -> bool:
        """Wait for QEMU to end; return whether it did."""
        handle = self._handle()
        if handle is None:
            return True
        try:
            return bool(select.select([handle], [], [], max(timeout_s, 0))[0])
        finally:
            os.close(handle)

    def kill(self) -> None:
        """End QEMU, if it still runs and is ours."""
        handle = self._handle()
        if handle is None:
            return
        try:
            for number in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(handle, number)
                if select.select([handle], [], [], 5)[0]:
                    return
        finally:
            os.close(handle)

    def forget(self) -> None:
        """Remove its files. It must not run."""
        remove(self.folder)

    def _handle(self) -> int | None:
        """A descriptor of the process, checked to be ours after it was opened."""
        record = self.record()
        if record is None:
            return None
        try:
            handle = os.pidfd_open(record.pid)
        except ProcessLookupError:
            return None
        if start_ticks(record.pid) != record.started_ticks:
            os.close(handle)
            return None
        return handle


def start_ticks(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None if it does not run (proc(5))."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def instances() -> list[Instance]:
    """All virtual boards that were started and not taken down, by name."""
    folder = state_dir() / "virtual"
    return [Instance(path.parent.name) for path in sorted(folder.glob("*/instance.json"))]
