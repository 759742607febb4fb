# SPDX-License-Identifier: MIT
"""Convolution of 8-bit planes with whole-number weights, exact, by matrix products (BLAS)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .coefficients import Coefficients

_EXACT_FLOAT32 = 1 << 24
_BLOCK_BYTES = 16 << 20


@dataclass(frozen=True)
class Geometry:
    """How the window moves.

    Attributes:
        out_height: rows that are written (after ``step``); out_width likewise.
        step: 1, or 2 where only every second pixel is kept.
        pad_y: rows of border above the image; negative leaves rows out. pad_x likewise.
        border: value of pixels outside the image.
    """

    out_height: int
    out_width: int
    step: int
    pad_y: int
    pad_x: int
    border: int


def accumulate(
    image: NDArray[np.uint8], coefficients: Coefficients, geometry: Geometry
) -> NDArray[np.int64]:
    """Return bias + sum(weight * pixel) as int64 of shape (output channels, out height, out width).

    ``image`` is (channels, height, width). Single precision serves while no partial sum can reach 2**24:
    then every intermediate is a whole number that it holds exactly, in whatever order BLAS adds.
    """
    dtype: Any = np.float32 if coefficients.largest_sum * 255 < _EXACT_FLOAT32 else np.float64
    height, width = coefficients.weights.shape[2:]
    padded = _padded(image, geometry, height, width, dtype)
    weights = coefficients.weights.astype(dtype, copy=False)
    if coefficients.sources is None:
        sums = _dense(padded, weights, geometry)
    else:
        sums = _depthwise(padded, weights, coefficients.sources, geometry)
    result = sums.astype(np.int64)
    result += coefficients.biases[:, None, None]
    return result


def _padded(
    image: NDArray[np.uint8], geometry: Geometry, height: int, width: int, dtype: Any
) -> NDArray[Any]:
    """Return the image with its border, just as large as the window reaches."""
    rows = (geometry.out_height - 1) * geometry.step + height
    columns = (geometry.out_width - 1) * geometry.step + width
    channels, in_height, in_width = image.shape
    if geometry.pad_y == geometry.pad_x == 0 and rows <= in_height and columns <= in_width:
        return image[:, :rows, :columns].astype(dtype)
    padded = np.full((channels, rows, columns), geometry.border, dtype)
    top, left = max(geometry.pad_y, 0), max(geometry.pad_x, 0)
    skip_y, skip_x = max(-geometry.pad_y, 0), max(-geometry.pad_x, 0)
    high = max(min(in_height - skip_y, rows - top), 0)
    wide = max(min(in_width - skip_x, columns - left), 0)
    padded[:, top : top + high, left : left + wide] = image[
        :, skip_y : skip_y + high, skip_x : skip_x + wide
    ]
    return padded


def _dense(padded: NDArray[Any], weights: NDArray[Any], geometry: Geometry) -> NDArray[Any]:
    out_channels, channels, height, width = weights.shape
    matrix = weights.reshape(out_channels, -1)
    step = geometry.step
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(1, 2))  # type: ignore[call-overload]
    windows = windows[:, ::step, ::step].transpose(0, 3, 4, 1, 2)
    result = np.empty((out_channels, geometry.out_height, geometry.out_width), padded.dtype)
    row_bytes = matrix.shape[1] * geometry.out_width * padded.itemsize
    rows = max(1, _BLOCK_BYTES // row_bytes)
    for top in range(0, geometry.out_height, rows):
        block = windows[:, :, :, top : top + rows]
        columns = block.reshape(channels * height * width, -1)
        part = matrix @ columns
        result[:, top : top + rows] = part.reshape(out_channels, -1, geometry.out_width)
    return result


def _depthwise(
    padded: NDArray[Any], weights: NDArray[Any], sources: NDArray[np.intp], geometry: Geometry
) -> NDArray[Any]:
    out_channels, _, height, width = weights.shape
    step = geometry.step
    if sources.size != padded.shape[0] or (sources != np.arange(sources.size)).any():
        padded = padded[sources]
    result = np.zeros((out_channels, geometry.out_height, geometry.out_width), padded.dtype)
    product = np.empty_like(result)
    rows = (geometry.out_height - 1) * step + 1
    columns = (geometry.out_width - 1) * step + 1
    for y in range(height):
        for x in range(width):
            window = padded[:, y : y + rows : step, x : x + columns : step]
            np.multiply(window, weights[:, 0, y, x, None, None], out=product)
            result += product
    return result
