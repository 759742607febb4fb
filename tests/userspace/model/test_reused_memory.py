# SPDX-License-Identifier: MIT
"""ADDs whose weights lie in memory that a depthwise convolution has used, and the real delegate beside."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.support.models.rocket_sums import SumNet
from userspace.npu.model.faults.known_wrong import known_wrong
from virtual.gates.model_runner import model_runner, reference
from virtual.gates.packages import find_delegate
from virtual.npu.engines import maker_for
from virtual.npu.identity import load_npu

MESA = "25.0.7"
# c: a convolution, d: a depthwise one, each of what was made before; +: of the last two.
CASES = [
    ("cc+", 8, False),
    ("cd+", 8, True),
    ("dd+", 8, True),
    ("cd+", 16, True),
    ("cd+", 24, False),  # its weights are no small buffer
    ("dc+", 8, False),  # the convolution gets that memory
    ("ddcc+", 8, False),
    ("dd+dc+", 16, True),
    ("cd+", 2, False),
]


def net(order: str, channels: int) -> tuple[bytes, list[Any]]:
    made = SumNet()
    values = [made.image(1, 8, 8, channels)]
    for letter in order:
        if letter == "+":
            values.append(made.add(values[-1], values[-2]))
        else:
            values.append((made.conv if letter == "c" else made.depthwise)(values[-1]))
    pixels = np.random.default_rng(3).integers(0, 256, (1, 8, 8, channels)).astype(np.uint8)
    return made.made.written(made.inputs, values[-1:]), [pixels]


@pytest.mark.parametrize(("order", "channels", "wrong"), CASES)
def test_a_sum_in_memory_that_was_used_is_said(order: str, channels: int, wrong: bool) -> None:
    model, _ = net(order, channels)
    found = [each for each in known_wrong(model, "a311d", MESA) if "memory it gets" in each]
    assert bool(found) == wrong
    assert not any("memory it gets" in each for each in known_wrong(model, "imx8mp", MESA))


@pytest.mark.slow
@pytest.mark.network
def test_the_real_delegate_sums_as_is_said() -> None:
    different = {}
    with model_runner(find_delegate(MESA), timeout_s=60, warm=False) as runner:
        for order, channels, wrong in CASES:
            model, inputs = net(order, channels)
            path = runner.file(model)
            maker = maker_for(load_npu("a311d"), exact_for=path)
            attempt = runner.attempt(path, inputs, "a311d", maker=maker)
            same = all(map(np.array_equal, attempt.outputs, reference(model, inputs)))
            if attempt.answer["status"] != "ran" or same == wrong:
                different[order, channels] = attempt.answer["status"], same
    assert not different
