# SPDX-License-Identifier: MIT
"""The detector's path: the small model on real pictures, and outputs that no working row gives."""

from __future__ import annotations

import base64
import copy
import zlib
from typing import Any

import numpy as np
import pytest

from bsp.base.errors import UserError
from userspace.npu.model import tiny_detector, tiny_model
from userspace.npu.validate import detect, models
from userspace.npu.validate.detections import Detection, detections, differences, overlap
from userspace.npu.validate.label_image import Request, smoke_test
from userspace.npu.validate.machine import ThisMachine

REQUEST = Request(test="detect", delegate="cpu", model=tiny_detector.NAME, runs=1)


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return smoke_test(ThisMachine(), REQUEST)


def truth(y: float, x: float) -> tuple[float, ...]:
    half = tiny_detector.ANCHOR / 2
    return (y - half, x - half, y + half, x + half)


def test_it_finds_what_was_drawn(document: dict[str, Any]) -> None:
    assert (document["test"], document["verdict"]) == ("detect", "pass")
    for row in document["results"]:
        found = {each["label"]: each for each in row["detections"]}
        assert set(found) == {"red", "green", "blue"}
        for kind, y, x in tiny_detector.SAMPLE:
            box = found[tiny_detector.LABELS[kind]]["box"]
            assert overlap(tuple(box), truth(y, x)) > 0.6


def test_the_model_is_the_same_everywhere() -> None:
    assert tiny_detector.build() == tiny_detector.build()
    assert models.squares().sha256 == models.squares().sha256


def test_a_classifier_is_no_detector() -> None:
    facts = {"results": [{"delegate": "cpu", "output": output(np.zeros((1, 10)))}]}
    with pytest.raises(UserError, match="1x10"):
        detect.read(facts, ())
    assert models.choose_detector(tiny_model.NAME, None).model.name == tiny_model.NAME


# --- judged without a runtime


def output(values: Any, dtype: str = "float32") -> dict[str, Any]:
    array = np.asarray(values, dtype)
    data = base64.b64encode(zlib.compress(array.tobytes())).decode()
    return {
        "shape": list(array.shape), "dtype": dtype, "scale": 0.0, "zero_point": 0, "data": data,
    }  # fmt: skip


def ssd(objects: list[Detection]) -> list[dict[str, Any]]:
    """Outputs as TFLite_Detection_PostProcess gives them, with room for four."""
    boxes, classes, scores = np.zeros((1, 4, 4)), np.zeros((1, 4)), np.zeros((1, 4))
    for place, each in enumerate(objects):
        boxes[0, place], classes[0, place], scores[0, place] = each.box, each.index - 1, each.score
    return [output(boxes), output(classes), output(scores), output([float(len(objects))])]


PERSON = Detection(1, 0.875, (0.125, 0.25, 1.0, 0.75))
TIE = Detection(32, 0.75, (0.5, 0.375, 0.75, 0.5))


def test_outputs_of_an_ssd_are_read() -> None:
    assert detections(ssd([TIE, PERSON])) == [PERSON, TIE]
    assert detections([output(np.zeros((1, 1001)))]) is None


def judged(outputs: list[dict[str, Any]], reference: list[dict[str, Any]]) -> dict[str, Any]:
    facts = {
        "results": [
            {"delegate": name, "output": each[0], "other_outputs": each[1:]}
            for name, each in (("cpu-reference", reference), ("x", outputs))
        ]
    }
    facts = copy.deepcopy(facts)
    results: list[dict[str, Any]] = [
        {"delegate": name, "status": "pass", "reason": "", "latency_ms": {}}
        for name in ("cpu-reference", "x")
    ]
    detect.add(detect.read(facts, ()), results, (), tolerance=0.1)
    assert results[0]["status"] == "pass", results[0]
    return results[1]


def test_the_same_objects_pass() -> None:
    row = judged(ssd([PERSON, TIE]), ssd([PERSON, TIE]))
    assert row["status"] == "pass"
    assert [each["index"] for each in row["detections"]] == [1, 32]


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        ([], "all zeros"),
        ([PERSON], "class 32 (0.75) missing"),
        ([PERSON, TIE, Detection(5, 0.9, (0.0, 0.0, 0.2, 0.2))], "class 5 (0.90) only here"),
        ([Detection(1, 0.875, (0.0, 0.0, 0.3, 0.3)), TIE], "class 1 (0.88) only here"),
        ([Detection(1, 0.625, PERSON.box), TIE], "class 1 (0.62) only here"),
    ],
)
def test_other_objects_fail(found: list[Detection], reason: str) -> None:
    row = judged(ssd(found), ssd([PERSON, TIE]))
    assert row["status"] == "fail"
    assert reason in row["reason"]


def test_a_saturated_head_fails() -> None:
    anchors = tiny_detector.GRID**2
    good = [
        output(np.arange(anchors * 4).reshape(1, anchors, 4) % 7, "uint8"),
        output(np.eye(4)[np.arange(anchors) % 4][None] * 200, "uint8"),
    ]
    for each in good:
        each["scale"] = 1 / 256
    bad = [good[0], {**output(np.full((1, anchors, 4), 255), "uint8"), "scale": 1 / 256}]
    row = judged(bad, good)
    assert row["status"] == "fail"
    assert "saturated: all 255" in row["reason"]


def test_objects_at_the_threshold_may_come_and_go() -> None:
    shy = Detection(3, 0.55, (0.0, 0.0, 0.5, 0.5))
    assert differences([shy], [], tolerance=0.1) == []
    assert overlap((0, 0, 1, 1), (0, 0, 1, 0.5)) == 0.5
    assert overlap((0, 0, 1, 1), (1, 1, 2, 2)) == 0.0
