# SPDX-License-Identifier: MIT
"""The image to write: that of a whole disk, unpacked if it is compressed, with its block map."""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from bsp.base.errors import UserError
from bsp.base.progress import say, step
from images.deploy.onboard.frames import CHUNK_BYTES
from images.disk import bmap
from images.disk.bmap import Map, Range
from images.disk.image import Description, read_description

from . import formats
from .formats import HEAD_BYTES, TAIL_BYTES, Format
from .records import SourceRecord
from .table import Table, read_table
from .unpack import unpack

_AGAIN = "copy it again, or build it again"
_RAW = "--raw writes it as it is"
_SUFFIXES = (".gz", ".bz2", ".xz", ".zst", ".zstd")
_CAT = {"gzip": "zcat", "bzip2": "bzcat", "xz": "xzcat", "zstd": "zstdcat"}


@dataclass(frozen=True)
class Source:
    """An image, and the facts about it.

    Attributes:
        path: the file that the user named.
        content: the bytes of the disk: that file, or its unpacked content. Read it with ``os.pread``.
        packed: how the file is compressed; None if it is not.
        table: kind of its partition table; None where ``--raw`` or the description replaces one.
        map_path: the block map; None if there is none, and the image is written whole.
        ignored_maps: path of a block map beside the image that is not used -> the reason.
        sector_bytes: in which its partition table counts; 0: it does not tell.
    """

    path: Path
    content: IO[bytes]
    map: Map
    description: Description | None
    packed: str | None = None
    table: str | None = None
    map_path: Path | None = None
    ignored_maps: dict[str, str] = field(default_factory=dict)
    sector_bytes: int = 0

    @property
    def identity(self) -> str:
        """A hash that differs for another image, and for the same file with other content."""
        parts = [str(self.map.image_bytes)]
        if all(mapped.sha256 for mapped in self.map.ranges):
            parts += [f"{mapped.first} {mapped.sha256}" for mapped in self.map.ranges]
        else:
            parts += [str(self.path.absolute()), str(self.path.stat().st_mtime_ns)]
            parts += [f"{mapped.first}-{mapped.last}" for mapped in self.map.ranges]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def document(self) -> SourceRecord:
        """Return the facts for ``--json``."""
        return {
            "packed": self.packed,
            "table": self.table,
            "bmap": str(self.map_path) if self.map_path else None,
            "ignored_bmaps": self.ignored_maps,
        }

    def close(self) -> None:
        """Close the file; unpacked content is removed."""
        self.content.close()


def read_source(
    image: Path, *, raw: bool = False, before_unpacking: Callable[[], object] = lambda: None
) -> Source:
    """Return an image; the caller closes it.

    Args:
        raw: the content need not be a disk.
        before_unpacking: called before the image is unpacked, which may take minutes.

    Raises:
        UserError: it is missing, is not the image of a disk, is truncated, or differs from its block map.
        InfrastructureError: the disk is too full to unpack it.
    """
    if not image.is_file():
        what = f"there is no image {image}" if not image.exists() else f"{image} is not a file"
        raise UserError(what, hint="./inv build-image --board B")
    with image.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if not head:
        raise UserError(f"{image} is empty: there is nothing to write", hint=_AGAIN)
    packed = formats.read_through(head)

    def check_head(inside: bytes) -> None:
        other_format = None if raw or read_table(inside) else formats.by_signature(inside)
        if other_format:
            raise _no_disk(image, packed, other_format)

    if packed:
        before_unpacking()
        content = unpack(image, packed, head_bytes=HEAD_BYTES, check_head=check_head)
    else:
        content = image.open("rb")
    try:
        size = os.fstat(content.fileno()).st_size
        if not size:
            raise UserError(f"{image} is compressed with {packed}, but has no content", hint=_AGAIN)
        unpacked = _unpacked_name(image) if packed else image
        description = read_description(image) or read_description(unpacked)
        if description and description.size_bytes != size:
            raise _truncated(image, f"its description says {description.size_bytes} bytes", size)
        table = None if raw else _check_disk(image, packed, content, size, description)
        block_map, path, ignored = _find_map(image, unpacked, content, size)
    except BaseException:
        content.close()
        raise
    kind, sectors = (table.kind, table.sector_bytes) if table else (None, 0)
    return Source(image, content, block_map, description, packed, kind, path, ignored, sectors)


def refuse_no_disk(image: Path) -> None:
    """Refuse a file to boot from directly that is not the image of a whole disk.

    Raises:
        UserError: it is compressed, of another format, truncated or unreadable; the message says which.
    """
    try:
        with image.open("rb") as content:
            size = os.fstat(content.fileno()).st_size
            if not size:
                raise UserError(f"{image} is empty", hint=_AGAIN)
            _check_disk(image, None, content, size, read_description(image))
    except OSError as error:
        raise UserError(f"cannot read {image}: {error.strerror}") from error
    except UserError as error:
        hint = (error.hint or "").replace(_RAW, "").strip("; ")
        raise UserError(
            error.message, hint=hint or "./inv build-image --board B makes one"
        ) from None


def _unpacked_name(image: Path) -> Path:
    return image.with_suffix("") if image.suffix.lower() in _SUFFIXES else image


