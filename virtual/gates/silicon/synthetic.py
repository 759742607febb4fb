# SPDX-License-Identifier: MIT
"""Mesa's synthetic tests: the grid of test_teflon.cpp, and the models that test_executor.cpp makes.

A model is a template of the source package with new shapes, weights and biases. Scales and zero points are
the template's, except those of ADD's two operands. The random numbers are drawn in the order of the tests.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from userspace.npu.model.graph import Operation, read_graph
from userspace.npu.model.graph import Tensor as ReadTensor
from userspace.npu.model.tflite_file import (
    NO_ACTIVATION,
    SAME,
    VALID,
    Operator,
    Tensor,
    conv,
    write_model,
)

from .sequences import CRandom, Twister

CONV, DEPTHWISE, ADD, ADD_QUANT, CONNECTED = (
    "Conv2D",
    "DepthwiseConv2D",
    "Add",
    "AddQuant",
    "FullyConnected",
)
SUITES = (CONV, DEPTHWISE, ADD, ADD_QUANT, CONNECTED)
SEED = 4
TOLERANCE = 2

# The grid of Mesa 25.0.7, test_teflon.cpp.
_OUTPUTS = (1, 32, 120, 128, 160, 256)
_INPUTS = (1, 32, 120, 128, 256)
_KERNELS = (1, 3, 5)
_DEPTHWISE_KERNELS = (3, 5)
_SIZES = (3, 5, 8, 80, 112)
_STRIDES = (1, 2)
_PADDINGS = (0, 1)
_CONNECTED_INPUTS = (128, 1280, 25088, 62720)
_ADD_QUANT_SEEDS = 100
_ADD_SCALES = (0.0078125, 0.4386410117149353)
_BIAS_REACH = 20000


@dataclass(frozen=True)
class Synthetic:
    """One synthetic test.

    Attributes:
        suite: the test suite in test_teflon.cpp: ``CONV``, ``DEPTHWISE``, ``ADD``...
        name: as Mesa's lists have it.
        size: of the input's sides, in pixels; of a fully connected layer its inputs.
        same: padding SAME, else VALID.
    """

    suite: str
    name: str
    size: int
    kernel: int
    inputs: int
    outputs: int
    stride: int = 1
    same: bool = False
    seed: int = SEED

    @property
    def macs(self) -> int:
        """Multiplications of the model."""
        if self.suite == CONNECTED:
            return self.size * self.outputs
        planes = 1 if self.suite == DEPTHWISE else self.inputs
        convolutions = 2 if self.suite in (ADD, ADD_QUANT) else 1
        return convolutions * self.out_size**2 * self.kernel**2 * planes * self.outputs

    @property
    def out_size(self) -> int:
        """Sides of a convolution's output, as patch_conv2d computes them."""
        if self.same:
            return (self.size + self.stride - 1) // self.stride
        return (self.size + self.stride - self.kernel) // self.stride


def grid() -> list[Synthetic]:
    """Return all synthetic tests of test_teflon.cpp that it does not skip itself."""
    tests = [*_convolutions(CONV), *_depthwise(), *_convolutions(ADD)]
    tests += [
        Synthetic(ADD_QUANT, f"AddQuant.Op/{seed}", 40, 1, 1, 1, seed=seed)
        for seed in range(_ADD_QUANT_SEEDS)
    ]
    tests += [
        Synthetic(
            CONNECTED,
            f"FullyConnected.Op/input_size_{size}_output_channels_{outputs}_is_signed_0",
            size,
            1,
            size,
            outputs,
        )
        for outputs, size in itertools.product(_OUTPUTS, _CONNECTED_INPUTS)
    ]
    return tests


def _convolutions(suite: str) -> Iterator[Synthetic]:
    for same, stride, outputs, inputs, kernel, size in itertools.product(
        _PADDINGS, _STRIDES, _OUTPUTS, _INPUTS, _KERNELS, _SIZES
    ):
        if kernel <= size:
            name = (
                f"{suite}.Op/input_size_{size}_weight_size_{kernel}_input_channels_{inputs}"
                f"_output_channels_{outputs}_stride_{stride}_padding_same_{same}_is_signed_0"
            )
            yield Synthetic(suite, name, size, kernel, inputs, outputs, stride, bool(same))


def _depthwise() -> Iterator[Synthetic]:
    for same, stride, channels, kernel, size in itertools.product(
        _PADDINGS, _STRIDES, _INPUTS, _DEPTHWISE_KERNELS, _SIZES
    ):
        if kernel <= size:
            name = (
                f"{DEPTHWISE}.Op/input_size_{size}_weight_size_{kernel}_channels_{channels}"
                f"_stride_{stride}_padding_same_{same}_is_signed_0"
            )
            yield Synthetic(DEPTHWISE, name, size, kernel, channels, channels, stride, bool(same))


