# SPDX-License-Identifier: MIT
"""Compares numbers of classes, as behind an ARG_MAX: which class each pixel of a picture is of. Pure.

Where the reference's own scores are at hand, a class is as wrong as it is worse than the best one there: of
two that are nearly equally good either is right. Seen of DeepLab, TFLite's own kernels on two machines: the
root mean square is 0.02 of the scores' spread on photographs, and up to 0.24 on grey alone, where four
pixels in ten change their class. Zeros, another class, a map that is turned or of another picture are above
0.3 as a whole or above 0.5 in one of its classes.

A map that is moved by some pixels is right nearly everywhere, and its scores are nearly as good: it is told
by this, that fewer pixels differ from a reference that is moved as well. Seen of DeepLab's scores with
noise of 2 to 30 % of their spread, enlarged as it does: never fewer than 98 % of them; of maps that are
moved by two pixels, with noise of 5 %, at most three quarters. Enlarged with another rule for the pixels'
middles, three quarters of the map or more are each moved another way, and fewer than 55 % differ; noise
gave that in one at most.

Beside these made-up scores, mixtures of MobileNets' features on a photograph (V1 and V2, 2 to 21 classes,
enlarged to 65, 129 and 257 pixels), with the noise of silicon's predicted rounding (3 to 8 %): none of 972
maps was taken for a moved one, and of 7,776 that were moved by one or two pixels all but 8.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .index_drift import drift
from .values import Values

# Root mean square of what is missing to the best class, as a share of the spread of all scores.
_WHOLE_LIMIT = 0.35
_CLASS_LIMIT = 0.5
_LINE_LIMIT = 0.9
# A row or a column is one from so many places on; below, a single place is not lost among many.
_LEAST_LINE = 16
# Without the scores: from how many on single ones may differ; shares that must be alike; the least share of
# a class that counts by itself, and its intersection over union.
_FEW_INDICES = 16
_ALIKE = 0.9
_CLASS_SHARE = 0.01
_CLASS_OVERLAP = 0.5

# Pixels that a map may be moved by; the share of differing pixels that may be left then, and in quarters of
# the map; how many have to differ at all. What has a short outline (less than half around the map) may move
# by noise, too.
_MOST_MOVED = 8
_LEFT_LIMIT = 0.75
_LEFT_LIMIT_OF_QUARTERS = 0.55
_LEAST_QUARTERS = 3
_LEAST_SIDE = 16
_LEAST_DIFFERING = 16

_Shares = NDArray[np.float32]
_Map = NDArray[Any]


def compare_indices(output: Values, reference: Values, name: str) -> str:
    """Return what is wrong with numbers of classes, "" if nothing is.

    Args:
        name: the reference's name, for the words.
    """
    if np.array_equal(output.raw, reference.raw):
        return ""
    if reference.short is not None:
        problem = _by_scores(output, reference, reference.short, name)
    else:
        problem = _by_share(output, reference, name)
    ours, theirs = output.raw.squeeze(), reference.raw.squeeze()
    problem = problem or _moved(ours, theirs, name)
    if not problem and (way := drift(ours, theirs)):
        problem = (
            f"it is {name}'s, moved {way}: outlines lie more that way than rounding explains, both where a "
            "class begins and where one ends"
        )
    return problem


def _by_scores(output: Values, reference: Values, short: _Shares, name: str) -> str:
    indices, expected = output.raw.ravel().astype(np.int64), reference.raw.ravel()
    strange = np.flatnonzero((indices < 0) | (indices >= short.shape[1]))
    if strange.size:
        return (
            f"number {strange[0]} is {indices[strange[0]]}, and there are {short.shape[1]} classes"
        )
    missing = short[np.arange(indices.size), indices]
    whole = _mean(missing)
    if whole > _WHOLE_LIMIT:
        count = int(np.count_nonzero(indices != expected))
        return (
            f"{count} of {indices.size} classes differ from {name}'s; by its scores they are worse by "
            f"{whole:.2f} of the spread, allowed are {_WHOLE_LIMIT}"
        )
    for value in np.unique(expected):
        there = expected == value
        worse = _mean(missing[there])
        if there.mean() >= _CLASS_SHARE and worse > _CLASS_LIMIT:
            return (
                f"where {name} says class {value}, the classes are worse by {worse:.2f} of the spread of "
                f"its scores, allowed are {_CLASS_LIMIT}"
            )
    return _lines(missing.reshape(output.raw.shape), name)


def _lines(missing: _Shares, name: str) -> str:
    """Look at each row and column by itself: one that is wrong is lost among many."""
    for axis, size in enumerate(missing.shape):
        if size == 1 or missing.size // size < _LEAST_LINE:
            continue
        others = tuple(each for each in range(missing.ndim) if each != axis)
        worse = np.sqrt(np.mean(missing**2, axis=others))
        worst = int(np.argmax(worse))
        if worse[worst] > _LINE_LIMIT:
            return (
                f"part {worst} of {size} along axis {axis} is not {name}'s: by its scores the classes are "
                f"worse by {worse[worst]:.2f} of the spread, allowed are {_LINE_LIMIT}"
            )
    return ""


def _moved(output: _Map, expected: _Map, name: str) -> str:
    """Look whether a map is the reference's, moved by some pixels, as a whole or quarter by quarter."""
    if expected.ndim != 2 or min(expected.shape) < _LEAST_SIDE:
        return ""
    outline = np.count_nonzero(np.diff(expected, axis=0)) + np.count_nonzero(
        np.diff(expected, axis=1)
    )
    differ = output != expected
    if outline < sum(expected.shape) or np.count_nonzero(differ) < _LEAST_DIFFERING:
        return ""
    middle = tuple(size // 2 for size in expected.shape)
    # Of the whole, and of the quarters: the least share that is left, and the way it was moved.
    best = [(1.0, (0, 0))] * 5
    reach = range(-_MOST_MOVED, _MOST_MOVED + 1)
    for way in itertools.product(reach, reach):
        ours = tuple(slice(max(0, by), min(0, by) or None) for by in way)
        theirs = tuple(slice(max(0, -by), min(0, -by) or None) for by in way)
        left = output[ours] != expected[theirs]
        rows, columns = (size - max(0, by) for size, by in zip(middle, way, strict=True))
        parts = [(slice(None), slice(None))]
        parts += itertools.product(_halves(rows), _halves(columns))
        for number, part in enumerate(parts):
            before = np.count_nonzero(differ[ours][part])
            if before >= _LEAST_DIFFERING:
                share = np.count_nonzero(left[part]) / before
                best[number] = min(best[number], (share, way))
    share, (down, right) = best[0]
    if share <= _LEFT_LIMIT:
        return (
            f"it is {name}'s, moved by {down} rows and {right} columns: {share:.0%} of the pixels that "
            f"differ would differ then, at least {_LEFT_LIMIT:.0%} would by rounding"
        )
    moved = [way for share, way in best[1:] if share <= _LEFT_LIMIT_OF_QUARTERS]
    if len(moved) >= _LEAST_QUARTERS:
        ways = ", ".join(f"{down} and {right}" for down, right in moved)
        return f"its quarters are {name}'s, each moved by some rows and columns: {ways}"
    return ""


def _halves(middle: int) -> list[slice]:
    return [slice(0, middle), slice(middle, None)]


def _mean(missing: _Shares) -> float:
    return float(np.sqrt(np.mean(missing**2)))


def _by_share(output: Values, reference: Values, name: str) -> str:
    indices, expected = output.raw.ravel(), reference.raw.ravel()
    alike = float(np.mean(indices == expected))
    if indices.size < _FEW_INDICES:
        place = int(np.flatnonzero(indices != expected)[0])
        return f"number {place} is {indices[place]}, {name} has {expected[place]}"
    if alike < _ALIKE:
        return f"only {alike:.0%} of {indices.size} are {name}'s, at least {_ALIKE:.0%} have to be"
    for value in np.unique(expected):
        here, there = indices == value, expected == value
        if there.mean() < _CLASS_SHARE:
            continue
        overlap = float(np.count_nonzero(here & there) / np.count_nonzero(here | there))
        if overlap < _CLASS_OVERLAP:
            return (
                f"class {value} overlaps with {name}'s by {overlap:.2f} (intersection over union), at "
                f"least {_CLASS_OVERLAP} are needed"
            )
    return ""
