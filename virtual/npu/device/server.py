# SPDX-License-Identifier: MIT
"""The server: one socket, one client, one NPU; it ends when the client does."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

from bsp.base.errors import InfrastructureError

from ..identity import Identity
from .frontend import Jobs, NpuMemory
from .npu import VirtualNpu
from .vfio_user import Connection, ProtocolError


def serve(
    listener: socket.socket,
    path: Path,
    identity: Identity,
    make_jobs: Callable[[Identity, NpuMemory], Jobs],
    *,
    accept_timeout_s: float,
    log: Callable[[str], None],
) -> None:
    """Be one NPU for the first client that connects; return when it is gone.

    Args:
        listener: listens on ``path``, which is removed.

    Raises:
        InfrastructureError: no client came in time, or it broke the protocol.
    """
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
        finally:
            path.unlink(missing_ok=True)
            listener.close()
        with sock:
            log("client connected")
            Connection(sock, npu).serve()
    except ProtocolError as error:
        raise InfrastructureError(f"the client broke the protocol: {error}") from error
    finally:
        log(npu.summary())
        npu.close()
    log("client gone")
