# SPDX-License-Identifier: MIT
"""Block maps: which blocks of a disk image have to be written, and their hashes.

The file has bmaptool's format 2.0 (``IMAGE.bmap``): bmaptool can write our images, and flash can write
those of others. Only the builder of an image knows which blocks do not matter: in the file that a user
has, holes are zeros like any others (unxz, unzstd and cp --sparse make them), so that an image without a
map is written whole. ``build-image`` derives its map from the blocks that the file system stores of the
sparse file that it has just made: the tools that fill it write everything that must be on the disk, zeros
included, and leave holes elsewhere.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from bsp.base.cache import write_atomically
from bsp.base.errors import UserError

BLOCK_BYTES = 4096
RANGE_BLOCKS = 256
"""Our maps have ranges of 1 MiB at most: flash hashes, sends and resumes by range."""
_READ_BYTES = 1 << 20
_EXTENSION = re.compile(r"\.[A-Za-z][A-Za-z0-9_]*$")


@dataclass(frozen=True)
class Range:
    """Blocks ``first`` to ``last``, both included; ``sha256`` is None where the map has no hash."""

    first: int
    last: int
    sha256: str | None = None

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return self.last - self.first + 1


@dataclass(frozen=True)
class Map:
    """A block map.

    Attributes:
        image_bytes: size of the whole image.
        ranges: in order, without overlaps.
    """

    image_bytes: int
    ranges: tuple[Range, ...]

    @property
    def mapped_bytes(self) -> int:
        """How many bytes have to be written; the last block may be partial."""
        total = sum(mapped.blocks for mapped in self.ranges) * BLOCK_BYTES
        over = -self.image_bytes % BLOCK_BYTES
        ends = self.ranges and self.ranges[-1].last == (self.image_bytes - 1) // BLOCK_BYTES
        return total - (over if ends else 0)

    def span(self, mapped: Range) -> tuple[int, int]:
        """Return where a range begins and ends, in bytes of the image."""
        return mapped.first * BLOCK_BYTES, min((mapped.last + 1) * BLOCK_BYTES, self.image_bytes)


def map_file(image: Path) -> Path:
    """Return the path of an image's map."""
    return image.with_name(f"{image.name}.bmap")


def map_files(image: Path) -> list[Path]:
    """Return the paths where tools put the map of an image, the most specific name first.

    ``a.img.xz`` may have ``a.img.xz.bmap``, ``a.img.bmap`` and ``a.bmap``: bmaptool drops one extension
    after another. Here extensions begin with a letter, so that ``debian-12.5.img`` does not get the map
    of ``debian-12.img``.
    """
    names = [image.name]
    while shorter := _EXTENSION.sub("", names[-1]):
        if shorter == names[-1]:
            break
        names.append(shorter)
    return [image.with_name(f"{name}.bmap") for name in names]


