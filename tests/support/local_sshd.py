# SPDX-License-Identifier: MIT
"""A real OpenSSH server on 127.0.0.1 with keys, configuration and files of its own."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from bsp.remote.inventory import Host


def find_sshd() -> str | None:
    return shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class LocalSshd:
    """A running server; ``host`` is how to reach it, with its key already known."""

    folder: Path
    port: int
    host: Host
    process: subprocess.Popen[bytes]

    def stop(self) -> None:
        os.killpg(self.process.pid, signal.SIGTERM)
        self.process.wait(timeout=10)

    def with_(self, **changes: object) -> Host:
        return replace(self.host, **changes)  # type: ignore[arg-type]


def make_key(path: Path) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path


def start(
    folder: Path, *, configure: Callable[[Path], str] | None = None, under: tuple[str, ...] = ()
) -> LocalSshd:
    """Start a server whose files are all below ``folder``.

    Args:
        under: command that runs the server.
        configure: called when its keys are there; what it returns comes first in the configuration.
    """
    sshd = find_sshd()
    if sshd is None:
        pytest.skip("sshd is not installed (openssh-server)")
    folder.mkdir(parents=True, exist_ok=True)
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # privilege separation; wanted by sshd itself
    host_key = make_key(folder / "host_key")
    client_key = make_key(folder / "client_key")
    (folder / "authorized_keys").write_text((folder / "client_key.pub").read_text())
    port = free_port()
    (folder / "sshd_config").write_text(
        (configure(folder) if configure else "")
        + f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {host_key}\nUsePAM no\n"
        f"PidFile {folder}/sshd.pid\n"
        f"AuthorizedKeysFile {folder}/authorized_keys\nStrictModes no\nPasswordAuthentication no\n"
        "KbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\nMaxStartups 100\n"
        "AllowTcpForwarding yes\nUseDNS no\nSubsystem sftp internal-sftp\n"
        # Its own home: a login shell here must not read what the user has in .bashrc.
        f"SetEnv HOME={folder}\n"
    )
    known = folder / "known_hosts"
    known.write_text(
        f"[127.0.0.1]:{port} {' '.join((folder / 'host_key.pub').read_text().split()[:2])}\n"
    )
    with (folder / "sshd.log").open("wb") as log:
        process = subprocess.Popen(
            [*under, sshd, "-D", "-e", "-f", str(folder / "sshd_config")],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            break
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError((folder / "sshd.log").read_text()) from None
            time.sleep(0.02)
    host = Host(
        name="local",
        address="127.0.0.1",
        port=port,
        user=getpass.getuser(),
        identity_file=client_key,
        known_hosts=known,
    )
    return LocalSshd(folder, port, host, process)
