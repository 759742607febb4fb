# SPDX-License-Identifier: MIT
"""Broken models that can still be read: the emulator reads them when it starts, and must not fail there."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from bsp.base.errors import UserError
from tests.support.models import inputs as m
from userspace.npu.model.graph import read_graph
from userspace.npu.model.prediction import predict, rules_for
from virtual.npu.tflite.operations import operations
from virtual.npu.vivante.audit.jobs import ModelAudit

MODELS = (m.one_conv(1, 16, 16, 3), m.one_conv(1, 16, 16, 3, dtype="int8"), m.two_inputs())


def test_changed_bytes_are_refused_or_read(tmp_path: Path) -> None:
    dice = random.Random(4)
    rules = rules_for("etnaviv", "25.0.7-2")
    assert rules
    path = tmp_path / "model.tflite"
    refused = 0
    for _ in range(600):
        content = bytearray(dice.choice(MODELS))
        for _ in range(dice.choice((1, 1, 2, 4))):
            content[dice.randrange(len(content))] = dice.choice((0, 1, 4, 127, 128, 255))
        path.write_bytes(content)
        try:
            predict(read_graph(bytes(content)), rules)
            operations(path)
            ModelAudit(path, 7)
        except UserError:
            refused += 1
    assert 0 < refused < 600


def test_an_operation_without_inputs_or_outputs_is_named() -> None:
    for fewer in ({"inputs": (0,)}, {"outputs": ()}):
        model = m.Model()
        image = model.image(1, 16, 16, 3)
        features = model.conv(image)
        model.operators[0] = replace(model.operators[0], **fewer)
        with pytest.raises(UserError, match=r"operation 0 \(CONV_2D\) lacks inputs or outputs"):
            read_graph(model.written([image], [features]))


def test_a_scale_of_zero_is_no_operation_for_the_npu(tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(MODELS[0])
    assert len(operations(path)) == 1
    model = m.Model()
    image = model.image(1, 16, 16, 3)
    features = model.conv(image)
    model.tensors[features] = replace(model.tensors[features], scale=float("nan"))
    path.write_bytes(model.written([image], [features]))
    assert operations(path) == []
