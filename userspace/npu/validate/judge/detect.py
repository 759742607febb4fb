# SPDX-License-Identifier: MIT
"""The detect smoke test: does a delegate find the same objects in the same places as the CPU?

The rules of label_image judge each class's best score, as a detector gives it for the whole picture. On top
come the boxes, and a look at every output: SSD models were reported to give zeros through delegates
whose jobs had all succeeded. Pure, but for what it writes into the runner's document.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence

import numpy as np

from bsp.base.errors import UserError

from ..delegates import REFERENCE
from ..records import OutputRecord, RowResult, RunnerDocument
from .detections import (
    THRESHOLD,
    Detection,
    arrangement,
    class_scores,
    detections,
    differences,
    is_detector,
    values_of,
)
from .outputs import records_of
from .values import lifeless

NAME = "detect"
_SHOWN = 10
# Classes of a model whose labels are not known.
_CLASSES = 91


def read(facts: RunnerDocument, labels: Sequence[str]) -> list[tuple[list[Detection], str]]:
    """Read each row's objects, and put the classes' best scores beside its outputs, as ``answer``.

    Returns:
        For each row: its objects, and what is wrong with its outputs ("" if nothing).

    Raises:
        UserError: the model is not a detector that is known.
    """
    objects_of_rows: list[tuple[list[Detection], str]] = []
    # What is which is the same in all rows; the reference's values can be relied on.
    rows = sorted(facts["results"], key=lambda row: row["delegate"] != REFERENCE)
    order = next((arrangement(records_of(row)) for row in rows if "output" in row), None)
    # What is not finite or all the same in the reference, rows need not have otherwise.
    own = records_of(rows[0]) if rows and rows[0]["delegate"] == REFERENCE else []
    lacking = [number for number, output in enumerate(own) if _not_finite(output)]
    same = [number for number, output in enumerate(own) if lifeless(output)]
    for row in facts["results"]:
        if "output" not in row:
            objects_of_rows.append(([], ""))
            continue
        outputs = records_of(row)
        objects = detections(outputs, order)
        if objects is None:
            raise not_known([tuple(output["shape"]) for output in outputs])
        # All may be of one class, of which there may be one.
        judged = range(len(outputs)) if order is None else (order.boxes, order.scores)
        dead = [
            lifeless(outputs[number])
            for number in judged
            if max(outputs[number]["shape"], default=0) > 1 and number not in same
        ]
        dead += [
            _not_finite(output) for number, output in enumerate(outputs) if number not in lacking
        ]
        objects = [each for each in objects if each.score >= THRESHOLD]
        objects_of_rows.append((objects, next(filter(None, dead), "")))
        scores = class_scores(objects, max(len(labels), 2) if labels else _CLASSES)
        row["answer"] = {
            "shape": [len(scores)],
            "dtype": "float32",
            "scale": 0.0,
            "zero_point": 0,
            "data": base64.b64encode(zlib.compress(scores.tobytes())).decode(),
        }
    return objects_of_rows


def proves_nothing(facts: RunnerDocument) -> str:
    """Say why this picture tells nothing of a machine, "" if it does: the reference's scores are all alike.

    As where nothing is found at all: a delegate that gives zeros cannot be told from one that is right.
    """
    row = next((row for row in facts["results"] if row["delegate"] == REFERENCE), None)
    order = arrangement(records_of(row)) if row and "output" in row else None
    dead = lifeless(records_of(row)[order.scores]) if row and order else ""
    return dead.replace("the output", "the list of scores")


def _not_finite(output: OutputRecord) -> str:
    finite = np.all(np.isfinite(values_of(output)))
    return "" if finite else "the output holds numbers that are not finite"


def check(shapes: Sequence[tuple[int, ...]]) -> None:
    """Raise a UserError where outputs of these shapes are no known detector's: before anything runs."""
    if not is_detector(shapes):
        raise not_known(shapes)


def not_known(shapes: Sequence[tuple[int, ...]]) -> UserError:
    """Return the error of a model whose outputs have these shapes."""
    texts = ["x".join(map(str, shape)) or "one number" for shape in shapes]
    return UserError(
        f"the model's outputs ({', '.join(texts)}) are not those of a detector that is known: boxes, "
        "classes, scores and count",
        hint="./inv smoke-test label_image --model FILE runs classifiers",
    )


def add(
    objects_of_rows: Sequence[tuple[list[Detection], str]],
    results: list[RowResult],
    labels: Sequence[str],
    *,
    tolerance: float,
) -> None:
    """Put ``detections`` into each result; one whose boxes are not the reference's fails."""
    reference = next(
        (
            objects
            for (objects, _), result in zip(objects_of_rows, results, strict=True)
            if result["delegate"] == REFERENCE
        ),
        [],
    )
    for (objects, dead), result in zip(objects_of_rows, results, strict=True):
        if result["latency_ms"] is None:
            continue
        result["detections"] = [
            {
                "index": each.index,
                "score": each.score,
                "box": each.box,
                "label": labels[each.index] if each.index < len(labels) else "",
            }
            for each in objects[:_SHOWN]
        ]
        problems = [f"one of the outputs: {dead}"] if dead else []
        if result["delegate"] != REFERENCE:
            problems += differences(objects, reference, tolerance=tolerance)[:3]
        problems = [each for each in problems if each not in result["reason"]]
        if problems:
            result["status"] = "fail"
            result["reason"] = "; ".join(filter(None, [result["reason"], *problems]))
