# SPDX-License-Identifier: MIT
"""Files on a board: read, hashed, flushed, replaced atomically."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat

from .frames import RefusedError

SECTOR_BYTES = 512
PARTIAL = ".partial"
# Linux fs/ext4/ext4.h: _IOW('f', 43, __u32), since 5.14.
_CHECKPOINT = 0x4004662B
MTIME_S = 946684800
"""1 January 2000: marks a file of a generation as written whole and verified."""

TYPE_CHECKING = False  # see frames.py
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    Entry = dict[str, Any]  # one file of a manifest: Entry in images/bundle/manifest.py


def read(path: str) -> bytes:
    """Return the content of a file; nothing if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def read_text(path: str) -> str:
    """Return the content of a file as text without white space around it."""
    return read(path).decode(errors="replace").strip()


def names_in(path: str) -> list[str]:
    """Names in a folder, sorted; none if it is not there."""
    try:
        return sorted(os.listdir(path))
    except OSError:
        return []


def make_way(path: str) -> None:
    """Remove a file, if it is there."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def flush(path: str) -> None:
    """Flush one file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def flush_filesystem(path: str) -> None:
    """Flush the file system that ``path`` is on, and no other.

    Linux hands all of FAT to the disk (fs/fat has no ``sync_fs``), which may keep it in its cache and
    write it in any order; a file's or folder's own ``fsync`` asks the disk to write what it has.
    """
    import ctypes

    handle = os.open(path, os.O_RDONLY)
    try:
        try:
            if ctypes.CDLL(None).syncfs(handle) != 0:
                os.sync()
        except AttributeError:
            os.sync()
        os.fsync(handle)
    finally:
        os.close(handle)


def checkpoint(path: str) -> None:
    """Have ext4 write back its journal: U-Boot does not replay it, and then reads what Linux reads.

    Raises:
        RefusedError: the kernel cannot do that (it is older than 5.14), or the disk is broken.
    """
    import errno
    import fcntl
    import struct

    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.ioctl(handle, _CHECKPOINT, struct.pack("=I", 0))
    except OSError as error:
        if error.errno == errno.ENODEV:  # no journal: everything is in its place
            return
        raise RefusedError(
            f"the journal of {path}'s file system cannot be written back (Linux 5.14 or later can): {error}"
        ) from error
    finally:
        os.close(handle)


def write_whole(path: str, content: bytes, mode: int = 0o644) -> None:
    """Write a file beside its name, flush it, rename it: there is the old or the new file, never a part.

    What was begun and cannot be ended (a full disk) does not stay.
    """
    os.makedirs(os.path.dirname(path), exist_ok=True)
    beside = path + PARTIAL
    try:
        write_beside(beside, content, mode)
        with held(path):
            os.rename(beside, path)
            # On FAT, where the content lies is written with the file, not with its folder.
            flush(path)
            flush(os.path.dirname(path))
    except BaseException:
        make_way(beside)
        raise


@contextlib.contextmanager
def held(path: str) -> Iterator[None]:
    """Keep a file open, if it is there, so that what is in its place is not given to others meanwhile.

    FAT frees it in a table of its own: a cut could leave the old name with nothing behind it.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        yield
        return
    try:
        yield
    finally:
        os.close(handle)


def write_beside(path: str, content: bytes, mode: int = 0o644) -> None:
    """Write a file that nobody reads yet, and flush it."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fchmod(file.fileno(), mode)
        os.fsync(file.fileno())


def write_sector(path: str, sector: bytes) -> None:
    """Write a state file in place: one sector, no change to the file system's tables; read it back."""
    if len(sector) != SECTOR_BYTES:
        raise RefusedError(f"a state sector has {SECTOR_BYTES} bytes, not {len(sector)}")
    try:
        present = os.stat(path).st_size == SECTOR_BYTES
    except FileNotFoundError:
        present = False
    if not present:
        write_whole(path, bytes(SECTOR_BYTES))
    handle = os.open(path, os.O_RDWR)
    try:
        os.pwrite(handle, sector, 0)
        os.fsync(handle)
        os.posix_fadvise(
            handle, 0, 0, os.POSIX_FADV_DONTNEED
        )  # so that the disk is read, not memory
        if os.pread(handle, SECTOR_BYTES, 0) != sector:
            raise RefusedError(f"{path} does not read back as it was written")
    finally:
        os.close(handle)


def sha256_of(path: str) -> str:
    """Return the SHA-256 of a file, in hex; "" if it cannot be read."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb", buffering=0) as file:
            while data := file.read(1 << 20):
                digest.update(data)
    except OSError:
        return ""
    return digest.hexdigest()


def link_of(path: str) -> str | None:
    """Return what a symbolic link points to; None if it is not a link."""
    try:
        return os.readlink(path)
    except OSError:
        return None


def intact(path: str, entry: Entry) -> bool:
    """Return whether a file of a generation is as it was made, by lstat alone."""
    link = entry.get("link")
    if link is not None:
        return bool(link_of(path) == link)
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return (
        stat.S_ISREG(status.st_mode)
        and status.st_size == int(entry.get("size_bytes", 0))
        and status.st_mtime == MTIME_S
    )


def on_fat(entry: Entry) -> bool:
    """Return whether an entry belongs on the FAT boot partition."""
    return str(entry["path"]).startswith("boot/")


def is_generation(name: str) -> bool:
    """Return whether a name is a generation's."""
    return len(name) == 12 and not set(name) - set("0123456789abcdef")
