# SPDX-License-Identifier: MIT
"""The process that is the virtual NPU of a virtual board: started before QEMU, ends with it."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from pathlib import Path

from bsp.base.process import run
from bsp.base.project import PROJECT
from bsp.profile import Board
from bsp.qemu.npu import SOCKET

LOG = "npu.log"
_START_S = 30
_CONNECT_S = 60


def start(board: Board, folder: Path, *, record: Path | None = None) -> None:
    """Start the board's virtual NPU, if it has one, in the background; it ends when QEMU does.

    Args:
        record: file that gets a trace of all jobs when it ends.

    Raises:
        InfrastructureError: it did not start.
    """
    if board.qemu is None or board.qemu.npu is None:
        return
    run(
        [
            sys.executable, "-m", "virtual.npu.device", "--socket", SOCKET,
            "--identity", board.qemu.npu, "--background", LOG, "--accept-timeout", str(_CONNECT_S),
            *(["--record", str(record)] if record else []),
        ],
        cwd=folder,
        env={"PYTHONPATH": str(PROJECT)},
        timeout_s=_START_S,
    )  # fmt: skip


def dismiss(folder: Path) -> None:
    """End a virtual NPU that no QEMU has connected to: a client that comes and goes ends it."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        handle = os.open(folder, os.O_PATH | os.O_DIRECTORY)
        try:
            sock.connect(f"/proc/self/fd/{handle}/{SOCKET}")
        finally:
            os.close(handle)
