# SPDX-License-Identifier: MIT
"""How far an output is from the reference's, by its own measure: what kernels' rounding explains passes.

XNNPACK, the portable kernels and an NPU round differently, and a network carries that on: TFLite's own two
sets of CPU kernels were compared on 25 published models and six pictures (classifiers, SSD, YOLO, DeepLab,
MoveNet, embeddings). The limits lie between what was seen there and what damage looks like: a part of an
output that is no nearer to the reference than a constant would be (zeros, another channel, noise). Pure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .index_maps import compare_indices
from .kinds import Kind
from .values import Reals, Values

# Seen: 0.035 of a probability on an NPU, 0.03 on a CPU.
MAX_ABS_DIFF = 0.1
# Of its best score the reference may prefer its own best class by so much: seen on a CPU, a third.
_NEARLY_BEST = 0.5
# Root mean square of the errors, as a share of the reference's own spread (its standard deviation).
# Seen on a CPU: 0.07 for whole outputs, 0.22 for scores of few steps, 0.5 for one channel.
_WHOLE_LIMIT = 0.25
_SCORES_LIMIT = 0.5
# Of a few probabilities, one of a binary classifier at the least, spreads say little: the raw score behind
# one may be off by so much, which is 0.1 where a class is as likely as not, and next to nothing where it is
# sure.
_RAW_SCORE = 0.4
# From 1 on, a constant in its place would be as near.
_PART_LIMIT = 0.9
# Steps of its quantisation by which a value may be off before it counts at all.
_STEPS = 2.0
# A spread of less than so many steps is none: there a single value that is off would be everything.
_LEAST_SPREAD_STEPS = 0.5
# The same for numbers without steps, as shares of the largest number and of the mean (half precision).
_LEAST_SPREAD = 1e-5
_LEAST_OF_MEAN = 0.02
_TINY = 1e-300
_LEAST_VALUES_OF_PART = 16
# So many single values of a part may be anything: that one of two healthy rows sees a weak object there.
_FEW_VALUES = 3
_FEW_VALUES_SHARE = 0.01
# A part that varies less than this share of the others says little: the scores of a class that no object
# has are some 0.00001. "The others" are the fifth most varied part: a detector's boxes may be in pixels.
_LEAST_OF_OTHERS = 0.02
_OTHERS = 5
# Real numbers of at least this size are not all equal in a part, unless it was not computed.
_ALIVE = 1e-6
# One number of a list that is off alone: by so many times the root mean square of the others' errors.
_ALONE = 12.0
_ALONE_SPREAD = 0.75
_ALONE_STEPS = 8.0
# Key points: distances as shares of the pose's own extent.
_POINTS_LIMIT = 0.5
_SURE_POINT = 0.4
_SURE_LIMIT = 1.0
_POINT_SCORES_LIMIT = 0.35


@dataclass(frozen=True)
class OutputDifference:
    """What a comparison came to.

    Attributes:
        problem: why the output is not the reference's, "" if it is.
        error: root mean square of the differences as a share of the reference's spread; None where it has
            no spread, or numbers are not finite.
    """

    problem: str
    error: float | None


def compare(
    kind: Kind, output: Values, reference: Values, labels: Sequence[str], *, name: str
) -> OutputDifference:
    """Compare an output with the reference's.

    Args:
        kind: not ``DETECTIONS``, which are not numbers but objects.
        labels: names of the classes, for scores.
        name: the reference's name, for the words.
    """
    if not np.all(np.isfinite(output.real)):
        return OutputDifference("holds numbers that are not finite", None)
    if kind is Kind.INDICES:
        return OutputDifference(compare_indices(output, reference, name), None)
    error = relative_error(output, reference)
    if kind is Kind.SCORES:
        problem = _scores(output, reference, labels, name)
    elif kind is Kind.KEY_POINTS:
        problem = _key_points(output, reference, name)
    elif kind is Kind.VECTOR or output.real.size <= _LEAST_VALUES_OF_PART:
        problem = _list(output, reference, name)
    else:
        problem = _whole(output, reference, name, _WHOLE_LIMIT) or _parts(output, reference, name)
    return OutputDifference(problem, error)


def named(index: int, labels: Sequence[str]) -> str:
    """Return a class as people read it."""
    return f"{index} {labels[index]}" if index < len(labels) else str(index)


def best(values: Reals) -> int:
    """Return the best class; of equal ones the one with the highest index, as label_image prints it."""
    return int(values.size - 1 - np.argmax(values.ravel()[::-1]))


def top_differs(output: Reals, reference: Reals, *, step: float) -> bool:
    """Whether one of the two clearly prefers its own best classes to the other's best.

    Classes with equal scores are equally good, on either side. Scores within two steps, or within a
    tenth, or half of a best score below that, are nearly equal.
    """
    mine, theirs = output == output.max(), reference == reference.max()
    if np.any(mine & theirs):
        return False
    return _prefers(reference, theirs, mine, step) or _prefers(output, mine, theirs, step)


def _prefers(values: Reals, own: NDArray[np.bool_], other: NDArray[np.bool_], step: float) -> bool:
    top = float(values[own][0])
    spread = top if values.min() >= 0 and top <= 1 else float(np.ptp(values))
    slack = max(2 * step, min(MAX_ABS_DIFF * max(spread, 1.0), _NEARLY_BEST * spread))
    return top - float(values[other].max()) > slack + 1e-9


def _scores(output: Values, reference: Values, labels: Sequence[str], name: str) -> str:
    values, expected = output.real.ravel(), reference.real.ravel()
    if top_differs(values, expected, step=reference.step):
        return f"top class is {named(best(values), labels)}, {name} says {named(best(expected), labels)}"
    if expected.min() >= 0 and expected.max() <= 1:
        values, expected = _as_shown(output), _as_shown(reference)
        difference = float(np.max(np.abs(values - expected)))
        if difference > max(MAX_ABS_DIFF, 2 * reference.step):
            return f"differs from {name} by up to {difference:.3f}, allowed are {MAX_ABS_DIFF}"
        if expected.size < _LEAST_VALUES_OF_PART and _few_scores_agree(output, reference):
            return ""
        return _whole(output, reference, name, _SCORES_LIMIT)
    return _list(output, reference, name)


def _few_scores_agree(output: Values, reference: Values) -> bool:
    """Whether each of a few probabilities is off by no more than nearly right raw scores explain."""
    likely = np.clip(reference.real, 0.0, 1.0)
    explained = _RAW_SCORE * likely * (1 - likely)
    return bool(np.all(_errors(output, reference) <= explained))


def _as_shown(values: Values) -> Reals:
    """Probabilities of bytes as label_image shows them, in 255ths."""
    if values.raw.dtype == np.uint8:
        return np.asarray(values.raw.ravel() / 255.0, np.float64)
    return values.real.ravel()


def relative_error(output: Values, reference: Values) -> float | None:
    """Root mean square of the differences as a share of the reference's spread; None if it has none."""
    spread = float(reference.real.std())
    if not spread:
        return None
    return float(np.sqrt(np.mean((output.real - reference.real) ** 2))) / spread