def whole(image_bytes: int) -> Map:
    """Return the map of an image without one: every block, without hashes."""
    blocks = -(-image_bytes // BLOCK_BYTES)
    return Map(image_bytes, (Range(0, blocks - 1),) if blocks else ())


def stored(image: Path) -> Map:
    """Return the map of the blocks that the file system stores of a sparse file, without hashes.

    Valid only for a file that was just made here: in one that was copied or unpacked, holes may be zeros
    that belong to the data.
    """
    size = image.stat().st_size
    ranges: list[Range] = []
    with image.open("rb") as file:
        for start, end in _extents(file.fileno(), size):
            first, last = start // BLOCK_BYTES, (end - 1) // BLOCK_BYTES
            if ranges and first <= ranges[-1].last + 1:
                ranges[-1] = Range(ranges[-1].first, max(last, ranges[-1].last))
            else:
                ranges.append(Range(first, last))
    return Map(size, tuple(ranges))


def left_out(handle: int, block_map: Map) -> tuple[int, int] | None:
    """Return the first blocks with data that a map leaves out; None if all of those are zeros.

    Whoever makes a map leaves out holes. Data there was written since: a bootloader in the gap before the
    first partition, say, changes no block that the map has a hash for.
    """
    at = 0
    for start, end in [
        *map(block_map.span, block_map.ranges),
        (block_map.image_bytes, block_map.image_bytes),
    ]:
        for first, last in _extents(handle, start, at):
            for offset in range(first, last, _READ_BYTES):
                data = os.pread(handle, min(_READ_BYTES, last - offset), offset)
                if data.count(0) != len(data):
                    block = (offset + len(data) - len(data.lstrip(b"\0"))) // BLOCK_BYTES
                    return block, (last - 1) // BLOCK_BYTES
        at = end
    return None


def keeps_zeros(folder: Path) -> bool:
    """Return whether the file system stores zeros that are written; compression on ZFS makes them holes."""
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        file.write(bytes(64 * BLOCK_BYTES))
        file.flush()
        os.fsync(file.fileno())
        return stored(Path(file.name)).mapped_bytes == 64 * BLOCK_BYTES


def with_blocks(block_map: Map, first: int, last: int) -> Map:
    """Return the map with these blocks added."""
    merged: list[Range] = []
    for mapped in sorted([*block_map.ranges, Range(first, last)], key=lambda mapped: mapped.first):
        if merged and mapped.first <= merged[-1].last + 1:
            merged[-1] = Range(merged[-1].first, max(merged[-1].last, mapped.last))
        else:
            merged.append(Range(mapped.first, mapped.last))
    return Map(block_map.image_bytes, tuple(merged))


def hashed(image: Path, block_map: Map) -> Map:
    """Return the map with a hash for each range; ranges are split to 1 MiB at most."""
    parts = [
        Range(first, min(first + RANGE_BLOCKS - 1, mapped.last))
        for mapped in block_map.ranges
        for first in range(mapped.first, mapped.last + 1, RANGE_BLOCKS)
    ]
    with image.open("rb") as file, ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        handle = file.fileno()
        digests = pool.map(lambda part: _sha256(handle, *block_map.span(part)), parts)
        ranges = [
            Range(part.first, part.last, digest)
            for part, digest in zip(parts, digests, strict=True)
        ]
    return Map(block_map.image_bytes, tuple(ranges))


def write(target: Path, block_map: Map) -> None:
    """Write a map in bmaptool's format."""
    lines = [
        '<?xml version="1.0" ?>',
        '<bmap version="2.0">',
        f"    <ImageSize> {block_map.image_bytes} </ImageSize>",
        f"    <BlockSize> {BLOCK_BYTES} </BlockSize>",
        f"    <BlocksCount> {-(-block_map.image_bytes // BLOCK_BYTES)} </BlocksCount>",
        f"    <MappedBlocksCount> {sum(mapped.blocks for mapped in block_map.ranges)} </MappedBlocksCount>",
        "    <ChecksumType> sha256 </ChecksumType>",
        f"    <BmapFileChecksum> {'0' * 64} </BmapFileChecksum>",
        "    <BlockMap>",
        *(
            f'        <Range chksum="{mapped.sha256}"> {_numbers(mapped)} </Range>'
            for mapped in block_map.ranges
        ),
        "    </BlockMap>",
        "</bmap>",
    ]
    text = "\n".join(lines) + "\n"
    # The hash is computed over the file with zeros in place of the hash.
    own = hashlib.sha256(text.encode()).hexdigest()
    write_atomically(target, text.replace("0" * 64, own, 1).encode())


def read(path: Path) -> Map:
    """Read a block map.

    Raises:
        UserError: it is not a block map, or it is damaged.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the block map {path}: {error}") from error
    again = f"remove {path} (the whole image is written then), or get it again from the maker of the image"
    version = re.search(r"<bmap version=\"([\d.]+)\"", text)
    if version and not version[1].startswith("2."):
        raise UserError(
            f"{path} is a block map of version {version[1]}; this version reads 2.0, with sha256",
            hint=again,
        )
    # Five numbers and a list: an XML parser would only add attack surface.
    size, block, own = (
        _field(text, path, name) for name in ("ImageSize", "BlockSize", "BmapFileChecksum")
    )
    kind = _field(text, path, "ChecksumType")
    if kind != "sha256" or int(block) != BLOCK_BYTES:
        raise UserError(
            f"{path}: blocks of {block} bytes with {kind}; this version reads blocks of "
            f"{BLOCK_BYTES} bytes with sha256",
            hint=again,
        )
    if hashlib.sha256(text.replace(own, "0" * 64, 1).encode()).hexdigest() != own:
        raise UserError(f"{path} is damaged: its checksum does not match", hint=again)
    ranges = []
    for checksum, first, last in re.findall(
        r"<Range(?:\s+chksum=\"([0-9a-f]{64})\")?>\s*(\d+)(?:-(\d+))?\s*</Range>", text
    ):
        ranges.append(Range(int(first), int(last or first), checksum or None))
    mapped = re.search(r"<MappedBlocksCount>\s*(\d+)\s*</MappedBlocksCount>", text)
    counted = sum(each.blocks for each in ranges)
    if not mapped or int(mapped[1]) != counted:
        raise UserError(
            f"{path} has ranges of {counted} blocks that this version can read, and says that "
            f"{mapped[1] if mapped else 'an unknown number of'} blocks are mapped",
            hint=again,
        )
    blocks = -(-int(size) // BLOCK_BYTES)
    before = -1
    for each in ranges:
        if not before < each.first <= each.last < blocks:
            raise UserError(
                f"{path}: blocks {_numbers(each)} are out of order or behind the end", hint=again
            )
        before = each.last
    return Map(int(size), tuple(ranges))


def _field(text: str, path: Path, name: str) -> str:
    match = re.search(rf"<{name}>\s*(\w+)\s*</{name}>", text)
    if not match or (name.endswith("Size") and not match[1].isdigit()):
        raise UserError(
            f"{path} is not a block map: it has no {name}",
            hint=f"rm {path} (the whole image is written then)",
        )
    return match[1]


def _numbers(mapped: Range) -> str:
    return str(mapped.first) if mapped.first == mapped.last else f"{mapped.first}-{mapped.last}"


def _extents(handle: int, size: int, at: int = 0) -> Iterator[tuple[int, int]]:
    """Where a file has something stored, between ``at`` and ``size``."""
    while at < size:
        try:
            start = os.lseek(handle, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return  # the rest is a hole
            raise
        if start >= size:
            return
        at = min(os.lseek(handle, start, os.SEEK_HOLE), size)
        yield start, at


def _sha256(handle: int, start: int, end: int) -> str:
    digest = hashlib.sha256()
    while start < end:
        data = os.pread(handle, min(_READ_BYTES, end - start), start)
        if not data:
            break
        digest.update(data)
        start += len(data)
    return digest.hexdigest()
