# SPDX-License-Identifier: MIT
"""Is a map of classes the reference's, moved by a pixel or two beneath the noise of rounding? Pure.

Rounding moves an outline here one way and there another, or makes a class grow on all its sides. What moves
a map as a whole moves outlines one way on both sides: where a class ends, and where it begins.

So the pixels that differ are counted by the way in which the reference would have to be moved to explain
them, less those of the opposite way, tile by tile, and apart for outlines behind which the higher class
lies and for those behind which the lower one does. Of scores with noise of 2 to 30 % of their spread,
enlarged as DeepLab does, with classes that grow, and a horizon, the lesser of the two sums was 2.1 of its
standard deviation at most, in 1,700 maps; moved by one pixel it was 3 to 6 of 160 pixels with noise of
10 %, and 8 to 10 of 257.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_Map = NDArray[Any]

_WAYS = ((0, 1), (1, 0), (1, 1), (1, -1))
_TILE = 16
"""Sides of a tile: what noise does in one says little of its neighbours."""
_LIMIT = 3.3


def drift(found: _Map, expected: _Map) -> str:
    """Say which way a map of two dimensions is moved; "" where that cannot be told from noise."""
    if expected.ndim != 2 or min(expected.shape) < _TILE:
        return ""
    sums = {way: _least_sum(found, expected, way) for way in _WAYS}
    way = max(sums, key=lambda each: abs(sums[each]))
    if abs(sums[way]) < _LIMIT:
        return ""
    down, right = (int(np.sign(sums[way])) * by for by in way)
    words = [
        f"{'up' if down < 0 else 'down'}" if down else "",
        f"{'to the left' if right < 0 else 'to the right'}" if right else "",
    ]
    return " and ".join(filter(None, words))


def _least_sum(found: _Map, expected: _Map, way: tuple[int, int]) -> float:
    """The lesser of both sums, in standard deviations; below 0 the other way, 0 where they disagree."""
    after, before = _moved(expected, way), _moved(expected, (-way[0], -way[1]))
    plus = (found != expected) & (found == after) & (found != before)
    minus = (found != expected) & (found == before) & (found != after)
    deviations = []
    for lower in (found < expected, found > expected):
        tiles = _by_tile((plus & lower).astype(np.int64) - (minus & ~lower))
        deviations.append(float(tiles.sum()) / max(float(np.sqrt(np.sum(tiles**2))), 1.0))
    least, most = min(deviations), max(deviations)
    return least if least > 0 else min(most, 0.0)


def _moved(values: _Map, way: tuple[int, int]) -> _Map:
    rows, columns = (
        np.clip(np.arange(size) - by, 0, size - 1)
        for size, by in zip(values.shape, way, strict=True)
    )
    moved: _Map = values[np.ix_(rows, columns)]
    return moved


def _by_tile(values: NDArray[np.int64]) -> NDArray[np.int64]:
    rows, columns = (size // _TILE for size in values.shape)
    cut = values[: rows * _TILE, : columns * _TILE]
    tiles: NDArray[np.int64] = cut.reshape(rows, _TILE, columns, _TILE).sum(axis=(1, 3))
    return tiles
