# SPDX-License-Identifier: MIT
"""The detector's path: the small model on real pictures, and outputs that no working row gives."""

from __future__ import annotations

import base64
import copy
import itertools
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bsp.base.errors import UserError
from tests.support.models import inputs as input_models
from userspace.npu.model import tiny_detector, tiny_model
from userspace.npu.validate import models
from userspace.npu.validate.judge import detect
from userspace.npu.validate.judge.detections import (
    Detection,
    arrangement,
    detections,
    differences,
    is_detector,
    overlap,
)
from userspace.npu.validate.label_image import SmokeTestRequest, smoke_test
from userspace.npu.validate.machine import ThisMachine

REQUEST = SmokeTestRequest(test="detect", delegate="cpu", model=tiny_detector.NAME, runs=1)


@pytest.fixture(scope="module")
def document() -> Any:
    return smoke_test(ThisMachine(), REQUEST)


def truth(y: float, x: float) -> tuple[float, ...]:
    half = tiny_detector.ANCHOR / 2
    return (y - half, x - half, y + half, x + half)


def test_it_finds_what_was_drawn(document: Any) -> None:
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
    facts: Any = {"results": [{"delegate": "cpu", "output": output(np.zeros((1, 10)))}]}
    with pytest.raises(UserError, match="1x10"):
        detect.read(facts, ())
    assert models.choose(tiny_model.NAME, None, detector=True).model.name == tiny_model.NAME


# --- judged without a runtime


def output(values: Any, dtype: str = "float32") -> Any:
    array = np.asarray(values, dtype)
    data = base64.b64encode(zlib.compress(array.tobytes())).decode()
    return {
        "shape": list(array.shape), "dtype": dtype, "scale": 0.0, "zero_point": 0, "data": data,
    }  # fmt: skip


def ssd(objects: list[Detection]) -> list[Any]:
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


BY_NAME = {"boxes": "detection_boxes", "classes": "detection_classes", "scores": "detection_scores",
           "count": "num_detections"}  # fmt: skip
POST_PROCESS = {
    kind: f"TFLite_Detection_PostProcess{suffix}"
    for kind, suffix in (("boxes", ""), ("classes", ":1"), ("scores", ":2"), ("count", ":3"))
}
ORDERS = [list(order) for order in itertools.permutations(("boxes", "classes", "scores", "count"))]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("objects", [[PERSON, TIE], [TIE], []])
def test_outputs_are_read_in_any_order(order: list[str], objects: list[Detection]) -> None:
    """By their values, and by their names where no values tell."""
    plain = dict(zip(("boxes", "classes", "scores", "count"), ssd(objects), strict=True))
    for names in (None, BY_NAME, POST_PROCESS):
        outputs: Any = [{**plain[kind], "name": names[kind] if names else "x"} for kind in order]
        found = arrangement(outputs)
        assert found
        assert [order[found.boxes], order[found.count]] == ["boxes", "count"]
        assert names is None or order[found.scores] == "scores"
        assert detections(outputs) == objects


def test_the_two_known_orders_count_where_nothing_else_tells() -> None:
    empty = dict(zip(("boxes", "classes", "scores", "count"), ssd([]), strict=True))
    for order in (["boxes", "classes", "scores", "count"], ["scores", "boxes", "count", "classes"]):
        found = arrangement([empty[kind] for kind in order])
        assert found
        assert order[found.scores] == "scores"


def test_a_broken_row_is_read_as_the_reference_is() -> None:
    """Its scores are whole numbers, as if they were classes."""
    wrong = ssd([PERSON, TIE])
    wrong[2] = output(np.full((1, 4), 7.0))
    row = judged(wrong, ssd([PERSON, TIE]))
    assert row["status"] == "fail"
    assert "all 7.0" in row["reason"]


def test_objects_of_one_class_are_alive() -> None:
    people = [PERSON, Detection(1, 0.8, TIE.box), Detection(1, 0.7, (0.0, 0.0, 0.2, 0.2)),
              Detection(1, 0.6, (0.7, 0.7, 0.9, 0.9))]  # fmt: skip
    assert judged(ssd(people), ssd(people))["status"] == "pass"


def test_other_outputs_may_stand_around_a_detectors() -> None:
    state = output(np.ones((1, 2, 2, 3)))
    for before, after in (([], [state, state]), ([state], []), ([state], [state])):
        good = [*before, *ssd([PERSON, TIE]), *after]
        row = judged(good, good)
        assert row["status"] == "pass"
        assert [each["index"] for each in row["detections"]] == [1, 32]
        assert judged([*before, *ssd([PERSON]), *after], good)["status"] == "fail"


def test_a_count_that_is_no_number_fails() -> None:
    wrong = [*ssd([PERSON, TIE])[:3], output([np.nan])]
    row = judged(wrong, ssd([PERSON, TIE]))
    assert row["status"] == "fail"
    assert "not finite" in row["reason"]


@pytest.mark.parametrize(
    ("shapes", "known"),
    [
        ([(1, 10), (1, 10, 4), (1,), (1, 10)], True),
        ([(1, 1, 4), (1, 1), (1, 1), (1,)], True),
        ([(), (), (), ()], True),  # the file does not tell
        ([(), (), (), (), (1, 8, 8, 320), (1, 8, 8, 320)], True),  # seen: a state behind them
        ([(1, 8, 8, 320), (1, 10, 4), (1, 10), (1, 10), (1,)], True),
        ([(1, 10, 4), (1, 8, 8, 3), (1, 10), (1, 10), (1,)], False),
        ([(1, 1001)], False),
        ([(1, 10, 4), (1, 10), (1, 20), (1,)], False),
        ([(1, 10, 4), (1, 10), (1, 10)], False),
        ([(2, 10, 4), (1, 10), (1, 10), (1,)], False),
        ([(1, 10, 4), (1, 10, 4), (1, 10), (1,)], False),
    ],
)
def test_which_shapes_are_a_detectors(shapes: list[tuple[int, ...]], known: bool) -> None:
    assert is_detector(shapes) == known


