# SPDX-License-Identifier: MIT
"""The server's socket and its log: what is needed before anything heavy is imported."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from pathlib import Path

from bsp.base.errors import UserError


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
