# SPDX-License-Identifier: MIT
"""Agreement over a set of inputs: the views, the figures, and the small model on this machine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bsp.base.errors import UserError
from userspace.npu.model import tiny_model
from userspace.npu.validate import label_image
from userspace.npu.validate.judge import accuracy
from userspace.npu.validate.judge.kinds import Kind
from userspace.npu.validate.judge.outputs import Reference
from userspace.npu.validate.judge.values import Values
from userspace.npu.validate.judge.verdict import find_reference
from userspace.npu.validate.label_image import SmokeTestRequest
from userspace.npu.validate.machine import ThisMachine
from userspace.npu.validate.onboard.bmp import Picture, picture_of
from userspace.npu.validate.onboard.preprocess import views


def one_hot(index: int, lead: float = 0.9) -> Any:
    scores = np.full(4, 0.01)
    scores[index] = lead
    return scores


def test_views_are_fixed_crops_and_flips() -> None:
    pixels = np.arange(40 * 24 * 3, dtype=np.int64).astype(np.uint8).reshape(40, 24, 3)
    found = [view.pixels() for view in views(picture_of(pixels))]
    assert len(found) == 8
    assert [view.shape[:2] for view in found[:3]] == [(40, 24), (30, 18), (35, 21)]
    assert np.array_equal(found[0][:, ::-1], pixels)
    assert np.array_equal(found[1], pixels[5:35, 3:21])
    assert np.array_equal(found[5], pixels[5:, 3:])
    assert np.array_equal(found[6], found[1][:, ::-1])
    assert np.array_equal(found[7], found[2][:, ::-1])
    small = views(picture_of(pixels[:1, :1]))
    assert {view.pixels().shape for view in small} == {(1, 1, 3)}


def test_a_view_is_not_made_before_it_is_used() -> None:
    def rows(_: object) -> Any:
        raise AssertionError("rows were decoded")

    assert len(views(Picture(30000, 30000, rows))) == 8


def values(scores: Any) -> Values:
    return Values(scores, scores, 0.0)


def reference_with(kind: Kind) -> Reference:
    first = values(one_hot(0))
    return Reference("cpu-reference", ({},), (first,), (kind,), (), ())


def test_agreement() -> None:
    nearly = np.array([0.01, 0.04, 0.05, 0.01])
    wanted = [values(each) for each in (one_hot(0), one_hot(1), nearly, one_hot(3))]
    # One fewer: it ran out of time. The third is another class, but not by much.
    found = [values(each) for each in (one_hot(0), one_hot(2), nearly[[0, 2, 1, 3]])]
    figures = accuracy.agreement(found, wanted, reference_with(Kind.SCORES))
    assert figures == {"inputs": 3, "same": 1, "top1": 0.3333, "clear": 1, "others": 0}
    assert "another top class than the reference on 1 of 3" in accuracy.problem(figures)
    assert accuracy.agreement([], wanted, reference_with(Kind.SCORES)) is None
    assert accuracy.problem(None) == ""
    itself = accuracy.agreement(wanted, wanted, reference_with(Kind.SCORES))
    assert accuracy.problem(itself) == ""


def test_what_is_no_class_is_compared_by_its_own_measure() -> None:
    rng = np.random.default_rng(2)
    maps = [values(rng.normal(size=(1, 8, 8, 4))) for _ in range(4)]
    near = [values(each.real + rng.normal(size=each.real.shape) / 50) for each in maps]
    reference = reference_with(Kind.VALUES)
    assert accuracy.agreement(near, maps, reference) == {
        "inputs": 4, "same": 4, "top1": 1.0, "clear": 0, "others": 0,
    }  # fmt: skip
    moved = accuracy.agreement(maps[1:] + maps[:1], maps, reference)
    assert moved is not None
    assert moved["clear"] == 4
    assert "unlike the reference on 4 of 4" in accuracy.problem(moved, by_class=False)
    exact = accuracy.agreement([near[0], *maps[1:]], maps, reference, exact=True)
    assert exact is not None
    assert exact["clear"] == 1
    assert "not exactly" in accuracy.problem(exact, exact=True)


def test_scores_of_another_picture_are_seen_though_the_class_is_the_same() -> None:
    """One picture's crops are mostly of one class: a delegate that is a run late passed."""
    rng = np.random.default_rng(4)
    wanted = [values(one_hot(0, lead)) for lead in (0.4, 0.95, 0.6, 0.8)]
    reference = reference_with(Kind.SCORES)  # 0.9 on the picture itself
    first = reference.outputs[0]
    for late in ([first, *wanted[:-1]], [first] * 4):
        figures = accuracy.agreement(late, wanted, reference)
        assert figures is not None
        assert figures["others"] >= 2
        assert "not computed from the input of their run" in accuracy.problem(figures)
    near = [values(np.clip(each.real + rng.normal(size=4) / 40, 0, 1)) for each in wanted]
    figures = accuracy.agreement(near, wanted, reference)
    assert figures is not None
    assert (figures["same"], figures["clear"], figures["others"]) == (4, 0, 0)


def test_another_number_of_values_is_another_answer() -> None:
    """They were passed over, so that a row was right on what was left."""
    for kind, exact in ((Kind.SCORES, False), (Kind.VALUES, False), (Kind.VALUES, True)):
        found, wanted = values(one_hot(0)[:3]), values(one_hot(0))
        figures = accuracy.agreement([found], [wanted], reference_with(kind), exact=exact)
        assert figures is not None
        assert (figures["inputs"], figures["clear"]) == (1, 1), (kind, exact)


def test_a_row_that_is_right_on_one_picture_alone_fails() -> None:
    import base64
    import zlib

    def packed(index: int) -> str:
        scores = (one_hot(index) * 255).astype(np.uint8)
        return base64.b64encode(zlib.compress(scores.tobytes())).decode()

    def row(name: str, classes: list[int]) -> Any:
        output = {"dtype": "uint8", "shape": [1, 4], "scale": 1 / 256, "zero_point": 0}
        output |= {"data": packed(classes[0])}
        return {"delegate": name, "output": output, "views": [*map(packed, classes)]}

    facts: Any = {"results": [row("cpu-reference", [0, 1, 2, 3]), row("x", [0, 0, 0, 0])]}
    results: Any = [
        {"delegate": name, "status": "pass", "reason": ""} for name in ("cpu-reference", "x")
    ]
    accuracy.add(facts, results, find_reference(facts, (), "abcd"))
    assert results[0] == {"delegate": "cpu-reference", "status": "pass", "reason": ""}
    assert results[1]["status"] == "fail"
    assert "unlike the reference on 3 of 4 crops" in results[1]["reason"]
    assert "not computed from the input of their run" in results[1]["reason"]


def test_the_small_model_agrees_with_itself() -> None:
    request = SmokeTestRequest(delegate="cpu", model=tiny_model.NAME, runs=1, views=3)
    document = label_image.smoke_test(ThisMachine(), request)
    row = next(row for row in document["results"] if row["delegate"] == "cpu")
    assert row["status"] == "pass", row["reason"]
    assert row["agreement"] == {"inputs": 3, "same": 3, "top1": 1.0, "clear": 0, "others": 0}


def test_how_many_views_is_no_negative_number() -> None:
    with pytest.raises(UserError, match="--views is -1"):
        SmokeTestRequest(views=-1)