def _errors(output: Values, reference: Values) -> Reals:
    """Absolute differences, less the steps that count as none."""
    apart: Reals = np.abs(output.real - reference.real)
    return np.maximum(apart - _STEPS * reference.step, np.float64(0))


def _whole(output: Values, reference: Values, name: str, limit: float) -> str:
    share = float(_shares(_errors(output, reference), reference, ()))
    if share <= limit:
        return ""
    return f"{_counted(output, reference, name)}; the error is {_share(share)}, allowed are {limit}"


def _parts(output: Values, reference: Values, name: str) -> str:
    """Look at each channel (and row, column) by itself: one that is wrong is lost among many."""
    errors = _errors(output, reference)
    for axis in part_axes(reference.real.shape):
        others = tuple(each for each in range(errors.ndim) if each != axis)
        off = np.count_nonzero(errors, axis=others)
        few = max(_FEW_VALUES, _FEW_VALUES_SHARE * errors.size / errors.shape[axis])
        shares = np.where(off > few, _shares(errors, reference, others, parts=True), 0.0)
        worst = int(np.argmax(shares))
        dead = _dead(output, reference, others)
        if dead.size:
            return f"part {dead[0]} of {len(shares)} along axis {axis} is all the same, {name}'s is not"
        if shares[worst] > _PART_LIMIT:
            count = int(np.count_nonzero(shares > _PART_LIMIT))
            more = f" and {count - 1} more" if count > 1 else ""
            return (
                f"part {worst}{more} of {len(shares)} along axis {axis} is not {name}'s: the error is "
                f"{_share(float(shares[worst]))}, allowed are {_PART_LIMIT}"
            )
    return ""


def _dead(output: Values, reference: Values, others: tuple[int, ...]) -> NDArray[np.intp]:
    """Return which parts are constant and should not be; of quantised numbers they may well be."""
    if reference.step:
        return np.zeros(0, np.intp)
    alive = np.ptp(reference.real, axis=others) > _ALIVE
    return np.flatnonzero(alive & (np.ptp(output.real, axis=others) == 0))


