# SPDX-License-Identifier: MIT
"""Models with numbers of their own kind: no numbers, none at all, complex ones, others from run to run.

A healthy machine does not fail because of them; damage beside them is still seen.
"""

from __future__ import annotations

import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bsp.base.errors import UserError
from tests.support.models import graphs
from tests.support.models import inputs as m
from tests.userspace.validate.test_compare import judged, record
from tests.userspace.validate.test_model_inputs import picture as picture  # the fixture
from tests.userspace.validate.test_model_inputs import run_model
from userspace.npu.model.graph import read_model
from userspace.npu.model.sinks import read_sinks
from userspace.npu.model.tflite_file import Operator
from userspace.npu.validate.judge.verdict import settle_state

pytestmark = pytest.mark.usefixtures("own_state")

LOG, SUB, DIV, WHERE, GREATER, RNN, RANDOM_UNIFORM, RFFT2D = 73, 41, 42, 109, 61, 24, 148, 131
ARG_MAX, GATHER, UNIQUE = 56, 36, 103
NAN = float("nan")


class Maker(m.Model):
    """A convolution in float32, and operations on its features."""

    def __init__(self) -> None:
        super().__init__()
        self.picture = self.image(1, 16, 16, 3, dtype="float32")
        self.features = self.conv(self.picture)
        self.shape = (1, 16, 16, 4)

    def made(self, code: int, sources: tuple[int, ...], *, options: int = 0, dtype: str = "float32",
             shape: tuple[int, ...] = ()) -> int:  # fmt: skip
        sink = self.tensor(f"made_{len(self.tensors)}", shape or self.shape, dtype)
        self.operators.append(Operator(code, sources, (sink,), options))
        return sink

    def not_a_number(self) -> int:
        """0 by 0, at every place."""
        zero = self.made(SUB, (self.features, self.features), options=28)
        return self.made(DIV, (zero, zero), options=29)

    def where(self, limit: float) -> int:
        """The places of features above a limit."""
        number = self.tensor("limit", (1,), "float32", data=np.array([limit]))
        above = self.made(GREATER, (self.features, number), dtype="bool")
        return self.made(WHERE, (above,), dtype="int64", shape=(0, 4))

    def model(self, *outputs: int) -> bytes:
        return self.written([self.picture], outputs)


def rows(document: Any) -> dict[str, Any]:
    return {row["delegate"]: row for row in document["results"]}


# --- whole runs ------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_model_that_gives_no_numbers_is_the_models_matter(picture: Path) -> None:
    net = Maker()
    nothing = net.not_a_number()
    with pytest.raises(UserError, match=r"proves nothing .* no number that is finite") as caught:
        # Rows that are absent here have no say in it.
        run_model(net.model(nothing), picture, delegate="cpu,teflon,tim-vx")
    assert "no fault of this machine" in caught.value.message
    # Beside an output that can be compared, it is passed over, and that is said.
    document = run_model(net.model(net.features, nothing), picture)
    assert document["verdict"] == "pass"
    assert "output 1 was not compared" in rows(document)["cpu"]["reason"]
    assert not rows(document)["cpu"]["outputs"][1]["compared"]
    # The logarithm of what is below 0: here and there.
    document = run_model(net.model(net.made(LOG, (net.features,))), picture)
    assert document["verdict"] == "pass"
    assert "numbers of the output not compared" in rows(document)["cpu"]["reason"]


@pytest.mark.slow
def test_an_output_may_be_empty(picture: Path) -> None:
    net = Maker()
    nothing, some = net.where(1e9), net.where(0.0)
    document = run_model(net.model(net.features, nothing, some), picture)
    assert document["verdict"] == "pass"
    shapes = [each["shape"] for each in rows(document)["cpu"]["outputs"]]
    assert shapes[1] == [0, 4]
    assert shapes[2][0] > 10
    assert "output 1 is empty" in rows(document)["cpu-reference"]["reason"]
    with pytest.raises(UserError, match="the output is empty"):
        run_model(net.model(nothing), picture)


@pytest.mark.slow
def test_of_other_crops_other_places_are_chosen(picture: Path) -> None:
    """Their number differs from crop to crop: it was a fault of npu-bsp, "cannot reshape array"."""
    net = Maker()
    document = run_model(net.model(net.where(0.0)), picture, views=5)
    assert document["verdict"] == "pass"
    assert rows(document)["cpu"]["agreement"]["same"] == 5


