# SPDX-License-Identifier: MIT
"""A root file system as a stream: the tar file of a Debian, with a folder of files laid over it.

What differs from one making of the same Debian to the next (its logs, its caches, times after the
packages' own) is left out or cut back, so that the same packages give the same stream.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tarfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

from bsp.base.cache import write_atomically
from bsp.base.errors import InfrastructureError
from images.deploy.slots import MTIME_S, GenerationFile

# Made when the packages are configured, and made again on the board where it is needed.
_LEFT_OUT = frozenset({
    "etc/machine-id", "var/lib/dbus/machine-id", "var/lib/systemd/random-seed",
    "var/cache/ldconfig/aux-cache",
})  # fmt: skip
_PRIVATE = frozenset({
    "root", "root/.ssh", "root/.ssh/authorized_keys", "etc/ssh/ssh_host_ed25519_key",
})  # fmt: skip
_MOUNT_POINTS = ("dev", "proc", "run", "sys")
_EMPTIED = ("dev/", "var/log/", "tmp/", "run/")


@dataclass(frozen=True)
class Tree:
    """A root file system that is to be.

    Attributes:
        tar: its files, with owners and permissions.
        over: folder whose files replace and add to them; they belong to root.
        added: files of a generation; they carry a time of their own (``slots.MTIME_S``).
    """

    tar: Path
    over: Path
    added: tuple[GenerationFile, ...] = ()

    @cached_property
    def epoch_s(self) -> int:
        """No file is younger: $SOURCE_DATE_EPOCH, or when the newest package was made.

        Never before the generations' time: mke2fs cuts all times back to it.
        """
        chosen = os.environ.get("SOURCE_DATE_EPOCH", "")
        if chosen.isdigit():
            return max(int(chosen), MTIME_S)
        known = self.tar.with_name(f".{self.tar.name}.epoch")
        with contextlib.suppress(OSError, ValueError):
            if known.stat().st_mtime >= self.tar.stat().st_mtime:
                return int(known.read_text())
        # Programs come out of packages as they are; others may be made when these are configured.
        with self._open() as base:
            times = [
                int(member.mtime)
                for member in base
                if member.isreg() and _name(member.name).startswith("usr/bin/")
            ]
        found = max([*times, MTIME_S])
        with contextlib.suppress(OSError):
            write_atomically(known, str(found).encode())
        return found

    def write_tar(self, sink: BinaryIO) -> None:
        """Write all files as one tar stream, folders before what is in them."""
        over = dict(self._over())
        folders = {""}
        with (
            self._open() as base,
            tarfile.open(
                fileobj=sink,
                mode="w|",
                format=tarfile.PAX_FORMAT,
                bufsize=1 << 20,
            ) as target,
        ):
            target.copybufsize = 1 << 20  # type: ignore[attr-defined] # 16 KiB otherwise
            for member in base:
                name = _name(member.name)
                if name in _LEFT_OUT or (name.startswith(_EMPTIED) and not member.isdir()):
                    continue
                if name.startswith("dev/"):
                    continue
                self._parents(target, name, folders)
                if member.isdir():
                    folders.add(name)
                elif name in over:
                    continue
                member.mtime = min(int(member.mtime), self.epoch_s)
                member.pax_headers = {
                    key: value for key, value in member.pax_headers.items() if "time" not in key
                }
                target.addfile(member, base.extractfile(member) if member.isreg() else None)
            for name in _MOUNT_POINTS:
                self._parents(target, f"{name}/", folders)
            for name, path in over.items():
                if name not in folders:
                    self._parents(target, name, folders)
                    self._add(target, name, path)
                    if path.is_dir() and not path.is_symlink():
                        folders.add(name)
            for file in self.added:
                self._parents(target, file.target, folders)
                info = tarfile.TarInfo(f"./{file.target}")
                info.mtime = MTIME_S
                if file.link is not None:
                    info.type, info.linkname, info.mode = tarfile.SYMTYPE, file.link, 0o777
                    target.addfile(info)
                    continue
                with open(file.source, "rb") as content:  # thousands of files
                    info.mode, info.size = file.mode, os.fstat(content.fileno()).st_size
                    target.addfile(info, content)

    def _open(self) -> tarfile.TarFile:
        try:
            return tarfile.open(self.tar)
        except (OSError, tarfile.TarError) as error:
            raise InfrastructureError(
                f"cannot read the root file system {self.tar}: {error}",
                hint="remove it; it is made again",
            ) from error

    def _over(self) -> list[tuple[str, Path]]:
        """Files and folders to lay over, by their path below the root; folders first."""
        found = []
        for root, folders, files in os.walk(self.over):
            folders.sort()
            for name in sorted([*folders, *files]):
                path = Path(root) / name
                found.append((path.relative_to(self.over).as_posix(), path))
        return found

    def _parents(self, target: tarfile.TarFile, name: str, folders: set[str]) -> None:
        """Write the folders that a file lies in, where nothing has brought them: mke2fs wants them."""
        parts = name.split("/")[:-1]
        for depth in range(1, len(parts) + 1):
            folder = "/".join(parts[:depth])
            if folder not in folders:
                folders.add(folder)
                info = tarfile.TarInfo(f"./{folder}")
                info.type, info.mode, info.mtime = tarfile.DIRTYPE, 0o755, self.epoch_s
                if (path := self.over / folder).is_dir():
                    self._add(target, folder, path)
                else:
                    target.addfile(info)

    def _add(self, target: tarfile.TarFile, name: str, path: Path) -> None:
        status = path.lstat()
        info = tarfile.TarInfo(f"./{name}")
        info.mtime = self.epoch_s
        # One bit counts: whether it can be executed. The rest is the umask of whoever made the folder.
        private = name in _PRIVATE
        if stat.S_ISLNK(status.st_mode):
            info.type, info.linkname, info.mode = tarfile.SYMTYPE, str(path.readlink()), 0o777
            target.addfile(info)
        elif stat.S_ISDIR(status.st_mode):
            info.type, info.mode = tarfile.DIRTYPE, 0o700 if private else 0o755
            target.addfile(info)
        else:
            executable = bool(status.st_mode & 0o100)
            info.mode = (
                (0o700 if executable else 0o600) if private else 0o755 if executable else 0o644
            )
            info.size = status.st_size
            with path.open("rb") as file:
                target.addfile(info, file)


def _name(name: str) -> str:
    return name.removeprefix("./").rstrip("/")
