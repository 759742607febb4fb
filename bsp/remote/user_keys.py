# SPDX-License-Identifier: MIT
"""The user's private keys, in the order in which a log-in offers them, with their certificates."""

from __future__ import annotations

import base64
import contextlib
import copy
import getpass
import sys
from collections.abc import Iterator
from pathlib import Path

import paramiko

from bsp.base.errors import UserError
from bsp.base.terminal.ask import can_ask
from bsp.base.terminal.screen import screen

from .host import Host

_DEFAULT_KEYS = ("id_ed25519", "id_ecdsa", "id_rsa")


def offered_keys(host: Host) -> Iterator[tuple[str, paramiko.PKey]]:
    """Yield the keys to try: the host's identity files, the agent's keys, the user's default keys."""
    if host.identity_file and not host.identity_file.exists():
        raise UserError(f"the identity file of {host.name} does not exist: {host.identity_file}")
    files = [host.identity_file] if host.identity_file else []
    agent = paramiko.Agent()
    try:
        held = {key.asbytes(): key for key in agent.get_keys()}
        for number, file in enumerate([*files, *host.more_identity_files]):
            public = _public_part(file)
            if public in held:
                yield f"{file}, which the agent holds", held.pop(public)
            else:
                with contextlib.suppress(*([UserError] if number else [])):
                    yield from _with_certificate(file, host.certificate_file)
        for number, key in enumerate(held.values()):
            yield f"agent key {number + 1}", key
    finally:
        agent.close()
    files += host.more_identity_files
    for name in _DEFAULT_KEYS:
        file = Path.home() / ".ssh" / name
        if file.exists() and file not in files:
            with contextlib.suppress(UserError):
                yield from _with_certificate(file, host.certificate_file)


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
