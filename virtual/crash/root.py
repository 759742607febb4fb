# SPDX-License-Identifier: MIT
"""The root file system after a power cut: sound once it is recovered, and its generations whole?

The tools of ext4 itself do it: ``e2fsck -p`` replays the journal and says whether anything is left that
it would not mend by itself (what it changes is taken back with its own undo file), ``debugfs`` says where
files lie. Contents are hashed here. A file that was hashed once is not read again until one of its blocks
was written to: journals of ext4 hold metadata only (mode ``ordered``), so recovery never writes to them.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bsp.base.errors import BspError, InfrastructureError
from bsp.base.process import run
from images.bundle import manifest as bundles
from images.bundle.manifest import Manifest
from images.deploy.boot.slots import STORE, on_fat

from .disk_state import BLOCK_BYTES, Blocks, Partition

_MENDED = 0b011
_MAPS = 4
_STAT = re.compile(
    r"^debugfs: stat \"(?P<path>[^\n]*)\"\n(?P<said>.*?)(?=^debugfs: |\Z)", re.DOTALL | re.MULTILINE
)
_HEAD = re.compile(r"Inode: (\d+)\s+Type: (\w+).*?Mode:\s+(\d+).*?Size: (\d+)", re.DOTALL)
_LINK = re.compile(r'Fast link dest: "(.*)"')
_EXTENT = re.compile(r"\((ETB\d+|\d+(?:-\d+)?)(\[u\])?\):(\d+)(?:-(\d+))?")


@dataclass(frozen=True)
class _File:
    """A file as its inode has it: what kind, permissions, size, where a short link points, its extents.

    An extent is (number of its first block in the file, the same on the partition, count of blocks).
    """

    kind: str
    mode: int
    size_bytes: int
    link: str
    extents: tuple[tuple[int, int, int], ...]
    blocks: Blocks


@dataclass(frozen=True)
class _Map:
    """Where a generation lies: its files, all blocks of their contents, and the metadata that says so."""

    manifest: Manifest
    files: dict[str, _File]
    contents: Blocks
    metadata: Blocks


class Root:
    """The root file system of a disk; ``problem`` asks about one generation in it."""

    def __init__(self, partition: Partition) -> None:
        self._partition = partition
        self._undo = partition.path.with_suffix(".undo")
        output = run(["dumpe2fs", partition.path]).text
        if (size := _number(r"Block size:\s+(\d+)", output)) != BLOCK_BYTES:
            raise InfrastructureError(
                f"a root file system with blocks of {size} bytes, expected 4096"
            )
        self._inodes_per_group = _number(r"Inodes per group:\s+(\d+)", output)
        self._inode_bytes = _number(r"Inode size:\s+(\d+)", output)
        tables = re.findall(r"Inode table at (\d+)-(\d+)", output)
        self._tables = [int(first) for first, _ in tables]
        self._maps: dict[str, dict[bytes, _Map]] = {}
        self._whole: dict[int, tuple[_Map, int]] = {}
        self._hashed: dict[tuple[int, ...], tuple[int, str]] = {}
        self.relevant = np.zeros(len(partition.changed), dtype=bool)
        """Blocks on which a verdict may depend: writes to others change none."""
        self._mark_fixed(output)

    @contextmanager
    def recovered(self, *, thorough: bool) -> Iterator[str]:
        """Recover it as at a boot, for as long as the block runs; gives what is wrong with it, or ``""``.

        Args:
            thorough: check all of the file system, not only what its journal asks for.
        """
        self._undo.unlink(missing_ok=True)
        superblock = self._partition.read(0)
        flags = ["-p", *(["-f"] if thorough else []), "-z", str(self._undo)]
        done = run(["e2fsck", *flags, self._partition.path], check=False)
        problem = ""
        if done.exit_code & ~_MENDED:
            problem = (
                f"the root file system needs a person: {_last_line(done.stdout + done.stderr)}"
            )
        try:
            yield problem
        finally:
            if self._undo.exists():
                # Where e2fsck could not even open the file system, it wrote nothing, and no undo file.
                run(["e2undo", "-f", self._undo, self._partition.path], check=not problem)
            # e2undo leaves the time of its own last write, and the like, in the superblock.
            os.pwrite(self._partition.handle, superblock, 0)

    def uses(self, block: int) -> bool:
        """Whether the (recovered) file system has something in a block."""
        output = run(["debugfs", "-R", f"testb {block}", self._partition.path]).text
        return "marked in use" in output

    def problem(self, generation: str) -> str:
        """What a generation lacks in the recovered file system; ``""`` if it is whole, each file hashed."""
        folder = f"/{STORE}/{generation}"
        located = self._map(generation, folder)
        if isinstance(located, str):
            return located
        newest = self._partition.newest(located.contents)
        cached = self._whole.get(id(located))
        if cached is not None and cached[1] >= newest:
            return ""  # hashed before, and no block of it was written to since
        problem = self._compare(generation, located)
        if not problem:
            self._whole[id(located)] = (located, newest)
        return problem

    def _compare(self, generation: str, located: _Map) -> str:
        """Each file with the manifest."""
        for entry in located.manifest.files:
            if on_fat(entry):
                continue
            file = located.files.get(entry.path)
            if file is None:
                return f"generation {generation} lacks {entry.path}"
            if entry.link is not None:
                target = file.link or self._content(file).decode(errors="replace")
                if file.kind != "symlink" or target != entry.link:
                    return f"{entry.path} of generation {generation} does not point to {entry.link}"
            elif (file.kind, file.size_bytes, file.mode) != (
                "regular",
                entry.size_bytes,
                entry.mode,
            ):
                return f"{entry.path} of generation {generation} has another size or mode than sent"
            elif self._sha256(file) != entry.sha256:
                return f"{entry.path} of generation {generation} has other content than sent"
        return ""

    def _map(self, generation: str, folder: str) -> _Map | str:
        """Where a generation lies: as it was found last, if nothing that says so was changed."""
        maps = self._maps.setdefault(generation, {})
        for digest, earlier in maps.items():
            if self._digest(earlier.metadata) == digest:
                return earlier
        located = self._look(generation, folder)
        if isinstance(located, _Map):
            while len(maps) >= _MAPS:
                self._whole.pop(id(maps.pop(next(iter(maps)))), None)
            maps[self._digest(located.metadata)] = located
            self.relevant[located.metadata] = True
            self.relevant[located.contents] = True
        return located

    def _look(self, generation: str, folder: str) -> _Map | str:
        content = run(
            ["debugfs", "-R", f'cat "{folder}/manifest.json"', self._partition.path], check=False
        ).stdout
        if not content:
            return f"generation {generation} has no manifest"
        try:
            manifest = bundles.decode(content, generation)
        except BspError as error:
            return f"the manifest of generation {generation} is broken: {error.message}"
        paths = {entry.path for entry in manifest.files if not on_fat(entry)}
        inside: set[str] = set()
        for path in paths:
            while (path := path.rpartition("/")[0]) and path not in inside:
                inside.add(path)
        above = [str(path) for path in (Path(folder), *Path(folder).parents)]
        names = [*above, *(f"{folder}/{path}" for path in sorted(inside | paths))]
        script = "".join(f'stat "{name}"\n' for name in names)
        output = run(
            ["debugfs", "-f", "/dev/stdin", self._partition.path], stdin=script.encode()
        ).text
        files: dict[str, _File] = {}
        metadata: set[int] = set()
        for match in _STAT.finditer(output):
            head = _HEAD.search(match["said"])
            if head is None:
                continue  # not there: missed by whoever asks for it
            inode, kind = int(head[1]), head[2]
            extents, tree = _extents(match["said"])
            metadata.update(tree)
            metadata.add(self._block_of(inode))
            if kind == "directory":
                metadata.update(_numbers(extents).tolist())
                continue
            link = _LINK.search(match["said"])
            path = match["path"].removeprefix(f"{folder}/")
            files[path] = _File(
                kind,
                int(head[3], 8),
                int(head[4]),
                link[1] if link else "",
                extents,
                _numbers(extents),
            )
        none = np.array([], dtype=np.int64)  # of an adopted board's: nothing but boot files
        contents = np.concatenate([none, *(file.blocks for file in files.values())])
        return _Map(manifest, files, contents, np.array(sorted(metadata), int))

    def _block_of(self, inode: int) -> int:
        group, number = divmod(inode - 1, self._inodes_per_group)
        return self._tables[group] + number * self._inode_bytes // BLOCK_BYTES

    def _digest(self, blocks: Blocks) -> bytes:
        digest = hashlib.sha256()
        for first, count in _runs(blocks):
            digest.update(self._partition.read(first, count))
        return digest.digest()

    def _content(self, file: _File) -> bytes:
        content = bytearray(file.size_bytes)  # what no extent covers reads as zeros
        for logical, first, count in file.extents:
            at = logical * BLOCK_BYTES
            piece = self._partition.read(first, count)[: max(file.size_bytes - at, 0)]
            content[at : at + len(piece)] = piece
        return bytes(content)

    def _sha256(self, file: _File) -> str:
        key = (file.size_bytes, *(number for extent in file.extents for number in extent))
        newest = self._partition.newest(file.blocks)
        cached = self._hashed.get(key)
        if cached is not None and cached[0] >= newest:
            return cached[1]
        digest = hashlib.sha256(self._content(file)).hexdigest()
        self._hashed[key] = (newest, digest)
        return digest

    def _mark_fixed(self, output: str) -> None:
        """The metadata whose place never changes, and the journal."""
        for first, last in re.findall(
            r"(?:superblock|descriptors|bitmap|table) at (\d+)(?:-(\d+))?", output
        ):
            self.relevant[int(first) : int(last or first) + 1] = True
        journal = run(["debugfs", "-R", "stat <8>", self._partition.path]).text
        extents, tree = _extents(journal)
        self.relevant[_numbers(extents)] = True
        self.relevant[tree] = True


def file_blocks(output: str) -> Blocks:
    """The blocks of a file's content, from what ``debugfs stat`` said of it."""
    return _numbers(_extents(output)[0])


