# SPDX-License-Identifier: MIT
"""Keeps the modules of an adopted kernel where an update of the distribution does not remove them.

Hard links, so that they take no room as long as the distribution has the same files. They are found again
by the kernel's banner; ``activate`` mounts a second set of links where the system's are gone or others.
"""

from __future__ import annotations

import hashlib
import os
import threading

from .files import PARTIAL, flush_filesystem, names_in, read
from .frames import RefusedError

TYPE_CHECKING = False  # see frames.py
if TYPE_CHECKING:
    from .board import Board

KEPT = "var/lib/npu-bsp/kept-modules"
_OF = "kernel"  # a file beside them: the SHA-256 of the kernel that they are of


class Keeping:
    """Keeps the running kernel's modules; they are linked while the block copies and hashes other files.

    Nothing where it has none of its own, or where they are kept already.

    Raises:
        RefusedError: there is no room for them, on a file system of their own.
    """

    def __init__(self, board: Board) -> None:
        self.kernel_sha256 = ""
        self._release = board.release()
        self._source = os.path.realpath(board.at(f"lib/modules/{self._release}"))
        banner = read(board.at("proc/version"))
        self._final = board.at(f"{KEPT}/{hashlib.sha256(banner).hexdigest()[:32]}")
        self._beside = self._final + PARTIAL
        self._thread = threading.Thread(target=self._link)
        self._error: Exception | None = None
        self._begun = os.path.isdir(self._source) and not os.path.exists(f"{self._final}/{_OF}")

    def __enter__(self) -> Keeping:
        if self._begun:
            self._thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if not self._begun:
            return
        import shutil

        self._thread.join()
        try:
            if kind is None:
                if self._error:
                    raise self._error
                self._finish()
        except (OSError, shutil.Error) as error:
            raise RefusedError(f"the modules of {self._release} cannot be kept: {error}") from error
        finally:
            shutil.rmtree(self._beside, ignore_errors=True)

    def _link(self) -> None:
        import shutil

        try:
            shutil.rmtree(self._beside, ignore_errors=True)
            os.makedirs(self._beside)
            _link_tree(self._source, f"{self._beside}/{self._release}", without=("build", "source"))
        except Exception as error:  # raised in the thread that waits
            self._error = error

    def _finish(self) -> None:
        import shutil

        with open(f"{self._beside}/{_OF}", "w") as file:
            file.write(self.kernel_sha256)
        flush_filesystem(self._beside)
        shutil.rmtree(self._final, ignore_errors=True)
        os.rename(self._beside, self._final)


def _link_tree(source: str, target: str, without: tuple[str, ...] = ()) -> None:
    """Link all files of a folder in another; shutil.copytree takes twice as long on a slow board."""
    os.mkdir(target)
    for entry in os.scandir(source):
        if entry.name in without:
            continue
        if entry.is_dir(follow_symlinks=False):
            _link_tree(entry.path, f"{target}/{entry.name}")
        else:
            _link(entry.path, f"{target}/{entry.name}")


def _link(source: str, target: str) -> None:
    """Link a file, or copy it to another file system."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        import shutil

        shutil.copy2(source, target, follow_symlinks=False)


def discard_modules(board: Board, generations: list[str]) -> None:
    """Remove the kept modules of kernels that no generation of these has; none where one cannot be read."""
    import shutil

    kernels: set[str] = set()
    folders = [name for name in generations if os.path.isdir(f"{board.store}/{name}")]
    for name in folders:
        try:
            files = board.manifest(name)[1]
        except RefusedError:
            return  # a damaged one: what it has is not known
        kernels |= {str(entry.get("sha256")) for entry in files if entry["path"] == "boot/kernel"}
    folder = board.at(KEPT)
    for name in names_in(folder):
        if read(f"{folder}/{name}/{_OF}").decode(errors="replace") not in kernels:
            shutil.rmtree(f"{folder}/{name}", ignore_errors=True)
