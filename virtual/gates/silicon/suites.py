# SPDX-License-Identifier: MIT
"""All tests of Mesa's test_teflon.cpp by the names in the lists: what to run, and how exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bsp.base.errors import UserError

from ..model_runner import tflite_runtime
from . import synthetic
from .sequences import Twister
from .source import MesaSource
from .synthetic import SEED, Synthetic, Templates

MODELS, WHOLE = "models", "whole"
GROUPS = (MODELS, "conv", "depthwise", "add", "fully-connected", WHOLE)
_GROUP_OF = {
    synthetic.CONV: "conv",
    synthetic.DEPTHWISE: "depthwise",
    synthetic.ADD: "add",
    synthetic.ADD_QUANT: "add",
    synthetic.CONNECTED: "fully-connected",
}

# Names of the tests, files of the models and tolerances: Mesa 25.0.7, test_teflon.cpp.
_MODEL_TOLERANCE = 8
_SPLIT = (
    ("MobileNetV1Param", "mb", "mb-{:03}.tflite", 31),
    ("MobileDetParam", "mobiledet", "mobiledet-{:03}.tflite", 124),
    ("YoloXParam", "yolox", "yolox-{:03}.tflite", 128),
)
_WHOLE = (
    ("MobileNetV1", "mobilenet_v1_1.0_224_quant.tflite", _MODEL_TOLERANCE),
    ("MobileDet", "ssdlite_mobiledet_coco_qat_postprocess.tflite", _MODEL_TOLERANCE),
    ("YoloX", "yolox.tflite", 38),
)


@dataclass(frozen=True)
class SiliconTest:
    """One test of test_teflon.cpp.

    Attributes:
        name: as the lists have it.
        group: one of ``GROUPS``.
        tolerance: how far an output value may be from the CPU's.
        source: a model file, or what a synthetic model is made from.
        weight: multiplications or bytes: larger ones take longer.
    """

    name: str
    group: str
    tolerance: int
    source: Path | Synthetic
    weight: int

    @property
    def suite(self) -> str:
        """The test suite that it belongs to: ``Conv2D``, ``MobileNetV1Param``..."""
        return self.name.partition(".")[0]


def all_tests(source: MesaSource) -> list[SiliconTest]:
    """Return all tests that a Mesa has.

    Raises:
        UserError: a model that the tests use is missing.
    """
    tests = []
    for suite, short, pattern, count in _SPLIT:
        for number in range(count):
            path = source.models / pattern.format(number)
            tests.append(_of_file(f"{suite}.Op/{short}{number:03}", MODELS, _MODEL_TOLERANCE, path))
    for suite, file, tolerance in _WHOLE:
        tests.append(_of_file(f"{suite}.Whole", WHOLE, tolerance, source.models / file))
    tests += [
        SiliconTest(test.name, _GROUP_OF[test.suite], synthetic.TOLERANCE, test, test.macs)
        for test in synthetic.grid()
    ]
    return tests


def _of_file(name: str, group: str, tolerance: int, path: Path) -> SiliconTest:
    if not path.is_file():
        raise UserError(f"this Mesa has no {path.name}, the model of its test {name}")
    return SiliconTest(name, group, tolerance, path, path.stat().st_size)


def choose_quick(tests: Sequence[SiliconTest], failing: frozenset[str]) -> list[SiliconTest]:
    """Return about an eighth of the tests: small ones, all groups, and what fails on silicon in each.

    Args:
        failing: names of tests that fail on any of the NPUs.
    """
    chosen = []
    counts: dict[tuple[str, bool], int] = {}
    for test in tests:
        fails = test.name in failing
        if test.group == WHOLE:
            if test.name.startswith("MobileNet"):
                chosen.append(test)
            continue
        small = test.weight <= _QUICK_MACS
        if test.group == MODELS:
            small = test.weight <= _QUICK_BYTES
        if not small:
            continue
        key = (test.suite, fails)
        number = counts.get(key, 0)
        counts[key] = number + 1
        if number % (_QUICK_FAILING_STEP if fails else _QUICK_STEPS[test.group]) == 0:
            chosen.append(test)
    return chosen


_QUICK_MACS = 30_000_000
_QUICK_BYTES = 300_000
_QUICK_FAILING_STEP = 2
_QUICK_STEPS = {MODELS: 3, "conv": 9, "depthwise": 3, "add": 9, "fully-connected": 5}


class Maker:
    """Makes the model file and the inputs of a test."""

    def __init__(self, source: MesaSource) -> None:
        self._templates = Templates(source.models)

    def make(self, test: SiliconTest, folder: Path) -> tuple[Path, list[NDArray[Any]]]:
        """Return a test's model and inputs; the file of a synthetic model is written to ``folder``."""
        if isinstance(test.source, Path):
            return test.source, _inputs(test.source.read_bytes(), Twister(SEED))
        model, twister = self._templates.build(test.source)
        path = folder / "test.tflite"
        path.write_bytes(model)
        return path, _inputs(model, twister)


def _inputs(model: bytes, twister: Twister) -> list[NDArray[Any]]:
    """Draw a model's inputs as run_model of test_executor.cpp does: float32 of 0..1, or bytes."""
    interpreter = tflite_runtime().Interpreter(model_content=model)
    inputs: list[NDArray[Any]] = []
    for details in interpreter.get_input_details():
        shape = tuple(int(size) for size in details["shape"])
        if details["dtype"] == np.float32:
            inputs.append(twister.floats(shape))
        else:
            inputs.append(twister.bytes(shape).astype(details["dtype"]))
    return inputs
