# SPDX-License-Identifier: MIT
"""What the boot script (images/deploy/boot/boot.cmd) finds on the FAT boot partition, read with mtools.

The script's choice is made here again, by the same rules: the good generation by the first whole copy, a
trial before it; of these the first one of which everything can be loaded. The script does not hash what it
loads: whether that is what was sent is the question.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace

import numpy as np

from bsp.base.process import run
from images.deploy.boot import state
from images.deploy.boot.slots import FAT_FOLDER

from .disk_state import BLOCK_BYTES, Blocks, Partition
from .old_way import OldWay

_PARTS = ("npu_kernel", "npu_initrd", "npu_dtb")
_ENTRY_BYTES = 32
_CLUSTERS = re.compile(r"<(\d+)(?:-(\d+))?>")


@dataclass(frozen=True)
class Choice:
    """What the next boot does.

    Attributes:
        slot: ``trial``, ``good``, ``previous``, or ``old``: the way in which the board booted before it
            was ours; ``""`` if nothing can be booted.
        problem: what is wrong on this partition; ``""`` if nothing is.
        after_trial: the generation that boots when the trial falls; ``""`` for the old way.
        overwrites: a block of the partition that U-Boot writes zeros into and that does not hold what is to
            be spent; None: there is none.
    """

    slot: str
    generation: str
    problem: str
    after_trial: str = ""
    overwrites: int | None = None


class BootPartition:
    """The boot partition of a disk."""

    def __init__(self, partition: Partition, old: OldWay | None = None) -> None:
        """Read the partition's geometry.

        Args:
            old: how the board booted before it was ours; None for one that always was.
        """
        self._partition = partition
        self._old = old
        self._hashed: dict[tuple[str, ...], tuple[int, str]] = {}
        head = partition.read(0)
        self._sector_bytes = int.from_bytes(head[11:13], "little")
        self._cluster_bytes = head[13] * self._sector_bytes
        reserved = int.from_bytes(head[14:16], "little")
        # FAT16 says the size of a table in an older field, and has its root directory before the data.
        fat_sectors = int.from_bytes(head[22:24], "little")
        fat_sectors = fat_sectors or int.from_bytes(head[36:40], "little")
        self._data_at = (reserved + head[16] * fat_sectors) * self._sector_bytes
        self._data_at += int.from_bytes(head[17:19], "little") * _ENTRY_BYTES

    def choice(self) -> Choice:
        """Decide as U-Boot and the boot script do, and check what would be loaded."""
        if self._old is None:
            return self._ours()
        first = self._old.first(lambda path: self._cat(f"/{path}"))
        if first == "nothing":
            return Choice("", "", "U-Boot finds neither extlinux.conf nor a whole boot.scr")
        return self._ours() if first == "ours" else self._old_way(self._old)

    def _old_way(self, old: OldWay) -> Choice:
        """The way in which it booted before; the boot script falls back on it."""
        return Choice("old", "", old.problem(lambda path: self._sha256(f"/{path}")))

    def _ours(self) -> Choice:
        """Decide as the boot script does: a trial, also where nothing is good yet; then what is."""
        good = state.choose_good(self._read("good.env"), self._read("good-copy.env"))
        fallback = Choice("", "", "neither good.env nor good-copy.env is whole")
        if good is not None:
            fallback = self._first([("good", good.good), ("previous", good.previous)])
        if not fallback.slot and self._old is not None:
            fallback = self._old_way(self._old)
        trial, overwrites = self._trial()
        fallback = replace(fallback, overwrites=overwrites)
        if not fallback.slot or fallback.problem or trial is None:
            return fallback
        tried = self._first([("trial", trial)])
        if not tried.slot:
            return fallback  # the script goes on with the good one
        return Choice("trial", trial, tried.problem, fallback.generation, overwrites)

    def _trial(self) -> tuple[str | None, int | None]:
        """The generation that is tried, and a block that is overwritten for that and is no trial's."""
        return state.parse_trial(self._read("trial.env")), None

    def _first(self, candidates: list[tuple[str, str | None]]) -> Choice:
        for slot, generation in candidates:
            if generation is None:
                continue
            values = state.parse_args(self._read(f"{generation}/args.env"))
            if values is None:
                continue
            paths = [values.get(name, "") for name in _PARTS]
            hashes = [self._sha256(path) for path in paths]
            if not all(hashes):
                continue  # `load` fails
            for path, digest in zip(paths, hashes, strict=True):
                if not digest.startswith(path.rpartition("/")[2]):
                    return Choice(slot, generation, f"{path} has other content than sent")
            return Choice(slot, generation, "")
        return Choice("", "", "the boot script finds nothing that it can load")

    def _read(self, name: str) -> bytes:
        """A file in our folder; nothing if it cannot be read."""
        return self._cat(f"/{FAT_FOLDER}/{name}")

    def _cat(self, path: str) -> bytes:
        done = run(
            ["mcopy", "-i", self._partition.path, f"::{path}", "-"],
            check=False,
            env={"MTOOLS_SKIP_CHECK": "1"},
        )
        return done.stdout if done.exit_code == 0 else b""

    def _sha256(self, path: str) -> str:
        """Hash of a file; ``""`` if it cannot be read. Read again only if it moved or was written to."""
        where = run(["mshowfat", "-i", self._partition.path, f"::{path}"], check=False).text
        size = run(["mdir", "-i", self._partition.path, f"::{path}"], check=False).text
        blocks = self._blocks(where)
        if not len(blocks):
            return ""
        newest = self._partition.newest(blocks)
        cached = self._hashed.get((where, size))
        if cached is not None and cached[0] >= newest:
            return cached[1]
        content = self._cat(path)
        digest = hashlib.sha256(content).hexdigest() if content else ""
        self._hashed[where, size] = (newest, digest)
        return digest

    def _blocks(self, shown: str) -> Blocks:
        """The blocks under a file's clusters, as ``mshowfat`` lists them."""
        spans = []
        for first, last in _CLUSTERS.findall(shown):
            begin = self._data_at + (int(first) - 2) * self._cluster_bytes
            end = self._data_at + (int(last or first) - 1) * self._cluster_bytes
            spans.append(np.arange(begin // BLOCK_BYTES, (end + BLOCK_BYTES - 1) // BLOCK_BYTES))
        return np.concatenate(spans) if spans else np.array([], dtype=np.int64)
