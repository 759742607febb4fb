# SPDX-License-Identifier: MIT
"""Models of one operation that stand at the borders of the rules in ``userspace/npu/model/rules.toml``."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from userspace.npu.model.tflite_file import (
    Operator,
    Tensor,
    conv,
    depthwise_conv,
    softmax,
    write_model,
)
from virtual.gates.build import build
from virtual.gates.cases import RELU, RELU6, Case

SIDE, CHANNELS = 8, 8
SHAPE = (1, SIDE, SIDE, CHANNELS)
TANH = 4
_ADD, _CONCATENATION, _DEQUANTIZE, _MAX_POOL, _RESHAPE, _PAD = 0, 2, 6, 17, 22, 34
_TRANSPOSE, _SUB, _STRIDED_SLICE, _SPLIT = 39, 41, 45, 49


@dataclass
class _Graph:
    """Collects tensors of a model with one operation."""

    tensors: list[Tensor] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)

    def image(self, shape: tuple[int, ...] = SHAPE) -> int:
        self.inputs.append(self.result(shape))
        return self.inputs[-1]

    def result(self, shape: tuple[int, ...], scale: float = 0.02, zero_point: int = 120) -> int:
        self.tensors.append(Tensor(f"t{len(self.tensors)}", shape, "uint8", scale, zero_point))
        return len(self.tensors) - 1

    def constant(self, values: Any, dtype: str, scale: float = 0.0, zero_point: int = 0) -> int:
        data = np.asarray(values)
        name = f"t{len(self.tensors)}"
        self.tensors.append(Tensor(name, data.shape, dtype, scale, zero_point, data))
        return len(self.tensors) - 1

    def model(self, operator: Operator) -> tuple[bytes, list[Any]]:
        """Return the file, and a picture for each input."""
        made = write_model(
            self.tensors,
            [operator],
            inputs=self.inputs,
            outputs=operator.outputs,
            description="rule",
        )
        rng = np.random.default_rng(3)
        shapes = [self.tensors[number].shape for number in self.inputs]
        return made, [rng.integers(0, 256, shape).astype(np.uint8) for shape in shapes]


def cases() -> dict[str, tuple[bytes, list[Any]]]:
    """Return models and their inputs, by name."""
    plain = Case("conv", SIDE, SIDE, CHANNELS, CHANNELS)
    generated = {
        "conv": plain,
        "conv relu": Case("conv", SIDE, SIDE, CHANNELS, CHANNELS, activation=RELU),
        "conv relu6": Case("conv", SIDE, SIDE, CHANNELS, CHANNELS, kernel=3, activation=RELU6),
        "conv int8": Case("conv", SIDE, SIDE, CHANNELS, CHANNELS, dtype="int8"),
        "depthwise": Case("depthwise", SIDE, SIDE, CHANNELS, kernel=3),
        "add": Case("add", SIDE, SIDE, CHANNELS),
        "concatenation of two": Case("concatenation", SIDE, SIDE, CHANNELS),
        "concatenation of four": Case("concatenation", SIDE, SIDE, CHANNELS, parts=4),
        "split": Case("split", SIDE, SIDE, CHANNELS * 2),
        "pad one": Case("pad", SIDE, SIDE, CHANNELS),
        "pad two": Case("pad", SIDE, SIDE, CHANNELS, pads=(2, 2, 2, 2, 0, 0)),
        "pad three": Case("pad", SIDE, SIDE, CHANNELS, pads=(3, 3, 3, 3, 0, 0)),
        "pad after": Case("pad", SIDE, SIDE, CHANNELS, pads=(0, 1, 0, 1, 0, 0)),
        "pad channels": Case("pad", SIDE, SIDE, CHANNELS, pads=(0, 0, 0, 0, 1, 1)),
        "fully-connected": Case("fully-connected", channels=96, outputs=10),
        "fully-connected 1279": Case("fully-connected", channels=1279, outputs=8),
        "fully-connected 1280": Case("fully-connected", channels=1280, outputs=8),
        "relu": Case("relu", SIDE, SIDE, CHANNELS),
        "abs": Case("abs", SIDE, SIDE, CHANNELS, dtype="int8"),
        "logistic": Case("logistic", SIDE, SIDE, CHANNELS),
    }
    found = {}
    for name, case in generated.items():
        made = build(case)
        found[name] = (made.model, list(made.inputs))
    found |= {
        "conv tanh": _convolution(TANH, 0.05),
        "conv relu6 beyond": _convolution(3, 0.05),
        "add of a constant": _binary(_ADD, 11, constant=True),
        "sub": _binary(_SUB, 28, constant=False),
        "concatenation along rows": _concatenation(1, (CHANNELS, CHANNELS)),
        "concatenation along -1": _concatenation(-1, (CHANNELS, CHANNELS)),
        "concatenation of unequal": _concatenation(3, (CHANNELS, 2 * CHANNELS)),
        "split along rows": _split(1),
        "pad of three dimensions": _pad_of_three(zeros_behind=False),
        "pad of three dimensions, zeros behind": _pad_of_three(zeros_behind=True),
        "max pool": _pool(),
        "softmax": _softmax(),
        "reshape": _reshape(),
        "transpose 0312": _transpose((0, 3, 1, 2)),
        "transpose 0321": _transpose((0, 3, 2, 1)),
        "transpose 0231": _transpose((0, 2, 3, 1)),
        "transpose 0213": _transpose((0, 2, 1, 3)),
    }
    return found


@dataclass(frozen=True)
class Crash:
    """A model that TFLite runs, and in which libteflon.so reads what is not there.

    Attributes:
        said: what the product says of it.
        before_26: whether 25.0 crashes, too.
        always: whether it crashes each time, and not by what lies in memory.
    """

    model: bytes
    inputs: list[Any]
    said: str
    before_26: bool = True
    always: bool = True


def crashing() -> dict[str, Crash]:
    """Return such models by name."""
    computes = "that the model computes or that is no input: the delegate crashes"
    weights = "weights or a bias that the model computes"
    order = np.array([0, 3, 1, 2])
    ends = [np.array(each, np.int32) for each in ([0, 0, 0, 0], [1, 4, 8, 8], [1, 1, 1, 1])]
    shape = (1, 1, SIDE * SIDE, CHANNELS)
    pads = np.array([[0, 0], [1, 1], [1, 1], [0, 0]])
    padded = (1, SIDE + 2, SIDE + 2, CHANNELS)
    return {
        "pad computed": Crash(*_computed(_PAD, 22, [pads], padded), computes),
        "split computed": Crash(*_split_computed(), computes),
        "reshape computed": Crash(*_computed(_RESHAPE, 17, [np.array(shape)], shape), computes, False),
        "transpose computed": Crash(
            *_computed(_TRANSPOSE, 26, [order], (1, CHANNELS, SIDE, SIDE)), computes, False
        ),
        "strided slice computed": Crash(
            *_computed(_STRIDED_SLICE, 32, ends, (1, SIDE // 2, SIDE, CHANNELS)), computes, False
        ),
        "weights computed": Crash(*_convolution_of_inputs(1), weights),
        "bias computed": Crash(*_convolution_of_inputs(2), weights),
        "float16 weights": Crash(*_float16_weights(), weights, False),
        "depthwise without bias": Crash(*_depthwise_without_bias(), "has no bias", always=False),
    }  # fmt: skip


def _computed(
    code: int, options: int, parameters: list[Any], shape: tuple[int, ...]
) -> tuple[bytes, list[Any]]:
    """An operation whose sizes are inputs of the model."""
    graph = _Graph()
    source = graph.image()
    given = []
    for values in parameters:
        given.append(graph.constant(values, "int32"))
        graph.tensors[-1] = replace(graph.tensors[-1], data=None)
    sink = graph.result(shape)
    operator = Operator(code, (source, *given), (sink,), options)
    _, inputs = graph.model(operator)
    written = write_model(
        graph.tensors, [operator], inputs=[source, *given], outputs=[sink], description="rule"
    )
    return written, [*inputs, *(np.asarray(each, np.int32) for each in parameters)]


def _split_computed() -> tuple[bytes, list[Any]]:
    graph = _Graph()
    axis = graph.constant(np.array(3), "int32")
    graph.tensors[axis] = replace(graph.tensors[axis], data=None)
    source = graph.image()
    part = (1, SIDE, SIDE, CHANNELS // 2)
    sinks = (graph.result(part), graph.result(part))
    operator = Operator(_SPLIT, (axis, source), sinks, 35, (("int32", 0, 2),))
    _, inputs = graph.model(operator)
    written = write_model(
        graph.tensors, [operator], inputs=[axis, source], outputs=sinks, description="rule"
    )
    return written, [np.array(3, np.int32), *inputs]


def _convolution_of_inputs(place: int) -> tuple[bytes, list[Any]]:
    """A convolution whose weights (1) or bias (2) are an input of the model."""
    graph = _Graph()
    source = graph.image()
    values = np.random.default_rng(4).integers(90, 160, (CHANNELS, 1, 1, CHANNELS))
    weights = graph.constant(values, "uint8", 0.004, 128)
    bias = graph.constant(np.zeros(CHANNELS), "int32", 0.02 * 0.004)
    given = (source, weights, bias)
    data = graph.tensors[given[place]].data
    graph.tensors[given[place]] = replace(graph.tensors[given[place]], data=None)
    sink = graph.result(SHAPE, 0.05)
    operator = conv(given, sink, stride=1)
    _, inputs = graph.model(operator)
    written = write_model(
        graph.tensors, [operator], inputs=[source, given[place]], outputs=[sink], description="rule"
    )
    assert data is not None
    return written, [*inputs, data.astype(graph.tensors[given[place]].dtype)]


def _float16_weights() -> tuple[bytes, list[Any]]:
    """As TensorFlow's converter writes them: a DEQUANTIZE makes float32 of them in each run."""
    rng = np.random.default_rng(4)
    shape = (CHANNELS, 3, 3, CHANNELS)
    tensors = [
        Tensor("in", SHAPE, "float32"),
        Tensor("half", shape, "float16", data=rng.normal(0, 0.1, shape)),
        Tensor("weights", shape, "float32"),
        Tensor("bias", (CHANNELS,), "float32", data=np.zeros(CHANNELS)),
        Tensor("out", SHAPE, "float32"),
    ]
    operators = [Operator(_DEQUANTIZE, (1,), (2,), 38), conv((0, 2, 3), 4, stride=1)]
    written = write_model(tensors, operators, inputs=[0], outputs=[4], description="rule")
    return written, [rng.random(SHAPE, np.float32)]


