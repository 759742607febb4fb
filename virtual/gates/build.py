# SPDX-License-Identifier: MIT
"""Makes the .tflite file of a case, and the pixels that it is fed with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from userspace.npu.model.tflite_file import SAME, VALID, Tensor, write_model

from .cases import PADDED, PLAIN, RELU, RELU6, Case
from .graphs import GRAPHS
from .maker import WEIGHT_SCALE, Maker

# TensorFlow's schema.fbs: enum BuiltinOperator, union BuiltinOptions, enum ActivationFunctionType.
_ACTIVATIONS = {PLAIN: 0, RELU: 1, RELU6: 3}
_ADD, _CONCATENATION, _CONV, _DEPTHWISE, _CONNECTED = (0, 11), (2, 10), (3, 1), (4, 2), (9, 8)
_LOGISTIC, _RELU, _PAD, _SPLIT, _ABS = (14, 0), (19, 0), (34, 22), (49, 35), (101, 78)


@dataclass(frozen=True)
class BuiltModel:
    """A case's model, its inputs in the order of the model's inputs, and its tensors as they were made.

    Of a convolution the tensors are input, weights, bias, output.
    """

    case: Case
    model: bytes
    inputs: tuple[NDArray[Any], ...]
    tensors: tuple[Tensor, ...]


def build(case: Case) -> BuiltModel:
    """Return the model of a case; the same bytes each time."""
    maker = _Maker(case)
    single = {
        "conv": maker.convolution,
        "depthwise": maker.convolution,
        "add": maker.add,
        "residual": maker.residual,
        "fully-connected": maker.connected,
        "concatenation": maker.concatenation,
        "split": maker.split,
        "pad": maker.pad,
        "relu": maker.unary,
        "abs": maker.unary,
        "logistic": maker.unary,
    }
    if case.operation in GRAPHS:
        GRAPHS[case.operation](maker)
    else:
        single[case.operation]()
    model = write_model(
        maker.tensors,
        maker.operators,
        inputs=maker.inputs,
        outputs=maker.outputs,
        description=case.name,
    )
    inputs = tuple(maker.pixels(maker.tensors[number]) for number in maker.inputs)
    return BuiltModel(case, model, inputs, tuple(maker.tensors))


class _Maker(Maker):
    """Models of one operation, and of an ADD behind two convolutions."""

    def convolution(self) -> None:
        case = self.case
        dense = case.operation == "conv"
        size = case.kernel
        shape = (
            (case.outputs, size, size, case.channels) if dense else (1, size, size, case.channels)
        )
        source = self.image()
        weights, spread, mean = self.weights(shape, size * size * (case.channels if dense else 1))
        bias = self.bias(shape[0] if dense else shape[3], spread, mean)
        if case.padding == PADDED:
            height, width = -(-case.height // case.stride), -(-case.width // case.stride)
        else:
            height = (case.height - size) // case.stride + 1
            width = (case.width - size) // case.stride + 1
        sink = self.result((1, height, width, shape[0] if dense else shape[3]), spread)
        padding = SAME if case.padding == PADDED else VALID
        slots: list[tuple[str, int, float]] = [
            ("int8", 0, padding),
            ("int32", 1, case.stride),
            ("int32", 2, case.stride),
        ]
        if dense:
            slots.append(("int8", 3, _ACTIVATIONS[case.activation]))
        else:
            slots += [("int32", 3, 1), ("int8", 4, _ACTIVATIONS[case.activation])]
        self.operator(_CONV if dense else _DEPTHWISE, (source, weights, bias), (sink,), slots)
        self.outputs = [sink]

    def connected(self) -> None:
        case = self.case
        source = self.tensor((1, case.channels), case.scales[0], case.zero_points[0])
        self.inputs.append(source)
        weights, spread, mean = self.weights((case.outputs, case.channels), case.channels)
        bias = self.bias(case.outputs, spread, mean)
        sink = self.result((1, case.outputs), spread)
        self.operator(_CONNECTED, (source, weights, bias), (sink,), ())
        self.outputs = [sink]

    def add(self) -> None:
        case = self.case
        first = self.image()
        second = self.image(case.zero_points[1], case.scales[0] * 1.4)
        self._sum(first, second)

    def residual(self) -> None:
        """A 1x1 convolution, another one, and the sum of both: as in MobileNet V2."""
        case = self.case
        first = self._pointwise(self.image(), case.zero_points[0])
        second = self._pointwise(first, case.zero_points[1])
        self._sum(second, first)

    def _pointwise(self, source: int, zero_point: int) -> int:
        case = self.case
        case_of_model = self.case
        self.case = Case(
            **{**case_of_model.__dict__, "zero_points": (0, 128, zero_point), "activation": PLAIN}
        )
        channels = self.tensors[source].shape[3]
        weights, spread, mean = self.weights((channels, 1, 1, channels), channels)
        scale = self.tensors[source].scale
        values = self.rng.integers(-int(spread), int(spread), channels) - round(mean)
        bias = self.numbers(values, scale * WEIGHT_SCALE)
        shape = (1, case.height, case.width, channels)
        sink = self.tensor(shape, scale * WEIGHT_SCALE * spread / 45, zero_point)
        slots = (("int8", 0, SAME), ("int32", 1, 1), ("int32", 2, 1), ("int8", 3, 0))
        self.operator(_CONV, (source, weights, bias), (sink,), slots)
        self.case = case_of_model
        return sink

    def _sum(self, first: int, second: int) -> None:
        scale = (self.tensors[first].scale + self.tensors[second].scale) * 0.8
        sink = self.tensor(self.tensors[first].shape, scale, self.case.zero_points[2])
        self.operator(_ADD, (first, second), (sink,), ())
        self.outputs = [sink]

    def concatenation(self) -> None:
        case = self.case
        sources = tuple(self.image() for _ in range(case.parts))
        shape = (1, case.height, case.width, case.channels * case.parts)
        sink = self.tensor(shape, case.scales[0], case.zero_points[0])
        self.operator(_CONCATENATION, sources, (sink,), (("int32", 0, 3),))
        self.outputs = [sink]

    def split(self) -> None:
        case = self.case
        axis = self.numbers(np.array(3))
        source = self.image()
        shape = (1, case.height, case.width, case.channels // case.parts)
        sinks = tuple(
            self.tensor(shape, case.scales[0], case.zero_points[0]) for _ in range(case.parts)
        )
        self.operator(_SPLIT, (axis, source), sinks, (("int32", 0, case.parts),))
        self.outputs = list(sinks)

    def pad(self) -> None:
        case = self.case
        pairs = np.array([(0, 0), case.pads[0:2], case.pads[2:4], case.pads[4:6]])
        source, pads = self.image(), self.numbers(pairs)
        grown = [1, case.height, case.width, case.channels]
        shape = tuple(int(size + pair.sum()) for size, pair in zip(grown, pairs, strict=True))
        sink = self.tensor(shape, case.scales[0], case.zero_points[0])
        self.operator(_PAD, (source, pads), (sink,), ())
        self.outputs = [sink]

    def unary(self) -> None:
        case = self.case
        source = self.image()
        scale, zero_point = case.scales[0] * case.scales[1], case.zero_points[2]
        if case.operation == "logistic":
            scale, zero_point = 1 / 256, 0  # the only ones that TFLite's kernel takes
        elif case.operation == "relu":
            scale, zero_point = case.scales[0] * 0.7, 0
        sink = self.tensor((1, case.height, case.width, case.channels), scale, zero_point)
        code = {"relu": _RELU, "abs": _ABS, "logistic": _LOGISTIC}[case.operation]
        self.operator(code, (source,), (sink,), ())
        self.outputs = [sink]
