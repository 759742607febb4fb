# SPDX-License-Identifier: MIT
"""From a detector's outputs to boxes, and how far two rows' boxes agree. Pure.

Two forms are read: what ``TFLite_Detection_PostProcess`` gives (TensorFlow
``tensorflow/lite/kernels/detection_postprocess.cc``: boxes as top, left, bottom, right; classes; scores;
count), in whatever order a converter put them, and the two heads of the project's own small detector.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...model import tiny_detector
from ..records import OutputRecord
from .kinds import detection_group

_POST_PROCESS = "tflite_detection_postprocess:"

THRESHOLD = 0.5
SAME_PLACE = 0.5
"""Intersection over union from which two boxes are the same object."""


@dataclass(frozen=True)
class Detection:
    """An object: class, score 0..1, box as shares of the picture (top, left, bottom, right)."""

    index: int
    score: float
    box: tuple[float, float, float, float]


def values_of(output: OutputRecord) -> NDArray[np.float64]:
    """Return a runner's output record as real numbers, in its shape."""
    raw = np.frombuffer(zlib.decompress(base64.b64decode(output["data"])), output["dtype"])
    values = raw.astype(np.float64)
    if output["scale"]:
        values = (values - output["zero_point"]) * output["scale"]
    return values.reshape(output["shape"])


@dataclass(frozen=True)
class Outputs:
    """Which of a detector's outputs is which: positions among all of them; ``count`` is the objects'."""

    boxes: int
    classes: int
    scores: int
    count: int


def is_detector(shapes: Sequence[tuple[int, ...]]) -> bool:
    """Return whether outputs of these shapes may be a detector's that is known.

    A shape without sizes is one that the model's file does not tell. Behind or before a detector's four
    outputs there may be others, such as the state of a model for videos.
    """
    unknown = len(shapes) >= 4 and () in shapes
    return unknown or _is_tiny(shapes) or _by_shape(shapes) is not None


def arrangement(outputs: Sequence[OutputRecord]) -> Outputs | None:
    """Return which output is which, by shapes, names and values; None if they are no known detector's.

    TensorFlow 1's converter gives boxes, classes, scores, count; TensorFlow 2's gives scores, boxes, count,
    classes. Where names do not tell classes from scores, whole numbers are classes, and where values do not
    tell (nothing was found), the two orders do.
    """
    arranged = _by_shape([tuple(output["shape"]) for output in outputs])
    if arranged is None:
        return None
    boxes, pair, count = arranged
    one, other = pair
    names = [str(outputs[place].get("name", "")).lower() for place in pair]
    for words, first_is_score in ((("score",), True), (("class", "categor", "label"), False)):
        named = [any(word in name for word in words) for name in names]
        if named[0] != named[1]:
            return _ordered(boxes, pair, count, first_is_score=named[0] == first_is_score)
    if all(name.startswith(_POST_PROCESS) for name in names):  # names from which the order is known
        return _ordered(boxes, pair, count, first_is_score=names[0] > names[1])
    whole = [_are_classes(values_of(outputs[place])) for place in pair]
    if whole[0] != whole[1]:
        return _ordered(boxes, pair, count, first_is_score=whole[1])
    return _ordered(boxes, pair, count, first_is_score=one < boxes < other)


def _ordered(boxes: int, pair: tuple[int, int], count: int, *, first_is_score: bool) -> Outputs:
    scores, classes = pair if first_is_score else pair[::-1]
    return Outputs(boxes, classes, scores, count)


def _by_shape(shapes: Sequence[tuple[int, ...]]) -> tuple[int, tuple[int, int], int] | None:
    """Return the positions of the boxes, of two lists as long as they, and of one number."""
    four = range(4) if len(shapes) == 4 else detection_group(shapes)
    boxes = [place for place in four if len(shapes[place]) == 3 and shapes[place][2] == 4]
    if len(boxes) != 1:
        return None
    lists = (1, shapes[boxes[0]][1])
    others = [place for place in four if place != boxes[0]]
    counts = [place for place in others if shapes[place] in ((1,), (), (1, 1))]
    # The shortest, where lists of one object look alike.
    count = min(counts, key=lambda place: len(shapes[place]), default=None)
    pair = [place for place in others if place != count]
    if count is None or shapes[boxes[0]][0] != 1 or any(shapes[place] != lists for place in pair):
        return None
    return boxes[0], (pair[0], pair[1]), count


def _are_classes(values: NDArray[np.float64]) -> bool:
    """Whether values are whole numbers, and not all 0, as scores are where nothing was found."""
    return bool(
        np.all(np.isfinite(values)) and np.all(values == np.round(values)) and np.any(values)
    )


