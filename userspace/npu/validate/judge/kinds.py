# SPDX-License-Identifier: MIT
"""What an output is, so that it can be compared by its own measure.

Decided from what the model's file says (``model.sinks``), the labels and the reference's own values, never
from the row that is judged. Only what is certain has a measure of its own; whatever else it may be is
compared number by number. Pure.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence

import numpy as np

from ...model.sinks import Sink
from .values import Values


class Kind(enum.StrEnum):
    """What an output is.

    SCORES: one score a class. VECTOR: one list of numbers of which nothing is known: an embedding, raw
    scores, coordinates. VALUES: any other numbers: maps, heads of detectors. INDICES: whole numbers that
    name something: classes of pixels. KEY_POINTS: rows of y, x (or x, y) and a score. DETECTIONS: one of
    the four outputs of ``TFLite_Detection_PostProcess``.
    """

    SCORES = "scores"
    VECTOR = "vector"
    VALUES = "values"
    INDICES = "indices"
    KEY_POINTS = "key points"
    DETECTIONS = "detections"


_SCORES_OF = ("SOFTMAX", "LOGISTIC")
_INDICES_OF = ("ARG_MAX", "ARG_MIN")
_MOST_POINTS = 512
# Scores that are rounded to steps need not sum to 1: small ones are rounded away.
_SUM_OF_SCORES = (0.9, 1.1)


def kinds_of(outputs: Sequence[Values], sinks: Sequence[Sink], labels: Sequence[str]) -> list[Kind]:
    """Return the kind of each of the reference's outputs.

    Args:
        sinks: the model's; empty where the model's file is not at hand.
        labels: the names of the classes; empty where they are not known.
    """
    group = detection_group([each.raw.shape for each in outputs])
    return [
        Kind.DETECTIONS
        if number in group
        else _kind(values, sinks[number] if number < len(sinks) else None, labels)
        for number, values in enumerate(outputs)
    ]


def detection_group(shapes: Sequence[tuple[int, ...]]) -> range:
    """Return which outputs are boxes, classes, scores and count, by their shapes; empty if none are.

    TensorFlow tensorflow/lite/kernels/detection_postprocess.cc: 1xNx4, twice 1xN, and a single number, one
    after the other; exporters have put them in more than one order.
    """
    for start in range(len(shapes) - 3):
        four = [tuple(shape) for shape in shapes[start : start + 4]]
        boxes = [shape for shape in four if len(shape) == 3 and shape[0] == 1 and shape[2] == 4]
        if len(boxes) != 1:
            continue
        lists = [shape for shape in four if shape == (1, boxes[0][1])]
        single = [shape for shape in four if shape in ((), (1,), (1, 1))]
        if len(lists) == 2 and len(single) == 1:
            return range(start, start + 4)
    return range(0)


def _kind(values: Values, sink: Sink | None, labels: Sequence[str]) -> Kind:
    shape, real = values.raw.shape, values.real
    whole = values.raw.dtype.kind in "iub" and values.raw.dtype.itemsize != 1
    unscaled = values.step == 1.0 and np.array_equal(values.raw, real)
    if values.raw.dtype.kind == "b" or (
        unscaled and (whole or (sink and sink.maker in _INDICES_OF))
    ):
        return Kind.INDICES
    if sink and sink.maker in _SCORES_OF and real.size == 1:
        return Kind.SCORES  # of a classifier that knows one class, and all else
    if is_list(shape):
        if labels and len(labels) == real.size:
            return Kind.SCORES
        if sink:
            return Kind.SCORES if sink.maker in _SCORES_OF else Kind.VECTOR
        summed = _SUM_OF_SCORES[0] <= float(real.sum()) <= _SUM_OF_SCORES[1]
        return Kind.SCORES if summed and float(real.min()) >= 0 else Kind.VECTOR
    return Kind.KEY_POINTS if _are_key_points(values, sink) else Kind.VALUES


def is_list(shape: Sequence[int]) -> bool:
    """Whether a shape is that of one list of two or more numbers: N, 1xN, 1x1x1xN."""
    return math.prod(shape) > 1 and max(shape) == math.prod(shape)


def _are_key_points(values: Values, sink: Sink | None) -> bool:
    """Points that were picked from heat maps (MoveNet): they jump where two places are nearly as hot."""
    shape = values.raw.shape
    if len(shape) < 2 or shape[-1] != 3 or not 3 < values.raw.size // 3 <= _MOST_POINTS:
        return False
    picked = sink.picked if sink else len(shape) == 4 and shape[:2] == (1, 1)
    points = values.real.reshape(-1, 3)
    inside = bool(np.all((points > -0.5) & (points < 1.5)))
    return picked and inside and bool(np.all((points[:, 2] >= 0) & (points[:, 2] <= 1)))
