# SPDX-License-Identifier: MIT
"""Debian packages on this machine that only a few tasks need: ``./inv`` installs those that most need."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence

from ..errors import UserError
from ..process import run
from ..progress import step
from ..terminal.ask import can_ask, confirm
from ..terminal.screen import screen
from .host_system import fedora_names, is_dnf_system


def install_packages(missing: Sequence[str]) -> None:
    """Install Debian packages: as root, or with sudo where it lets us or somebody agrees to be asked.

    On Fedora they are its own of the same content.

    Raises:
        UserError: nobody here may or wants to install them; Fedora does not have one.
        InfrastructureError: apt failed.
    """
    if not missing:
        return
    dnf = is_dnf_system()
    if dnf:
        missing = _in_fedora(missing)
    names = ", ".join(missing)
    command = ["apt-get", "install", "--yes", "--no-install-recommends", *missing]
    if dnf:
        command = ["dnf", "install", "--assumeyes", *missing]
    if os.geteuid() == 0:
        sudo = []
    elif shutil.which("sudo") and run(["sudo", "-n", "true"], check=False).exit_code == 0:
        sudo = ["sudo", "-n"]
    elif shutil.which("sudo") and can_ask() and confirm(f"Install {names} with sudo {command[0]}?"):
        with screen.paused():  # with the terminal, for the password; run() would take it away
            if subprocess.run(["sudo", *command], check=False).returncode == 0:
                return
        raise _refused(names, command)
    else:
        raise _refused(names, command)
    with step(f"Installing {names}"):
        if not dnf:
            run([*sudo, "apt-get", "update", "--quiet"], timeout_s=600, check=False)
        run([*sudo, "env", "DEBIAN_FRONTEND=noninteractive", *command], timeout_s=1800)


def _in_fedora(packages: Sequence[str]) -> list[str]:
    fedora = fedora_names()
    for package in packages:
        name, why = fedora.get(package, (package, ""))
        if not name:
            raise UserError(f"Fedora has no package like Debian's {package}: {why}")
    return [fedora.get(package, (package, ""))[0] for package in packages]


def _refused(names: str, command: Sequence[str]) -> UserError:
    return UserError(
        f"not installed here, and only root can install packages: {names}",
        hint=f"as root: {' '.join(command)}",
    )


def has_header(name: str, compiler: str = "gcc") -> bool:
    """Whether a C header can be included; without a compiler none can."""
    if shutil.which(compiler) is None:
        return False
    source = f"#include <{name}>\n".encode()
    return run([compiler, "-E", "-x", "c", "-"], stdin=source, check=False).exit_code == 0
