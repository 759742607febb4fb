# SPDX-License-Identifier: MIT
"""Be a virtual NPU for one QEMU: ``python -m userspace.npu.virtual.device --socket S --identity a311d``.

Start it before QEMU; it ends with QEMU. In QEMU's options: memory-backend-memfd with share=on as the
machine's memory, and ``-device '{"driver": "vfio-user-pci", "addr": "1", "socket": {"type": "unix",
"path": "S"}}'``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bsp.base.errors import BspError

from ..engine import Engine, JobRecord
from ..identity import Identity, load_identity
from .frontend import NpuMemory
from .server import Log, serve


def main() -> int:
    """Serve one client; return the exit code."""
    parser = argparse.ArgumentParser(prog="device", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--socket", type=Path, required=True, help="Unix socket to listen on")
    parser.add_argument("--identity", required=True, help="NPU to be: a file in identities/")
    parser.add_argument(
        "--accept-timeout", type=float, default=120, metavar="S", help="wait for QEMU for so long"
    )
    parser.add_argument("--verbose", action="store_true", help="log each job")
    options = parser.parse_args()
    log = Log()

    def make_engine(identity: Identity, memory: NpuMemory) -> Engine:
        engine = Engine(identity, memory)
        if options.verbose:

            def show(record: JobRecord) -> None:
                log(
                    f"{record.unit} job {record.number}: {record.description} {record.seconds:.3f} s"
                )

            engine.on_job = show
        return engine

    try:
        serve(
            options.socket,
            load_identity(options.identity),
            make_engine,
            accept_timeout_s=options.accept_timeout,
            log=log,
        )
    except BspError as error:
        log(f"error: {error.message}")
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
