# SPDX-License-Identifier: MIT
"""The image that is to be written: there, whole, with its block map."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from pathlib import Path

from bsp.base.errors import UserError
from bsp.base.progress import step
from images.deploy.onboard.frames import CHUNK_BYTES
from images.disk import bmap
from images.disk.bmap import Map
from images.disk.image import Description, read_description

_SECTOR_BYTES = 512
_PACKED = {
    b"\x1f\x8b": "gunzip -k",
    b"\xfd7": "unxz -k",
    b"\x28\xb5": "unzstd",
    b"BZ": "bunzip2 -k",
}


@dataclass(frozen=True)
class Source:
    """An image, and what is known about it."""

    path: Path
    map: Map
    description: Description | None

    @property
    def identity(self) -> str:
        """Differs for another image, and for the same file with other content."""
        status = self.path.stat()
        words = [str(status.st_size)]
        if all(each.sha256 for each in self.map.ranges):
            words += [f"{each.first} {each.sha256}" for each in self.map.ranges]
        else:
            words += [str(self.path.absolute()), str(status.st_mtime_ns)]
            words += [f"{each.first}-{each.last}" for each in self.map.ranges]
        return hashlib.sha256("\n".join(words).encode()).hexdigest()


def read_source(image: Path) -> Source:
    """Return an image.

    Raises:
        UserError: it is not there, is compressed or truncated, or is not what its block map says.
    """
    if not image.is_file():
        raise UserError(f"there is no image {image}", hint="./inv build-image --board B")
    size = image.stat().st_size
    with image.open("rb") as file:
        head = file.read(2)
    if head in _PACKED:
        raise UserError(f"{image} is compressed", hint=f"{_PACKED[head]} {image}")
    description = read_description(image)
    beside = bmap.map_file(image)
    if beside.is_file():
        found = bmap.read(beside)
        if found.image_bytes != size:
            raise UserError(
                f"{image} is truncated, or not the image of {beside.name}: expected "
                f"{found.image_bytes} bytes, found {size}",
                hint="copy it again, or build it again",
            )
        _check_long_ranges(image, found)
    else:
        found = bmap.stored(image)
        _check_table(image, size)
    if not found.ranges:
        raise UserError(f"{image} is empty: there is nothing to write")
    return Source(image, found, description)


def _check_long_ranges(image: Path, found: Map) -> None:
    """Hash ranges that are longer than what is sent at once (maps that others made)."""
    long = [
        each
        for each in found.ranges
        if each.sha256 and each.blocks > CHUNK_BYTES // bmap.BLOCK_BYTES
    ]
    if not long:
        return
    with step("Comparing the image with its block map"), image.open("rb") as file:
        for each in long:
            start, end = found.span(each)
            digest = hashlib.sha256()
            file.seek(start)
            while start < end:
                data = file.read(min(CHUNK_BYTES, end - start))
                digest.update(data)
                start += len(data) or end
            if digest.hexdigest() != each.sha256:
                raise UserError(
                    f"{image} is not what its block map says, in blocks {each.first}-{each.last}",
                    hint="copy it again, or build it again",
                )


def _check_table(image: Path, size: int) -> None:
    """Refuse an image that is shorter than its own partition table says (GPT or MBR)."""
    with image.open("rb") as file:
        head = file.read(2 * _SECTOR_BYTES)
    mbr, gpt = head[:_SECTOR_BYTES], head[_SECTOR_BYTES:]
    ends = [0]
    if gpt[:8] == b"EFI PART":
        ends.append(int.from_bytes(gpt[32:40], "little") + 1)  # where its second copy lies
    elif mbr[510:] == b"\x55\xaa":
        for at in range(446, 510, 16):
            start, count = struct.unpack_from("<II", mbr, at + 8)
            if mbr[at + 4] and mbr[at] in (0, 0x80):
                ends.append(start + count)
    if max(ends) * _SECTOR_BYTES > size:
        raise UserError(
            f"{image} is truncated: its partition table wants {max(ends) * _SECTOR_BYTES} bytes, "
            f"found {size}",
            hint="copy it again, or build it again",
        )
