# SPDX-License-Identifier: MIT
"""The user's private keys, in the order in which a log-in offers them, with their certificates."""

from __future__ import annotations

import base64
import contextlib
import copy
import getpass
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import paramiko
from paramiko.agent import AgentSSH

from bsp.base.errors import UserError
from bsp.base.terminal.ask import can_ask
from bsp.base.terminal.screen import screen

from .host import Host

_AGENT_S = 60.0  # it may ask its user to confirm
_DEFAULT_KEYS = ("id_ed25519", "id_ecdsa", "id_rsa")


def offered_keys(host: Host) -> Iterator[tuple[str, paramiko.PKey]]:
    """Yield the keys to try: the host's identity files, the agent's keys, the user's default keys.

    With ``IdentitiesOnly`` the agent shows only what belongs to an identity file; the default ones are
    identity files where none is configured, as with ``ssh``.
    """
    if host.identity_file and not host.identity_file.exists():
        raise UserError(f"the identity file of {host.name} does not exist: {host.identity_file}")
    files = [host.identity_file] if host.identity_file else []
    files += host.more_identity_files
    usual = [Path.home() / ".ssh" / name for name in _DEFAULT_KEYS]
    usual = [file for file in usual if file.exists() and file not in files]
    if host.identities_only:
        files, usual = files or usual, []
    agent = _agent(host.identity_agent)
    try:
        held = {key.asbytes(): key for key in agent.get_keys()}
        for file in files:
            certificate = _public_part(host.certificate_file or Path(f"{file}-cert"))
            if host.identities_only and certificate in held:
                yield f"{file} with the agent's certificate", held.pop(certificate)
            public = _public_part(file)
            if public in held:
                yield f"{file}, which the agent holds", held.pop(public)
            else:
                with contextlib.suppress(*([] if file == host.identity_file else [UserError])):
                    yield from _with_certificate(file, host.certificate_file)
        for number, key in enumerate(held.values()):
            if not host.identities_only:
                yield f"agent key {number + 1}", key
    finally:
        agent.close()
    for file in usual:
        with contextlib.suppress(UserError):
            yield from _with_certificate(file, host.certificate_file)


class _Agent(AgentSSH):
    """The agent at a socket; one that does not answer holds no keys."""

    def __init__(self, path: str) -> None:
        super().__init__()
        if path == "none":
            return
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(_AGENT_S)
            connection.connect(path)
            self._connect(connection)  # type: ignore[attr-defined]  # not in its stubs
        except (OSError, paramiko.SSHException):
            connection.close()

    def close(self) -> None:
        """Close the connection."""
        self._close()  # type: ignore[attr-defined]


def _agent(path: str | None) -> paramiko.Agent | _Agent:
    return paramiko.Agent() if path is None else _Agent(path)


def _public_part(file: Path) -> bytes:
    """Return the public key of an identity file, from the file or FILE.pub; empty if neither holds one."""
    for path in (file, file.with_name(f"{file.name}.pub")):
        with contextlib.suppress(OSError, ValueError, IndexError):
            return base64.b64decode(path.read_text().split()[1], validate=True)
    return b""


def _with_certificate(file: Path, certificate: Path | None) -> Iterator[tuple[str, paramiko.PKey]]:
    """Yield a key with its certificate (FILE-cert.pub, or ``certificate``), if any, then the plain key."""
    key = _read_key(file)
    if certificate is not None:
        try:
            key.load_certificate(str(certificate))
        except (ValueError, OSError, paramiko.SSHException):
            key.public_blob = None  # the certificate is for another key
    if key.public_blob is not None:
        certified = copy.copy(key)
        yield f"{file} with its certificate", certified
        key.public_blob = None
    yield str(file), key


def _read_key(file: Path) -> paramiko.PKey:
    try:
        try:
            return paramiko.PKey.from_path(file)
        except (paramiko.PasswordRequiredException, TypeError):
            if not can_ask():
                raise UserError(
                    f"the key {file} has a passphrase and there is no terminal to ask on",
                    hint=f"ssh-add {file}",
                ) from None
            with screen.paused():
                passphrase = getpass.getpass(f"Passphrase of {file}: ", stream=sys.stderr)
            return paramiko.PKey.from_path(file, passphrase)
    except UserError:
        raise
    except (paramiko.SSHException, OSError, ValueError, TypeError) as error:
        raise UserError(f"cannot read the private key {file}: {error}") from error
