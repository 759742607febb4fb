# SPDX-License-Identifier: MIT
"""Resizes a picture for a model, bit for bit as TensorFlow's C++ label_image does.

Shipped to boards beside ``runner.py``: the standard library and numpy only.

Sources: ``tensorflow/lite/examples/label_image/bitmap_helpers_impl.h`` (resize with RESIZE_BILINEAR in
float32, then conversion), and the RESIZE_BILINEAR kernel in
``tensorflow/lite/kernels/internal/optimized/resize_bilinear.h``.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

# Output rows that are made at once.
_BLOCK_ROWS = 256

AnyPicture = TypeVar("AnyPicture", bound="Picture")


class Picture(Protocol):
    """What is resized: ``bmp.Picture``, whose rows are decoded when they are asked for."""

    @property
    def height(self) -> int:
        """Pixels from top to bottom."""

    @property
    def width(self) -> int:
        """Pixels from left to right."""

    @property
    def rows(self) -> Callable[[NDArray[np.intp]], NDArray[np.uint8]]:
        """From row numbers to uint8 pixels, rows x width x 3."""

    def cut(
        self: AnyPicture, top: int, left: int, height: int, width: int, *, mirrored: bool
    ) -> AnyPicture:
        """Return a part of it, mirrored where asked."""


def views(picture: AnyPicture) -> list[AnyPicture]:
    """Return fixed crops and flips of a picture: a small set of inputs, the same everywhere.

    The mirrored picture, its middle, four corners of it, and the middle and one corner mirrored; crops have
    seven eighths of the sides (the middle three quarters). Nothing is decoded yet.
    """
    height, width = picture.height, picture.width

    def cut(eighths: int, down: int, right: int, *, mirrored: bool = False) -> AnyPicture:
        """``eighths`` of each side; ``down`` and ``right`` are 0 (start), 1 (middle), 2 (end)."""
        tall, wide = max(height * eighths // 8, 1), max(width * eighths // 8, 1)
        top, left = (height - tall) * down // 2, (width - wide) * right // 2
        return picture.cut(top, left, tall, wide, mirrored=mirrored)

    corners = [cut(7, down, right) for down in (0, 2) for right in (0, 2)]
    return [
        cut(8, 0, 0, mirrored=True),
        cut(6, 1, 1),
        *corners,
        cut(6, 1, 1, mirrored=True),
        cut(7, 0, 0, mirrored=True),
    ]


def fuses_multiply_add() -> bool:
    """Whether label_image, compiled for this machine, fuses multiply and add (64-bit Arm does)."""
    return platform.machine() in ("aarch64", "arm64")


def resize_bilinear(
    pixels: NDArray[np.uint8] | Picture, height: int, width: int, *, fused: bool
) -> NDArray[np.float32]:
    """Return ``pixels`` resized, float32, height x width x channels.

    As TFLite's RESIZE_BILINEAR with align_corners and half_pixel_centers false. Of a ``Picture`` only the
    rows that are needed are decoded, some at a time.

    Args:
        pixels: uint8, height x width x channels, or a picture.
        fused: round once after each multiply-and-add, as 64-bit Arm does, not twice.
    """
    if isinstance(pixels, np.ndarray):
        in_height, in_width, channels = pixels.shape
        rows_of: Callable[[NDArray[np.intp]], NDArray[np.uint8]] = pixels.__getitem__
    else:
        in_height, in_width, channels, rows_of = pixels.height, pixels.width, 3, pixels.rows
    low_y, high_y, part_y = _positions(height, in_height)
    low_x, high_x, part_x = _positions(width, in_width)
    # Rows of width * channels numbers: numpy is slow where the innermost axis has but three.
    channel = np.arange(channels)
    columns = [(place[:, None] * channels + channel).ravel() for place in (low_x, high_x)]
    part_x = np.repeat(part_x, channels)
    one = np.float32(1)
    total = np.zeros((height, width * channels), np.float32)
    for start in range(0, height, _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        part = total[block]
        for y, share_y in ((low_y[block], one - part_y[block]), (high_y[block], part_y[block])):
            of_rows = np.ascontiguousarray(rows_of(y)).reshape(len(y), -1)
            for column, share_x in zip(columns, (one - part_x, part_x), strict=True):
                source = of_rows.take(column, axis=1)
                weight = np.multiply.outer(share_y, share_x)
                if fused:
                    # 8 by 24 bits is exact in float64, so that only the sum is rounded, to float32.
                    product = np.multiply(source, weight, dtype=np.float64)
                    product += part
                    part[:] = product.astype(np.float32)
                else:
                    weight *= source
                    part += weight
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
    """Return resized pixels as a model takes them: uint8, int8, or float32 in -1..1, as label_image does.

    int32 and int64 get what uint8 gets, float16 what float32 gets.

    Raises:
        ValueError: pixels are of no such type.
    """
    if dtype == np.uint8:
        return resized.astype(np.uint8)
    if dtype == np.int8:
        return (resized.astype(np.int32) - 128).astype(np.int8)
    if dtype in (np.int32, np.int64):
        return resized.astype(dtype)
    if dtype in (np.float32, np.float16):
        return ((resized - np.float32(127.5)) / np.float32(127.5)).astype(dtype)
    raise ValueError(f"pixels of a picture are no {dtype}")
