# SPDX-License-Identifier: MIT
"""Outputs by their own measure: what rounding does passes, and damage fails, for each kind of output.

``SOUND`` holds outputs as models give them; each is changed as kernels' rounding changes it, and as broken
drivers do.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from userspace.npu.model.sinks import Sink
from userspace.npu.validate.judge.compare import compare, part_axes
from userspace.npu.validate.judge.detections import Detection
from userspace.npu.validate.judge.kinds import Kind, detection_group, kinds_of
from userspace.npu.validate.judge.values import Values, values_of
from userspace.npu.validate.judge.verdict import judge

Array = NDArray[Any]
RNG = np.random.default_rng(11)


def record(values: Array, scale: float = 0.0, zero_point: int = 0) -> Any:
    data = base64.b64encode(zlib.compress(np.ascontiguousarray(values).tobytes())).decode()
    return {
        "shape": list(values.shape), "dtype": values.dtype.name, "scale": scale,
        "zero_point": zero_point, "data": data,
    }  # fmt: skip


def quantised(real: Array, scale: float, zero_point: int, dtype: str = "int8") -> Any:
    limits = np.iinfo(dtype)
    raw = np.clip(np.round(real / scale) + zero_point, limits.min, limits.max)
    return record(raw.astype(dtype), scale, zero_point)


def smooth(shape: tuple[int, ...]) -> Array:
    """A map as convolutions give it: neighbours are alike, channels are not."""
    values = RNG.normal(size=shape)
    for axis in (1, 2):
        values = values + np.roll(values, 1, axis) + np.roll(values, 2, axis)
    return values


def softmax(values: Array) -> Array:
    powers = np.exp(values - values.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def detector_head() -> Array:
    """Four coordinates and 80 scores for each of 1029 places: nearly all scores are 0."""
    head = np.zeros((1, 84, 1029))
    head[0, :4] = RNG.uniform(0, 1, (4, 1029))
    for channel in (0, 5, 27, 60):
        start = int(RNG.integers(0, 1000))
        head[0, 4 + channel, start : start + 20] = RNG.uniform(0.3, 0.9, 20)
    return head


POSE = np.concatenate([RNG.uniform(0.1, 0.9, (17, 2)), RNG.uniform(0.1, 0.8, (17, 1))], axis=1)
CLASSES = np.zeros((1, 64, 64), np.int64)
CLASSES[0, 10:40, 8:50], CLASSES[0, 40:60, 20:30] = 15, 2
VECTOR = Sink("v", "FULLY_CONNECTED", 0.0, picked=False)
SCORES = Sink("s", "SOFTMAX", 0.0, picked=False)
POINTS = Sink("p", "CONCATENATION", 0.0, picked=True)
MAP = Sink("m", "CONV_2D", 0.0, picked=False)
# name -> (the output, what the model's file says of it, what it is)
SOUND: dict[str, tuple[Any, Sink, Kind]] = {
    "sure scores": (
        quantised(softmax(RNG.normal(size=(1, 1001)) + 9 * np.eye(1001)[653]), 1 / 256, -128),
        SCORES, Kind.SCORES,
    ),
    "unsure scores": (
        quantised(softmax(RNG.normal(size=(1, 1001)) * 2), 1 / 256, 0, "uint8"), SCORES, Kind.SCORES,
    ),
    "float scores": (
        record(softmax(RNG.normal(size=(1, 10)) * 3).astype(np.float32)), SCORES, Kind.SCORES,
    ),
    "embedding": (
        quantised(np.maximum(RNG.normal(size=(1, 1, 1, 1024)), 0), 0.0235, 0, "uint8"),
        VECTOR, Kind.VECTOR,
    ),
    "unit vector": (
        record((RNG.normal(size=(1, 128)) / 11.3).astype(np.float32)), VECTOR, Kind.VECTOR,
    ),
    "raw scores": (quantised(RNG.normal(size=(1, 1001)) * 3, 0.09, 60, "uint8"), VECTOR, Kind.VECTOR),
    "map": (quantised(smooth((1, 17, 19, 12)), 0.08, -20), MAP, Kind.VALUES),
    "float map": (record(smooth((1, 33, 33, 21)).astype(np.float32)), MAP, Kind.VALUES),
    "detector's head": (quantised(detector_head(), 1 / 255, -128), MAP, Kind.VALUES),
    "classes of pixels": (record(CLASSES), Sink("c", "ARG_MAX", 0.0, picked=True), Kind.INDICES),
    "key points": (record(POSE[None, None].astype(np.float32)), POINTS, Kind.KEY_POINTS),
}  # fmt: skip


def fresh() -> np.random.Generator:
    """For the tests themselves: the same numbers, whichever tests run before."""
    return np.random.default_rng(5)


def read(name: str) -> tuple[Values, Kind]:
    found, sink, kind = SOUND[name]
    return values_of(found, step=sink.step), kind


def problem(name: str, changed: Array) -> str:
    reference, kind = read(name)
    original = SOUND[name][0]
    found = values_of(record(changed, original["scale"], original["zero_point"]))
    return compare(kind, found, reference, [], name="the reference").problem


def limits(values: Array) -> tuple[Any, Any]:
    if values.dtype.itemsize == 1:
        return np.iinfo(values.dtype).min, np.iinfo(values.dtype).max
    return values.min(), values.max()


def steps_off(values: Array, steps: int) -> Array:
    low, high = limits(values)
    noise = fresh().integers(-steps, steps + 1, values.shape)
    return np.clip(values.astype(np.int64) + noise, low, high).astype(values.dtype)


# --- what each output is


@pytest.mark.parametrize("name", SOUND)
def test_what_an_output_is(name: str) -> None:
    reference, kind = read(name)
    assert kinds_of([reference], [SOUND[name][1]], []) == [kind]


def test_without_the_models_file_only_what_is_plain_has_a_measure_of_its_own() -> None:
    def kind(values: Array, labels: list[str] | None = None) -> Kind:
        return kinds_of([values_of(record(values))], [], labels or [])[0]

    assert kind(softmax(fresh().normal(size=(1, 10)))) is Kind.SCORES  # they sum to 1
    assert kind(fresh().normal(size=(1, 10))) is Kind.VECTOR
    assert kind(fresh().normal(size=(1, 10)), list("0123456789")) is Kind.SCORES
    assert kind(fresh().normal(size=(1, 8, 8, 3))) is Kind.VALUES
    assert kind(np.zeros((1, 4), np.int32)) is Kind.INDICES
    assert kind(POSE[None, None]) is Kind.KEY_POINTS
    assert kind(np.zeros((1, 1, 1, 1), np.float32)) is Kind.VALUES


def test_the_outputs_of_a_detector_in_any_order_and_among_others() -> None:
    assert detection_group([(1, 10, 4), (1, 10), (1, 10), (1,)]) == range(4)
    assert detection_group([(1, 10), (1, 10, 4), (1,), (1, 10)]) == range(4)
    assert detection_group([(1, 8, 8, 3), (1, 40, 4), (1, 40), (1, 40), ()]) == range(1, 5)
    assert detection_group([(1, 10, 4), (1, 10), (1, 9), (1,)]) == range(0)
    assert detection_group([(1, 10, 4), (1, 10)]) == range(0)


# --- what rounding does


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("name", [name for name, each in SOUND.items() if each[0]["scale"]])
def test_a_step_or_two_anywhere_passes(name: str, steps: int) -> None:
    assert problem(name, steps_off(read(name)[0].raw, steps)) == ""


@pytest.mark.parametrize("name", ["float scores", "unit vector", "float map"])
def test_half_precision_passes(name: str) -> None:
    assert problem(name, read(name)[0].raw.astype(np.float16).astype(np.float32)) == ""


def test_noise_that_a_deep_network_makes_of_rounding_passes() -> None:
    for name in ("map", "embedding", "raw scores"):
        values, _ = read(name)
        noise = fresh().normal(size=values.raw.shape) * values.real.std() / values.step / 12
        low, high = limits(values.raw)
        changed = np.clip(np.round(values.raw + noise), low, high).astype(values.raw.dtype)
        assert problem(name, changed) == ""


def test_unsure_scores_may_change_by_a_third() -> None:
    """Seen with TFLite's own kernels: 15 and 20 of 256 for the best class of an unsure picture."""
    scores = np.zeros((1, 1001), np.uint8)
    scores[0, [251, 286, 285, 264, 497]] = [15, 15, 9, 9, 8]
    changed = scores.copy()
    changed[0, [251, 286, 285, 264, 497]] = [14, 20, 8, 10, 9]
    reference = values_of(record(scores, 1 / 256))
    found = values_of(record(changed, 1 / 256))
    assert compare(Kind.SCORES, found, reference, [], name="r").problem == ""
    changed[0, [251, 286, 900]] = [1, 2, 30]
    found = values_of(record(changed, 1 / 256))
    assert "top class is 900" in compare(Kind.SCORES, found, reference, [], name="r").problem


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        ([131, 125], [125, 131], ""),  # five steps from as likely as not
        ([128, 128], [110, 146], ""),
        ([133], [128], ""),  # a classifier that knows one class
        ([77], [60], ""),
        ([160], [128], "by up to 0.125"),
        ([8], [2], "values differ"),  # what is sure is sure
        ([0], [5], "values differ"),
        ([255, 0], [231, 25], ""),
        ([190, 66], [255, 1], "by up to"),
    ],
)
def test_scores_of_one_or_two_classes(ours: list[int], theirs: list[int], said: str) -> None:
    """Their spread is next to nothing where the model is unsure, and a step more than two failed."""
    found, reference = (
        values_of(record(np.array([each], np.uint8), 1 / 256)) for each in (ours, theirs)
    )
    assert kinds_of([reference], [Sink("s", "LOGISTIC", 1 / 256, picked=False)], []) == [
        Kind.SCORES
    ]
    problem_found = compare(Kind.SCORES, found, reference, [], name="r").problem
    assert said in problem_found
    assert bool(said) == bool(problem_found)


