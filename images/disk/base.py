# SPDX-License-Identifier: MIT
"""The part of a root file system's tar stream that all disks share: prepared once, copied by the kernel.

Reading and writing ten thousand tar headers takes Python seconds. Therefore the tar of a Debian is put in
order once, in the cache beside it; from there a disk's stream takes everything except the files that it
replaces, in a few long ranges.
"""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec

from bsp.base.cache import make_once, remove, write_atomically
from bsp.base.errors import InfrastructureError

from .layout import MIB

# Made when the packages are configured; the board makes them again where needed.
_LEFT_OUT = frozenset({
    "etc/machine-id", "var/lib/dbus/machine-id", "var/lib/systemd/random-seed",
    "var/cache/ldconfig/aux-cache",
})  # fmt: skip
PRIVATE = frozenset({
    "root", "root/.ssh", "root/.ssh/authorized_keys", "etc/ssh/ssh_host_ed25519_key",
})  # fmt: skip
_MOUNT_POINTS = ("dev", "proc", "run", "sys")
_EMPTIED = ("dev/", "var/log/", "tmp/", "run/")
_BLOCK_BYTES = 512


class _Part(msgspec.Struct, frozen=True, array_like=True):
    """A file or folder in the stream: its headers, content and padding."""

    name: str
    is_folder: bool
    size_bytes: int


class _Index(msgspec.Struct, frozen=True):
    """The list of the stream's parts, stored beside it.

    Attributes:
        epoch_s: when the newest package was built.
    """

    epoch_s: int
    parts: tuple[_Part, ...]


@dataclass(frozen=True)
class Base:
    """A Debian's files in order, without what differs between two builds of it."""

    folder: Path
    epoch_s: int
    parts: tuple[_Part, ...]

    def copy_to(self, sink: BinaryIO, without: Container[str]) -> set[str]:
        """Write the stream without some of its files; return the folders that it has."""
        folders = set()
        at = start = 0
        with open(self.folder / "stream", "rb") as stream:
            for part in self.parts:
                if part.is_folder:
                    folders.add(part.name)
                elif part.name in without:
                    send(stream, sink, start, at - start)
                    start = at + part.size_bytes
                at += part.size_bytes
            send(stream, sink, start, at - start)
        return folders


def base_of(tar: Path, not_before_s: int) -> Base:
    """Return the base of a Debian's tar file; the first use makes it.

    Raises:
        InfrastructureError: it cannot be read.
    """
    folder = tar.with_name(f".{tar.name}.base")
    index = folder / "index.json"
    try:
        if index.exists() and index.stat().st_mtime < tar.stat().st_mtime:
            remove(folder)
        decoded = msgspec.json.decode(
            (make_once(folder, lambda target: _make(tar, target)) / "index.json").read_bytes(),
            type=_Index,
        )
    except (OSError, tarfile.TarError, msgspec.DecodeError) as error:
        raise InfrastructureError(
            f"cannot read the root file system {tar}: {error}",
            hint=f"rm -r {tar} {folder}; both are made again",
        ) from error
    return Base(folder, max(decoded.epoch_s, not_before_s), decoded.parts)


def _make(tar: Path, target: Path) -> None:
    target.mkdir()
    parts = []
    folders = {""}
    with tarfile.open(tar) as base, open(target / "stream", "wb", buffering=MIB) as sink:
        members = [member for member in base if _is_kept(member)]
        # Programs keep the time of their package; other files may be made when packages are configured.
        times = [
            int(member.mtime)
            for member in members
            if member.isreg() and _name(member).startswith("usr/bin/")
        ]
        epoch_s = max(times, default=0)

        def put(name: str, info: tarfile.TarInfo, content: BinaryIO | None = None) -> None:
            for folder in parents(name):
                if folder not in folders:
                    put(folder, folder_named(folder, epoch_s))
            before = sink.tell()
            sink.write(header_of(info))
            if content:
                shutil.copyfileobj(content, sink, MIB)
                sink.write(padding(info.size))
            if info.isdir():
                folders.add(name)
            parts.append(_Part(name, info.isdir(), sink.tell() - before))

        for member in members:
            member.mtime = min(int(member.mtime), epoch_s)
            member.pax_headers = {
                key: value for key, value in member.pax_headers.items() if "time" not in key
            }
            content = base.extractfile(member) if member.isreg() else None
            put(_name(member), member, content)  # type: ignore[arg-type]  # IO[bytes]
        for name in _MOUNT_POINTS:
            if name not in folders:
                put(name, folder_named(name, epoch_s))
    index = _Index(epoch_s, tuple(parts))
    write_atomically(target / "index.json", msgspec.json.encode(index))


def _is_kept(member: tarfile.TarInfo) -> bool:
    name = _name(member)
    if name in _LEFT_OUT or name.startswith("dev/"):
        return False
    return member.isdir() or not name.startswith(_EMPTIED)


def _name(member: tarfile.TarInfo) -> str:
    return member.name.removeprefix("./").rstrip("/")


# --- tar -----------------------------------------------------------------------------------------


def parents(name: str) -> list[str]:
    """Return the folders that contain a file, the outermost first."""
    parts = name.split("/")[:-1]
    return ["/".join(parts[:depth]) for depth in range(1, len(parts) + 1)]


def folder_named(name: str, epoch_s: int) -> tarfile.TarInfo:
    """Return the tar header of a folder with default properties."""
    info = tarfile.TarInfo(f"./{name}")
    info.type, info.mtime = tarfile.DIRTYPE, epoch_s
    info.mode = 0o700 if name in PRIVATE else 0o755
    return info


def header_of(info: tarfile.TarInfo) -> bytes:
    """Return the bytes that precede a file's content."""
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def padding(size_bytes: int) -> bytes:
    """Return the bytes that follow a file's content."""
    return bytes(-size_bytes % _BLOCK_BYTES)


def send(source: BinaryIO, sink: BinaryIO, offset: int, size_bytes: int) -> None:
    """Copy a range of a file inside the kernel.

    Raises:
        EOFError: the file is shorter.
    """
    if size_bytes == 0:
        return
    sink.flush()
    while size_bytes:
        sent = os.sendfile(sink.fileno(), source.fileno(), offset, size_bytes)
        if sent == 0:
            raise EOFError(f"{source.name} became shorter while it was read")
        offset += sent
        size_bytes -= sent
