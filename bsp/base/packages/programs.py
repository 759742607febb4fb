# SPDX-License-Identifier: MIT
"""Programs that are not installed, used out of their packages: for those who are not root.

Each is the distribution's own, so that it goes with this machine's C library. It lies unpacked in the
cache; a small script beside it says where its libraries are.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from ..cache import cache_dir, make_once
from . import host_apt
from .host_system import distribution

# Packages whose programs need nothing to be configured, and find their files by where they lie. Compilers
# of whole programs are none of these: they want the C library's headers in /usr/include.
_USABLE = frozenset({
    "bc", "bzip2", "cpio", "cpp", "device-tree-compiler", "e2fsprogs", "fdisk", "kmod", "mmdebstrap",
    "mtools", "openssh-client", "patch", "rsync", "u-boot-tools", "xz-utils", "zstd",
})  # fmt: skip
_FOLDERS = ("usr/bin", "usr/sbin", "bin", "sbin")


def unpacked(name: str, package: str) -> str | None:
    """Return the path of a script that runs a program of an unpacked package; None: that does not work.

    Children of this process find the program by its name, too.

    Raises:
        InfrastructureError: the package cannot be fetched, or does not have the program.
    """
    if package not in _USABLE or not host_apt.is_there():
        return None
    folder = cache_dir() / "programs" / distribution()
    folder.mkdir(parents=True, exist_ok=True)
    root = make_once(folder / package, lambda target: _unpack(package, target))
    script = root / "npu-bsp" / name
    if not script.exists():
        return None
    path = os.environ.get("PATH", os.defpath)
    if str(script.parent) not in path.split(":"):
        os.environ["PATH"] = f"{path}:{script.parent}"
    return str(script)


def _unpack(package: str, target: Path) -> None:
    host_apt.unpack([package], target)
    _keep_links_inside(target)
    scripts = target / "npu-bsp"
    scripts.mkdir()
    for program in sorted(_programs(target)):
        script = scripts / program.name
        script.write_text(_SCRIPT.format(program=shlex.quote(str(program.relative_to(target)))))
        script.chmod(0o755)


def _keep_links_inside(root: Path) -> None:
    """Make links to absolute paths lead to the files in a folder, not to this machine's."""
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            link = Path(folder) / name
            if link.is_symlink() and link.readlink().is_absolute():
                inside = os.path.relpath(root / str(link.readlink()).lstrip("/"), folder)
                link.unlink()
                link.symlink_to(inside)


def _programs(root: Path) -> list[Path]:
    files = [file for folder in _FOLDERS for file in (root / folder).glob("*")]
    return [file for file in files if file.is_file() and os.access(file, os.X_OK)]


# The folder is moved once it is complete, so that the script asks where it lies.
_SCRIPT = """#!/bin/sh
root=${{0%/npu-bsp/*}}
for folder in "$root"/usr/lib/*-linux-gnu* "$root"/lib/*-linux-gnu* "$root"/usr/lib "$root"/lib; do
    [ ! -d "$folder" ] || LD_LIBRARY_PATH=${{LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}}$folder
done
for folder in "$root"/usr/share/perl/5* "$root"/usr/share/perl5 "$root"/usr/lib/*/perl/5* \\
    "$root"/usr/lib/*/perl-base; do
    [ ! -d "$folder" ] || PERL5LIB=${{PERL5LIB:+$PERL5LIB:}}$folder
done
export LD_LIBRARY_PATH
[ -z "${{PERL5LIB-}}" ] || export PERL5LIB
exec "$root"/{program} "$@"
"""
