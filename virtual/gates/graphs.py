# SPDX-License-Identifier: MIT
"""Graphs that real models have and one usual operation does not show: heads, branches, odd kernels.

Each function makes the graph of one ``Case.operation``; ``GRAPHS`` names them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from userspace.npu.model.tflite_file import SAME, VALID, Tensor

from .cases import PADDED, PLAIN, RELU
from .maker import WEIGHT_SCALE, Maker

# TensorFlow's schema.fbs: enum BuiltinOperator, union BuiltinOptions.
_ADD, _CONCATENATION, _CONV, _DEPTHWISE, _CONNECTED = (0, 11), (2, 10), (3, 1), (4, 2), (9, 8)
_MAX_POOL, _RESHAPE, _SUB, _SPLIT = (17, 5), (22, 17), (41, 28), (49, 35)
_ACTIVATIONS = {PLAIN: 0, RELU: 1}
_COORDINATES = 4  # of a box
_NO_TENSOR = -1


def layer(
    maker: Maker,
    source: int,
    outputs: int,
    *,
    kernel: int = 1,
    stride: int = 1,
    zero_point: int = 110,
) -> int:
    """Add a convolution with padding SAME; return its output."""
    _, height, width, channels = maker.tensors[source].shape
    case = maker.case
    maker.case = replace(case, zero_points=(case.zero_points[0], 128, zero_point), activation=PLAIN)
    shape = (outputs, kernel, kernel, channels)
    weights, spread, _ = maker.weights(shape, kernel * kernel * channels)
    scale = maker.tensors[source].scale * WEIGHT_SCALE
    bias = maker.numbers(maker.rng.integers(-int(spread), int(spread), outputs), scale)
    size = (1, -(-height // stride), -(-width // stride), outputs)
    sink = maker.tensor(size, scale * spread / 45, zero_point)
    slots = (("int8", 0, SAME), ("int32", 1, stride), ("int32", 2, stride), ("int8", 3, 0))
    maker.operator(_CONV, (source, weights, bias), (sink,), slots)
    maker.case = case
    return sink


def like(maker: Maker, source: int, shape: Sequence[int]) -> int:
    """Add a tensor with another one's scale and zero point."""
    tensor = maker.tensors[source]
    maker.tensors.append(replace(tensor, name=f"tensor_{len(maker.tensors)}", shape=tuple(shape)))
    return len(maker.tensors) - 1


def _reshaped(maker: Maker, source: int, shape: Sequence[int]) -> int:
    sink = like(maker, source, shape)
    maker.operator(_RESHAPE, (source, maker.numbers(np.array(shape))), (sink,), ())
    return sink


