# SPDX-License-Identifier: MIT
"""What the boot script finds below /boot of an ext4 file system, read as U-Boot reads it: no journal.

``debugfs`` does not replay it either, so what it shows of a disk after a power cut is what U-Boot sees.
Checksums of the tables are left aside (``-n``), as U-Boot leaves them.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from pathlib import Path

import numpy as np

from bsp.base.process import run
from images.deploy.onboard.board import BOOT

from .boot import BootPartition
from .disk_state import Partition
from .old_way import OldWay, old_way_of

_SIZE = re.compile(r"\bSize: (\d+)")
_REGULAR = "Type: regular"


class Ext4Boot(BootPartition):
    """``/boot`` of a root file system."""

    def __init__(self, partition: Partition, old: OldWay) -> None:
        self._partition = partition
        self._old = old
        self._hashed: dict[tuple[str, ...], tuple[int, str]] = {}

    def _cat(self, path: str) -> bytes:
        return _debugfs(self._partition.path, f'cat "{BOOT}{path}"')

    def _sha256(self, path: str) -> str:
        """Hash of a file; ``""`` if it cannot be read. Read again only if it moved or was written to."""
        where = _debugfs(self._partition.path, f'blocks "{BOOT}{path}"').decode()
        blocks = np.array([int(word) for word in where.split() if word.isdigit()], dtype=np.int64)
        blocks = blocks[blocks < len(self._partition.changed)]
        if not len(blocks):
            return ""
        said = _debugfs(self._partition.path, f'stat "{BOOT}{path}"').decode(errors="replace")
        size = _SIZE.search(said)
        if size is None or _REGULAR not in said:
            return ""
        newest = self._partition.newest(blocks)
        known = self._hashed.get((where, size[1]))
        if known is not None and known[0] >= newest:
            return known[1]
        content = self._cat(path)
        found = hashlib.sha256(content).hexdigest() if content else ""
        self._hashed[where, size[1]] = (newest, found)
        return found


def old_way_on_ext4(image: Path, start_bytes: int) -> OldWay:
    """How a factory disk boots: the files below /boot of its root file system, links left out."""
    with tempfile.TemporaryDirectory(prefix="npu-bsp-boot-") as name:
        at = f"{image}?offset={start_bytes}"
        run(["debugfs", "-n", "-R", f"rdump {BOOT} {name}", at], check=False)
        folder = Path(name) / BOOT.lstrip("/")
        files = [
            path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()
        ]
        return old_way_of(
            {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
        )


def _debugfs(image: Path, command: str) -> bytes:
    return run(["debugfs", "-n", "-R", command, image], check=False).stdout