def test_a_weak_object_that_one_of_two_sees_passes() -> None:
    changed = read("detector's head")[0].raw.copy()
    changed[0, 70, 500] += 90
    assert problem("detector's head", changed) == ""


def test_the_scores_of_classes_that_no_object_has_may_be_anything_but_gone() -> None:
    """Seen with a YOLOv8 on Arm: classes that score 0.00001 are off by more than they vary."""
    head = detector_head().astype(np.float32)
    weak = slice(70, 80)
    head[0, weak] = fresh().uniform(0, 1e-5, (10, 1029))
    reference = values_of(record(head))

    def said(values: Any) -> str:
        changed = head.copy()
        changed[0, weak] = values
        found = values_of(record(changed))
        return compare(Kind.VALUES, found, reference, [], name="r").problem

    assert said(fresh().uniform(0, 3e-5, (10, 1029))[::-1]) == ""
    assert "is all the same" in said(0)
    assert said(0.5)


def test_the_edges_of_a_segmentation_may_move() -> None:
    changed = CLASSES.copy()
    for row, by in enumerate(fresh().integers(-1, 2, 64)):  # here and there, not all together
        changed[0, row] = np.roll(CLASSES[0, row], by)
    assert 0.9 < (changed == CLASSES).mean() < 1
    assert problem("classes of pixels", changed) == ""


