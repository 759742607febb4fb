# SPDX-License-Identifier: MIT
"""Sums of products of images with whole-number weights, exact, by matrix products (BLAS)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_EXACT_FLOAT32 = 1 << 24
_BLOCK_BYTES = 16 << 20


@dataclass(frozen=True)
class Window:
    """Where a kernel stands on an image that has its surroundings: how often, and how far apart."""

    out_height: int
    out_width: int
    step_y: int
    step_x: int


def exact_type(largest: float) -> Any:
    """Return the type for sums that reach no more than ``largest``.

    Single precision serves while no partial sum can reach 2**24: then every intermediate is a whole number
    that it holds exactly, in whatever order BLAS adds.
    """
    return np.float32 if largest < _EXACT_FLOAT32 else np.float64


def dense(padded: NDArray[Any], weights: NDArray[Any], window: Window) -> NDArray[Any]:
    """Return the sums, (output channels, out height, out width).

    Args:
        padded: (channels, height, width), as far as the window reaches.
        weights: (output channels, channels, kernel height, kernel width), of the same type.
    """
    matrix = weights.reshape(len(weights), -1)
    windows = np.lib.stride_tricks.sliding_window_view(padded, weights.shape[2:], axis=(1, 2))  # type: ignore[call-overload]
    windows = windows[:, :: window.step_y, :: window.step_x].transpose(0, 3, 4, 1, 2)
    result = np.empty((len(weights), window.out_height, window.out_width), padded.dtype)
    row_bytes = matrix.shape[1] * window.out_width * padded.itemsize
    rows = max(1, _BLOCK_BYTES // row_bytes)
    for top in range(0, window.out_height, rows):
        columns = windows[:, :, :, top : top + rows].reshape(matrix.shape[1], -1)
        part = matrix @ columns
        result[:, top : top + rows] = part.reshape(len(weights), -1, window.out_width)
    return result


def depthwise(padded: NDArray[Any], weights: NDArray[Any], window: Window) -> NDArray[Any]:
    """Return the sums of each channel by itself, (channels, out height, out width).

    Args:
        padded: as ``dense``.
        weights: (channels, kernel height, kernel width).
    """
    channels, height, width = weights.shape
    result = np.zeros((channels, window.out_height, window.out_width), padded.dtype)
    product = np.empty_like(result)
    rows = (window.out_height - 1) * window.step_y + 1
    columns = (window.out_width - 1) * window.step_x + 1
    for y in range(height):
        for x in range(width):
            window_values = padded[:, y : y + rows : window.step_y, x : x + columns : window.step_x]
            np.multiply(window_values, weights[:, y, x, None, None], out=product)
            result += product
    return result
