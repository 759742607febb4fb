# SPDX-License-Identifier: MIT
"""The virtual RK3588 beside what Mesa's CI saw on a board; and that a wrong emulator is noticed."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from virtual.gates import packages
from virtual.gates.build import build
from virtual.gates.cases import Case
from virtual.gates.model_runner import model_runner, reference
from virtual.gates.silicon import gate
from virtual.gates.silicon.lists import FAIL, PASS, UNJUDGED, Lists, read_lists
from virtual.gates.silicon.run import Outcome, run_tests
from virtual.gates.silicon.source import MesaSource, fetch_source
from virtual.gates.silicon.suites import all_tests
from virtual.npu.rocket import arithmetic, weights
from virtual.npu.rocket.task import Task
from virtual.npu.rocket.weights import read_weights

NPU = "rk3588"


def model_test(suite: str, name: str) -> str:
    return f"{suite}Param.Op/{name}"


# One of each kind that decides something: what passes on silicon, and why the others do not.
CHOSEN = {
    model_test("MobileNetV1", "mb000"): PASS,  # 3 channels, stride 2, several tasks
    model_test("MobileNetV1", "mb001"): PASS,  # depthwise, zero point 0
    model_test("MobileNetV1", "mb026"): PASS,  # weights that do not fit into the buffer
    model_test("MobileDet", "mobiledet006"): PASS,  # dense, surrounded by a zero point above 128
    model_test("MobileDet", "mobiledet017"): PASS,  # 40 channels at 40 pixels: Mesa's exception
    model_test("MobileDet", "mobiledet084"): PASS,  # depthwise, zero point 139
    model_test("MobileDet", "mobiledet086"): FAIL,  # depthwise, zero point 132
    model_test("YoloX", "yolox008"): FAIL,  # 48 channels: rows overlap
    model_test("YoloX", "yolox009"): FAIL,  # 24 channels that are not filled up
    model_test("YoloX", "yolox010"): FAIL,  # sides that differ, in the wrong order
    model_test("YoloX", "yolox017"): PASS,  # the same, where a 1x1 kernel sees no order
}


def test_the_lists_say_what_was_taken_from_them() -> None:
    lists = read_lists(gate._ROCKET_LISTS, "rocket-rk3588")
    assert {name: lists.verdict(name) for name in CHOSEN} == CHOSEN
    assert lists.verdict(model_test("MobileDet", "mobiledet008")) == UNJUDGED
    assert lists.verdict("Conv2D.Op/input_size_3") == UNJUDGED
    assert len(lists.fails) == 43


@pytest.fixture(scope="module")
def judged() -> Callable[[Collection[str]], dict[str, str]]:
    """What tests come to on the virtual RK3588, with Mesa 26.1."""
    delegate = packages.find_delegate("trixie-backports", distribution=gate.TFLITE_DISTRIBUTION)
    tested = packages.find_delegate("trixie", distribution=gate.TFLITE_DISTRIBUTION)
    source: MesaSource = fetch_source(tested)
    lists: Lists = read_lists(gate._ROCKET_LISTS, "rocket-rk3588")
    tests = {test.name: test for test in all_tests(source)}

    def run(names: Collection[str]) -> dict[str, str]:
        found: dict[str, str] = {}
        pairs = [(tests[name], (NPU,)) for name in names]

        def done(outcome: Outcome) -> None:
            found[outcome.test] = outcome.verdict

        run_tests(
            pairs,
            delegate,
            source,
            lists={NPU: lists},
            workers=1,
            timeout_s=120,
            done=done,
            audit=True,
        )
        return found

    return run


@pytest.mark.slow
@pytest.mark.network
def test_the_virtual_npu_agrees(judged: Callable[[Collection[str]], dict[str, str]]) -> None:
    assert judged(CHOSEN) == CHOSEN


# Of a later list (Mesa's commit 31e2daeaaac8), by shape: Inception V1's operations 24, 32, 72 and 75.
INCEPTION = {
    Case("conv", 14, 14, 96, 208, kernel=3): PASS,
    Case("conv", 14, 14, 112, 224, kernel=3): FAIL,
    Case("conv", 7, 7, 832, 192): PASS,
    Case("conv", 7, 7, 48, 128, kernel=3): FAIL,
}


@pytest.mark.slow
@pytest.mark.network
def test_what_was_learned_from_one_list_foretells_a_later_one() -> None:
    delegate = packages.find_delegate("trixie-backports")
    found = {}
    with model_runner(delegate) as runner:
        for case in INCEPTION:
            made = build(case)
            attempt = runner.attempt(runner.file(made.model), list(made.inputs), NPU)
            (right,) = reference(made.model, list(made.inputs))
            apart = np.abs(attempt.outputs[0].astype(int) - right.astype(int)).max()
            found[case] = FAIL if apart > 6 else PASS  # the tolerance of that Mesa's tests
    assert found == INCEPTION


def one_byte_for_all(task: Task, channels: int) -> Any:
    return np.full(channels, np.int16(np.int8(np.uint8(task.pad_value & 0xFF).view(np.int8))))


def rows_apart(_: Task, image: Any) -> Any:
    return image


def packed(task: Task, memory: Any) -> Any:
    """Weights as Mesa 26.1 writes 24 channels."""
    if 16 < task.channels < 32 and not task.depthwise:
        return read_weights(replace(task, aligned_channels=task.channels), memory)
    return read_weights(task, memory)


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.parametrize(
    ("room", "function", "wrong", "noticed"),
    [
        (arithmetic, "pad_values", one_byte_for_all, "mobiledet086"),
        (arithmetic, "as_buffered", rows_apart, "yolox008"),
        (weights, "read_weights", packed, "yolox009"),
    ],
)
def test_an_emulator_that_is_wrong_is_noticed(
    judged: Callable[[Collection[str]], dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    room: Any,
    function: str,
    wrong: Any,
    noticed: str,
) -> None:
    monkeypatch.setattr(room, function, wrong)
    (name,) = (name for name in CHOSEN if name.endswith(noticed))
    assert judged([name]) == {name: PASS}