def test_points_that_nobody_is_sure_of_may_jump() -> None:
    """Seen with MoveNet: an ear that left its place, and scores that differ by 0.6 in the same place."""
    changed = POSE.copy()
    changed[[9, 11, 13], :2] = [[0.3, 0.1], [1.0, 0.7], [0.9, 0.8]]
    changed[[9, 11, 13], 2] = 0.1
    changed[2, 2] = 0.15
    changed[:, :2] += fresh().normal(size=(17, 2)) / 50
    assert problem("key points", changed[None, None].astype(np.float32)) == ""


# --- damage


def damaged(values: Array, zero: Any) -> Iterator[tuple[str, Array]]:
    """Outputs that a broken driver gives in place of one."""
    low, high = limits(values)
    yield "all zeros", np.full_like(values, zero)
    yield "all lowest", np.full_like(values, low)
    yield "saturated", np.full_like(values, high)
    yield "in another order", fresh().permutation(values.ravel()).reshape(values.shape)
    if values.dtype.kind == "f":
        yield "one NaN", np.where(np.arange(values.size).reshape(values.shape) == 3, np.nan, values)
        yield (
            "one infinite",
            np.where(np.arange(values.size).reshape(values.shape) == 3, np.inf, values),
        )
    if values.ndim < 3 or values.size < 100:
        return
    yield (
        "the second half zeros",
        np.where(np.arange(values.shape[-1]) >= values.shape[-1] // 2, zero, values),
    )
    if values.ndim == 4 and values.shape[1] > 1:
        batch, height, width, channels = values.shape
        first = values.reshape(batch, channels, height, width)
        yield "channel by channel", np.moveaxis(first, 1, -1)
    for axis in range(1, values.ndim):
        yield f"moved along {axis}", np.roll(values, values.shape[axis] // 3, axis)


def one_part_wrong(values: Array, zero: Any) -> Iterator[tuple[str, Array]]:
    """Outputs with one channel (or row, or column) wrong."""
    high = limits(values)[1]
    for axis in part_axes(values.shape):
        others = tuple(each for each in range(values.ndim) if each != axis)
        spread = values.astype(np.float64).std(axis=others)
        for place in {int(spread.argmax()), int(np.argsort(spread)[-4])}:
            part = [slice(None)] * values.ndim
            part[axis] = slice(place, place + 1)
            other = np.roll(values, 1, axis)[tuple(part)]
            wrong = [("zeros", zero), ("saturated", high)]
            # Neighbouring rows are alike, neighbouring channels are not.
            wrong += [("its neighbour's", other)] if axis == part_axes(values.shape)[-1] else []
            for how, content in wrong:
                changed = values.copy()
                changed[tuple(part)] = content
                yield f"part {place} along {axis} is {how}", changed


@pytest.mark.parametrize("name", SOUND)
def test_damage_fails(name: str) -> None:
    values, _ = read(name)
    zero = values.raw.dtype.type(SOUND[name][0]["zero_point"])
    for how, changed in damaged(values.raw, zero):
        if not np.array_equal(changed, values.raw):
            assert problem(name, changed), how


@pytest.mark.parametrize("name", ["map", "float map", "detector's head"])
def test_one_wrong_channel_fails(name: str) -> None:
    values, _ = read(name)
    zero = values.raw.dtype.type(SOUND[name][0]["zero_point"])
    for how, changed in one_part_wrong(values.raw, zero):
        if not np.array_equal(changed, values.raw):
            assert problem(name, changed), how


@pytest.mark.parametrize("name", ["raw scores", "embedding"])
def test_one_number_of_a_list_that_is_far_off_alone_fails(name: str) -> None:
    values, _ = read(name)
    changed = values.raw.copy()
    changed.ravel()[int(values.real.argmin())] = values.raw.max()
    assert "the others are alike" in problem(name, changed)


def test_damaged_key_points_fail() -> None:
    def said(change: Callable[[Array], None]) -> str:
        changed = POSE.copy()
        change(changed)
        return problem("key points", changed[None, None].astype(np.float32))

    def set_to(rows: Any, columns: Any, value: Any) -> Callable[[Array], None]:
        def change(points: Array) -> None:
            points[rows, columns] = value

        return change

    everything = slice(None)
    assert said(set_to(everything, 0, 0.0))  # no y
    assert said(set_to(everything, 1, 0.5))  # no x
    assert "column 2" in said(set_to(everything, 2, 0.3))
    assert said(set_to(everything, everything, POSE[:, [1, 0, 2]]))  # x and y exchanged
    assert said(set_to(everything, everything, POSE[::-1]))
    assert "are in a place" in said(set_to(slice(9, 17), everything, 0.0))
    sure = int(POSE[:, 2].argmax())
    assert "both are sure" in said(set_to(sure, slice(0, 2), 1 - POSE[sure, :2] + 1.0))


def test_a_class_that_is_gone_fails() -> None:
    assert "class 2" in problem("classes of pixels", np.where(CLASSES == 2, 0, CLASSES))
    assert "only" in problem("classes of pixels", np.where(CLASSES == 15, 3, CLASSES))
    few = values_of(record(np.array([3, 5], np.int32)))
    other = values_of(record(np.array([3, 6], np.int32)))
    assert "number 1 is 6" in compare(Kind.INDICES, other, few, [], name="r").problem
    assert compare(Kind.INDICES, few, few, [], name="r").problem == ""


def _scored(scores: Array) -> tuple[Values, Callable[[Array], str]]:
    """An index map with the scores that it was picked from, and what is said of another one."""
    step = 0.02 * scores.std()
    short = np.minimum(np.ceil((scores.max(-1, keepdims=True) - scores) / step), 255)
    data = record(short.astype(np.uint8))["data"]
    sent = {"classes": scores.shape[-1], "unit": 0.02, "data": data}
    classes = scores.argmax(-1)[None]
    reference = values_of(record(classes) | {"short": sent})

    def said(changed: Array) -> str:
        return compare(
            Kind.INDICES, values_of(record(changed.astype(np.int64))), reference, [], name="r"
        ).problem

    return reference, said


def test_of_two_classes_that_are_nearly_as_good_either_is_right() -> None:
    """Most of DeepLab's pixels change their class on a grey picture, from one healthy CPU to another."""
    rng = fresh()
    scores = rng.normal(size=(1, 1, 5)) * 4 + rng.normal(size=(64, 64, 5)) * 0.1
    scores[..., 3] = scores[..., 1] + rng.normal(size=(64, 64)) * 0.1
    scores[..., [1, 3]] += 20  # these two are the best everywhere
    reference, said = _scored(scores)
    other = (scores + rng.normal(size=scores.shape) * 0.1).argmax(-1)[None]
    assert np.mean(other == reference.raw) < 0.8
    assert said(other) == ""
    assert "worse by" in said(np.where(other == 1, 0, other))
    assert "worse by" in said(np.zeros_like(other))
    # Of one class alone: what is picked elsewhere shows whether it was computed.
    scores[..., 1] += 5
    reference, said = _scored(scores)
    assert len(np.unique(reference.raw)) == 1
    assert said(reference.raw) == ""
    assert "worse by" in said(np.zeros_like(other))


def test_damage_to_an_index_map_is_seen_by_its_scores() -> None:
    rng = fresh()
    scores = np.moveaxis(smooth((1, 6, 64, 64))[0], 0, -1) + rng.normal(size=(64, 64, 6)) * 0.01
    reference, said = _scored(scores)
    right = reference.raw
    assert said((scores + rng.normal(size=scores.shape) * 0.03).argmax(-1)[None]) == ""
    row, column = right.copy(), right.copy()
    row[0, 20] = scores[20].argmin(-1)
    column[0, :, 7] = scores[:, 7].argmin(-1)
    assert "part 20 of 64 along axis 1" in said(row)
    assert "part 7 of 64 along axis 2" in said(column)
    for damaged in (
        np.zeros_like(right),
        (right + 1) % 6,
        np.swapaxes(right, 1, 2),
        right[:, ::-1],
    ):
        assert "worse by" in said(damaged)
    gone = np.where(right == 2, (scores + 99 * (np.arange(6) == 4)).argmax(-1)[None], right)
    assert "where r says class 2" in said(gone) or "worse by" in said(gone)
    strange = right.copy()
    strange[0, 3, 5] = 6
    assert said(strange) == f"number {3 * 64 + 5} is 6, and there are 6 classes"
    # Without the scores, as older runners send it, a share of the pixels decides.
    assert (
        "only"
        in compare(
            Kind.INDICES, values_of(record((right + 1) % 6)), values_of(record(right)), [], name="r"
        ).problem
    )


def _enlarged(scores: Array, side: int, *, middles: bool = False) -> Array:
    """Scores between their places as RESIZE_BILINEAR gives them: with corners, or with pixels' middles."""
    for axis in (0, 1):
        count = scores.shape[axis]
        places = np.arange(side) * (count - 1) / (side - 1)
        if middles:
            places = np.clip((np.arange(side) + 0.5) * count / side - 0.5, 0, count - 1)
        before = np.minimum(places.astype(int), count - 2)
        part = (places - before).reshape([-1 if each == axis else 1 for each in range(3)])
        scores = scores.take(before, axis) * (1 - part) + scores.take(before + 1, axis) * part
    return scores


@pytest.mark.parametrize("scored", [True, False])
def test_a_map_that_is_moved_by_some_pixels_fails(scored: bool) -> None:
    """It is right nearly everywhere, its scores are nearly as good; rounding moves no map as a whole."""
    rng = fresh()
    small = np.moveaxis(smooth((1, 4, 16, 16))[0], 0, -1)
    small /= small.std()
    scores = _enlarged(small, 160)
    reference, said = _scored(scores)
    if not scored:
        reference = values_of(record(reference.raw))

        def said(changed: Array) -> str:
            return compare(
                Kind.INDICES, values_of(record(changed)), reference, [], name="r"
            ).problem

    for noise in (0.02, 0.05, 0.1) if scored else (0.02, 0.05):
        for _ in range(3):
            rounded = small + rng.normal(0, noise, small.shape)
            assert said(_enlarged(rounded, 160).argmax(-1)[None]) == ""
    rounded = _enlarged(small + rng.normal(0, 0.02, small.shape), 160).argmax(-1)[None]
    around = np.pad(rounded, ((0, 0), (4, 4), (4, 4)), mode="edge")
    for down, right in ((0, 1), (2, 0), (-1, 1), (1, -2)):
        moved = around[:, 4 - down : 164 - down, 4 - right : 164 - right]
        words = said(moved)
        few = not scored and "at least 90% have to be" in words
        assert few or f"moved by {down} rows and {right} columns" in words
    if scored:
        assert "quarters are r's" in said(_enlarged(small, 160, middles=True).argmax(-1)[None])


@pytest.mark.parametrize("way", [(0, 1), (-1, 0), (1, 1), (2, -2)])
def test_a_map_that_is_moved_beneath_noise_fails(way: tuple[int, int]) -> None:
    rng = fresh()
    small = np.moveaxis(smooth((1, 4, 33, 33))[0], 0, -1)
    small /= small.std()
    _, said = _scored(_enlarged(small, 257))
    for noise in (0.05, 0.1):
        # Noise, and classes that grow on all their sides.
        grown = small + rng.normal(0, noise, small.shape) + noise * np.array([1, -1, 0.5, 0])
        map_ = _enlarged(grown, 257).argmax(-1)[None]
        assert said(map_) == ""
        around = np.pad(map_, ((0, 0), (4, 4), (4, 4)), mode="edge")
        down, right = way
        words = said(around[:, 4 - down : 261 - down, 4 - right : 261 - right])
        assert "r's, moved" in words
        assert ("to the left" in words) == (right < 0) or "columns" in words


def test_a_horizon_may_sink_by_rounding() -> None:
    """One outline alone does not tell growing from moving."""
    rng = fresh()
    small = np.moveaxis(smooth((1, 2, 33, 33))[0], 0, -1) * 0.3
    small[:, :, 0] += np.linspace(2, -2, 33)[:, None]
    _, said = _scored(_enlarged(small, 257))
    for offset in (0.05, -0.05):
        sunk = small + rng.normal(0, 0.02, small.shape) + np.array([offset, 0.0])
        assert said(_enlarged(sunk, 257).argmax(-1)[None]) == ""


def test_a_small_thing_may_move_by_rounding() -> None:
    rng = fresh()
    rows, columns = np.mgrid[0:16, 0:16]
    for _ in range(6):
        thing = 2.2 * np.exp(-((rows - rng.uniform(5, 10)) ** 2 + (columns - 8) ** 2) / 2)
        small = np.stack([np.ones((16, 16)), thing], axis=-1)
        reference, said = _scored(_enlarged(small, 128))
        for noise in (0.02, 0.08):
            moved = _enlarged(small + rng.normal(0, noise, small.shape), 128).argmax(-1)[None]
            assert said(moved) == ""
        assert "worse by" in said(np.zeros_like(reference.raw))


def test_short_lists_are_compared_by_their_size() -> None:
    def said(ours: list[float], theirs: list[float]) -> str:
        found, reference = (values_of(record(np.array([each]))) for each in (ours, theirs))
        return compare(Kind.VECTOR, found, reference, [], name="r").problem

    assert said([0.50, 0.52, 0.49, 0.51], [0.5, 0.51, 0.5, 0.49]) == ""
    assert said([0.72], [0.73]) == ""
    assert said([0.0], [0.73])
    assert said([0.9, 0.1], [0.1, 0.9])
    assert said([0.0, 0.0, 0.0, 0.0], [0.5, 0.51, 0.5, 0.49])


# --- whole rows


def judged(
    ours: list[Any],
    theirs: list[Any],
    *,
    delegate: str = "cpu",
    sinks: list[Sink] | None = None,
    exact: bool = False,
    **more: Any,
) -> Any:
    def row(name: str, outputs: list[Any]) -> Any:
        return {
            "delegate": name, "log": "", "runs_ms": [1.0], "first_ms": 1.0, "prepare_ms": 1.0,
            "delegated_ops": 1, "output": outputs[0], "other_outputs": outputs[1:], **more,
        }  # fmt: skip

    facts: Any = {
        "results": [row("cpu-reference", theirs), row(delegate, ours)],
        "total_ops": 1,
        "npu_devices": [],
    }
    return judge(facts, [], None, min_delegated_share=0.5, sinks=sinks or [], exact=exact)[-1]


def _places(*, limit: float = 1.0, noise: float = 0.0) -> Any:
    """What WHERE gives of a map with values above a limit."""
    values = np.random.default_rng(8).normal(0, 1, (24, 24))
    values += np.random.default_rng(9).normal(0, noise, values.shape) if noise else 0.0
    return record(np.argwhere(values > limit))


WHERE = Sink("w", "WHERE", 0.0, picked=True, chosen=True)
BEST = Sink("k", "TOPK_V2", 0.0, picked=True, chosen=True)


def test_what_was_chosen_may_differ_where_it_is_near_the_limit() -> None:
    right, other = _places(), _places(noise=0.02)
    assert right["shape"] != other["shape"]
    row = judged([other], [right], sinks=[WHERE])
    assert (row["status"], "most of what was chosen" in row["reason"]) == ("pass", True)
    assert (
        judged([other], [right], sinks=[WHERE], exact=True, delegate="teflon")["status"] == "fail"
    )
    # Of an operation that chooses nothing, another shape is another shape.
    assert judged([other], [right], sinks=[MAP])["status"] == "fail"
    places = values_of(right).raw
    for damaged in (
        places[:0],
        places[: len(places) // 2],
        places + 1,
        places[:, ::-1],
        places * 0,
    ):
        row = judged([record(damaged)], [right], sinks=[WHERE])
        assert (row["status"], "are the same" in row["reason"]) == ("fail", True), row["reason"]


def test_too_little_that_was_chosen_is_not_compared() -> None:
    one, none = record(np.array([[3, 4]])), record(np.zeros((0, 2), np.int64))
    good = SOUND["map"][0]
    row = judged([good, none], [good, one], sinks=[MAP, WHERE])
    assert (row["status"], "not compared, as too little" in row["reason"]) == ("pass", True)
    assert judged([none], [one], sinks=[WHERE])["status"] == "fail"  # nothing else proves anything


def test_the_best_of_many_may_change_places() -> None:
    def of(*numbers: int) -> Any:
        return record(np.array([numbers], np.int32))

    right = of(653, 458, 835, 440, 716)
    assert judged([of(653, 835, 458, 440, 514)], [right], sinks=[BEST])["status"] == "pass"
    assert judged([of(1, 2, 3, 4, 5)], [right], sinks=[BEST])["status"] == "fail"
    assert judged([of(653, 0, 0, 0, 0)], [right], sinks=[BEST])["status"] == "fail"


def test_chosen_boxes_are_compared_as_a_set() -> None:
    boxes = np.random.default_rng(3).uniform(0, 1, (20, 4)).astype(np.float32)
    sink = Sink("b", "GATHER_ND", 0.0, picked=True, chosen=True)
    near = np.delete(boxes, 7, axis=0)[::-1] + np.float32(0.01)
    assert judged([record(near)], [record(boxes)], sinks=[sink])["status"] == "pass"
    for damaged in (boxes * 0, boxes[:, ::-1], boxes[:6]):
        assert judged([record(damaged)], [record(boxes)], sinks=[sink])["status"] == "fail"


def test_every_output_is_compared_and_named() -> None:
    good = [SOUND["sure scores"][0], SOUND["map"][0], SOUND["embedding"][0]]
    passed = judged(good, good)
    assert (passed["status"], passed["reason"]) == ("pass", "")
    assert [each["compared"] for each in passed["outputs"]] == [True] * 3
    for number in range(3):
        raw = values_of(good[number]).raw
        bad = [*good]
        changed = fresh().permutation(raw.ravel()).reshape(raw.shape)
        bad[number] = record(changed, good[number]["scale"], good[number]["zero_point"])
        failed = judged(bad, good)
        assert failed["status"] == "fail"
        assert failed["reason"].startswith(f"output {number}: ")
        assert [bool(each["problem"]) for each in failed["outputs"]] == [
            each == number for each in range(3)
        ]
        assert failed["outputs"][number]["different"] > 0
        dead = [*good]
        dead[number] = record(np.zeros_like(raw), good[number]["scale"], 0)
        assert f"output {number} is all zeros" in judged(dead, good)["reason"]


def test_other_shapes_types_and_numbers_of_outputs_fail() -> None:
    good = [SOUND["map"][0], SOUND["embedding"][0]]
    for bad, said in (
        ([good[0]], "the model has 1 output here, cpu-reference has 2"),
        ([*good, good[0]], "the model has 3 outputs here"),
        ([good[1], good[0]], "output 0 is 1x1x1x1024 uint8, cpu-reference's is 1x17x19x12 int8"),
        ([good[0], record(np.zeros((1, 1024), np.uint8))], "output 1 is 1x1024 uint8"),
    ):
        result = judged(bad, good)
        assert result["status"] == "fail"
        assert said in result["reason"]


def test_what_was_not_compared_is_said() -> None:
    """The runner of an older payload may not give all outputs; a reference may be of no use."""
    one, sinks = [SOUND["map"][0]], [MAP, VECTOR, VECTOR]
    result = judged(one, one, sinks=sinks)
    assert result["status"] == "pass"
    assert "outputs 1 to 2 not compared" in result["reason"]
    constant = [SOUND["map"][0], record(np.zeros((1, 9), np.uint8), 0.1, 3)]
    assert judged(constant, constant)["status"] == "pass"
    changed = [SOUND["map"][0], record(np.full((1, 9), 40, np.uint8), 0.1, 3)]
    assert judged(changed, constant)["status"] == "fail"
    broken = [SOUND["map"][0], record(np.array([[np.nan, 1.0]]))]
    result = judged(broken, broken)
    assert result["status"] == "pass"
    assert "1 of 2 numbers of output 1 not compared" in result["reason"]
    useless = [record(np.full((1, 2), np.nan))]
    result = judged(useless, useless)
    assert result["status"] == "fail"
    assert "no result of cpu-reference" in result["reason"]


def test_in_exact_mode_a_single_step_fails_and_only_on_the_npu() -> None:
    good = SOUND["map"][0]
    raw = values_of(good).raw.copy()
    raw[0, 3, 4, 5] += 1
    changed = record(raw, good["scale"], good["zero_point"])
    log = (
        "Teflon delegate: loaded etnaviv driver\nteflon: compiling graph: 3 tensors 1 operations\n"
    )
    log += "teflon: compiled graph, took 5 ms\nteflon: invoked graph, took 7 ms\n"
    for exact, delegate, status in (
        (True, "teflon", "fail"), (True, "teflon:a=b", "fail"), (False, "teflon", "pass"),
        (True, "cpu", "pass"), (True, "/lib/libteflon.so", "fail"),
    ):  # fmt: skip
        said = "" if delegate == "cpu" else log
        result = judged([changed], [good], delegate=delegate, exact=exact, log=said)
        assert result["status"] == status, (exact, delegate, result["reason"])
        if status == "fail":
            assert "is not exactly cpu-reference's: 1 of 3876 values" in result["reason"]
            assert "by up to 1 steps" in result["reason"]
    assert judged([good], [good], delegate="teflon", exact=True, log=log)["status"] == "pass"


@pytest.mark.parametrize("both", [([10, 56, 56], [10, 56, 57]), ([10, 56, 57], [10, 56, 56])])
def test_equal_scores_are_equally_good_on_either_side(both: tuple[list[int], list[int]]) -> None:
    ours, theirs = (record(np.array([each], np.uint8), 1 / 256) for each in both)
    assert judged([ours], [theirs], sinks=[SCORES])["status"] == "pass"
    tied = record(np.array([[56, 10, 56]], np.uint8), 1 / 256)
    assert judged([tied], [theirs], sinks=[SCORES])["status"] == "fail"


def test_a_detectors_outputs_are_compared_as_objects() -> None:
    def outputs(objects: list[Detection]) -> list[Any]:
        boxes, classes, scores = np.zeros((1, 4, 4)), np.zeros((1, 4)), np.zeros((1, 4))
        for place, each in enumerate(objects):
            boxes[0, place] = each.box
            classes[0, place], scores[0, place] = each.index - 1, each.score
        count = np.array([float(len(objects))])
        return [record(each.astype(np.float32)) for each in (boxes, classes, scores, count)]

    person = Detection(1, 0.875, (0.125, 0.25, 1.0, 0.75))
    tie = Detection(32, 0.75, (0.5, 0.375, 0.75, 0.5))
    weak = [Detection(2, 0.30, (0, 0, 0.5, 0.5)), Detection(3, 0.29, (0.5, 0.5, 1, 1))]
    assert judged(outputs([tie, person]), outputs([person, tie]))["status"] == "pass"
    for bad in ([person], [], [person, Detection(32, 0.75, (0, 0, 0.1, 0.1))]):
        assert judged(outputs(bad), outputs([person, tie]))["status"] == "fail"
    # On a picture that shows nothing clearly, the best of the weak ones must be there.
    assert judged(outputs(weak[::-1]), outputs(weak))["status"] == "pass"
    assert judged(outputs(weak[1:]), outputs(weak))["status"] == "fail"
    more = [record(np.ones((1, 8, 8, 3), np.uint8) * 7, 0.1)]
    assert judged(outputs([tie, person]) + more, outputs([person, tie]) + more)["status"] == "pass"
