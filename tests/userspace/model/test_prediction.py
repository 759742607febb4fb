# SPDX-License-Identifier: MIT
"""What the rules say of models whose answer is known, and of models that are made to be refused."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bsp.base.errors import UserError
from tests.support.models.rule_cases import cases
from userspace.npu.model.graph import Operation, read_graph
from userspace.npu.model.graph import Tensor as GraphTensor
from userspace.npu.model.prediction import _per_tensor, all_rules, predict, rules_for
from userspace.npu.model.tflite_file import NO_ACTIVATION, Tensor, conv, softmax, write_model
from userspace.npu.validate import models
from userspace.npu.validate.delegates import rows
from virtual.gates import model_runner, packages, sweep

MESA = "25.0.7-2+deb13u1"
assets = pytest.mark.skipif(
    "NPU_BSP_ASSETS" not in os.environ, reason="needs the real models: set NPU_BSP_ASSETS"
)


def convolution(**changes: Any) -> bytes:
    """A model of one convolution and a softmax; ``changes`` are of the output, or ``activation``."""
    activation = changes.pop("activation", NO_ACTIVATION)
    output: dict[str, Any] = {"scale": 0.05, "zero_point": 0, "dtype": "uint8"} | changes
    tensors = [
        Tensor("in", (1, 4, 4, 1), "uint8", 0.1, 128),
        Tensor("w", (1, 1, 1, 1), "uint8", 0.1, 128, np.full((1, 1, 1, 1), 129)),
        Tensor("b", (1,), "int32", 0.01, 0, np.zeros(1)),
        Tensor("out", (1, 4, 4, 1), **output),
        Tensor("end", (1, 4, 4, 1), "uint8", 1 / 256, 0),
    ]
    operators = [conv((0, 1, 2), 3, stride=1, activation=activation), softmax(3, 4)]
    return write_model(tensors, operators, inputs=[0], outputs=[4], description="one convolution")


def refused(model: bytes, driver: str = "etnaviv", mesa: str = MESA) -> list[tuple[int, str, str]]:
    rules = rules_for(driver, mesa)
    assert rules
    return list(predict(read_graph(model), rules).refused)


RELU6, TANH = 3, 4


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, ""),
        ({"activation": 1}, ""),
        ({"activation": TANH}, "its fused activation is TANH"),
        ({"activation": RELU6, "scale": 6 / 255}, ""),
        ({"activation": RELU6}, "its output reaches 12.75, beyond its fused RELU6"),
        ({"scale": 0.0, "dtype": "float32"}, "its output is not quantised (float32)"),
    ],
)
def test_a_convolution(changes: dict[str, Any], why: str) -> None:
    found = refused(convolution(**changes))
    softmax_too = (1, "SOFTMAX", "the etnaviv driver has no SOFTMAX")
    assert found == [*([(0, "CONV_2D", why)] if why else []), softmax_too]


@pytest.mark.parametrize(
    ("place", "why"),
    [(0, "its input is"), (1, "its weights are"), (2, "its bias is")],
)
def test_what_is_quantised_per_axis_is_named(place: int, why: str) -> None:
    plain = GraphTensor("x", (1, 4, 4, 2), "uint8", (0.1,), (0,))
    per_axis = GraphTensor("x", (1, 4, 4, 2), "uint8", (0.1, 0.2), (0, 0))
    inputs = [plain, plain, plain]
    inputs[place] = per_axis
    operation = Operation(0, "CONV_2D", 1, tuple(inputs), (plain,))
    assert _per_tensor(operation) == f"{why} quantised per axis"


def test_an_activation_that_tflite_does_not_know_is_none() -> None:
    assert [each[1] for each in refused(convolution(activation=-1))] == ["SOFTMAX"]
    assert [each[1] for each in refused(convolution(activation=99))] == ["SOFTMAX"]


def test_numbers_are_read_as_mesa_reads_them() -> None:
    """An axis of 64 bits by its lower half, sizes of five dimensions by the first four."""
    picture = GraphTensor("x", (1, 4, 4, 2), "uint8", (0.1,), (0,))
    rules = rules_for("etnaviv", MESA)
    assert rules
    for axis, taken in ((3, True), (-1, True), (1, False)):
        constant = GraphTensor("a", (), "int64", (), (), axis.to_bytes(8, "little", signed=True))
        split = Operation(0, "SPLIT", 1, (constant, picture), (picture, picture))
        assert bool(predict([split], rules).taken) == taken
    sizes = np.array([0, 0, 1, 1, 1, 1, 0, 0, 3, 3], np.int32)
    constant = GraphTensor("p", (5, 2), "int32", (), (), sizes.tobytes())
    pad = Operation(0, "PAD", 1, (picture, constant), (picture,))
    assert predict([pad], rules).taken
    assert not predict(
        [replace(pad, inputs=(picture, replace(constant, dtype="int64")))], rules
    ).taken


def test_a_rule_that_came_later() -> None:
    dilated_or_not = convolution(activation=TANH)
    assert len(refused(dilated_or_not, mesa="24.2.8")) == 1
    assert len(refused(dilated_or_not, mesa="24.3.0")) == 2


def test_what_is_not_known_is_not_predicted() -> None:
    assert rules_for("etnaviv", "25.1.0-1") is None
    assert rules_for("etnaviv", "26.3.0-1") is None
    assert rules_for("rocket", MESA) is None
    assert rules_for("etnaviv", "no version") is None
    assert all(rules.source for rules in all_rules())


@assets
@pytest.mark.parametrize(
    ("name", "taken", "all_of_them"),
    [("mobilenet_v1_1.0_224_quant", 28, 31), ("mobilenet_v1_0.25_128_quant", 28, 31)],
)
def test_mobilenets_as_the_real_delegate_takes_them(
    name: str, taken: int, all_of_them: int
) -> None:
    """28 of 31 is what the logs of the real libteflon.so 25.0.7 in tests/userspace/validate/data say."""
    graph = read_graph(models.find(name, "model").path.read_bytes())
    rules = rules_for("etnaviv", MESA)
    assert rules
    assert (len(predict(graph, rules).taken), len(graph)) == (taken, all_of_them)


@given(st.integers(8, 900), st.binary(min_size=1, max_size=8))
def test_a_broken_model_is_the_users_matter(place: int, junk: bytes) -> None:
    good = convolution()
    broken = good[:place] + junk + good[place + len(junk) :]
    for model in (broken, good[:place]):
        with contextlib.suppress(UserError):
            read_graph(model)


def test_lists_of_delegates() -> None:
    everything = ("cpu", "cpu-reference", "teflon", "opencl", "tim-vx")
    assert rows("all") == rows("opencl,all") == everything
    assert rows("opencl") == ("cpu-reference", "opencl")
    assert rows("/a.so:x=1,2;y=3,/b.so,teflon") == (
        "cpu-reference", "teflon", "/a.so:x=1,2;y=3", "/b.so",
    )  # fmt: skip
    for bad in ("", "cpu:threads=2", "telfon", "teflon:x"):
        with pytest.raises(UserError):
            rows(bad)


# --- one operation at a time -----------------------------------------------------------------

# What libteflon.so was seen to refuse of `cases()`, on an emulated A311D; the others it took.
_ALWAYS = {
    "add of a constant", "concatenation along rows", "conv relu6 beyond", "max pool",
    "pad of three dimensions", "pad three", "softmax", "split along rows", "transpose 0213",
    "transpose 0321",
}  # fmt: skip
_SINCE_26 = {"fully-connected 1280"}
REFUSED = {
    "25.0.7": _ALWAYS | {
        "abs", "concatenation of unequal", "conv tanh", "logistic", "pad after", "pad channels", "pad two",
        "relu", "reshape", "sub", "transpose 0231", "transpose 0312",
    },
    "26.1.6": _ALWAYS | _SINCE_26,
    "26.2.6": _ALWAYS | _SINCE_26,
}  # fmt: skip


@pytest.mark.parametrize("version", REFUSED)
def test_the_rules_say_what_the_delegates_were_seen_to_refuse(version: str) -> None:
    found = {name for name, (model, _) in cases().items() if refused(model, mesa=version)}
    assert found == REFUSED[version]


@pytest.mark.full
@pytest.mark.network
@pytest.mark.timeout(900)
@pytest.mark.parametrize("suite", ["trixie", "trixie-backports", "sid"])
def test_the_real_delegates_refuse_what_the_rules_say(suite: str, tmp_path: Path) -> None:
    delegate = packages.from_suite(suite)
    rules = rules_for("etnaviv", delegate.upstream)
    if rules is None:
        pytest.skip(f"{suite} has Mesa {delegate.upstream}, for which there are no rules")
    file = tmp_path / "case.tflite"
    different = {}
    with sweep.runner(delegate, timeout_s=60) as runner:
        for name, (model, inputs) in cases().items():
            file.write_bytes(model)
            expected = model_runner.reference(model, inputs)
            outcome = runner.run_file(file, inputs, "a311d", expected, name, name)
            predicted = predict(read_graph(model), rules).refused
            if bool(predicted) != (outcome.status == sweep.REFUSED):
                different[name] = (predicted, outcome.status)
    assert not different
