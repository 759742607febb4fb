# SPDX-License-Identifier: MIT
"""Reads a BMP and resizes it, bit for bit as TensorFlow's C++ label_image does.

Shipped to boards beside ``runner.py``: the standard library and numpy only.

Sources: ``tensorflow/lite/examples/label_image/bitmap_helpers.cc`` (BMP) and ``bitmap_helpers_impl.h``
(resize with RESIZE_BILINEAR in float32, then conversion), and the RESIZE_BILINEAR kernel in
``tensorflow/lite/kernels/internal/optimized/resize_bilinear.h``.
"""

from __future__ import annotations

import platform
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

_HEADER_BYTES = 54
_MAX_SIDE_PIXELS = 32768


class ImageError(ValueError):
    """The image cannot be read; the message says why."""


def decode_bmp(content: bytes) -> NDArray[np.uint8]:
    """Return the pixels of an uncompressed BMP, uint8, height x width x 3, in the order R, G, B.

    8, 24 and 32 bits a pixel, bottom-up and top-down, as label_image reads them; 8 bits are grey,
    whatever the palette says.

    Raises:
        ImageError: this is no such BMP, or it is cut short.
    """
    if content[:2] != b"BM":
        found = "an empty file" if not content else f"a file that starts with {content[:4]!r}"
        raise ImageError(f"expected a BMP image (it starts with b'BM'), found {found}")
    if len(content) < _HEADER_BYTES:
        raise ImageError(f"the BMP header is cut short: {len(content)} of {_HEADER_BYTES} bytes")
    (offset,) = struct.unpack_from("<I", content, 10)
    width, signed_height = struct.unpack_from("<ii", content, 18)
    bits, compression = struct.unpack_from("<HI", content, 28)
    height = abs(signed_height)
    if not (0 < width <= _MAX_SIDE_PIXELS and 0 < height <= _MAX_SIDE_PIXELS):
        raise ImageError(f"the BMP says that it is {width} x {signed_height} pixels")
    if bits not in (8, 24, 32):
        raise ImageError(f"expected a BMP with 8, 24 or 32 bits a pixel, found {bits}")
    # BI_BITFIELDS (3) is what most programs write for 32 bits; the masks are then B, G, R, A.
    if compression not in ((0, 3) if bits == 32 else (0,)):
        raise ImageError(f"expected an uncompressed BMP, found compression {compression}")
    channels = bits // 8
    row_bytes = (bits * width + 31) // 32 * 4
    if len(content) < offset + row_bytes * height:
        raise ImageError(
            f"the BMP is cut short: {width} x {height} pixels need {offset + row_bytes * height} "
            f"bytes, the file has {len(content)}"
        )
    rows = np.frombuffer(content, np.uint8, row_bytes * height, offset).reshape(height, row_bytes)
    pixels = rows[:, : width * channels].reshape(height, width, channels)
    if signed_height > 0:
        pixels = pixels[::-1]
    if channels == 1:
        return np.repeat(pixels, 3, axis=2)
    return np.ascontiguousarray(pixels[:, :, 2::-1])


def encode_bmp(pixels: NDArray[np.uint8]) -> bytes:
    """Return uint8 pixels, height x width x 3 in the order R, G, B, as a 24-bit BMP."""
    height, width, _ = pixels.shape
    row_bytes = (24 * width + 31) // 32 * 4
    rows = np.zeros((height, row_bytes), np.uint8)
    rows[:, : width * 3] = pixels[::-1, :, ::-1].reshape(height, width * 3)
    size_bytes = rows.size
    header = struct.pack("<2sIHHI", b"BM", _HEADER_BYTES + size_bytes, 0, 0, _HEADER_BYTES)
    header += struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, size_bytes, 2835, 2835, 0, 0)
    return header + rows.tobytes()


def views(pixels: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """Return fixed crops and flips of a picture: a small set of inputs, the same everywhere.

    The mirrored picture, its middle, four corners of it, and the middle and one corner mirrored; crops have
    seven eighths of the sides (the middle three quarters).
    """
    height, width = pixels.shape[:2]

    def cut(eighths: int, down: int, right: int) -> NDArray[np.uint8]:
        """``eighths`` of each side; ``down`` and ``right`` are 0 (start), 1 (middle), 2 (end)."""
        tall, wide = max(height * eighths // 8, 1), max(width * eighths // 8, 1)
        top, left = (height - tall) * down // 2, (width - wide) * right // 2
        return pixels[top : top + tall, left : left + wide]

    middle, corners = cut(6, 1, 1), [cut(7, down, right) for down in (0, 2) for right in (0, 2)]
    found = [pixels[:, ::-1], middle, *corners, middle[:, ::-1], corners[0][:, ::-1]]
    return [np.ascontiguousarray(view) for view in found]


def fuses_multiply_add() -> bool:
    """Whether label_image, compiled for this machine, fuses multiply and add (64-bit Arm does)."""
    return platform.machine() in ("aarch64", "arm64")


def resize_bilinear(
    pixels: NDArray[np.uint8], height: int, width: int, *, fused: bool
) -> NDArray[np.float32]:
    """Return ``pixels`` resized, float32, height x width x channels.

    As TFLite's RESIZE_BILINEAR with align_corners and half_pixel_centers false.

    Args:
        fused: round once after each multiply-and-add, as 64-bit Arm does, not twice.
    """
    low_y, high_y, part_y = _positions(height, pixels.shape[0])
    low_x, high_x, part_x = _positions(width, pixels.shape[1])
    channels = pixels.shape[2]
    # Rows of width * channels numbers: numpy is slow where the innermost axis has but three.
    rows = np.ascontiguousarray(pixels).reshape(pixels.shape[0], -1)
    channel = np.arange(channels)
    columns = [(place[:, None] * channels + channel).ravel() for place in (low_x, high_x)]
    part_x = np.repeat(part_x, channels)
    one = np.float32(1)
    total = np.zeros((height, width * channels), np.float32)
    for y, share_y in ((low_y, one - part_y), (high_y, part_y)):
        of_rows = rows[y]
        for column, share_x in zip(columns, (one - part_x, part_x), strict=True):
            source = of_rows.take(column, axis=1)
            weight = np.multiply.outer(share_y, share_x)
            if fused:
                # 8 by 24 bits is exact in float64, so that only the sum is rounded, to float32.
                product = np.multiply(source, weight, dtype=np.float64)
                product += total
                total = product.astype(np.float32)
            else:
                weight *= source
                total += weight
    return total.reshape(height, width, channels)


def _positions(
    out_size: int, in_size: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """Lower and upper source index and the share of the upper, for each of ``out_size`` places."""
    scale = np.float32(in_size) / np.float32(out_size)
    place = np.arange(out_size, dtype=np.float32) * scale
    floor = np.floor(place)
    low = floor.astype(np.intp)
    return low, np.minimum(low + 1, in_size - 1), place - floor


def to_input(resized: NDArray[np.float32], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return resized pixels as a model takes them: uint8, int8, or float32 in -1..1.

    Raises:
        ImageError: label_image has no such input type.
    """
    if dtype == np.uint8:
        return resized.astype(np.uint8)
    if dtype == np.int8:
        return (resized.astype(np.int32) - 128).astype(np.int8)
    if dtype == np.float32:
        return (resized - np.float32(127.5)) / np.float32(127.5)
    raise ImageError(f"the model takes {dtype} as input; label_image knows uint8, int8, float32")
