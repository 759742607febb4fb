# SPDX-License-Identifier: MIT
"""Starts the emulator as a process of its own, and says afterwards what it saw."""

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
        environment: what a client needs beside LD_PRELOAD.
        report: empty while it runs; afterwards what ``server.Report`` holds, one a client.
        peak_memory_bytes: 0 while it runs; afterwards the most memory that the process had.
    """

    name: str
    socket: Path
    environment: dict[str, str]
    report: list[dict[str, Any]] = field(default_factory=list)
    peak_memory_bytes: int = 0

    @property
    def faults(self) -> list[str]:
        """What stopped submits, of all clients."""
        return [fault for client in self.report for fault in client["faults"]]

    @property
    def blamed(self) -> list[str]:
        """Findings of all clients that were looked into: somebody is to blame, or it is not understood."""
        return [each for client in self.report for each in client.get("blamed", [])]

    @property
    def wrong(self) -> list[str]:
        """Findings of all clients that say that values are wrong."""
        return [each for client in self.report for each in client.get("wrong", [])]


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
    """Run the emulator of an NPU for a block; its report is there after the block.

    Args:
        name: a file of ``identities/``.
        exact_for: compute this model exactly as TFLite does; otherwise as silicon is predicted to.
        submit_timeout_s: how long a client waits for one submit.
        poison: byte that new buffers are filled with. The kernel's are 0; with another value, results
            that hang on bytes which the driver never wrote change.
        audit_for: compare each job with this model; what contradicts it is a finding.
        picture: what the model's first inference gets: the operands of its ADDs are compared, too.
        record: file that gets a trace of all submissions, for ``replay``.
        software: versions for the trace's header.

    Raises:
        UserError: there is no such NPU.
        InfrastructureError: it did not start.
    """
    driver = driver_of(name)
    with tempfile.TemporaryDirectory(prefix="npu-bsp-") as folder:
        socket, report = Path(folder) / "npu.sock", Path(folder) / "report.json"
        command = [sys.executable, "-m", "virtual.npu.shim.server"]
        command += ["--socket", str(socket), "--npu", name, "--report", str(report)]
        if exact_for:
            command += ["--exact-for", str(exact_for.absolute())]
        if audit_for:
            command += ["--audit-for", str(audit_for.absolute())]
        if audit_for and picture and (known := operands_for_picture(audit_for, picture)):
            save(Path(folder) / "operands.npz", known)
            command += ["--operands", str(Path(folder) / "operands.npz")]
        if record:
            command += ["--record", str(record.absolute())]
        for key, value in (software or {}).items():
            command += ["--software", f"{key}={value}"]
        with (
            (Path(folder) / "log").open("w+b") as log,
            subprocess.Popen(
                command,
                cwd=PROJECT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for us; the end of its stdin ends it
            ) as process,
        ):
            if not process.stdin:
                raise RuntimeError("the emulator was started without pipes")
            if not process.stdout:
                raise RuntimeError("the emulator was started without pipes")
            running = Emulator(
                name,
                socket,
                {
                    "NPU_SHIM_SOCKET": str(socket),
                    "NPU_SHIM_DRIVER": driver,
                    "NPU_SHIM_TIMEOUT_S": str(max(1, round(submit_timeout_s))),
                    "NPU_SHIM_POISON": str(poison),
                },
            )
            try:
                ready, _, _ = select.select([process.stdout], [], [], START_TIMEOUT_S)
                if not ready or process.stdout.readline() != b"ready\n":
                    log.seek(0)
                    said = log.read().decode(errors="replace").strip()
                    raise InfrastructureError(f"the emulator of {name} did not start: {said}")
                yield running
            finally:
                process.stdin.close()
                try:
                    process.wait(STOP_TIMEOUT_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                if report.exists():
                    document = json.loads(report.read_bytes())
                    running.report = document["clients"]
                    running.peak_memory_bytes = document["peak_memory_bytes"]
