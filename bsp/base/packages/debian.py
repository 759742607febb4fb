# SPDX-License-Identifier: MIT
"""Where Debian's packages come from on this machine, and with which keys they are verified.

On Debian its apt knows the mirror; elsewhere (Ubuntu, Fedora...) the tools that make Debian systems do.
The keys are those of the package ``debian-archive-keyring``, which each of these distributions has, and
verifies with keys of its own.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable
from pathlib import Path

from ..cache import cache_dir, make_once
from ..errors import InfrastructureError, UserError
from ..process import ToolFailedError, run
from ..spawn import find_tool
from . import host_apt
from .host_system import install_command

_KEYRINGS = tuple(
    Path(each)
    for each in (
        "/usr/share/keyrings/debian-archive-keyring.gpg",
        "/usr/share/keyrings/debian-archive-keyring.pgp",
        "/usr/share/keyring/debian-archive-keyring.gpg",
    )
)
_KEYRING_PACKAGE = "debian-archive-keyring"
_HOST_LISTS = Path("/var/lib/apt/lists")
# A mirror of Debian as these tools write it: http://HOST/debian; not that of security updates or snapshots.
_ADDRESS = re.compile(r"https?://[\w.:-]+(?:/[\w.-]+)*/debian(?=/?[\"'\s])")
_DEFAULTS = (
    ("usr/bin/mmdebstrap", re.compile(r"\$mirror\s*=\s*(\S+)")),
    ("usr/sbin/debootstrap", re.compile(r"DEF_MIRROR=(\S+)")),
)
_MIRROR_LISTS = tuple(
    f"usr/share/python-apt/templates/{name}.mirrors" for name in ("debian", "Debian")
)


def debian_mirror() -> str:
    """Return the address of a Debian mirror: the part before ``/dists/``.

    It is ``$NPU_BSP_DEBIAN_MIRROR``; or the one that this machine's apt has; or the default of mmdebstrap
    or debootstrap, or the first of python-apt's list, whether they are installed or fetched.

    Raises:
        UserError: nothing here knows one.
        InfrastructureError: apt cannot read its package lists.
    """
    chosen = os.environ.get("NPU_BSP_DEBIAN_MIRROR")
    return chosen or _found_mirror()


@functools.cache
def _found_mirror() -> str:
    mirror = _mirror_of_apt() or mirror_of_tools(Path("/"))
    if not mirror and host_apt.is_there():
        mirror = _mirror_of_a_package()
    if mirror:
        return mirror
    raise UserError(
        "nothing on this machine knows a mirror of Debian, whose packages boards get",
        hint="set NPU_BSP_DEBIAN_MIRROR to the address of one (the part before /dists/), or: "
        + install_command(["mmdebstrap"]),
    )


def _mirror_of_apt() -> str:
    if not find_tool("apt-get"):
        return ""
    if any(_HOST_LISTS.glob("*_Packages*")):
        sources = host_apt.read_targets(run(["apt-get", *host_apt.INDEX_TARGETS]).text)
    elif host_apt.is_there():  # as in a container
        try:
            sources = host_apt.mirrors()
        except InfrastructureError:  # apt without sources, or without their keys
            return ""
    else:
        return ""
    for origin, suite, address in sources:
        if origin == "Debian" and "-security" not in suite:
            return address
    return ""


def mirror_of_tools(root: Path) -> str:
    """Return the mirror that the tools below a folder name as their default; empty: none does."""
    for name, pattern in _DEFAULTS:
        for match in pattern.finditer(_text(root / name)):
            if address := _ADDRESS.search(f"{match[1]} "):
                return address[0]
    for name in _MIRROR_LISTS:
        if address := _ADDRESS.search(_text(root / name)):
            return address[0]
    return ""


def _mirror_of_a_package() -> str:
    try:
        folder = cache_dir() / "packages"
        folder.mkdir(parents=True, exist_ok=True)
        root = make_once(
            folder / "mmdebstrap-of-this-machine",
            lambda target: host_apt.unpack(["mmdebstrap"], target),
        )
    except (InfrastructureError, ToolFailedError):
        return ""
    return mirror_of_tools(root)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def debian_keyring() -> Path:
    """Return the file with the keys that Debian's archive is signed with.

    Raises:
        UserError: it is not installed, and this machine's apt does not have its package.
    """
    installed = _first(_KEYRINGS)
    if installed is not None:
        return installed
    install = install_command([_KEYRING_PACKAGE])
    if not host_apt.is_there():
        raise UserError("Debian's packages cannot be verified: its keys are not here", hint=install)
    folder = cache_dir() / "packages"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        root = make_once(
            folder / "debian-archive-keyring-of-this-machine",
            lambda target: host_apt.unpack([_KEYRING_PACKAGE], target),
        )
    except InfrastructureError as error:
        raise UserError(
            f"Debian's packages cannot be verified: its keys are not here, and {error.message}",
            hint=install,
        ) from error
    keyring = _first(root / path.relative_to("/") for path in _KEYRINGS)
    if keyring is None:
        raise UserError(f"{_KEYRING_PACKAGE} of this machine's apt has no keyring", hint=install)
    return keyring


def _first(paths: Iterable[Path]) -> Path | None:
    return next((path for path in paths if path.is_file()), None)
