# SPDX-License-Identifier: MIT
"""The one way in which this project starts another program on the host."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from .errors import BspError, UserError
from .packages import programs
from .packages.host_system import install_command
from .spawn import Completed as Completed
from .spawn import ToolFailedError as ToolFailedError
from .spawn import find_tool as find_tool
from .spawn import spawn

# Debian package that holds each tool we may miss; the launcher installs them all.
PACKAGE_OF_TOOL = {
    "aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu",
    "aarch64-linux-gnu-gcc": "gcc-aarch64-linux-gnu",
    "apt-get": "apt",
    "bzip2": "bzip2",
    "cpio": "cpio",
    "cpp": "cpp",
    "depmod": "kmod",
    "dpkg-deb": "dpkg",
    "dtc": "device-tree-compiler",
    "fdtoverlay": "device-tree-compiler",
    "git": "git",
    "ld.lld": "lld",
    "llvm-ar": "llvm",
    "mcopy": "mtools",
    "mformat": "mtools",
    "mke2fs": "e2fsprogs",
    "mkimage": "u-boot-tools",
    "mmdebstrap": "mmdebstrap",
    "newuidmap": "uidmap",
    "ninja": "ninja-build",
    "pkg-config": "pkgconf",
    "sfdisk": "fdisk",
    "ssh-keygen": "openssh-client",
    "tar": "tar",
    "xz": "xz-utils",
    "zstd": "zstd",
}


# What a compressed file begins with, and the program that tar unpacks it with.
_UNPACKERS = {
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\x1f\x8b": "gzip",
}


def require_tool(name: str) -> str:
    """Return the path of a program, or say which package has it.

    One that is not installed is taken out of its package, if it works from there: no root is needed.

    Raises:
        UserError: the program is not installed.
    """
    path = find_tool(name)
    if path is not None:
        return path
    package = PACKAGE_OF_TOOL.get(name, name)
    try:
        path = programs.unpacked(name, package) if find_tool("apt-get") else None
    except BspError as error:
        raise UserError(
            f"the program {name!r} is needed and was not found on this machine; it could not be fetched "
            f"either: {error.message}",
            hint=install_command([package]),
        ) from error
    if path is None:
        raise UserError(
            f"the program {name!r} is needed and was not found on this machine",
            hint=install_command([package]),
        )
    return path


def require_unpacker(file: Path) -> None:
    """See to the program that ``tar`` unpacks a compressed file with; its own words for it are a riddle.

    Raises:
        UserError: it is not installed.
    """
    with file.open("rb") as opened:
        start = opened.read(6)
    for magic, program in _UNPACKERS.items():
        if start.startswith(magic):
            require_tool(program)


def run(
    argv: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: bytes | IO[bytes] | None = None,
    stdout: IO[bytes] | None = None,
    timeout_s: float | None = None,
    check: bool = True,
    hint: str = "",
    meanwhile: Callable[[], object] | None = None,
) -> Completed:
    """Run a program to its end and return what it printed.

    The program gets a process group of its own, which is ended on a time-out, on Ctrl-C and on any
    other exception, so that no grandchild survives.

    Args:
        env: additions to this process's environment.
        stdin: bytes, or an open file, to feed it; nothing by default.
        stdout: an open file that takes standard output in place of ``Completed.stdout``.
        meanwhile: called once the program runs. Until it returns nobody reads what the program
            prints, so that may not be more than a pipe holds (64 KiB).

    Raises:
        UserError: the program is not installed.
        ToolFailedError: it ended with a code other than 0 and ``check`` is true.
        InfrastructureError: ``timeout_s`` passed.
    """
    return spawn(
        argv,
        program=require_tool(str(argv[0])),
        cwd=cwd,
        env=env,
        stdin=stdin,
        stdout=stdout,
        timeout_s=timeout_s,
        check=check,
        hint=hint,
        meanwhile=meanwhile,
    )
