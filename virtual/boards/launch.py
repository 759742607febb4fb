# SPDX-License-Identifier: MIT
"""Starting QEMU in the background, in a folder of its own."""

from __future__ import annotations

import socket
from pathlib import Path

from bsp.base.errors import InfrastructureError
from bsp.base.process import ToolFailedError, run
from bsp.qemu.emulator import emulator
from bsp.qemu.machine import Machine, arguments

from . import npu_process

_START_S = 60


def start(machine: Machine, folder: Path) -> None:
    """Start QEMU with ``folder`` as its current folder; it runs on when this process ends.

    A virtual NPU, where the board has one, is started before it and ends with it.

    Raises:
        InfrastructureError: QEMU did not start; its own words are in the message.
    """
    command = [*emulator().command("qemu-system-aarch64"), "-L", str(emulator().data)]
    npu_process.start(machine.board, folder, record=machine.record)
    try:
        run([*command, *arguments(machine)], cwd=folder, timeout_s=_START_S)
    except ToolFailedError as error:
        npu_process.dismiss(folder)
        stderr = error.completed.stderr.decode(errors="replace").strip()
        raise InfrastructureError(
            f"QEMU did not start for {machine.board.name}:\n{stderr or error.message}",
            hint="if a port is taken: --port N, or leave --port out",
        ) from error


def overlay(base: Path, target: Path) -> None:
    """Make a copy-on-write image over ``base``."""
    run(
        [*emulator().command("qemu-img"), "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base,
         target],
        timeout_s=60,
    )  # fmt: skip


def free_port() -> int:
    """Return a TCP port on 127.0.0.1 that is free now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def port_is_free(port: int) -> bool:
    """Whether a TCP port on 127.0.0.1 can be listened on."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