@pytest.mark.slow
def test_complex_numbers_by_kernels_that_the_portable_ones_lack(picture: Path) -> None:
    net = Maker()
    flat = net.reshape(net.features, 4, 16, 16)
    length = net.tensor("length", (2,), "int32", data=np.array([16, 16]))
    sink = net.made(RFFT2D, (flat, length), dtype="complex64", shape=(4, 16, 9))
    document = run_model(net.model(sink), picture)
    found = rows(document)
    assert document["verdict"] == "pass"
    assert found["cpu"]["outputs"][0]["shape"] == [4, 16, 9, 2]
    assert "portable kernels have no RFFT2D of version 1" in found["cpu-reference"]["reason"]


@pytest.mark.slow
def test_a_model_with_a_state_is_compared_by_its_first_run(picture: Path) -> None:
    net = Maker()
    flat = net.reshape(net.features, 1, 1024)
    random = np.random.default_rng(5)
    weights = net.tensor("w", (8, 1024), "float32", data=random.normal(0, 0.02, (8, 1024)))
    again = net.tensor("r", (8, 8), "float32", data=random.normal(0, 0.6, (8, 8)))
    bias = net.tensor("b", (8,), "float32", data=np.zeros(8))
    state = net.tensor("state", (1, 8), "float32")
    net.tensors[state] = replace(net.tensors[state], is_variable=True)
    sink = net.tensor("y", (1, 8), "float32")
    options = (("int8", 0, 4),)  # TANH
    net.operators.append(Operator(RNN, (flat, weights, again, bias, state), (sink,), 7, options))
    assert read_model(net.model(sink)).keeps_state
    document = run_model(net.model(sink), picture, runs=7, views=3)
    assert "keeps a state" in document["note"]
    assert document["verdict"] == "pass"
    assert rows(document)["cpu"]["outputs"][0]["max_abs_diff"] < 1e-4


@pytest.mark.slow
def test_strings_are_compared(picture: Path) -> None:
    """Names of classes that the model itself picks from a list."""
    net = Maker()
    words = m.string_bytes([b"cat", b"dog", b"bird", b"fish"])
    names = net.tensor("names", (4,), "string", data=words)
    axis = net.tensor("axis", (1,), "int32", data=np.array([3]))
    best = net.tensor("best", (1, 16, 16), "int64")
    net.operators.append(Operator(ARG_MAX, (net.features, axis), (best,), 40, (("int8", 0, 4),)))
    sink = net.made(GATHER, (names, best), options=23, dtype="string", shape=(1, 16, 16))
    document = run_model(net.model(sink), picture)
    assert document["verdict"] == "pass"
    (found,) = rows(document)["cpu"]["outputs"]
    assert (found["kind"], found["compared"], found["values"]) == ("indices", True, 256)


def test_random_numbers_cannot_be_compared(picture: Path) -> None:
    net = Maker()
    size = net.tensor("size", (4,), "int32", data=np.array(net.shape))
    drawn = net.made(RANDOM_UNIFORM, (size,))
    added = net.made(m.ADD, (net.features, drawn), options=11)
    with pytest.raises(UserError, match="draws random numbers"):
        run_model(net.model(added), picture)


def test_random_numbers_in_a_loop_cannot_be_compared_either(picture: Path) -> None:
    with pytest.raises(UserError, match="draws random numbers"):
        run_model(graphs.loop(draws=True), picture)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="elsewhere this does not trap")
def test_a_model_that_crashes_tflites_own_kernels_is_the_models_matter(picture: Path) -> None:
    """The smallest number by -1: no row can be compared with anything, and a healthy machine failed."""
    with pytest.raises(UserError, match="crashed with SIGFPE on TFLite's own portable kernels"):
        run_model(m.crash(), picture, delegate="cpu,teflon")


# --- the comparison --------------------------------------------------------------------------


def some(*changed: tuple[int, float]) -> Any:
    values = np.random.default_rng(4).normal(0, 1, (1, 8, 8, 4)).astype(np.float32)
    for place, value in changed:
        values.ravel()[place] = value
    return record(values)


STRANGE = [(place, NAN) for place in range(0, 60, 3)]


@pytest.mark.parametrize(
    ("ours", "said"),
    [
        (some(*STRANGE), ""),
        (some(*STRANGE, (1, NAN)), ""),  # one in twenty may fall on the other side of a limit
        (some(*STRANGE[:-1]), ""),
        (some(*STRANGE, *((place, NAN) for place in range(100, 110))), "10 of 256 values are not"),
        (some(*STRANGE, *((place, 9.0) for place in range(61, 200))), "values differ"),
        (some(*((place, NAN) for place in range(256))), "256 values are not finite"),
    ],
)
def test_numbers_beside_those_that_are_none_are_compared(ours: Any, said: str) -> None:
    result = judged([ours], [some(*STRANGE)])
    assert result["status"] == ("fail" if said else "pass"), result["reason"]
    assert said in result["reason"]
    assert "20 of 256 numbers of the output not compared" in result["reason"]
    # A reference without such numbers gives none away.
    for value in (NAN, float("inf"), float(np.finfo(np.float32).max)):
        assert judged([some((7, value))], [some()])["status"] == "fail"


