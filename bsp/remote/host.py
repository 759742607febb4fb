# SPDX-License-Identifier: MIT
"""A machine that is reached over SSH: the record that all commands hand on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Host:
    """One machine that is reached over SSH.

    Attributes:
        name: what the user types.
        address: name or address to connect to.
        identity_file: private key to try first; None leaves it to the agent and the usual files.
        certificate_file: certificate of the user's key (``CertificateFile``); None is the one beside it.
        sudo: the user is an ordinary one, which may start a deployment's half on the board with sudo.
        known_hosts: file of host keys, which new ones go into; None: the user's own, as ``ssh`` has them.
        power: command (argument list) that resets the board, run on this machine; empty: there is none.
        board: name of the board's profile.
        console_log: file that the board's serial console is written to.
        revoked_host_keys: list of keys that are refused (``RevokedHostKeys``); None: there is none.
        host_key_alias: name that the host key stands under in ``known_hosts`` (``HostKeyAlias``).
        services: systemd units that have to be active there before a deployment is confirmed.
        keep: generations that deployments leave there; None: two.
        verify_every: every Nth deployment re-hashes what it would trust; None: the default.
        proxy_jump: host to go through (``ProxyJump``): a name, or ``user@address[:port]``.
        tags: words that ``--host tag:WORD`` finds it by; see groups.py.
        more_identity_files: private keys to try after ``identity_file``; ~/.ssh/config may name several.
        more_known_hosts: files of host keys that are read after ``known_hosts``.
        proxy_command: command that the connection goes through (``ProxyCommand``), tokens expanded.
        known_hosts_command: program and arguments that print host keys (``KnownHostsCommand``).
        hash_known_hosts: names of new keys are hashed in ``known_hosts`` (``HashKnownHosts``).
        proxy_hands_on: the proxy command hands on a connected socket (``ProxyUseFdpass``).
        identities_only: no keys but those of the identity files are shown (``IdentitiesOnly``).
        identity_agent: socket of the agent (``IdentityAgent``), ``none``; None: that of SSH_AUTH_SOCK.
        system_known_hosts: those of all users (``GlobalKnownHostsFile``); None: as ``ssh`` has them.
    """

    name: str
    address: str
    port: int = 22
    user: str = "root"
    identity_file: Path | None = None
    known_hosts: Path | None = None
    power: tuple[str, ...] = ()
    board: str | None = None
    console_log: Path | None = None
    host_key_alias: str | None = None
    proxy_jump: str | None = None
    certificate_file: Path | None = None
    sudo: bool = False
    services: tuple[str, ...] = ()
    keep: int | None = None
    verify_every: int | None = None
    tags: tuple[str, ...] = ()
    more_identity_files: tuple[Path, ...] = ()
    revoked_host_keys: Path | None = None
    more_known_hosts: tuple[Path, ...] = ()
    system_known_hosts: tuple[Path, ...] | None = None
    proxy_command: str | None = None
    identities_only: bool = False
    identity_agent: str | None = None
    known_hosts_command: tuple[str, ...] = ()
    hash_known_hosts: bool = False
    proxy_hands_on: bool = False

    @property
    def key_name(self) -> str:
        """The name that the host's key stands under in a known-hosts file."""
        base = self.host_key_alias or self.address
        return base if self.host_key_alias or self.port == 22 else f"[{base}]:{self.port}"
