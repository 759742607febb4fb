# SPDX-License-Identifier: MIT
"""The way to a host through a command of the user's (``ProxyCommand``), started as ``ssh`` starts it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import threading
from typing import IO

from bsp.base.errors import UserError

_SAID_BYTES = 2000


class CommandSocket(socket.socket):
    """The input and output of a command, as one stream of bytes; closing it ends the command."""

    _process: subprocess.Popen[bytes] | None = None
    _said: IO[bytes] | None = None

    def close(self) -> None:
        """Close the stream; SIGHUP ends a command that does not end by itself, as ssh does."""
        super().close()
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(OSError):
                os.killpg(self._process.pid, signal.SIGHUP)

    def complaint(self) -> str:
        """What the command has printed to standard error; for people."""
        if self._said is None:
            return ""
        self._said.seek(0)
        return self._said.read(_SAID_BYTES).decode(errors="replace").strip()


def through_command(command: str, *, timeout_s: float, hands_on: bool = False) -> CommandSocket:
    """Start a command whose input and output lead to an SSH server.

    It has a session of its own: Ctrl-C does not end it before the connection was used to clean up.

    Args:
        command: for the user's shell, tokens expanded.
        hands_on: it connects, hands the connected socket on, and ends (``ProxyUseFdpass``).

    Raises:
        UserError: there is no such shell, or nothing is handed on.
    """
    ours, theirs = socket.socketpair()
    stream = CommandSocket(ours.family, ours.type, ours.proto, fileno=ours.detach())
    said = tempfile.TemporaryFile()  # noqa: SIM115  # as long as the stream
    shell = os.environ.get("SHELL") or "/bin/sh"
    try:
        process = subprocess.Popen(
            [shell, "-c", f"exec {command}"],
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
            stderr=said.fileno(),
            start_new_session=True,
        )
    except OSError as error:
        stream.close()
        said.close()
        raise UserError(
            f"ProxyCommand cannot be started: {shell}: {error.strerror}",
            hint="export SHELL=/bin/sh",
        ) from error
    finally:
        theirs.close()
    stream._process, stream._said = process, said
    stream.settimeout(timeout_s)
    threading.Thread(target=process.wait, daemon=True).start()  # no zombie is left
    return _handed_on(stream, command) if hands_on else stream


def _handed_on(stream: CommandSocket, command: str) -> CommandSocket:
    """Return the connected socket that a command sends over its standard output, with one byte."""
    descriptors: list[int] = []
    reason = "it ended without"
    try:
        _, descriptors, _, _ = socket.recv_fds(stream, 1, 1)
        connected = CommandSocket(fileno=descriptors[0])
    except (OSError, IndexError) as error:
        if isinstance(error, OSError):
            reason = str(error)
        said = stream.complaint()
        stream.close()
        for descriptor in descriptors:
            os.close(descriptor)
        raise UserError(
            f"ProxyUseFdpass is set, and the ProxyCommand hands on no connected socket: {said or reason}",
            hint=f"take ProxyUseFdpass out, if this only moves bytes: {command}",
        ) from error
    connected._process, connected._said = stream._process, stream._said
    connected.settimeout(stream.gettimeout())
    super(CommandSocket, stream).close()
    return connected
