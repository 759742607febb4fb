# SPDX-License-Identifier: MIT
"""Reads BMP files row by row, so that a picture of any size takes little memory; writes small ones.

Shipped to boards beside ``runner.py``: the standard library and numpy only.

Sources: Microsoft's BITMAPCOREHEADER, BITMAPINFOHEADER, BITMAPV4HEADER and BITMAPV5HEADER; OS/2's
BITMAPINFOHEADER2, of which 16 bytes or all 64 may be written. What TensorFlow's label_image
(``bitmap_helpers.cc``) reads, 24 and 32 bits a pixel, is read as it does.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_FILE_HEADER_BYTES = 14
_LEAST_BYTES = 26  # with the smallest header, OS/2's
_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)
_OS2_HEADERS = (12, 16, 64)
_BITS = (1, 2, 4, 8, 16, 24, 32)
_MAX_SIDE_PIXELS = 32768
_BITFIELDS, _ALPHA_BITFIELDS = 3, 6
_COMPRESSIONS = {
    1: "run-length encoded (RLE8)", 2: "run-length encoded (RLE4)", 4: "a JPEG in a BMP",
    5: "a PNG in a BMP", 11: "CMYK", 12: "run-length encoded CMYK", 13: "run-length encoded CMYK",
}  # fmt: skip
# Red, green, blue where the header gives no masks.
_MASKS = {16: (0x7C00, 0x03E0, 0x001F), 32: (0xFF0000, 0x00FF00, 0x0000FF)}
_OTHER_FORMATS = {
    b"\x89PNG": "a PNG picture", b"\xff\xd8\xff": "a JPEG picture", b"GIF8": "a GIF picture",
    b"RIFF": "a WebP picture", b"II*\0": "a TIFF picture", b"MM\0*": "a TIFF picture",
    b"BA": "an OS/2 bitmap array", b"P5": "a PGM picture", b"P6": "a PPM picture",
}  # fmt: skip
CONVERT = "convert PICTURE -type truecolor -compress none BMP3:picture.bmp (ImageMagick)"
"""What makes a BMP that is read, of any picture."""

Rows = Callable[[NDArray[np.intp]], NDArray[np.uint8]]


class ImageError(ValueError):
    """The image cannot be read; the message says why."""


@dataclass(frozen=True)
class Picture:
    """A picture whose rows are decoded when they are asked for.

    Attributes:
        height, width: pixels.
        rows: from row numbers, counted from the top, to uint8 pixels: rows x width x 3, in the order
            R, G, B.
    """

    height: int
    width: int
    rows: Rows

    def cut(self, top: int, left: int, height: int, width: int, *, mirrored: bool) -> Picture:
        """Return a part of the picture, mirrored left to right where asked; nothing is decoded."""

        def rows(numbers: NDArray[np.intp]) -> NDArray[np.uint8]:
            part = self.rows(numbers + top)[:, left : left + width]
            return part[:, ::-1] if mirrored else part

        return Picture(height, width, rows)

    def pixels(self) -> NDArray[np.uint8]:
        """Return all of it, uint8, height x width x 3."""
        return np.ascontiguousarray(self.rows(np.arange(self.height)))


@dataclass(frozen=True)
class _Header:
    """What a BMP says of itself; ``masks`` and ``colours`` as its pixels need them."""

    width: int
    height: int
    top_down: bool
    bits: int
    offset: int
    row_bytes: int
    masks: tuple[int, int, int]
    colours: NDArray[np.uint8]


def picture_of(pixels: NDArray[np.uint8]) -> Picture:
    """Return pixels that are in memory, uint8, height x width x 3, as a picture."""
    height, width, _ = pixels.shape
    return Picture(height, width, lambda numbers: pixels[numbers])


def open_bmp(path: Path) -> Picture:
    """Return the picture in a BMP file; the file is read as its rows are.

    Raises:
        ImageError: this is not a BMP that is read, or it is cut short.
        OSError: the file cannot be opened.
    """
    with path.open("rb") as file:
        if not file.read(1):
            raise ImageError(f"expected a BMP image (it starts with b'BM'), found {_named(b'')}")
    return read_bmp(np.memmap(path, np.uint8, "r"))


def decode_bmp(content: bytes) -> NDArray[np.uint8]:
    """Return the pixels of a BMP, uint8, height x width x 3, in the order R, G, B; as ``read_bmp``."""
    return read_bmp(np.frombuffer(content, np.uint8)).pixels()


def read_bmp(content: NDArray[np.uint8]) -> Picture:
    """Return the picture in the bytes of an uncompressed BMP.

    1, 2, 4, 8 (by the palette; without one, 8 bits are grey), 16, 24 and 32 bits a pixel, with colour masks
    where the header has them, bottom-up and top-down; alpha does not count.

    Raises:
        ImageError: this is no such BMP, its header contradicts itself, or it is cut short.
    """
    header = _header(content)
    stored = content[header.offset :][: header.row_bytes * header.height]
    lines = stored.reshape(header.height, header.row_bytes)
    decode = {16: _decode_masks, 24: _decode_bgr, 32: _decode_masks}.get(
        header.bits, _decode_palette
    )

    def rows(numbers: NDArray[np.intp]) -> NDArray[np.uint8]:
        places = numbers if header.top_down else header.height - 1 - numbers
        return decode(np.asarray(lines[places]), header)

    return Picture(header.height, header.width, rows)


def _header(content: NDArray[np.uint8]) -> _Header:
    head = bytes(content[: _FILE_HEADER_BYTES + max(_HEADERS)])
    offset, size = _beginning(head)
    width, height, bits, compression, used = _fields(head, size)
    if not (0 < width <= _MAX_SIDE_PIXELS and 0 < abs(height) <= _MAX_SIDE_PIXELS):
        raise ImageError(
            f"the BMP says that it is {width} x {height} pixels; up to {_MAX_SIDE_PIXELS} are read"
        )
    _check_kind(size, bits, compression)
    start = _FILE_HEADER_BYTES + size
    masks = _MASKS.get(bits, (0, 0, 0))
    if compression:  # the masks are in the file
        if len(content) < 66:
            raise ImageError("the BMP header is cut short: its colour masks are not there")
        masks = struct.unpack_from("<3I", bytes(content[54:66]))
        if size == 40:
            start += 12 if compression == _BITFIELDS else 16
        _check_masks(masks, bits)
    if offset < start:
        raise ImageError(
            f"the BMP says that its pixels begin at byte {offset}, and its header ends at {start}"
        )
    row_bytes = (bits * width + 31) // 32 * 4
    needed = offset + row_bytes * abs(height)
    if len(content) < needed:
        raise ImageError(
            f"the BMP is cut short: {width} x {abs(height)} pixels need {needed} bytes, the file has "
            f"{len(content)}"
        )
    colours = np.zeros((0, 3), np.uint8)
    if bits <= 8:
        stored = bytes(content[start : min(offset, start + 1024)])
        colours = _palette(stored, bits, used, 3 if size == 12 else 4)
    return _Header(width, abs(height), height < 0, bits, offset, row_bytes, masks, colours)


def _beginning(head: bytes) -> tuple[int, int]:
    """Return (offset of the pixels, size of the header behind the file's), in bytes."""
    if head[:2] != b"BM":
        raise ImageError(f"expected a BMP image (it starts with b'BM'), found {_named(head)}")
    if len(head) < _LEAST_BYTES:
        raise ImageError(
            f"the BMP header is cut short: {len(head)} of at least {_LEAST_BYTES} bytes"
        )
    offset, size = struct.unpack_from("<II", head, 10)
    if size not in _HEADERS:
        header_sizes = ", ".join(map(str, _HEADERS))
        raise ImageError(f"the BMP says that its header has {size} bytes; known are {header_sizes}")
    if len(head) < _FILE_HEADER_BYTES + size:
        raise ImageError(
            f"the BMP header is cut short: {len(head)} of {_FILE_HEADER_BYTES + size} bytes"
        )
    return offset, size


def _fields(head: bytes, size: int) -> tuple[int, int, int, int, int]:
    """Return width, height (below 0: top-down), bits a pixel, compression, colours used."""
    width, height, _, bits = struct.unpack_from("<4H" if size == 12 else "<iiHH", head, 18)
    if size < 40:
        return width, height, bits, 0, 0
    compression, used = struct.unpack_from("<I12xI", head, 30)
    return width, height, bits, compression, used


def _check_kind(size: int, bits: int, compression: int) -> None:
    """Raise an ImageError unless pixels of this kind are read: uncompressed, perhaps with masks."""
    if compression in _COMPRESSIONS or (compression and size in _OS2_HEADERS):
        kind = _COMPRESSIONS.get(compression, "")
        if size in _OS2_HEADERS:  # OS/2 has others behind 3 and 4
            kind = {3: "Huffman encoded", 4: "run-length encoded (RLE24)"}.get(compression, kind)
        raise ImageError(
            f"expected an uncompressed BMP, found compression {compression}"
            + (f": {kind}" if kind else "")
        )
    if bits not in _BITS:
        raise ImageError(f"expected a BMP with {_listed(_BITS)} bits a pixel, found {bits}")
    masked = compression in (_BITFIELDS, _ALPHA_BITFIELDS)
    if compression and not (masked and bits in _MASKS):
        raise ImageError(
            f"expected an uncompressed BMP, found compression {compression} with {bits} bits a pixel"
        )


def _check_masks(masks: tuple[int, ...], bits: int) -> None:
    for mask in masks:
        straight = mask >> (mask & -mask).bit_length() - 1 if mask else 0
        if not mask or mask >> bits or straight & straight + 1:
            shown_masks = ", ".join(f"{each:#x}" for each in masks)
            raise ImageError(
                f"the BMP's colour masks {shown_masks} are none of {bits} bits a pixel"
            )


def _palette(content: bytes, bits: int, used: int, entry_bytes: int) -> NDArray[np.uint8]:
    """Return the colours, R, G, B, for every value that a pixel may have; missing ones are black."""
    colours = np.zeros((1 << bits, 3), np.uint8)
    count = min(used or 1 << bits, 1 << bits, len(content) // entry_bytes)
    if not count:
        if bits < 8:
            raise ImageError(f"the BMP has {bits} bits a pixel, and no palette before its pixels")
        return np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    entries = np.frombuffer(content, np.uint8, count * entry_bytes).reshape(count, entry_bytes)
    colours[:count] = entries[:, 2::-1]
    return colours


def _decode_palette(lines: NDArray[np.uint8], header: _Header) -> NDArray[np.uint8]:
    """Leftmost pixels are the highest bits of a byte."""
    bits = header.bits
    shifts = np.arange(8 - bits, -1, -bits, dtype=np.uint8)
    values = lines[:, :, None] >> shifts & np.uint8((1 << bits) - 1)
    pixels: NDArray[np.uint8] = header.colours[values.reshape(len(lines), -1)[:, : header.width]]
    return pixels


def _decode_bgr(lines: NDArray[np.uint8], header: _Header) -> NDArray[np.uint8]:
    pixels = lines[:, : header.width * 3].reshape(len(lines), header.width, 3)
    return pixels[:, :, ::-1]


def _decode_masks(lines: NDArray[np.uint8], header: _Header) -> NDArray[np.uint8]:
    kind = "<u2" if header.bits == 16 else "<u4"
    values = lines[:, : header.width * header.bits // 8].copy().view(kind)
    pixels = np.empty((len(lines), header.width, 3), np.uint8)
    for channel, mask in enumerate(header.masks):
        shift = (mask & -mask).bit_length() - 1
        most = mask >> shift
        part = (values & np.asarray(mask, kind)) >> np.asarray(shift, kind)
        # Rounded to the nearest of 0..255; as they are where the mask has 8 bits.
        pixels[:, :, channel] = (
            part if most == 255 else (part * 255.0 / most + 0.5).astype(np.uint8)
        )
    return pixels


def _named(head: bytes) -> str:
    if not head:
        return "an empty file"
    for start, name in _OTHER_FORMATS.items():
        if head.startswith(start):
            return name
    return f"a file that starts with {head[:4]!r}"


def _listed(numbers: tuple[int, ...]) -> str:
    return f"{', '.join(map(str, numbers[:-1]))} or {numbers[-1]}"


def encode_bmp(pixels: NDArray[np.uint8]) -> bytes:
    """Return uint8 pixels, height x width x 3 in the order R, G, B, as a 24-bit BMP."""
    height, width, _ = pixels.shape
    row_bytes = (24 * width + 31) // 32 * 4
    rows = np.zeros((height, row_bytes), np.uint8)
    rows[:, : width * 3] = pixels[::-1, :, ::-1].reshape(height, width * 3)
    size_bytes = rows.size
    header = struct.pack("<2sIHHI", b"BM", 54 + size_bytes, 0, 0, 54)
    header += struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, size_bytes, 2835, 2835, 0, 0)
    return header + rows.tobytes()
