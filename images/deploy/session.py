# SPDX-License-Identifier: MIT
"""Where and how to deploy, and the session with the agent on that board."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from bsp.remote.inventory import Host
from bsp.remote.ssh import Connection, connect

from .claim import Claim
from .transfer.agent import Agent
from .transfer.shared import Shared

_CONNECT_S = 30.0
ANSWER_S = 120.0
"""Hashing a kernel takes an emulated board a while."""


@dataclass
class Spare:
    """The connection that a boot was seen over, until a session takes it: logging in takes a second."""

    _connection: Connection | None = None

    def put(self, connection: Connection) -> None:
        """Hand a connection over."""
        self.close()
        self._connection = connection

    def take(self) -> Connection | None:
        """Return the connection that was handed over, if it still stands."""
        connection, self._connection = self._connection, None
        if connection is None or connection.transport.is_active():
            return connection
        connection.close()
        return None

    def close(self) -> None:
        """Close what nobody took."""
        if connection := self.take():
            connection.close()


@dataclass(frozen=True)
class Target:
    """Where and how to deploy.

    Attributes:
        timeout_s: how long the board may take to come up with the trial.
        recovery_s: how long it may then take to come back with the old generation, which may have a file
            system to check first.
        check_health: whether what the profile and the inventory ask for is checked before confirming.
        keep: how many generations stay on the board; None: what the inventory says, else two.
        verify: re-hash every deployed file instead of trusting the board's manifest.
        verify_every: do so on every Nth deployment; None: what the inventory says, else ten.
        force_enable: send a device tree with the NPU on also where somebody switched it off on purpose.
        root: prefix of all paths on the board; for the tests.
        reboot: command that reboots the board, run there.
        kexec: command that starts the kernel that was loaded, run there.
        claim: to the board: the same one in all sessions of a deployment.
        additions: code added to modules of the agent, by their names; for the power-cut test, which
            deploys with agents that are broken on purpose.
        spare: the connection that the last boot was seen over.
        shared: streams that were made for other boards; None: this is the only one.
    """

    host: Host
    timeout_s: float = 180.0
    recovery_s: float = 300.0
    accept_new_key: bool = False
    check_health: bool = True
    keep: int | None = None
    verify: bool = False
    verify_every: int | None = None
    force_enable: bool = False
    root: str = ""
    reboot: tuple[str, ...] = ("systemctl", "reboot")
    kexec: tuple[str, ...] = ("systemctl", "kexec")
    claim: Claim = field(default_factory=Claim)
    additions: Mapping[str, str] = field(default_factory=dict)
    spare: Spare = field(default_factory=Spare, compare=False, repr=False)
    shared: Shared | None = None


@contextmanager
def session(target: Target, *, accept_new_key: bool | None = None) -> Iterator[Agent]:
    """A connection to the board, with the agent running at its end: a new one since its last boot."""
    accept = target.accept_new_key if accept_new_key is None else accept_new_key
    with (
        target.spare.take()
        or connect(target.host, timeout_s=_CONNECT_S, accept_new_key=accept) as connection,
        Agent(
            connection,
            root=target.root,
            timeout_s=ANSWER_S,
            additions=target.additions,
            shared=target.shared,
            claim=target.claim,
        ) as agent,
    ):
        yield agent
