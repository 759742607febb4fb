# SPDX-License-Identifier: MIT
"""What this machine's distribution is, and what its packages are called."""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Sequence
from pathlib import Path

from ..project import PROJECT
from ..spawn import find_tool, spawn

_FEDORA = PROJECT / "requirements" / "system-fedora.txt"
_DEBIAN_OF_MACHINE = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "armhf", "i686": "i386",
                      "ppc64le": "ppc64el", "loongarch64": "loong64"}  # fmt: skip


@functools.cache
def host_architecture() -> str:
    """Return Debian's name for the architecture of this machine's programs: ``amd64``, ``arm64``...

    dpkg knows where a 64-bit kernel has 32-bit programs, as on many a Raspberry Pi.
    """
    if find_tool("dpkg"):
        return spawn(["dpkg", "--print-architecture"]).text.strip()
    machine = os.uname().machine
    return _DEBIAN_OF_MACHINE.get(machine, machine)


def distribution() -> str:
    """Return the distribution in a word: ``debian-13``, ``ubuntu-24.04``; ``unknown`` if none is said."""
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return "unknown"
    version = release.get("VERSION_ID") or release.get("VERSION_CODENAME", "")
    return "-".join(filter(None, [release.get("ID", "linux"), version]))


def is_dnf_system() -> bool:
    """Whether packages are Fedora's: dnf is there, and this is not Debian with a dnf installed."""
    return find_tool("dnf") is not None and not Path("/var/lib/dpkg/status").exists()


def fedora_names(file: Path = _FEDORA) -> dict[str, tuple[str, str]]:
    """Return what Debian's packages are called in Fedora: the name, or empty and why there is none."""
    names = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        debian, _, rest = line.partition(" ")
        if debian and not debian.startswith("#"):
            name, _, why = rest.strip().partition(" ")
            names[debian] = ("" if name == "-" else name, why.strip())
    return names


def install_command(packages: Sequence[str], *, as_root: bool = False) -> str:
    """Return what installs Debian packages, or Fedora's of the same content, on this machine."""
    sudo = "" if as_root else "sudo "
    if not is_dnf_system():
        return f"{sudo}apt-get install {' '.join(packages)}"
    fedora = fedora_names()
    names = [fedora.get(package, (package, ""))[0] for package in packages]
    if not any(names):
        return f"Fedora has no package for it: {fedora[packages[0]][1]}"
    return f"{sudo}dnf install {' '.join(filter(None, dict.fromkeys(names)))}"
