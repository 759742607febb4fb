# SPDX-License-Identifier: MIT
"""The cache and state folders, and the one way in which something is put there.

Whatever is built or fetched appears under its final name complete or not at all: it is made in a
temporary sibling, flushed, and renamed, under a lock, so that two runs at once and Ctrl-C are safe.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from .errors import InfrastructureError, UserError
from .progress import say


def cache_dir() -> Path:
    """Folder for what can be fetched or built again: ``$NPU_BSP_CACHE`` or the XDG cache."""
    return _folder("NPU_BSP_CACHE", "XDG_CACHE_HOME", ".cache")


def state_dir() -> Path:
    """Folder for what must outlive a run (virtual boards, known hosts, history)."""
    return _folder("NPU_BSP_STATE", "XDG_STATE_HOME", ".local/state")


def _folder(own_variable: str, xdg_variable: str, below_home: str) -> Path:
    own = os.environ.get(own_variable)
    if own:
        path = Path(own)
    else:
        xdg = os.environ.get(xdg_variable)
        path = (Path(xdg) if xdg else Path.home() / below_home) / "npu-bsp"
    path = path.absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InfrastructureError(
            f"cannot make the folder {path}: {error.strerror}",
            hint=f"set {own_variable} to a folder that you can write to",
        ) from error
    return path


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on ``path`` (made beside what it protects; never removed)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another run that is making {path.with_suffix('').name}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def make_once(target: Path, make: Callable[[Path], None]) -> Path:
    """Return ``target``; if it does not exist, have ``make(temporary)`` make it first.

    ``make`` gets a path that does not exist, and creates a file or a folder there. If it raises,
    nothing is left behind.
    """
    if target.exists():
        return target
    with lock(target.with_name(target.name + ".lock")):
        if target.exists():
            return target
        prefix = f".{target.name}."
        for stale in target.parent.glob(f"{prefix}*.part"):
            remove(stale)  # left by a run that was killed; we hold the lock
        workspace = Path(tempfile.mkdtemp(prefix=prefix, suffix=".part", dir=target.parent))
        try:
            temporary = workspace / target.name
            make(temporary)
            _flush(temporary)
            temporary.rename(target)
            _flush(target.parent)
        finally:
            remove(workspace)
    return target


def copy_folder(
    source: Path, target: Path, *, finish: Callable[[Path], object] = lambda _: None
) -> None:
    """Copy a folder to where a user wants it, whole or not at all.

    Args:
        target: not there yet; its parents are made.
        finish: completes the copy, before it gets its name.

    Raises:
        InfrastructureError: it cannot be written: the disk is full...
    """

    def problem(place: str, why: str | None) -> InfrastructureError:
        return InfrastructureError(
            f"cannot write {place}: {why}", hint="--output takes another folder"
        )

    def copy_file(original: str, place: str) -> str:
        try:
            return str(shutil.copy2(original, place))
        except OSError as error:  # of these copytree would collect one for each file
            raise problem(str(target), error.strerror) from error

    def make(temporary: Path) -> None:
        try:
            shutil.copytree(source, temporary, symlinks=True, copy_function=copy_file)
        except shutil.Error as error:
            raise problem(str(target), error.args[0][0][2]) from error
        finish(temporary)

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        make_once(target, make)
    except OSError as error:
        raise problem(str(target), error.strerror) from error
    finally:
        with contextlib.suppress(OSError):
            target.with_name(target.name + ".lock").unlink()


def write_atomically(target: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Write a file so that a reader sees the old or the new content, also after a power cut.

    What is not a file (``/dev/stdout``, ``/dev/null``, a FIFO) is written to, not replaced.

    Raises:
        UserError: it is a disk.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    refuse_disk(target)
    if target.exists() and not target.is_file() and not target.is_dir():
        try:
            with target.open("wb") as stream:
                stream.write(content)
        except OSError as error:  # of a write it names no file
            raise OSError(error.errno, error.strerror, str(target)) from error
        return
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        Path(name).rename(target)
        _flush(target.parent)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno:  # of a write it names no file
            raise OSError(error.errno, error.strerror, str(target)) from error
        raise


def keep(target: Path, content: bytes) -> None:
    """Put into the cache what was found out; where that fails, the answer counts all the same."""
    try:
        write_atomically(target, content)
    except OSError as error:
        say(f"not kept for the next time: {target}: {error.strerror}")


def refuse_disk(target: Path) -> None:
    """Refuse a disk where a file is to be made: its device node would be replaced by the file.

    Raises:
        UserError: it is one.
    """
    if target.is_block_device():
        raise UserError(
            f"{target} is a disk, and no place for a file",
            hint=f"give a file; ./inv flash --device {target} --image FILE writes an image to a disk",
        )


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
