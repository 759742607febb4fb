# SPDX-License-Identifier: MIT
"""Compares each job's output with the tensor that TFLite computes, while a model runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from userspace.npu.model.tflite_file import (
    NO_ACTIVATION,
    RELU,
    SAME,
    Operator,
    Tensor,
    conv,
    depthwise_conv,
    write_model,
)
from userspace.npu.validate.onboard import bmp, preprocess
from userspace.npu.validate.onboard.environment import load_runtime
from virtual.npu.memory import Bytes
from virtual.npu.tflite.arithmetic import Accumulators, Pixels
from virtual.npu.tflite.operations import Operation, operations
from virtual.npu.vivante.audit.exact import ExactMode
from virtual.npu.vivante.nn import NnJob


def reference(model: Path, image: Path) -> dict[int, NDArray[Any]]:
    """Return the output of every operator, by its index, from the portable kernels.

    TFLite may run an ADD in place of its input, also where tensors are to be kept: such an input's own
    operator is left out.
    """
    module, _ = load_runtime()
    interpreter = module.Interpreter(
        str(model),
        experimental_op_resolver_type=module.OpResolverType.BUILTIN_REF,
        experimental_preserve_all_tensors=True,
    )
    interpreter.allocate_tensors()
    source = interpreter.get_input_details()[0]
    _, height, width, _ = (int(size) for size in source["shape"])
    pixels = bmp.open_bmp(image)
    resized = preprocess.resize_bilinear(pixels, height, width, fused=True)
    interpreter.set_tensor(source["index"], preprocess.to_input(resized, source["dtype"])[None])
    interpreter.invoke()
    described = interpreter._get_ops_details()
    found: dict[int, NDArray[Any]] = {}
    addresses: dict[int, int] = {}
    for operator in described:
        number = int(operator["outputs"][0])
        tensor = interpreter.tensor(number)()
        address = tensor.__array_interface__["data"][0]
        if operator["op_name"] == "ADD":
            found.pop(addresses.get(address, -1), None)
        addresses[address] = operator["index"]
        found[operator["index"]] = tensor.copy()
    return found


class Compared(ExactMode):
    """Exact mode that counts, for each operator, how many values differ from the reference."""

    def __init__(
        self, known: list[Operation], generation: int, expected: dict[int, NDArray[Any]]
    ) -> None:
        super().__init__(known, generation)
        self._expected = expected
        self.different: dict[str, int] = {}
        self.values = 0

    def output(self, job: NnJob, image: Bytes, accumulators: Accumulators) -> Pixels:
        pixels = super().output(job, image, accumulators)
        assert self.current is not None
        tensor = self._expected.get(self.current.index)
        if tensor is not None:
            planes = np.moveaxis(tensor[0], -1, 0)
            differ = int((pixels.reshape(-1) != planes.reshape(-1)).sum())
            self.different[self.current.name] = differ
            self.values += pixels.size
        return pixels


def compared(model: Path, image: Path, generation: int) -> Compared:
    return Compared(operations(model), generation, reference(model, image))


def chain(height: int, width: int, layers: list[tuple[str, int, int, int, int]]) -> bytes:
    """Return a model: an image of three channels through convolutions with random weights.

    Args:
        layers: (``conv`` or ``depthwise``, kernel, stride, padding, output channels).
    """
    rng = np.random.default_rng(height)
    scale = 0.02
    tensors = [Tensor("input", (1, height, width, 3), "uint8", scale, 120)]
    operators: list[Operator] = []
    source, channels = 0, 3
    for number, (kind, kernel, stride, padding, wanted) in enumerate(layers):
        dense = kind == "conv"
        out_channels = wanted if dense else channels
        shape = (out_channels, kernel, kernel, channels) if dense else (1, kernel, kernel, channels)
        weight_scale = 0.01 / (kernel * kernel * (channels if dense else 1)) ** 0.5
        zero_point = int(rng.integers(100, 150))
        weights = rng.integers(zero_point - 60, zero_point + 60, shape)
        biases = rng.integers(-3000, 3000, out_channels)
        if padding == SAME:
            height, width = -(-height // stride), -(-width // stride)
        else:
            height, width = (height - kernel) // stride + 1, (width - kernel) // stride + 1
        tensors += [
            Tensor(f"weights_{number}", shape, "uint8", weight_scale, zero_point, weights),
            Tensor(f"bias_{number}", (out_channels,), "int32", scale * weight_scale, 0, biases),
        ]
        scale = 0.02 + 0.003 * (number % 4)
        zero_point = int(rng.integers(20, 200))
        shape = (1, height, width, out_channels)
        tensors.append(Tensor(f"features_{number}", shape, "uint8", scale, zero_point))
        sink = len(tensors) - 1
        inputs, activation = (source, sink - 2, sink - 1), NO_ACTIVATION if number % 2 else RELU
        if dense:
            operators.append(
                conv(inputs, sink, stride=stride, activation=activation, padding=padding)
            )
        else:
            operators.append(depthwise_conv(inputs, sink, stride=stride, activation=activation))
        source, channels = sink, out_channels
    return write_model(tensors, operators, inputs=[0], outputs=[source], description="chain")
