# SPDX-License-Identifier: MIT
"""Be a virtual NPU for one QEMU: ``python -m virtual.npu.device --socket S --identity a311d``.

Start it before QEMU; it ends with QEMU. In QEMU's options: memory-backend-memfd with share=on as the
machine's memory, and ``-device '{"driver": "vfio-user-pci", "addr": "1", "socket": {"type": "unix",
"path": "S"}}'``.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from bsp.base.errors import BspError

from ..identity import Identity, load_identity
from .listener import Log, listen

if TYPE_CHECKING:
    from ..jobs import JobRecord
    from ..traces.trace import Writer
    from .frontend import Jobs, NpuMemory


def main() -> int:
    """Serve one client; return the exit code."""
    parser = argparse.ArgumentParser(prog="device", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--socket", type=Path, required=True, help="Unix socket to listen on")
    parser.add_argument("--identity", required=True, help="NPU to be: a file in identities/")
    parser.add_argument(
        "--accept-timeout", type=float, default=120, metavar="S", help="wait for QEMU for so long"
    )
    parser.add_argument(
        "--background", type=Path, metavar="LOG", help="go on in the background, once it listens"
    )
    parser.add_argument("--record", type=Path, metavar="FILE", help="record a trace of all jobs")
    parser.add_argument("--verbose", action="store_true", help="log each job")
    options = parser.parse_args()
    log = Log()
    try:
        identity = load_identity(options.identity)
        with listen(options.socket) as listener:
            if options.background:
                _go_to_background(options.background)
            # Only now what starts threads: they do not live on in another process.
            from .server import serve

            with _recording(options.record, identity, log) as writer:
                serve(
                    listener,
                    options.socket,
                    identity,
                    lambda identity, memory: _jobs(
                        identity, memory, log, verbose=options.verbose, writer=writer
                    ),
                    accept_timeout_s=options.accept_timeout,
                    log=log,
                )
    except BspError as error:
        log(f"error: {error.message}")
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def _jobs(
    identity: Identity, memory: NpuMemory, log: Log, *, verbose: bool, writer: Writer | None
) -> Jobs:
    from ..vivante.engine import Engine

    def show(record: JobRecord) -> None:
        log(f"{record.unit} job {record.number}: {record.description} {record.seconds:.3f} s")

    on_job = show if verbose else None
    if writer is None:
        return Engine(identity, memory, on_job=on_job)
    from .recording import RecordedJobs

    recorded = RecordedJobs(identity, memory, writer)
    recorded.engine.on_job = on_job
    return recorded


@contextlib.contextmanager
def _recording(path: Path | None, identity: Identity, log: Log) -> Iterator[Writer | None]:
    if path is None:
        yield None
        return
    from . import recording

    writer = recording.begin(path, identity, log)
    try:
        yield writer
    finally:
        recording.end(writer, path, log)


def _go_to_background(log: Path) -> None:
    """Let the parent end, leave its session and terminal, write to ``log``."""
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    if os.fork():
        os._exit(0)
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    for stream in (1, 2):
        os.dup2(target, stream)
    os.close(nothing)
    os.close(target)


if __name__ == "__main__":
    sys.exit(main())