def _check_disk(
    image: Path, packed: str | None, content: IO[bytes], size: int, description: Description | None
) -> Table | None:
    """Refuse an image without a partition table, or whose table ends behind the image."""
    handle = content.fileno()
    head = os.pread(handle, HEAD_BYTES, 0)
    tail = os.pread(handle, TAIL_BYTES, max(size - TAIL_BYTES, 0))
    table = read_table(head)
    other_format = formats.container_of_disk(tail) if table else formats.identify(head, tail)
    if table is None and description and other_format in formats.UNMARKED:
        return None
    if other_format:
        raise _no_disk(image, packed, other_format)
    if not table:
        raise RuntimeError(f"{image} has no partition table")
    if table.problem:
        raise UserError(f"{image}: {table.problem}", hint=f"{_AGAIN}; {_RAW}")
    if table.end_bytes > size:
        raise _truncated(image, f"its partition table needs {table.end_bytes} bytes", size)
    return table


def _no_disk(image: Path, packed: str | None, other_format: Format) -> UserError:
    inside, unpack_first = "", ""
    file = image
    if packed:
        inside = f"compressed with {packed}, and what is inside is "
        file = _unpacked_name(image)
        if file == image:
            file = image.with_name(f"{image.name}.unpacked")
        unpack_first = (
            f"{_CAT[packed]} {shlex.quote(str(image))} > {shlex.quote(str(file))}, then: "
        )
    advice = other_format.advice.format(image=shlex.quote(str(file)))
    return UserError(
        f"{image} is {inside}{other_format.name}; "
        "expected the image of a whole disk, with a partition table",
        hint=(unpack_first if "{image}" in other_format.advice else "") + advice,
    )


def _truncated(image: Path, expected: str, size: int) -> UserError:
    return UserError(f"{image} is truncated: {expected}, found {size}", hint=_AGAIN)


def _find_map(
    image: Path, unpacked: Path, content: IO[bytes], size: int
) -> tuple[Map, Path | None, dict[str, str]]:
    """Return what to write, the block map that says so, and the maps that are ignored.

    A map under the image's own name must match the image. A map under a shorter name may belong to
    another image: it is used if it matches, and reported if not. A map without checksums shows nothing.
    """
    own = {bmap.map_file(image), bmap.map_file(unpacked)}
    used: tuple[Map, Path] | None = None
    ignored: dict[str, str] = {}
    for path in bmap.map_files(image):
        if not path.is_file() or path == image:
            continue
        if used:
            ignored[str(path)] = f"{used[1].name} is used"
        elif path in own and (mine := _own_map(image, path, content, size)):
            used = mine, path
        elif problem := _map_mismatch(path, content, size):
            ignored[str(path)] = problem
        else:
            used = bmap.read(path), path
    for name, reason in ignored.items():
        say(f"the block map {name} is ignored: {reason}")
    return (*used, ignored) if used else (bmap.whole(size), None, ignored)


def _own_map(image: Path, path: Path, content: IO[bytes], size: int) -> Map | None:
    """Return a map that must match the image; None if it has no checksums."""
    block_map = bmap.read(path)
    if block_map.image_bytes != size:
        raise UserError(
            f"{image} is truncated, or not the image of {path.name}: expected {block_map.image_bytes} "
            f"bytes, found {size}",
            hint=f"{_AGAIN}; or remove {path} to write the whole image",
        )
    if not block_map.ranges:
        raise UserError(f"{path} maps nothing: there is nothing to write", hint=f"rm {path}")
    if not all(mapped.sha256 for mapped in block_map.ranges):
        return None
    if blocks := bmap.left_out(content.fileno(), block_map):
        raise UserError(
            f"{image} differs from its block map: it has data in blocks {blocks[0]}-{blocks[1]}, which the "
            "map leaves out",
            hint=f"it was written to since: remove {path} to write the whole image",
        )
    # Shorter ranges are compared as they are sent.
    long = [
        mapped for mapped in block_map.ranges if mapped.blocks > CHUNK_BYTES // bmap.BLOCK_BYTES
    ]
    for wrong in _wrong_ranges(content, block_map, long):
        raise UserError(
            f"{image} differs from its block map in blocks {wrong.first}-{wrong.last}",
            hint=_AGAIN,
        )
    return block_map


def _map_mismatch(path: Path, content: IO[bytes], size: int) -> str:
    """Return why a map does not belong to the image; empty if it does."""
    try:
        block_map = bmap.read(path)
    except UserError as error:
        return error.message
    if block_map.image_bytes != size:
        return f"it is for an image of {block_map.image_bytes} bytes, this one has {size}"
    if not block_map.ranges or not all(mapped.sha256 for mapped in block_map.ranges):
        return "it has no checksums to show that it belongs to this image"
    for wrong in _wrong_ranges(content, block_map, list(block_map.ranges)):
        return f"the image differs from it in blocks {wrong.first}-{wrong.last}"
    if blocks := bmap.left_out(content.fileno(), block_map):
        return f"the image has data in blocks {blocks[0]}-{blocks[1]}, which it leaves out"
    return ""


def _wrong_ranges(content: IO[bytes], block_map: Map, ranges: list[Range]) -> Iterator[Range]:
    """Hash ranges of the image; yield those that differ from the map."""
    if not any(mapped.sha256 for mapped in ranges):
        return
    with step("Comparing the image with its block map"):
        for mapped in ranges:
            start, end = block_map.span(mapped)
            digest = hashlib.sha256()
            while start < end:
                data = os.pread(content.fileno(), min(CHUNK_BYTES, end - start), start)
                digest.update(data)
                start += len(data) or end
            if mapped.sha256 and digest.hexdigest() != mapped.sha256:
                yield mapped