def _extents(output: str) -> tuple[tuple[tuple[int, int, int], ...], list[int]]:
    """The extents of a file, and the blocks of its extent tree, from what ``debugfs stat`` said."""
    extents: list[tuple[int, int, int]] = []
    tree: list[int] = []
    _, _, listed = output.partition("EXTENTS:")
    for logical, unwritten, first, last in _EXTENT.findall(listed):
        count = int(last or first) - int(first) + 1
        if logical.startswith("ETB"):
            tree.append(int(first))
        elif not unwritten:
            extents.append((int(logical.partition("-")[0]), int(first), count))
    return tuple(extents), tree


def _numbers(extents: tuple[tuple[int, int, int], ...]) -> Blocks:
    """All block numbers of some extents."""
    spans = [np.arange(first, first + count) for _, first, count in extents]
    return np.concatenate(spans) if spans else np.array([], dtype=np.int64)


def _runs(blocks: Blocks) -> list[tuple[int, int]]:
    """Block numbers as (first, count) of neighbours."""
    if not len(blocks):
        return []
    ends = np.flatnonzero(np.diff(blocks) != 1) + 1
    starts = np.concatenate(([0], ends))
    counts = np.diff(np.concatenate((starts, [len(blocks)])))
    return [(int(blocks[start]), int(count)) for start, count in zip(starts, counts, strict=True)]


def _number(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    if match is None:
        raise InfrastructureError(
            f"dumpe2fs did not say what was expected: no match for {pattern!r}"
        )
    return int(match[1])


def _last_line(output: bytes) -> str:
    lines = [line.strip() for line in output.decode(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