def part_axes(shape: Sequence[int]) -> list[int]:
    """Return the axes along which parts are compared: channels, and rows and columns of maps.

    Of two axes only the shorter one counts channels; the longer one counts places, each with all channels.
    """
    axes = [axis for axis, size in enumerate(shape) if size > 1]
    if len(axes) == 2:
        axes = [min(axes, key=lambda axis: (shape[axis], -axis))]
    return [axis for axis in axes if math.prod(shape) // shape[axis] >= _LEAST_VALUES_OF_PART]


def _shares(
    errors: Reals, reference: Values, others: tuple[int, ...], *, parts: bool = False
) -> NDArray[np.float64]:
    """Root mean square of errors as shares of the reference's spread, over axes (``()`` is all of them)."""
    over = others or None
    real = reference.real
    least = np.maximum(
        _LEAST_SPREAD_STEPS * reference.step, _LEAST_SPREAD * float(np.abs(real).max(initial=0.0))
    )
    least = np.maximum(
        least, 0.0 if reference.step else _LEAST_OF_MEAN * np.abs(real.mean(axis=over))
    )
    spread = real.std(axis=over)
    if parts and spread.size > _OTHERS:
        least = np.maximum(least, _LEAST_OF_OTHERS * np.sort(spread)[-_OTHERS])
    spread = np.maximum(spread, np.maximum(least, _TINY))
    return np.asarray(np.sqrt(np.mean(errors**2, axis=over)) / spread, np.float64)


def _list(output: Values, reference: Values, name: str) -> str:
    """Compare a list of numbers, also a short one, of which spreads say little."""
    values, right = output.real.ravel(), reference.real.ravel()
    errors = _errors(output, reference).ravel()
    level = float(np.sqrt(np.mean(right**2)))
    least = max(_LEAST_SPREAD_STEPS * reference.step, _TINY)
    spread = max(float(right.std()), least)
    if right.size < _LEAST_VALUES_OF_PART:
        spread = max(spread, _WHOLE_LIMIT * level)
    share = float(np.sqrt(np.mean(errors**2))) / spread
    if share > _WHOLE_LIMIT:
        counted = _counted(output, reference, name)
        return f"{counted}; the error is {_share(share)}, allowed are {_WHOLE_LIMIT}"
    worst = int(np.argmax(errors))
    rest = float(np.sqrt(np.mean(np.delete(errors, worst) ** 2))) if errors.size > 1 else 0.0
    alone = max(_ALONE * rest, _ALONE_SPREAD * spread, _ALONE_STEPS * reference.step)
    if errors.size >= _LEAST_VALUES_OF_PART and errors[worst] > alone:
        return f"value {worst} is {values[worst]:.4g}, {name} has {right[worst]:.4g}; the others are alike"
    return ""


def _key_points(output: Values, reference: Values, name: str) -> str:
    """Compare points: most must be in place, by the pose's own extent, and each that both are sure of.

    The score of a single point says little: seen, 0.75 against 0.16 for a point in the same place.
    """
    points, expected = output.real.reshape(-1, 3), reference.real.reshape(-1, 3)
    extent = max(float(np.sqrt(expected[:, :2].var(axis=0).sum())), 1e-6)
    apart = np.hypot(*(points[:, :2] - expected[:, :2]).T) / extent
    middle = float(np.median(apart))
    if middle > _POINTS_LIMIT:
        return (
            f"half of the {len(apart)} points are off by {middle:.2f} or more of the pose's extent, "
            f"allowed are {_POINTS_LIMIT}"
        )
    sure = (points[:, 2] >= _SURE_POINT) & (expected[:, 2] >= _SURE_POINT)
    if np.any(apart[sure] > _SURE_LIMIT):
        place = int(np.argmax(np.where(sure, apart, -1)))
        return f"point {place} is off by {apart[place]:.2f} of the pose's extent, and both are sure of it"
    scores = float(np.mean(np.abs(points[:, 2] - expected[:, 2])))
    if scores > _POINT_SCORES_LIMIT:
        return f"the points' scores differ from {name}'s by {scores:.2f} on average"
    if _repeated(points) > _repeated(expected) + 2:
        return f"{_repeated(points)} of {len(points)} points are in a place that another one has"
    for column in range(3):
        if np.ptp(points[:, column]) == 0 and np.ptp(expected[:, column]) > 0:
            return f"column {column} of all points is {points[0, column]:g}"
    return ""


def _repeated(points: Reals) -> int:
    """How many points lie exactly where another one does."""
    return len(points) - len(np.unique(points[:, :2], axis=0))


def _counted(output: Values, reference: Values, name: str) -> str:
    differ = int(np.count_nonzero(output.raw != reference.raw))
    largest = float(np.max(np.abs(output.real - reference.real)))
    by = f"{largest / reference.step:.0f} steps" if reference.step else f"{largest:.4g}"
    return f"{differ} of {output.raw.size} values differ from {name}'s, by up to {by}"


def _share(share: float) -> str:
    return f"{share:.2f} of the spread" if share < 1000 else "far beyond the spread"
