# SPDX-License-Identifier: MIT
"""Runs the emulator as a process of its own, and reads its report afterwards."""

from __future__ import annotations

import contextlib
import json
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bsp.base.errors import InfrastructureError
from bsp.base.project import PROJECT

from ..identity import driver_of
from ..operands import operands_for_picture, save

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0


@dataclass
class Emulator:
    """A running emulator.

    Attributes:
        environment: the variables that a client needs besides LD_PRELOAD.
        report: empty while it runs; afterwards the content of ``server.Report``, one entry per client.
        peak_memory_bytes: 0 while it runs; afterwards the peak memory of the process.
    """

    name: str
    socket: Path
    environment: dict[str, str]
    report: list[dict[str, Any]] = field(default_factory=list)
    peak_memory_bytes: int = 0

    @property
    def faults(self) -> list[str]:
        """Faults that stopped submits, of all clients."""
        return [fault for client in self.report for fault in client["faults"]]

    @property
    def blamed(self) -> list[str]:
        """Findings of all clients that blame somebody, or that nobody has explained."""
        return [finding for client in self.report for finding in client.get("blamed", [])]

    @property
    def wrong(self) -> list[str]:
        """Findings of all clients that report wrong values."""
        return [finding for client in self.report for finding in client.get("wrong", [])]


@contextlib.contextmanager
def emulator(
    name: str,
    *,
    exact_for: Path | None = None,
    submit_timeout_s: float = 120.0,
    poison: int = 0,
    audit_for: Path | None = None,
    picture: Path | None = None,
    record: Path | None = None,
    software: Mapping[str, str] | None = None,
) -> Iterator[Emulator]:
    """Run the emulator of an NPU for a block; its report is available after the block.

    Args:
        name: a file of ``identities/``.
        exact_for: compute this model exactly as TFLite does; None: as silicon is predicted to.
        submit_timeout_s: how long a client waits for one submit.
        poison: byte that new buffers are filled with. The kernel fills them with 0; another value changes
            results that depend on bytes which the driver never wrote.
        audit_for: compare each job with this model; each contradiction is a finding.
        picture: input of the model's first inference; with it the operands of ADDs are compared, too.
        record: file to write a trace of all submissions to, for ``replay``.
        software: versions for the trace's header.

    Raises:
        UserError: there is no such NPU.
        InfrastructureError: it did not start.
    """
    driver = driver_of(name)
    with tempfile.TemporaryDirectory(prefix="npu-bsp-") as path:
        folder = Path(path)
        socket = folder / "npu.sock"
        environment = {
            "NPU_SHIM_SOCKET": str(socket),
            "NPU_SHIM_DRIVER": driver,
            "NPU_SHIM_TIMEOUT_S": str(max(1, round(submit_timeout_s))),
            "NPU_SHIM_POISON": str(poison),
        }
        running = Emulator(name, socket, environment)
        command = _server_command(running, folder)
        if exact_for:
            command += ["--exact-for", str(exact_for.absolute())]
        if audit_for:
            command += ["--audit-for", str(audit_for.absolute())]
        if audit_for and picture and (operands := operands_for_picture(audit_for, picture)):
            save(folder / "operands.npz", operands)
            command += ["--operands", str(folder / "operands.npz")]
        if record:
            command += ["--record", str(record.absolute())]
        for key, value in (software or {}).items():
            command += ["--software", f"{key}={value}"]
        try:
            with _server(name, command, folder / "log"):
                yield running
        finally:
            _read_report(running, folder / "report.json")


def _server_command(running: Emulator, folder: Path) -> list[str]:
    return [
        sys.executable, "-m", "virtual.npu.shim.server", "--socket", str(running.socket),
        "--npu", running.name, "--report", str(folder / "report.json"),
    ]  # fmt: skip


@contextlib.contextmanager
def _server(name: str, command: list[str], log_file: Path) -> Iterator[None]:
    """Run the server for a block; closing its standard input ends it."""
    with (
        log_file.open("w+b") as log,
        subprocess.Popen(
            command,
            cwd=PROJECT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,  # Ctrl-C must not reach it
        ) as process,
    ):
        if not process.stdin or not process.stdout:
            raise RuntimeError("the emulator was started without pipes")
        try:
            ready, _, _ = select.select([process.stdout], [], [], START_TIMEOUT_S)
            if not ready or process.stdout.readline() != b"ready\n":
                log.seek(0)
                output = log.read().decode(errors="replace").strip()
                raise InfrastructureError(f"the emulator of {name} did not start: {output}")
            yield
        finally:
            process.stdin.close()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _read_report(running: Emulator, file: Path) -> None:
    if file.exists():
        document = json.loads(file.read_bytes())
        running.report = document["clients"]
        running.peak_memory_bytes = document["peak_memory_bytes"]