def _depthwise_without_bias() -> tuple[bytes, list[Any]]:
    graph = _Graph()
    source = graph.image()
    weights = graph.constant(np.full((1, 3, 3, CHANNELS), 140), "uint8", 0.004, 128)
    sink = graph.result(SHAPE, 0.05)
    return graph.model(depthwise_conv((source, weights), sink, stride=1))


def _convolution(activation: int, scale: float) -> tuple[bytes, list[Any]]:
    graph = _Graph()
    source = graph.image()
    weights = graph.constant(
        np.random.default_rng(4).integers(90, 160, (CHANNELS, 1, 1, CHANNELS)), "uint8", 0.004, 128
    )
    bias = graph.constant(np.zeros(CHANNELS), "int32", 0.02 * 0.004)
    sink = graph.result(SHAPE, scale, 0)
    return graph.model(conv((source, weights, bias), sink, stride=1, activation=activation))


def _binary(code: int, options: int, *, constant: bool) -> tuple[bytes, list[Any]]:
    graph = _Graph()
    first = graph.image()
    second = graph.constant(np.full(SHAPE, 77), "uint8", 0.03, 10) if constant else graph.image()
    return graph.model(Operator(code, (first, second), (graph.result(SHAPE, 0.05),), options))


def _concatenation(axis: int, channels: tuple[int, int]) -> tuple[bytes, list[Any]]:
    graph = _Graph()
    sources = tuple(graph.image((1, SIDE, SIDE, each)) for each in channels)
    whole = list(graph.tensors[0].shape)
    whole[axis] = sum(graph.tensors[number].shape[axis] for number in sources)
    sink = graph.result(tuple(whole))
    return graph.model(Operator(_CONCATENATION, sources, (sink,), 10, (("int32", 0, axis),)))


