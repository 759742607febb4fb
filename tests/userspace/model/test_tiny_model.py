# SPDX-License-Identifier: MIT
"""The small model is what it says: the same bytes everywhere, and right 97 times in a hundred."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from userspace.npu.model import tiny_model
from userspace.npu.validate import models
from userspace.npu.validate.onboard.delegation import count_operations, delegated
from userspace.npu.validate.onboard.environment import load_runtime


@pytest.fixture(scope="module")
def model() -> bytes:
    return models.tiny().path.read_bytes()


def test_it_is_the_model_whose_answer_is_on_file(model: bytes) -> None:
    image = hashlib.sha256(tiny_model.sample_bmp()).hexdigest()
    assert (hashlib.sha256(model).hexdigest(), image) in models.answers()


@pytest.mark.parametrize("resolver", ["BUILTIN_REF", "AUTO"])
def test_it_knows_digits_that_it_never_saw(model: bytes, resolver: str) -> None:
    module, _ = load_runtime()
    interpreter = module.Interpreter(
        model_content=model,
        experimental_op_resolver_type=getattr(module.OpResolverType, resolver),
    )
    interpreter.allocate_tensors()
    source = interpreter.get_input_details()[0]["index"]
    sink = interpreter.get_output_details()[0]["index"]
    pictures, digits = tiny_model.pictures(200, seed=77)
    right = 0
    for picture, digit in zip(pictures, digits, strict=True):
        interpreter.set_tensor(source, picture[None])
        interpreter.invoke()
        right += int(np.argmax(interpreter.get_tensor(sink)) == digit)
    assert right >= 194  # seen: 0.994 of 500


def test_its_operators_are_counted_without_a_runtime(model: bytes) -> None:
    module, _ = load_runtime()
    interpreter = module.Interpreter(
        model_content=model, experimental_op_resolver_type=module.OpResolverType.BUILTIN_REF
    )
    assert count_operations(model) == 7
    assert delegated(interpreter, 7)["delegated_nodes"] == []


@pytest.mark.slow
def test_building_it_again_gives_the_same_bytes(model: bytes) -> None:
    assert tiny_model.build() == model
