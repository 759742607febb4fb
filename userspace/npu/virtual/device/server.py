# SPDX-License-Identifier: MIT
"""The server: one socket, one client, one NPU; it ends when the client does."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bsp.base.errors import InfrastructureError, UserError

from ..identity import Identity
from .frontend import Jobs, NpuMemory
from .npu import VirtualNpu
from .vfio_user import Connection, ProtocolError


class Log:
    """Lines with the seconds since the start, on a stream that may go away."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def __call__(self, text: str) -> None:
        """Print one line."""
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.write(f"{time.monotonic() - self._began:9.3f} {text}\n")
            sys.stdout.flush()


def listen(path: Path) -> socket.socket:
    """Return a socket that listens on ``path``, for this user only.

    Raises:
        UserError: the path is in use, or cannot be made.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o077)
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        # By way of the folder's descriptor: the path of a socket may have no more than 107 bytes.
        sock.bind(f"/proc/self/fd/{folder}/{path.name}")
        sock.listen(1)
    except OSError as error:
        sock.close()
        raise UserError(
            f"cannot listen on {path}: {error.strerror}", hint=f"rm {path}, if nothing uses it"
        ) from error
    finally:
        os.close(folder)
        os.umask(mask)
    return sock


def serve(
    path: Path,
    identity: Identity,
    make_jobs: Callable[[Identity, NpuMemory], Jobs],
    *,
    accept_timeout_s: float,
    log: Callable[[str], None],
) -> None:
    """Be one NPU for the first client that connects to ``path``; return when it is gone.

    Raises:
        InfrastructureError: no client came in time, or it broke the protocol.
    """
    with listen(path) as listener:
        npu = VirtualNpu(identity, make_jobs, log=log)
        try:
            log(f"{identity.title}: listening on {path}")
            listener.settimeout(accept_timeout_s)
            try:
                sock, _ = listener.accept()
            except TimeoutError:
                raise InfrastructureError(
                    f"no client connected to {path} within {accept_timeout_s:g} s"
                ) from None
            listener.close()
            with sock:
                log("client connected")
                Connection(sock, npu).serve()
        except ProtocolError as error:
            raise InfrastructureError(f"the client broke the protocol: {error}") from error
        finally:
            path.unlink(missing_ok=True)
            log(npu.summary())
            npu.close()
    log("client gone")
