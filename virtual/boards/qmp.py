# SPDX-License-Identifier: MIT
"""QEMU's machine protocol: one command at a time over the machine's socket."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

from bsp.base.errors import InfrastructureError


def command(path: Path, name: str, *, timeout_s: float = 10, **arguments: Any) -> Any:
    """Send one command (``system_reset``, ``quit``...) and return what it returns.

    Raises:
        InfrastructureError: QEMU does not answer on the socket, or refuses.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(timeout_s)
            _connect(sock, path)
            with sock.makefile("rwb") as stream:
                json.loads(stream.readline())  # the greeting
                _ask(stream, "qmp_capabilities", {})
                return _ask(stream, name, arguments)
    except (OSError, ValueError) as error:
        raise InfrastructureError(
            f"QEMU does not answer on {path}: {error}",
            hint=f"./inv virtual.down --name {path.parent.name} ends it; then start it again",
        ) from error


def _connect(sock: socket.socket, path: Path) -> None:
    """Connect by way of the folder's descriptor: a socket's path may have no more than 107 bytes."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        sock.connect(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)


def _ask(stream: Any, name: str, arguments: dict[str, Any]) -> Any:
    question: dict[str, Any] = {"execute": name}
    if arguments:
        question["arguments"] = arguments
    stream.write(json.dumps(question).encode() + b"\n")
    stream.flush()
    while True:
        line = stream.readline()
        if not line:
            if name == "quit":
                return {}
            raise ValueError("the connection ended")
        answer = json.loads(line)
        if "return" in answer:
            return answer["return"]
        if "error" in answer:
            raise InfrastructureError(f"QEMU refused {name}: {answer['error'].get('desc')}")
