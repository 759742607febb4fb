# SPDX-License-Identifier: MIT
"""What a model is made of: multiplications and bytes of operations, and in which numbers it computes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .graph import Model, Operation, Tensor

WEIGHTS_INPUT = {
    "CONV_2D": 1, "DEPTHWISE_CONV_2D": 1, "FULLY_CONNECTED": 1, "TRANSPOSE_CONV": 1, "CONV_3D": 1,
}  # fmt: skip
"""Operations with weights, and which input these are."""
_DATA_INPUT = {"TRANSPOSE_CONV": 2}
# Inputs whose values Mesa reads as it decides what it takes.
_READ_UNSEEN = {
    "PAD": (1,), "SPLIT": (0,), "TRANSPOSE": (1,), "RESHAPE": (1,), "STRIDED_SLICE": (1, 2, 3),
}  # fmt: skip
_FLOATS = ("float32", "float16", "float64")
_INTEGERS = ("uint8", "int8", "int4", "int16")


@dataclass(frozen=True)
class Numbers:
    """In which numbers a model computes.

    Attributes:
        kind: ``uint8``, ``int8``, ``int16``, ``float``, ``float16`` (the weights alone), ``dynamic range``
            (the weights alone are integers), ``mixed``, or ``none`` where no operation has weights.
        weights: ``per tensor``, ``per axis``, ``mixed``, or ``not quantised``; "" without weights.
    """

    kind: str
    weights: str

    @property
    def text(self) -> str:
        """Both in words."""
        if self.kind == "none":
            return "no weights"
        return f"{self.kind}, weights {self.weights}" if self.kind in _INTEGERS else self.kind


def weights_of(operation: Operation) -> Tensor | None:
    """Return an operation's weights; None where it has none."""
    place = WEIGHTS_INPUT.get(operation.kind, len(operation.inputs))
    return operation.inputs[place] if place < len(operation.inputs) else None


def reads_computed(operation: Operation) -> bool:
    """Whether Mesa's PrepareDelegate reads, of this operation, what is no constant: before it exists.

    Sizes, an axis, an order, a shape (tfl_device.c, PrepareDelegate and fill_operation), also of a RESHAPE
    that has it among its options alone.
    """
    for place in _READ_UNSEEN.get(operation.kind, ()):
        tensor = operation.inputs[place] if place < len(operation.inputs) else None
        if tensor is None or tensor.data is None:
            return True
    return False


def data_of(operation: Operation) -> Tensor | None:
    """Return what an operation works on: its first input, for most."""
    place = _DATA_INPUT.get(operation.kind, 0)
    return operation.inputs[place] if place < len(operation.inputs) else None


def output_of(operation: Operation) -> Tensor | None:
    """Return an operation's first output."""
    return operation.outputs[0] if operation.outputs else None


def parameters_bytes(operation: Operation) -> int:
    """Return how many bytes of constants an operation has."""
    return sum(len(tensor.data) for tensor in operation.inputs if tensor and tensor.data)


def macs(operation: Operation) -> int:
    """Return how many multiplications with accumulation an operation takes.

    Those of convolutions, fully connected layers and matrix products; 0 for all others.
    """
    data, weights, output = data_of(operation), weights_of(operation), output_of(operation)
    if data is None or output is None:
        return 0
    if operation.kind == "BATCH_MATMUL":
        # Of a transposed first factor the last two sizes are swapped: their product is not.
        rows = output.shape[-2] if len(output.shape) > 1 else 1
        inner = math.prod(data.shape[-2:]) // rows if rows > 0 and len(data.shape) <= 8 else 0
        return output.elements * max(inner, 0)
    # Of nonsense shapes nothing is computed.
    if weights is None or not weights.shape or not weights.elements or not output.elements:
        return 0
    shape = weights.shape
    if operation.kind == "FULLY_CONNECTED":
        return output.elements * shape[-1]
    if operation.kind == "CONV_3D":
        return output.elements * math.prod(shape[:-1])
    if len(shape) != 4:
        return 0
    outputs, rows, columns, inputs = shape
    if operation.kind == "CONV_2D":
        return output.elements * rows * columns * inputs
    if operation.kind == "DEPTHWISE_CONV_2D":
        return output.elements * rows * columns
    return data.elements * outputs * rows * columns  # TRANSPOSE_CONV


def numbers(model: Model) -> Numbers:
    """Return in which numbers a model computes, by its operations with weights."""
    unpacked = {
        id(output)
        for each in model.operations
        if each.kind in ("DEQUANTIZE", "DENSIFY")
        for output in each.outputs
        if output and each.inputs and each.inputs[0] and each.inputs[0].data is not None
    }
    kinds, scales = set(), set()
    for each in model.operations:
        weights, data = weights_of(each), data_of(each)
        if weights is None or data is None:
            continue
        kinds.add(_kind(data, weights, id(weights) in unpacked))
        scales.add(_scales(weights))
    if not kinds:
        return Numbers("none", "")
    return Numbers(
        kinds.pop() if len(kinds) == 1 else "mixed", scales.pop() if len(scales) == 1 else "mixed"
    )


def _kind(data: Tensor, weights: Tensor, unpacked: bool) -> str:
    if data.dtype in _FLOATS:
        if weights.dtype in _INTEGERS:
            return "dynamic range"
        return "float16" if unpacked else "float"
    return data.dtype if data.dtype in _INTEGERS else "mixed"


def _scales(weights: Tensor) -> str:
    if not weights.scales:
        return "not quantised"
    return "per axis" if len(weights.scales) > 1 else "per tensor"