def test_exactly_the_same_may_hold_what_is_no_number() -> None:
    log = (
        "Teflon delegate: loaded etnaviv driver\nteflon: compiling graph: 3 tensors 1 operations\n"
    )
    log += "teflon: compiled graph, took 5 ms\nteflon: invoked graph, took 7 ms\n"
    other_nan = np.frombuffer(b"\1\0\xc0\x7f", np.float32)[0]
    reference = some(*STRANGE)
    same = some(*((place, other_nan) for place, _ in STRANGE))
    for ours, status in ((same, "pass"), (some(*STRANGE, (1, 0.25)), "fail")):
        result = judged([ours], [reference], delegate="teflon", exact=True, log=log)
        assert result["status"] == status, result["reason"]


def test_the_first_run_counts_only_where_the_reference_changes() -> None:
    first, last = some((0, 1.0)), some((0, 2.0))

    def facts(of_reference: Any) -> Any:
        row = {"output": last, "other_outputs": [], "views": ["x"]}
        return {
            "results": [
                {"delegate": "cpu", **row, "first_outputs": [first]},
                {"delegate": "cpu-reference", **row, "first_outputs": of_reference},
            ]
        }

    steady = facts(None)
    assert settle_state(steady, keeps_state=False) == ""
    assert steady["results"][0]["output"] is last  # a delegate whose outputs change has no state
    # Variables may show late, as a counter's do: the reference makes few runs.
    for changing, keeps_state in ((facts([first]), False), (facts(None), True)):
        changing["results"][0]["unlike_first"] = 1
        assert "keeps a state" in settle_state(changing, keeps_state=keeps_state)
        assert changing["results"][0]["output"] == first
        assert "unlike_first" not in changing["results"][0]
        assert [row["views"] for row in changing["results"]] == [[], []]
    alike = facts(None)
    alike["results"][0]["first_outputs"] = None
    assert settle_state(alike, keeps_state=True) == ""


def test_what_the_portable_kernels_refuse_as_they_compute_is_the_models_fault(
    picture: Path,
) -> None:
    """Nothing of it shows as the model is loaded; both rows failed, as if of this machine."""
    net = Maker()
    number = net.tensor("places", (1,), "int32", data=np.array([99]))
    gathered = net.made(GATHER, (net.features, number), options=23, shape=(1, 16, 16, 4))
    with pytest.raises(UserError, match=r"portable kernels .* do not run this model: .*gather"):
        run_model(net.model(gathered), picture)


@pytest.mark.parametrize(("zero_point", "taken"), [(255, True), (256, False), (-1, False)])
def test_a_zero_point_that_is_no_byte_is_refused(
    zero_point: int, taken: bool, picture: Path
) -> None:
    """TFLite's optimised and portable kernels differ on it: a healthy machine failed."""
    net = m.Model()
    image = net.image(1, 16, 16, 3)
    features = net.conv(image)
    net.tensors[features] = replace(net.tensors[features], zero_point=zero_point)
    model = net.written([image], [features])
    if taken:
        assert run_model(model, picture)["verdict"] == "pass"
        return
    with pytest.raises(
        UserError, match=f"of uint8 with the zero point {zero_point}, which has to be"
    ):
        run_model(model, picture)


def test_a_tensor_of_no_number_is_a_broken_file() -> None:
    """-1 is an input that is left out, where there may be one; it was the last tensor, and SIGSEGV."""
    net = m.Model()
    image = net.image(1, 16, 16, 3)
    features = net.conv(image)
    for inputs, outputs in (([image], [-1]), ([-1], [features])):
        with pytest.raises(UserError, match="tensor -1 among its inputs or outputs"):
            read_model(net.written(inputs, outputs))
    net.operators[0] = replace(net.operators[0], inputs=(-5, 1, 2))
    with pytest.raises(UserError, match="an operation has tensor -5"):
        read_model(net.written([image], [features]))


def test_different_numbers_of_a_map_are_chosen_by_rounding() -> None:
    net = Maker()
    places = net.tensor("places", (1024,), "int32")
    numbers = net.made(UNIQUE, (net.reshape(net.features, 1024),), options=80, shape=(1024,))
    net.operators[-1] = replace(net.operators[-1], outputs=(numbers, places))
    assert [sink.chosen for sink in read_sinks(net.model(numbers, places))] == [True, True]
