# SPDX-License-Identifier: MIT
"""The image of the last build is kept where the same inputs would give the same bytes.

Neither a name nor a time is trusted: the inputs are hashed, and so is every block of the image.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from bsp.base.download import sha256_of
from bsp.base.errors import UserError

from . import bmap
from .filesystems import mke2fs_folder


def inputs_of(folders: Iterable[Path], *values: object) -> str:
    """Return a hash of what an image is made of.

    Args:
        folders: laid out for the disk: names, content, permissions and links count.
        values: all else that is in the image: its layout, the root file system's key, the generation.
    """
    digest = hashlib.sha256()
    own_code = Path(__file__).parent
    mformat = Path(shutil.which("mformat") or "/").stat()
    tools = (mke2fs_folder(), mformat.st_size, mformat.st_mtime_ns)
    digest.update(repr((values, tools)).encode())
    for folder in (*folders, own_code):
        for root, names, files in os.walk(folder):
            names[:] = sorted(name for name in names if name != "__pycache__")
            for name in sorted([*names, *files]):
                path = Path(root) / name
                what = (path.relative_to(folder).as_posix(), path.lstat().st_mode, _content(path))
                digest.update(repr(what).encode())
    return digest.hexdigest()


def _content(path: Path) -> str:
    if path.is_symlink():
        return str(path.readlink())
    return sha256_of(path) if path.is_file() else ""


def digest_of(block_map: bmap.Map) -> str:
    """Return the hash of an image: that of the hashes of its ranges."""
    return hashlib.sha256(
        "".join(str(each.sha256) for each in block_map.ranges).encode()
    ).hexdigest()


def intact_map(image: Path, sha256: str) -> bmap.Map | None:
    """Return the block map beside an image; None if anything in the image was changed."""
    try:
        block_map = bmap.read(bmap.map_file(image))
    except UserError:
        return None
    if image.stat().st_size != block_map.image_bytes or digest_of(block_map) != sha256:
        return None
    with image.open("rb") as file:
        if bmap.left_out(file.fileno(), block_map):
            return None
    return block_map if bmap.hashed(image, block_map) == block_map else None
