# SPDX-License-Identifier: MIT
"""What the boot script finds below /boot of an ext4 file system, read as U-Boot reads it: no journal.

``debugfs`` does not replay it either, so what it shows of a disk after a power cut is what U-Boot sees.
Checksums of the tables are left aside (``-n``), as U-Boot leaves them.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from pathlib import Path

from bsp.base.process import run
from images.deploy.boot import state
from images.deploy.boot.slots import FAT_FOLDER
from images.deploy.boot.state import SECTOR_BYTES
from images.deploy.onboard.board import BOOT
from images.deploy.onboard.script_image import script_text

from .boot import BootPartition, Choice
from .disk_state import BLOCK_BYTES, Blocks, Partition
from .old_way import SCRIPT, OldWay, old_way_of
from .root import file_blocks

_SIZE = re.compile(r"\bSize: (\d+)")
_REGULAR = "Type: regular"
_TRIAL = "trial.env"
_NAMED = re.compile(r"^setenv npu_sector ([0-9a-f]+)$", re.MULTILINE)
_COMPARISON = "if cmp.b ${npu_buffer} ${npu_at_dtb} 200; then"
"""What the boot script asks before it overwrites a sector; one that is broken on purpose does not."""


class Ext4Boot(BootPartition):
    """``/boot`` of a root file system."""

    def __init__(self, partition: Partition, old: OldWay) -> None:
        self._partition = partition
        self._old = old
        self._hashed: dict[tuple[str, ...], tuple[int, str]] = {}
        self._inodes: dict[str, tuple[tuple[str, ...], Blocks]] = {}
        """As far as they were asked for since the last choice."""

    def choice(self) -> Choice:
        """As on FAT; nothing of an earlier choice is trusted."""
        self._inodes.clear()
        return super().choice()

    def _trial(self) -> tuple[str | None, int | None]:
        """As the boot script spends it: zeros into the sector that it names, if that holds trial.env."""
        content = self._read(_TRIAL)[:SECTOR_BYTES]
        named = _NAMED.search(script_text(content) or "")
        if named is None:
            return None, None
        at = int(named[1], 16) * SECTOR_BYTES - self._partition.start_bytes
        same = os.pread(self._partition.handle, SECTOR_BYTES, at) == content
        script = script_text(self._cat(f"/{SCRIPT}")) or ""
        if not same and _COMPARISON in script:
            return None, None
        first = self._inode(f"/{FAT_FOLDER}/{_TRIAL}")[1][:1]
        if same and first.tolist() == [at // BLOCK_BYTES]:
            return state.parse_trial(content), None
        # Read again by its name it still has its content: no trial. A copy of it may be zeroed.
        return None, None if same else at // BLOCK_BYTES

    def _cat(self, path: str) -> bytes:
        return _debugfs(self._partition.path, f'cat "{BOOT}{path}"')

    def _sha256(self, path: str) -> str:
        """Hash of a file; ``""`` if it cannot be read. Read again only if it moved or was written to."""
        identity, blocks = self._inode(path)
        if not identity:
            return ""
        if identity[1] == "0":  # Armbian's .next
            return hashlib.sha256(b"").hexdigest()
        if not len(blocks):
            return ""
        newest = self._partition.newest(blocks)
        cached = self._hashed.get(identity)
        if cached is not None and cached[0] >= newest:
            return cached[1]
        content = self._cat(path)
        digest = hashlib.sha256(content).hexdigest() if content else ""
        self._hashed[identity] = (newest, digest)
        return digest

    def _inode(self, path: str) -> tuple[tuple[str, ...], Blocks]:
        """Of a regular file: what tells it from others (extents and size), and its blocks; or nothing."""
        if path not in self._inodes:
            output = _debugfs(self._partition.path, f'stat "{BOOT}{path}"').decode(errors="replace")
            size = _SIZE.search(output)
            blocks = file_blocks(output)
            blocks = blocks[blocks < len(self._partition.changed)]
            what = (output.partition("EXTENTS:")[2], size[1]) if size and _REGULAR in output else ()
            self._inodes[path] = what, blocks
        return self._inodes[path]


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
    return run(["debugfs", "-n", "-c", "-R", command, image], check=False).stdout
