# SPDX-License-Identifier: MIT
"""The content of files that were deployed from here, by SHA-256: the bases of patches.

Hard links where the file system allows them: while the bundle exists, nothing is stored twice. Compressed
and small files are left out, as a patch would not make them smaller. The content of the last few
generations is kept; it is hashed whenever it is read.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from pathlib import Path

from bsp.base.cache import cache_dir, lock, write_atomically
from images.bundle.manifest import Bundle, Entry

_KEPT_GENERATIONS = 6
_LEAST_BYTES = 4096
COMPRESSED = (".xz", ".gz", ".zst", ".bz2", ".lz4", ".png", ".jpg", ".whl", ".zip")


def is_patchable(entry: Entry) -> bool:
    """Return whether a patch for such a file can be worth it."""
    return (
        entry.link is None
        and entry.size_bytes >= _LEAST_BYTES
        and not entry.path.endswith(COMPRESSED)
    )


def keep(bundle: Bundle) -> None:
    """Keep the files that patches can be made from, and drop those of older generations."""
    folder = _folder()
    mark = folder / f"{bundle.generation}.list"
    if mark.exists():
        mark.touch()  # used again: the last to be dropped
        return
    kept: dict[str, None] = {}
    for entry in bundle.manifest.files:
        if is_patchable(entry) and entry.sha256 not in kept:
            _place(bundle.path / entry.path, _path_of(entry.sha256))
            kept[entry.sha256] = None
    write_atomically(mark, "\n".join(kept).encode())
    _drop_old(folder)


def read(sha256: str) -> bytes | None:
    """Return content by its SHA-256; None if it is not here, or has changed."""
    path = _path_of(sha256)
    try:
        content = path.read_bytes()
    except OSError:
        return None
    if hashlib.sha256(content).hexdigest() != sha256:
        path.unlink(missing_ok=True)  # the bundle that it is a link to was edited
        return None
    return content


def are_kept() -> bool:
    """Return whether any content is kept."""
    return _folder().is_dir()


def is_here(sha256: str) -> bool:
    """Return whether content is kept, without reading it."""
    return _path_of(sha256).exists()


def _folder() -> Path:
    return cache_dir() / "deployed"


def _path_of(sha256: str) -> Path:
    return _folder() / sha256[:2] / sha256


def _place(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        try:
            os.link(source, target)
        except FileExistsError:
            raise
        except OSError:  # another file system
            beside = target.with_name(f".{target.name}.{os.getpid()}")
            shutil.copyfile(source, beside)
            beside.rename(target)


def _drop_old(folder: Path) -> None:
    with lock(folder / "let-go.lock"):
        marks = sorted(folder.glob("*.list"), key=lambda mark: -mark.stat().st_mtime)
        if len(marks) <= _KEPT_GENERATIONS:
            return
        used: set[str] = set()
        for mark in marks[:_KEPT_GENERATIONS]:
            used.update(mark.read_text().split("\n"))
        for mark in marks[_KEPT_GENERATIONS:]:
            unused = set(mark.read_text().split("\n")) - used
            for sha256 in unused:
                _path_of(sha256).unlink(missing_ok=True)
            mark.unlink(missing_ok=True)
