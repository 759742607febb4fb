# SPDX-License-Identifier: MIT
"""A root file system as a tar stream: the tar file of a Debian, with a folder of files laid over it.

Whatever differs between two builds of the same Debian (logs, caches, times later than the packages') is
left out or clamped (base.py), so that the same packages give the same stream.
"""

from __future__ import annotations

import os
import stat
import tarfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

from images.deploy.boot.slots import MTIME_S, GenerationFile

from .base import PRIVATE, Base, base_of, folder_named, header_of, padding, parents, send

_END = bytes(1024)
_SMALL_BYTES = 1 << 16


@dataclass(frozen=True)
class Tree:
    """A root file system to write.

    Attributes:
        tar: its files, with owners and permissions.
        over: folder whose files replace and add to them; they belong to root.
        added: files of a generation; they carry a time of their own (``slots.MTIME_S``).
    """

    tar: Path
    over: Path
    added: tuple[GenerationFile, ...] = ()

    @cached_property
    def _base(self) -> Base:
        return base_of(self.tar, MTIME_S)

    @cached_property
    def epoch_s(self) -> int:
        """The latest time of any file: $SOURCE_DATE_EPOCH, or when the newest package was built.

        Never before the generations' time: mke2fs clamps all times to it.
        """
        chosen = os.environ.get("SOURCE_DATE_EPOCH", "")
        return max(int(chosen), MTIME_S) if chosen.isdigit() else self._base.epoch_s

    def write_tar(self, sink: BinaryIO) -> None:
        """Write all files as one tar stream, each folder before its content.

        Args:
            sink: a file with a descriptor.
        """
        over = dict(self._over())
        folders = {"", *self._base.copy_to(sink, without=over)}
        for name, path in over.items():
            if name not in folders:
                self._parents(sink, name, folders)
                self._add(sink, name, path)
                if path.is_dir() and not path.is_symlink():
                    folders.add(name)
        for file in self.added:
            self._parents(sink, file.target, folders)
            info = tarfile.TarInfo(f"./{file.target}")
            info.mtime = MTIME_S
            if file.link is not None:
                info.type, info.linkname, info.mode = tarfile.SYMTYPE, file.link, 0o777
                sink.write(header_of(info))
            else:
                info.mode = file.mode
                _put_file(sink, info, file.source)
        sink.write(_END)

    def _over(self) -> list[tuple[str, Path]]:
        """Return the files and folders to lay over, by their path below the root; folders first."""
        entries = []
        for root, folders, files in os.walk(self.over):
            folders.sort()
            for name in sorted([*folders, *files]):
                path = Path(root) / name
                entries.append((path.relative_to(self.over).as_posix(), path))
        return entries

    def _parents(self, sink: BinaryIO, name: str, folders: set[str]) -> None:
        """Write the folders that contain a file, unless they were written: mke2fs requires them."""
        for folder in parents(name):
            if folder not in folders:
                folders.add(folder)
                sink.write(header_of(folder_named(folder, self.epoch_s)))

    def _add(self, sink: BinaryIO, name: str, path: Path) -> None:
        status = path.lstat()
        if stat.S_ISDIR(status.st_mode):
            sink.write(header_of(folder_named(name, self.epoch_s)))
            return
        info = tarfile.TarInfo(f"./{name}")
        info.mtime = self.epoch_s
        if stat.S_ISLNK(status.st_mode):
            info.type, info.linkname, info.mode = tarfile.SYMTYPE, str(path.readlink()), 0o777
            sink.write(header_of(info))
            return
        # Only the executable bit counts: the rest depends on the umask of whoever made the folder.
        executable = bool(status.st_mode & 0o100)
        if name in PRIVATE:
            info.mode = 0o700 if executable else 0o600
        else:
            info.mode = 0o755 if executable else 0o644
        _put_file(sink, info, path)


def _put_file(sink: BinaryIO, info: tarfile.TarInfo, path: Path) -> None:
    with open(path, "rb") as content:  # thousands of files
        info.size = os.fstat(content.fileno()).st_size
        sink.write(header_of(info))
        if info.size < _SMALL_BYTES:
            sink.write(content.read(info.size))
        else:
            send(content, sink, 0, info.size)
        sink.write(padding(info.size))