def squares(folder: Path) -> Path:
    path = folder / "squares.bmp"
    path.write_bytes(tiny_detector.sample_bmp())
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("order", "names"),
    [
        (["scores", "boxes", "count", "classes"], None),
        (["count", "classes", "scores", "boxes"], None),
        (["boxes", "classes", "scores", "count"], POST_PROCESS),
    ],
)
def test_a_detector_of_tensorflow_2_runs(
    order: list[str], names: dict[str, str] | None, tmp_path: Path
) -> None:
    path = tmp_path / "detector.tflite"
    path.write_bytes(input_models.detector(order, [names[kind] for kind in order] if names else ()))
    request = SmokeTestRequest(
        test="detect", delegate="cpu", model=str(path), image=str(squares(tmp_path)), runs=1
    )
    document = smoke_test(ThisMachine(), request)
    assert document["verdict"] == "pass", document["results"]
    for row in document["results"]:
        assert [each["index"] for each in row["detections"]] == [1, 2, 3, 1, 2, 3]
        assert row["detections"][0]["score"] == pytest.approx(0.95, abs=0.1)


def test_what_is_no_detector_is_refused_before_it_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "classifier.tflite"
    path.write_bytes(input_models.one_conv(1, 16, 16, 3))
    machine = ThisMachine()

    def never(*_: object, **__: object) -> Any:
        raise AssertionError("it ran")

    monkeypatch.setattr(machine, "run_runner", never)
    with pytest.raises(UserError, match=r"outputs \(1x16x16x4\) are not those of a detector"):
        smoke_test(
            machine, SmokeTestRequest(test="detect", model=str(path), image=str(squares(tmp_path)))
        )


def judged(outputs: list[Any], reference: list[Any]) -> Any:
    facts: Any = {
        "results": [
            {"delegate": name, "output": each[0], "other_outputs": each[1:]}
            for name, each in (("cpu-reference", reference), ("x", outputs))
        ]
    }
    facts = copy.deepcopy(facts)
    results: list[Any] = [
        {"delegate": name, "status": "pass", "reason": "", "latency_ms": {}}
        for name in ("cpu-reference", "x")
    ]
    detect.add(detect.read(facts, ()), results, (), tolerance=0.1)
    assert results[0]["status"] == "pass", results[0]
    return results[1]


def test_objects_that_lie_close_have_each_a_partner() -> None:
    """Two of one class that overlap by more than half, in another order and shifted."""
    one, two = Detection(1, 0.8, (0.0, 0.0, 0.5, 0.4)), Detection(1, 0.78, (0.0, 0.05, 0.5, 0.45))
    between = Detection(1, 0.79, (0.0, 0.025, 0.5, 0.425))
    assert differences([between, one], [one, two], tolerance=0.1) == []
    assert differences([two, between], [one, two], tolerance=0.1) == []
    assert len(differences([one, two, between], [one, two], tolerance=0.1)) == 1
    assert len(differences([one], [one, two], tolerance=0.1)) == 1
    assert differences([], [], tolerance=0.1) == []


def test_the_same_objects_pass() -> None:
    row = judged(ssd([PERSON, TIE]), ssd([PERSON, TIE]))
    assert row["status"] == "pass"
    assert [each["index"] for each in row["detections"]] == [1, 32]


def test_what_is_all_the_same_in_the_reference_blames_no_row() -> None:
    """Nothing was found, as on most pictures: seen of a healthy CPU with a detector of fish."""
    assert judged(ssd([]), ssd([]))["status"] == "pass"
    assert "class 1 (0.88) only here" in judged(ssd([PERSON]), ssd([]))["reason"]
    facts: Any = {
        "results": [
            {"delegate": "cpu-reference", "output": ssd([])[0], "other_outputs": ssd([])[1:]}
        ]
    }
    assert detect.proves_nothing(facts) == "the list of scores is all zeros"


@pytest.mark.slow
def test_a_detector_that_finds_nothing_proves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "detector.tflite"
    path.write_bytes(input_models.detector(["scores", "boxes", "count", "classes"], finds=False))
    request = SmokeTestRequest(
        test="detect",
        delegate="cpu,teflon",
        model=str(path),
        image=str(squares(tmp_path)),
        runs=1,
    )
    with pytest.raises(UserError, match=r"proves nothing .* the list of scores is all 0\.5"):
        smoke_test(ThisMachine(), request)


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        ([], "all zeros"),
        ([PERSON], "class 32 (0.75) missing"),
        ([PERSON, TIE, Detection(5, 0.9, (0.0, 0.0, 0.2, 0.2))], "class 5 (0.90) only here"),
        ([Detection(1, 0.875, (0.0, 0.0, 0.3, 0.3)), TIE], "class 1 (0.88) only here"),
        ([Detection(1, 0.625, PERSON.box), TIE], "class 1 (0.62) only here"),
        ([PERSON, PERSON, TIE], "class 1 (0.88) only here, once more than there"),
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