class Templates:
    """The template models of a source package."""

    def __init__(self, folder: Path) -> None:
        self._conv = read_graph((folder / "conv2d.tflite").read_bytes())
        self._add = read_graph((folder / "add.tflite").read_bytes())
        self._connected = read_graph((folder / "fully_connected.tflite").read_bytes())

    def build(self, test: Synthetic) -> tuple[bytes, Twister]:
        """Return a test's model, and the generator from which the test draws its inputs next."""
        twister = Twister(test.seed)
        if test.suite == CONNECTED:
            model = _connected(self._connected[0], test, twister)
        elif test.suite in (ADD, ADD_QUANT):
            model = _added(self._add, test, twister)
        else:
            model = _convolution(self._conv[0], test, twister)
        return model, twister


def _convolution(template: Operation, test: Synthetic, twister: Twister) -> bytes:
    source = _resized(template.inputs[0], (1, test.size, test.size, test.inputs))
    weights, bias = _coefficients(template, test, twister)
    sink = _resized(template.outputs[0], (1, test.out_size, test.out_size, test.outputs))
    operator = _operator(test, (0, 1, 2), 3)
    tensors = (source, weights, bias, sink)
    return write_model(tensors, [operator], inputs=[0], outputs=[3], description=test.name)


def _added(template: Sequence[Operation], test: Synthetic, twister: Twister) -> bytes:
    """Two convolutions of one input, and the sum of the second's and the first's output."""
    first, second, addition = template
    shape = (1, test.out_size, test.out_size, test.outputs)
    source = _resized(first.inputs[0], (1, test.size, test.size, test.inputs))
    coefficients = [_coefficients(each, test, twister) for each in (first, second)]
    numbers = CRandom(test.seed)
    sums = {}
    for tensor in addition.inputs:
        if tensor is None:
            raise RuntimeError("the operation has no tensor there")
        scale = float(numbers.fraction(*_ADD_SCALES))
        zero_point = numbers.number() % 255
        sums[tensor.name] = replace(_resized(tensor, shape), scale=scale, zero_point=zero_point)
    outputs = [sums[_named(each.outputs[0])] for each in (first, second)]
    tensors = (source, *coefficients[0], outputs[0], *coefficients[1], outputs[1],
               _resized(addition.outputs[0], shape))  # fmt: skip
    place = {tensor.name: number for number, tensor in enumerate(tensors)}
    operators = (
        _operator(test, (0, 1, 2), 3),
        _operator(test, (0, 4, 5), 6),
        Operator(
            0,
            tuple(place[_named(each)] for each in addition.inputs),
            (7,),
            11,
            (("int8", 0, NO_ACTIVATION),),
        ),
    )
    return write_model(tensors, operators, inputs=[0], outputs=[7], description=test.name)


def _connected(template: Operation, test: Synthetic, twister: Twister) -> bytes:
    source = _resized(template.inputs[0], (1, test.size))
    bias = _biases(template.inputs[2], test, twister)
    weights = _weights(template.inputs[1], (test.outputs, test.size), twister)
    sink = _resized(template.outputs[0], (1, test.outputs))
    operator = Operator(9, (0, 1, 2), (3,), 8)
    tensors = (source, weights, bias, sink)
    return write_model(tensors, [operator], inputs=[0], outputs=[3], description=test.name)


def _coefficients(template: Operation, test: Synthetic, twister: Twister) -> tuple[Tensor, Tensor]:
    """Return weights and bias; the bias is drawn first."""
    bias = _biases(template.inputs[2], test, twister)
    if test.suite == DEPTHWISE:
        shape = (1, test.kernel, test.kernel, test.outputs)
    else:
        shape = (test.outputs, test.kernel, test.kernel, test.inputs)
    return _weights(template.inputs[1], shape, twister), bias


def _biases(template: ReadTensor | None, test: Synthetic, twister: Twister) -> Tensor:
    values = twister.integers(test.outputs, -_BIAS_REACH, _BIAS_REACH).astype(np.int32)
    return _resized(template, values.shape, values)


def _weights(template: ReadTensor | None, shape: tuple[int, ...], twister: Twister) -> Tensor:
    return _resized(template, shape, twister.bytes(shape))


def _resized(
    template: ReadTensor | None,
    shape: tuple[int, ...],
    data: NDArray[np.int32] | NDArray[np.uint8] | None = None,
) -> Tensor:
    if template is None:
        raise RuntimeError("the template has no tensor there")
    return Tensor(
        template.name, shape, template.dtype, template.scales[0], template.zero_points[0], data
    )


def _named(tensor: ReadTensor | None) -> str:
    if tensor is None:
        raise RuntimeError("the operation has no tensor there")
    return tensor.name


def _operator(test: Synthetic, inputs: tuple[int, ...], output: int) -> Operator:
    padding = SAME if test.same else VALID
    if test.suite != DEPTHWISE:
        return conv(inputs, output, stride=test.stride, activation=NO_ACTIVATION, padding=padding)
    slots = (
        ("int8", 0, padding),
        ("int32", 1, test.stride),
        ("int32", 2, test.stride),
        ("int32", 3, 1),
        ("int8", 4, NO_ACTIVATION),
    )
    return Operator(4, inputs, (output,), 2, slots)
