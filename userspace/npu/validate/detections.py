# SPDX-License-Identifier: MIT
"""From a detector's outputs to boxes, and how far two rows' boxes agree. Pure.

Two forms are read: what ``TFLite_Detection_PostProcess`` gives (TensorFlow
``tensorflow/lite/kernels/detection_postprocess.cc``: boxes as top, left, bottom, right; classes; scores;
count), and the two heads of the project's own small detector.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..model import tiny_detector

THRESHOLD = 0.5
SAME_PLACE = 0.5
"""Intersection over union from which two boxes are the same object."""


@dataclass(frozen=True)
class Detection:
    """An object: class, score 0..1, box as shares of the picture (top, left, bottom, right)."""

    index: int
    score: float
    box: tuple[float, float, float, float]


def values_of(output: dict[str, Any]) -> NDArray[np.float64]:
    """Return a runner's output record as real numbers, in its shape."""
    raw = np.frombuffer(zlib.decompress(base64.b64decode(output["data"])), output["dtype"])
    values = raw.astype(np.float64)
    if output["scale"]:
        values = (values - output["zero_point"]) * output["scale"]
    return values.reshape(output["shape"])


def detections(outputs: Sequence[dict[str, Any]]) -> list[Detection] | None:
    """Return the objects of a row, best first; None if these are not the outputs of a known detector."""
    shapes = [tuple(output["shape"]) for output in outputs]
    if len(shapes) == 4 and len(shapes[0]) == 3 and shapes[0][2] == 4:
        boxes, classes, scores, count = (values_of(output) for output in outputs)
        found = [
            Detection(
                # The model counts classes without the background.
                int(classes[0, place]) + 1,
                float(scores[0, place]),
                tuple(float(value) for value in boxes[0, place]),  # type: ignore[arg-type]
            )
            for place in range(min(int(count.ravel()[0]), boxes.shape[1]))
        ]
        return sorted(found, key=lambda each: -each.score)
    anchors = tiny_detector.GRID**2
    if shapes == [(1, anchors, 4), (1, anchors, len(tiny_detector.LABELS))]:
        return _from_heads(*(values_of(output)[0] for output in outputs))
    return None


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
    found: Sequence[Detection], reference: Sequence[Detection], *, tolerance: float
) -> list[str]:
    """Say which objects only one of the two has, or has elsewhere or much surer.

    Objects nearer to the threshold than ``tolerance`` may come and go.
    """
    problems = []
    for ours, others, who in ((found, reference, "only here"), (reference, found, "missing")):
        for each in ours:
            if each.score < THRESHOLD + tolerance:
                continue
            same = [
                other
                for other in others
                if other.index == each.index and overlap(each.box, other.box) >= SAME_PLACE
            ]
            if not any(abs(other.score - each.score) <= tolerance for other in same):
                problems.append(f"class {each.index} ({each.score:.2f}) {who}")
    return problems


def class_scores(found: Sequence[Detection], classes: int) -> NDArray[np.float32]:
    """Return each class's best score: what a detector says of the picture as a whole."""
    scores = np.zeros(classes, np.float32)
    for each in found:
        if each.index < classes:
            scores[each.index] = max(scores[each.index], each.score)
    return scores
