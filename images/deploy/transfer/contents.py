# SPDX-License-Identifier: MIT
"""Content that was deployed from here, by its SHA-256: what patches against a board's files are made from.

Hard links where the file system allows them, so that as long as the bundle is there nothing is stored
twice. What is compressed already, or small, is left out: a patch would not make it smaller. The content of
the last few generations is kept; whoever reads it has it hashed first.
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
    """Whether a patch for such a file could be worth anything."""
    return (
        entry.link is None
        and entry.size_bytes >= _LEAST_BYTES
        and not entry.path.endswith(COMPRESSED)
    )


def keep(bundle: Bundle) -> None:
    """Keep what patches can be made from, and let go of what older generations had."""
    folder = _folder()
    mark = folder / f"{bundle.generation}.list"
    if mark.exists():
        mark.touch()  # used again: the last to go
        return
    kept: dict[str, None] = {}
    for entry in bundle.manifest.files:
        if is_patchable(entry) and entry.sha256 not in kept:
            _place(bundle.path / entry.path, _place_of(entry.sha256))
            kept[entry.sha256] = None
    write_atomically(mark, "\n".join(kept).encode())
    _let_go(folder)


def read(sha256: str) -> bytes | None:
    """Return content by its SHA-256; None if it is not here, or is no longer what it was."""
    path = _place_of(sha256)
    try:
        content = path.read_bytes()
    except OSError:
        return None
    if hashlib.sha256(content).hexdigest() != sha256:
        path.unlink(missing_ok=True)  # somebody edited the bundle that it is a link into
        return None
    return content


def are_kept() -> bool:
    """Whether there is anything here."""
    return _folder().is_dir()


def is_here(sha256: str) -> bool:
    """Whether content is here, as far as one look tells."""
    return _place_of(sha256).exists()


def _folder() -> Path:
    return cache_dir() / "deployed"


def _place_of(sha256: str) -> Path:
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


def _let_go(folder: Path) -> None:
    with lock(folder / "let-go.lock"):
        marks = sorted(folder.glob("*.list"), key=lambda mark: -mark.stat().st_mtime)
        if len(marks) <= _KEPT_GENERATIONS:
            return
        used: set[str] = set()
        for mark in marks[:_KEPT_GENERATIONS]:
            used.update(mark.read_text().split("\n"))
        for mark in marks[_KEPT_GENERATIONS:]:
            gone = set(mark.read_text().split("\n")) - used
            for sha256 in gone:
                _place_of(sha256).unlink(missing_ok=True)
            mark.unlink(missing_ok=True)