def _boxes(maker: Maker, source: int) -> int:
    """Bring a head's output into a list of boxes, as every SSD does."""
    size = int(np.prod(maker.tensors[source].shape))
    return _reshaped(maker, source, (1, size // _COORDINATES, _COORDINATES))


def _concatenated(maker: Maker, sources: Sequence[int], axis: int) -> int:
    shape = list(maker.tensors[sources[0]].shape)
    shape[axis] = sum(maker.tensors[each].shape[axis] for each in sources)
    sink = like(maker, sources[0], shape)
    maker.operator(_CONCATENATION, tuple(sources), (sink,), (("int32", 0, axis),))
    return sink


def _head(maker: Maker) -> None:
    case = maker.case
    maker.outputs = [_boxes(maker, layer(maker, maker.image(), case.outputs, kernel=case.kernel))]


def _flat(maker: Maker) -> None:
    """A convolution's output as one row, as before a fully connected layer."""
    features = layer(maker, maker.image(), maker.case.outputs)
    maker.outputs = [_reshaped(maker, features, (1, int(np.prod(maker.tensors[features].shape))))]


def _heads(maker: Maker) -> None:
    """Two heads of a detector, of two sizes: the second behind a convolution of stride 2."""
    case = maker.case
    body = layer(maker, maker.image(), case.channels, kernel=3)
    first = _boxes(maker, layer(maker, body, case.outputs, zero_point=120))
    smaller = layer(maker, body, case.channels, kernel=3, stride=2)
    head = layer(maker, smaller, case.outputs, zero_point=120)
    second = like(maker, first, maker.tensors[_boxes(maker, head)].shape)
    # Both lists have one scale, as in a quantised detector.
    maker.operators[-1] = replace(maker.operators[-1], outputs=(second,))
    maker.tensors[head] = replace(maker.tensors[head], scale=maker.tensors[first].scale)
    maker.outputs = [_concatenated(maker, (first, second), 1)]


def _branch(maker: Maker) -> None:
    """A tensor that a convolution and an operation of the CPU (MAX_POOL_2D) read."""
    case = maker.case
    shared = layer(maker, maker.image(), case.outputs, kernel=3)
    further = layer(maker, shared, case.outputs, kernel=3)
    pooled = like(maker, shared, maker.tensors[shared].shape)
    slots = (("int8", 0, SAME), ("int32", 1, 1), ("int32", 2, 1), ("int32", 3, 3), ("int32", 4, 3))
    maker.operator(_MAX_POOL, (shared,), (pooled,), slots)
    maker.outputs = [further, pooled]


def _handed_out(maker: Maker) -> None:
    """A tensor that a convolution reads, and that is an output of the model."""
    case = maker.case
    shared = layer(maker, maker.image(), case.outputs, kernel=3)
    maker.outputs = [layer(maker, shared, case.outputs, kernel=3), shared]


def _readers(maker: Maker) -> None:
    """A tensor that several convolutions read."""
    case = maker.case
    shared = layer(maker, maker.image(), case.channels, kernel=3)
    maker.outputs = [layer(maker, shared, case.outputs + 4 * n) for n in range(case.parts)]


def _joined(maker: Maker) -> None:
    """Convolutions of one input, joined along their channels."""
    case = maker.case
    source = maker.image()
    branches = [layer(maker, source, case.outputs) for _ in range(case.parts)]
    for number in branches[1:]:
        maker.tensors[number] = replace(
            maker.tensors[number], scale=maker.tensors[branches[0]].scale
        )
    maker.outputs = [_concatenated(maker, branches, 3)]


def _parted(maker: Maker) -> None:
    """A convolution's output that is split between convolutions."""
    case = maker.case
    shared = layer(maker, maker.image(), case.outputs)
    _, height, width, channels = maker.tensors[shared].shape
    axis = maker.numbers(np.array(3))
    parts = tuple(
        like(maker, shared, (1, height, width, channels // case.parts)) for _ in range(case.parts)
    )
    maker.operator(_SPLIT, (axis, shared), parts, (("int32", 0, case.parts),))
    maker.outputs = [layer(maker, part, 8) for part in parts]


def _grouped(maker: Maker) -> None:
    """A convolution whose weights have fewer channels than its input: two groups."""
    case = maker.case
    source = maker.image()
    own = case.channels // 2
    weights, spread, mean = maker.weights(
        (case.outputs, case.kernel, case.kernel, own), case.kernel**2 * own
    )
    bias = maker.bias(case.outputs, spread, mean)
    sink = maker.result((1, case.height, case.width, case.outputs), spread)
    slots = (("int8", 0, SAME), ("int32", 1, 1), ("int32", 2, 1), ("int8", 3, 0))
    maker.operator(_CONV, (source, weights, bias), (sink,), slots)
    maker.outputs = [sink]


def _multiplied(maker: Maker) -> None:
    """A depthwise convolution from each of whose channels several come out."""
    case = maker.case
    source = maker.image()
    weights, spread, mean = maker.weights(
        (1, case.kernel, case.kernel, case.outputs), case.kernel**2
    )
    bias = maker.bias(case.outputs, spread, mean)
    sink = maker.result((1, case.height, case.width, case.outputs), spread)
    multiplier = case.outputs // case.channels
    slots = (("int8", 0, SAME if case.padding == PADDED else VALID), ("int32", 1, 1),
             ("int32", 2, 1), ("int32", 3, multiplier), ("int8", 4, 0))  # fmt: skip
    maker.operator(_DEPTHWISE, (source, weights, bias), (sink,), slots)
    maker.outputs = [sink]


def _connected_4d(maker: Maker) -> None:
    """A fully connected layer whose input has four dimensions."""
    source = maker.image()
    _connected(maker, source, with_bias=True)


def _connected_relu(maker: Maker) -> None:
    case = maker.case
    source = maker.tensor((1, case.channels), case.scales[0], case.zero_points[0])
    maker.inputs.append(source)
    _connected(maker, source, with_bias=True, activation=_ACTIVATIONS[RELU])


def _connected_without_bias(maker: Maker) -> None:
    case = maker.case
    source = maker.tensor((1, case.channels), case.scales[0], case.zero_points[0])
    maker.inputs.append(source)
    _connected(maker, source, with_bias=False)


def _connected(maker: Maker, source: int, *, with_bias: bool, activation: int = 0) -> None:
    outputs = maker.case.outputs
    width = int(np.prod(maker.tensors[source].shape))
    weights, spread, mean = maker.weights((outputs, width), width)
    bias = maker.bias(outputs, spread, mean) if with_bias else _NO_TENSOR
    sink = maker.result((1, outputs), spread)
    slots = (("int8", 0, activation),)
    maker.operator(_CONNECTED, (source, weights, bias), (sink,), slots)
    maker.outputs = [sink]


def _subtraction(maker: Maker) -> None:
    case = maker.case
    first, second = maker.image(), maker.image(case.zero_points[1], case.scales[0] * 1.4)
    _combined(maker, _SUB, first, second)


def _difference(maker: Maker) -> None:
    """A convolution, another one of its output, and the second less the first."""
    first = layer(maker, maker.image(), maker.case.outputs)
    second = layer(maker, first, maker.case.outputs, zero_point=120)
    _combined(maker, _SUB, second, first)


def _sum_with_relu(maker: Maker) -> None:
    """As in residual blocks with the activation behind the sum."""
    first = layer(maker, maker.image(), maker.case.outputs)
    second = layer(maker, first, maker.case.outputs, zero_point=120)
    _combined(maker, _ADD, second, first, activation=_ACTIVATIONS[RELU])


def _combined(
    maker: Maker, code: tuple[int, int], first: int, second: int, *, activation: int = 0
) -> None:
    scale = (maker.tensors[first].scale + maker.tensors[second].scale) * 0.8
    sink = maker.tensor(maker.tensors[first].shape, scale, maker.case.zero_points[2])
    maker.operator(code, (first, second), (sink,), (("int8", 0, activation),))
    maker.outputs = [sink]


def _float_sum(maker: Maker) -> None:
    case = maker.case
    shape = (1, case.height, case.width, case.channels)
    maker.inputs = [_float(maker, shape), _float(maker, shape)]
    maker.outputs = [_float(maker, shape)]
    maker.operator(_ADD, tuple(maker.inputs), tuple(maker.outputs), ())


def _float_connected(maker: Maker) -> None:
    case = maker.case
    maker.inputs = [_float(maker, (1, case.channels))]
    weights = _float(maker, (case.outputs, case.channels), constant=True)
    bias = _float(maker, (case.outputs,), constant=True)
    maker.outputs = [_float(maker, (1, case.outputs))]
    maker.operator(_CONNECTED, (maker.inputs[0], weights, bias), tuple(maker.outputs), ())


def _float(maker: Maker, shape: tuple[int, ...], *, constant: bool = False) -> int:
    values = maker.rng.normal(0, 0.2, shape).astype(np.float32) if constant else None
    maker.tensors.append(Tensor(f"tensor_{len(maker.tensors)}", shape, "float32", data=values))
    return len(maker.tensors) - 1


GRAPHS: dict[str, Callable[[Maker], None]] = {
    "head": _head,
    "heads": _heads,
    "flat": _flat,
    "branch": _branch,
    "handed-out": _handed_out,
    "readers": _readers,
    "joined": _joined,
    "parted": _parted,
    "grouped": _grouped,
    "multiplied": _multiplied,
    "connected-4d": _connected_4d,
    "connected-relu": _connected_relu,
    "connected-without-bias": _connected_without_bias,
    "sub": _subtraction,
    "difference": _difference,
    "sum-relu": _sum_with_relu,
    "float-add": _float_sum,
    "float-connected": _float_connected,
}
