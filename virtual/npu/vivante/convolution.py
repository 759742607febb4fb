# SPDX-License-Identifier: MIT
"""Convolution of 8-bit planes with whole-number weights, as a descriptor's geometry asks for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..convolution import Window, dense, depthwise, exact_type
from .coefficients import Coefficients


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

    ``image`` is (channels, height, width).
    """
    dtype = exact_type(coefficients.largest_sum * 255)
    height, width = coefficients.weights.shape[2:]
    padded = _padded(image, geometry, height, width, dtype)
    weights = coefficients.weights.astype(dtype, copy=False)
    window = Window(geometry.out_height, geometry.out_width, geometry.step, geometry.step)
    sources = coefficients.sources
    if sources is None:
        sums = dense(padded, weights, window)
    else:
        if sources.size != padded.shape[0] or (sources != np.arange(sources.size)).any():
            padded = padded[sources]
        sums = depthwise(padded, weights[:, 0], window)
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
