# SPDX-License-Identifier: MIT
"""A deployment's claim to a board: the host's half of onboard/lease.py."""

from __future__ import annotations

import getpass
import os
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bsp.base.errors import UserError


@dataclass(frozen=True)
class Claim:
    """Who wants to deploy.

    Attributes:
        steal: why the board is taken from whoever has it; empty to respect that.
        token: names this deployment in all of its sessions.
    """

    steal: str = ""
    token: str = field(default_factory=lambda: secrets.token_hex(8))

    def request(self, purpose: str) -> dict[str, Any]:
        """The fields of a request that takes the lease."""
        return {
            "token": self.token,
            "owner": _owner(),
            "purpose": purpose,
            "client": _client(os.getpid()),
            "steal": self.steal,
        }


def claim_of(*, steal: bool, reason: str) -> Claim:
    """The claim that ``--steal --reason TEXT`` makes.

    Raises:
        UserError: one without the other.
    """
    if steal and not reason.strip():
        raise UserError(
            "--steal takes the board from somebody: say why",
            hint='--steal --reason "their machine is gone"; it is recorded in the board\'s log',
        )
    if reason and not steal:
        raise UserError("--reason goes with --steal", hint="add --steal, or leave --reason out")
    return Claim(" ".join(reason.split()))


def is_gone(lease: Mapping[str, Any]) -> bool:
    """Whether a lease is that of a process of this machine which has ended."""
    client = lease.get("client")
    if not isinstance(client, dict) or not isinstance(client.get("pid"), int):
        return False
    now = _client(client["pid"])
    return client.get("machine") == now["machine"] and client != now


def _owner() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def _client(pid: int) -> dict[str, Any]:
    """A process of this machine, so that it is not taken for a later one with the same number."""
    machine = socket.gethostname()
    try:
        # Changes with each boot of this machine, and so do process numbers.
        machine += " " + Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        started = ""
    return {"machine": machine, "pid": pid, "started": started}
