# SPDX-License-Identifier: MIT
"""A board that is up and answers over SSH: virtual or real, asked and rebooted in its own way."""

from __future__ import annotations

from bsp.base.errors import InfrastructureError
from bsp.remote import ssh
from bsp.remote.inventory import Host
from images.deploy import trial


def said(host: Host, *command: str, stdin: bytes | None = None) -> str:
    """Run a command there, and return what it printed."""
    with ssh.connect(host, timeout_s=120) as connection:
        return connection.run(list(command), stdin=stdin, timeout_s=300).text


def reboot(host: Host, *, timeout_s: float) -> None:
    """Have the board reboot, and wait until SSH answers in another boot."""
    with ssh.connect(host, timeout_s=120) as connection:
        boot_id = connection.run(["cat", "/proc/sys/kernel/random/boot_id"]).text.strip()
        # The connection may be cut before the command has ended.
        connection.run(["systemctl", "reboot"], check=False)
    boot = trial.wait_for_boot(host, other_than=boot_id, timeout_s=timeout_s, root="")
    if boot is None:
        raise InfrastructureError(f"{host.name} did not come back in {timeout_s:g} s")