def _split(axis: int) -> tuple[bytes, list[Any]]:
    graph = _Graph()
    number = graph.constant(np.array(axis), "int32")
    source = graph.image()
    part = list(SHAPE)
    part[axis] //= 2
    sinks = (graph.result(tuple(part)), graph.result(tuple(part)))
    return graph.model(Operator(_SPLIT, (number, source), sinks, 35, (("int32", 0, 2),)))


def _pad_of_three(*, zeros_behind: bool) -> tuple[bytes, list[Any]]:
    """Rows and columns by 1, of three dimensions: Mesa reads eight numbers of the six that there are."""
    graph = _Graph()
    source = graph.image((SIDE, SIDE, CHANNELS))
    pads = np.array([[0, 0], [1, 1], [1, 1], [0, 0]], np.int32)
    given = graph.constant(pads if zeros_behind else pads[:3], "int32")
    sink = graph.result((SIDE, SIDE + 2, CHANNELS + 2))
    made, inputs = graph.model(Operator(_PAD, (source, given), (sink,), 22))
    if not zeros_behind:
        return made, inputs
    # The vector's length, and the tensor's shape, say three; what follows stays in the file.
    content = bytearray(made)
    struct.pack_into("<I", content, made.index(pads.tobytes()) - 4, pads[:3].nbytes)
    struct.pack_into("<Iii", content, made.index(struct.pack("<Iii", 2, 4, 2)), 2, 3, 2)
    return bytes(content), inputs


def _pool() -> tuple[bytes, list[Any]]:
    graph = _Graph()
    source = graph.image()
    sink = graph.result((1, SIDE // 2, SIDE // 2, CHANNELS))
    slots = (("int8", 0, 1), *(("int32", slot, 2) for slot in (1, 2, 3, 4)))
    return graph.model(Operator(_MAX_POOL, (source,), (sink,), 5, slots))


def _softmax() -> tuple[bytes, list[Any]]:
    graph = _Graph()
    return graph.model(softmax(graph.image((1, 16)), graph.result((1, 16), 1 / 256, 0)))


def _reshape() -> tuple[bytes, list[Any]]:
    graph = _Graph()
    source = graph.image()
    shape = (1, 1, SIDE * SIDE, CHANNELS)
    new = graph.constant(np.array(shape), "int32")
    return graph.model(Operator(_RESHAPE, (source, new), (graph.result(shape),), 17))


def _transpose(order: tuple[int, ...]) -> tuple[bytes, list[Any]]:
    graph = _Graph()
    source = graph.image((1, 4, 6, CHANNELS))
    new = graph.constant(np.array(order), "int32")
    shape = tuple((1, 4, 6, CHANNELS)[axis] for axis in order)
    return graph.model(Operator(_TRANSPOSE, (source, new), (graph.result(shape),), 26))
