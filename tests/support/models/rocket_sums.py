# SPDX-License-Identifier: MIT
"""Sums of convolutions' outputs, in the orders that Rockchip's driver does and does not compute."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.support.models.inputs import Model
from userspace.npu.model import tflite_file as t

SHAPE = (1, 8, 8, 8)
GOOD, CRASHES, WRONG = "good", "crashes", "wrong"


@dataclass(frozen=True)
class Sum:
    """A model, what its inputs get, how it ends on the NPU, and what is said of it."""

    model: bytes
    inputs: list[Any]
    status: str
    said: str


@dataclass
class SumNet:
    """A net of 1x1 convolutions, depthwise ones and sums, all of one number of channels."""

    made: Model = field(default_factory=lambda: Model(5))
    inputs: list[int] = field(default_factory=list)

    def image(self, *shape: int) -> int:
        self.inputs.append(self.made.tensor("image", shape or SHAPE, scale=0.02, zero_point=120))
        return self.inputs[-1]

    def conv(self, source: int, depth: int = 0) -> int:
        """1x1, without an activation; ``depth``: of the weights, where it is another than the source's."""
        channels = self.made.tensors[source].shape[3]
        inputs, sink = self._layer(source, (channels, 1, 1, depth or channels))
        self.made.operators.append(t.conv(inputs, sink, stride=1, activation=t.NO_ACTIVATION))
        return sink

    def depthwise(self, source: int, kernel: int = 3) -> int:
        """Without an activation."""
        inputs, sink = self._layer(source, (1, kernel, kernel, self.made.tensors[source].shape[3]))
        operator = t.depthwise_conv(inputs, sink, stride=1, activation=t.NO_ACTIVATION)
        self.made.operators.append(operator)
        return sink

    def _layer(self, source: int, shape: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
        made, channels = self.made, self.made.tensors[source].shape[3]
        stored = made.random.integers(90, 160, shape)
        weights = made.tensor("w", shape, scale=0.004, zero_point=128, data=stored)
        zeros = np.zeros(channels)
        bias = made.tensor("b", (channels,), "int32", scale=0.02 * 0.004, data=zeros)
        name = f"made {len(made.tensors)}"
        sink = made.tensor(name, made.tensors[source].shape, scale=0.05, zero_point=120)
        return (source, weights, bias), sink

    def add(self, first: int, second: int) -> int:
        made = self.made
        name = f"sum {len(made.tensors)}"
        sink = made.tensor(name, made.tensors[first].shape, scale=0.05, zero_point=120)
        made.operators.append(t.Operator(0, (first, second), (sink,), 11))
        return sink


def sums() -> dict[str, Sum]:
    """Return models by name."""
    crashes, early, lost = "the delegate crashes", "what lies there from before", "is not computed"

    def two(net: SumNet) -> tuple[int, int, int]:
        image = net.image()
        return image, net.conv(image), net.conv(image)

    def last_first(net: SumNet) -> Sequence[int]:
        _, one, other = two(net)
        return [net.add(other, one)]

    def first_first(net: SumNet) -> Sequence[int]:
        _, one, other = two(net)
        return [net.add(one, other)]

    def with_an_input(net: SumNet) -> Sequence[int]:
        image = net.image()
        return [net.add(net.conv(image), image)]

    def to_an_input(net: SumNet) -> Sequence[int]:
        image = net.image()
        return [net.add(image, net.conv(image))]

    def with_another_input(net: SumNet) -> Sequence[int]:
        return [net.add(net.conv(net.image()), net.image())]

    def with_itself(net: SumNet) -> Sequence[int]:
        one = net.conv(net.image())
        return [net.add(one, one)]

    def handed_out(net: SumNet) -> Sequence[int]:
        _, one, other = two(net)
        return [net.add(other, one), other]

    def read_as_well(net: SumNet) -> Sequence[int]:
        _, one, other = two(net)
        return [net.add(other, one), net.conv(other)]

    def of_a_sum(net: SumNet) -> Sequence[int]:
        image = net.image()
        third = net.conv(image)
        one, other = net.conv(image), net.conv(image)
        return [net.add(net.add(other, one), third)]

    def with_a_sum(net: SumNet) -> Sequence[int]:
        image, one, other = two(net)
        whole = net.add(other, one)
        return [net.add(net.conv(image), whole)]

    def alone(net: SumNet) -> Sequence[int]:
        return [net.add(net.image(), net.image())]

    def of_a_batch(net: SumNet) -> Sequence[int]:
        return [net.conv(net.image(2, *SHAPE[1:]))]

    def grouped(net: SumNet) -> Sequence[int]:
        return [net.conv(net.image(), depth=4)]

    makers: dict[str, tuple[Callable[[SumNet], Sequence[int]], str, str]] = {
        "the last one first": (last_first, GOOD, ""),
        "the first one first": (first_first, WRONG, early),
        "with an input that is read": (with_an_input, GOOD, ""),
        "to an input": (to_an_input, CRASHES, crashes),
        "with another input": (with_another_input, CRASHES, crashes),
        "with itself": (with_itself, CRASHES, crashes),
        "of what is handed out": (handed_out, CRASHES, crashes),
        "of what is read as well": (read_as_well, WRONG, lost),
        "of a sum": (of_a_sum, WRONG, lost),
        "with a sum": (with_a_sum, GOOD, ""),
        "alone": (alone, CRASHES, crashes),
        "of a batch": (of_a_batch, WRONG, "entries in its batch"),
        "grouped": (grouped, WRONG, "is grouped"),
    }
    random = np.random.default_rng(3)
    models = {}
    for name, (make, status, said) in makers.items():
        net = SumNet()
        outputs = make(net)
        given = [
            random.integers(0, 256, net.made.tensors[number].shape).astype(np.uint8)
            for number in net.inputs
        ]
        models[name] = Sum(net.made.written(net.inputs, outputs), given, status, said)
    return models