def _is_tiny(shapes: Sequence[tuple[int, ...]]) -> bool:
    anchors = tiny_detector.GRID**2
    return list(shapes) == [(1, anchors, 4), (1, anchors, len(tiny_detector.LABELS))]


def detections(
    outputs: Sequence[OutputRecord], order: Outputs | None = None
) -> list[Detection] | None:
    """Return the objects of a row, best first; None if these are not the outputs of a known detector.

    Args:
        order: which output is which, where another row has told.
    """
    if _is_tiny([tuple(output["shape"]) for output in outputs]):
        return _from_heads(*(values_of(output)[0] for output in outputs))
    order = order or arrangement(outputs)
    if order is None:
        return None
    places = (order.boxes, order.classes, order.scores, order.count)
    boxes, classes, scores, count = (np.nan_to_num(values_of(outputs[place])) for place in places)
    objects = [
        Detection(
            # The model counts classes without the background.
            int(classes[0, place]) + 1,
            float(scores[0, place]),
            tuple(float(value) for value in boxes[0, place]),  # type: ignore[arg-type]
        )
        for place in range(min(max(int(count.ravel()[0]), 0), boxes.shape[1]))
    ]
    return sorted(objects, key=lambda each: -each.score)


def _from_heads(offsets: NDArray[np.float64], scores: NDArray[np.float64]) -> list[Detection]:
    candidates = []
    for place in range(len(offsets)):
        row, column = divmod(place, tiny_detector.GRID)
        y = (row + 0.5) / tiny_detector.GRID + tiny_detector.SHIFT
        x = (column + 0.5) / tiny_detector.GRID + tiny_detector.SHIFT
        y += float(offsets[place, 0]) * tiny_detector.OFFSET
        x += float(offsets[place, 1]) * tiny_detector.OFFSET
        tall = tiny_detector.ANCHOR * float(np.exp(np.clip(offsets[place, 2], -1, 1) * 0.2)) / 2
        wide = tiny_detector.ANCHOR * float(np.exp(np.clip(offsets[place, 3], -1, 1) * 0.2)) / 2
        index = int(np.argmax(scores[place]))
        if index:
            box = (y - tall, x - wide, y + tall, x + wide)
            candidates.append(Detection(index, float(scores[place, index]), box))
    kept: list[Detection] = []
    for each in sorted(candidates, key=lambda each: -each.score):  # greedy non-maximum suppression
        if not any(overlap(each.box, other.box) > 0.2 for other in kept):
            kept.append(each)
    return kept


def overlap(one: tuple[float, ...], two: tuple[float, ...]) -> float:
    """Return the intersection of two boxes over their union."""
    height = min(one[2], two[2]) - max(one[0], two[0])
    width = min(one[3], two[3]) - max(one[1], two[1])
    if height <= 0 or width <= 0:
        return 0.0
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, two))
    return height * width / (areas - height * width)


def differences(
    detections: Sequence[Detection],
    reference: Sequence[Detection],
    *,
    tolerance: float,
    threshold: float = THRESHOLD,
) -> list[str]:
    """Say which objects only one of the two has, or has elsewhere, much surer or once more.

    Objects nearer to the threshold than ``tolerance`` may come and go.
    """
    problems = []
    for objects, others, who in (
        (detections, reference, "only here"),
        (reference, detections, "missing"),
    ):
        sure = [each for each in objects if each.score >= threshold + tolerance]
        same = [
            [place for place, other in enumerate(others) if _is_same(each, other, tolerance)]
            for each in sure
        ]
        alone = _without_partner(same)
        for number, each in enumerate(sure):
            if number in alone:
                again = ", once more than there" if same[number] else ""
                problems.append(f"class {each.index} ({each.score:.2f}) {who}{again}")
    return problems


def _is_same(one: Detection, other: Detection, tolerance: float) -> bool:
    near = abs(one.score - other.score) <= tolerance and one.index == other.index
    return near and overlap(one.box, other.box) >= SAME_PLACE


def _without_partner(choices: Sequence[Sequence[int]]) -> set[int]:
    """Return which have no partner of their own where as many as can be have one (Kuhn's method).

    Args:
        choices: the partners that each may have.
    """
    partners: dict[int, int] = {}

    def finds_one(number: int, asked: set[int]) -> bool:
        for place in choices[number]:
            if place in asked:
                continue
            asked.add(place)
            if place not in partners or finds_one(partners[place], asked):
                partners[place] = number
                return True
        return False

    return {number for number in range(len(choices)) if not finds_one(number, set())}


def class_scores(detections: Sequence[Detection], classes: int) -> NDArray[np.float32]:
    """Return each class's best score: what a detector says of the picture as a whole."""
    scores = np.zeros(classes, np.float32)
    for each in detections:
        if each.index < classes:
            scores[each.index] = max(scores[each.index], each.score)
    return scores
