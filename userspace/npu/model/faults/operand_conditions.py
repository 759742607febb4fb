# SPDX-License-Identifier: MIT
"""Conditions of ``known_faults``: which tensors an operation works on, and what form they have."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Protocol

from ..graph import Operation, Tensor
from ..summary import data_of, output_of, reads_computed, weights_of

_WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
_SUMS = ("ADD", "SUB")
_JOINING = (*_SUMS, "CONCATENATION")
_PLACING = ("CONCATENATION", "SPLIT")
_BYTES = {"uint8": (0, 255), "int8": (-128, 127)}
_MOST_DIMENSIONS = 4


class Around(Protocol):
    """What these conditions ask of ``known_faults.Surroundings``."""

    @property
    def from_cpu(self) -> Collection[int]:
        """Ids of tensors that come from the CPU."""

    @property
    def operands(self) -> Mapping[int, int]:
        """How often the NPU adds, subtracts or joins a tensor, by its id."""

    @property
    def placed(self) -> Mapping[int, str]:
        """Which operation made a tensor a part of another one, by its id."""

    @property
    def laid_out(self) -> Collection[int]:
        """Ids of tensors that operations other than CONCATENATION read."""


def operands_in(operations: Iterable[Operation]) -> Mapping[int, int]:
    """Return how often operations add, subtract or join a tensor, by its id."""
    return Counter(
        id(tensor) for each in operations if each.kind in _JOINING for tensor in _operands(each)
    )


def placed_in(operations: Iterable[Operation]) -> Mapping[int, str]:
    """Return which operation made a tensor a part of another, or of parts, by its id."""
    return {
        id(tensor): each.kind
        for each in operations
        if each.kind in _PLACING
        for tensor in each.outputs
    }


def laid_out_in(operations: Iterable[Operation]) -> Collection[int]:
    """Return the ids of tensors that operations other than CONCATENATION read, and lay out for it."""
    others = [each for each in operations if each.kind != "CONCATENATION"]
    return {id(tensor) for each in others for tensor in each.inputs if tensor is not None}


def _operands(operation: Operation) -> list[Tensor]:
    inputs = operation.inputs[:2] if operation.kind in _SUMS else operation.inputs
    return [tensor for tensor in inputs if tensor is not None]


def computed_parameters(operation: Operation, _: Around) -> bool:
    """Something that Mesa reads before it is computed: sizes, an axis, an order, a shape."""
    return reads_computed(operation)


def computed_weights(operation: Operation, _: Around) -> bool:
    """Weights or a bias that an operation of the model computes: DEQUANTIZE, of float16 weights."""
    parameters = operation.inputs[1:3] if operation.kind in _WEIGHTED else ()
    return any(tensor is not None and tensor.data is None for tensor in parameters)


def constant_data(operation: Operation, _: Around) -> bool:
    """A constant in the place of what is computed: nobody hands it to the NPU."""
    if operation.kind == "CONCATENATION":
        return any(tensor.data is not None for tensor in _operands(operation))
    source = data_of(operation)
    return operation.kind in _WEIGHTED and source is not None and source.data is not None


def broadcast(operation: Operation, _: Around) -> bool:
    """A sum of tensors of different sizes."""
    sizes = {tensor.elements for tensor in _operands(operation)}
    return operation.kind in _SUMS and len(sizes) > 1


def added_to_itself(operation: Operation, _: Around) -> bool:
    """A sum of a tensor and the same tensor."""
    same = {id(tensor) for tensor in _operands(operation)}
    return operation.kind in _SUMS and len(operation.inputs) > 1 and len(same) == 1


def operand_twice(operation: Operation, where: Around) -> bool:
    """A tensor that is added or joined more than once; what the CPU hands over may be joined so."""
    return operation.kind in _JOINING and any(
        where.operands.get(id(tensor), 0) > 1
        and (operation.kind in _SUMS or id(tensor) not in where.from_cpu)
        for tensor in _operands(operation)
    )


def joined_again(operation: Operation, where: Around) -> bool:
    """A concatenation of what another one, or a SPLIT, has made."""
    placed = any(id(tensor) in where.placed for tensor in _operands(operation))
    return operation.kind == "CONCATENATION" and placed


def joined_from_both(operation: Operation, where: Around) -> bool:
    """A concatenation of what the NPU has computed and of what comes as the CPU has it."""
    if operation.kind != "CONCATENATION":
        return False
    operands = _operands(operation)
    plain = [id(each) in where.from_cpu and id(each) not in where.laid_out for each in operands]
    inside = any(id(each) not in where.from_cpu for each in operands)
    orders = any(
        len(each.shape) == _MOST_DIMENSIONS
        and each.shape[3] > 1
        and each.shape[1] * each.shape[2] > 1
        for each in operands
    )
    return any(plain) and inside and orders


def placed_in_sum(operation: Operation, where: Around) -> bool:
    """A sum of what a concatenation or a SPLIT has made."""
    placed = any(id(tensor) in where.placed for tensor in _operands(operation))
    return operation.kind in _SUMS and placed


def one_part_in_sum(operation: Operation, where: Around) -> bool:
    """A sum of a part of a SPLIT and of what is none."""
    parts = {where.placed.get(id(tensor)) == "SPLIT" for tensor in _operands(operation)}
    return operation.kind in _SUMS and len(parts) > 1


def padded_to_other_scale(operation: Operation, _: Around) -> bool:
    """A PAD whose output has another scale or zero point than its input."""
    source, sink = data_of(operation), output_of(operation)
    if operation.kind != "PAD" or source is None or sink is None:
        return False
    return (source.scales, source.zero_points) != (sink.scales, sink.zero_points)


def padded_few_dimensions(operation: Operation, _: Around) -> bool:
    """A PAD of fewer than four dimensions, which is taken by what follows its paddings in the file."""
    source = data_of(operation)
    return operation.kind == "PAD" and source is not None and len(source.shape) < _MOST_DIMENSIONS


def unequal_strides(operation: Operation, _: Around) -> bool:
    """A convolution with another stride along rows than along columns."""
    return operation.kind in _WEIGHTED[:2] and operation.strides[0] != operation.strides[1]


def narrow_activation(operation: Operation, _: Around) -> bool:
    """A fused activation that ends at -1 and 1."""
    return operation.kind in _WEIGHTED[:2] and operation.activation == "RELU_N1_TO_1"


def other_dimensions(operation: Operation, _: Around) -> bool:
    """More than four dimensions, or a concatenation of fewer: sizes are copied from the first on."""
    ranks = [len(tensor.shape) for tensor in (data_of(operation), output_of(operation)) if tensor]
    joined = operation.kind == "CONCATENATION" and min(ranks, default=4) < _MOST_DIMENSIONS
    return max(ranks, default=0) > _MOST_DIMENSIONS or joined


def left_out_dimensions(operation: Operation, _: Around) -> bool:
    """More than four dimensions, of which the last four are not all, or are counted from the first."""
    shapes = [tensor.shape for tensor in (data_of(operation), output_of(operation)) if tensor]
    if operation.kind in ("TRANSPOSE", "PAD", "CONCATENATION"):
        return any(len(shape) > _MOST_DIMENSIONS for shape in shapes)
    return operation.kind != "RESHAPE" and any(
        len(shape) > _MOST_DIMENSIONS and math.prod(shape[:-3]) > 1 for shape in shapes
    )


def joined_row(operation: Operation, _: Around) -> bool:
    """A concatenation of two or three dimensions that is one row or one column of several pixels."""
    sink = output_of(operation)
    if operation.kind != "CONCATENATION" or sink is None or len(sink.shape) not in (2, 3):
        return False
    rows, columns, _channels = (1, *sink.shape)[-3:]
    return min(rows, columns) == 1 and rows * columns > 1


def odd_quantisation(operation: Operation, _: Around) -> bool:
    """A scale that is no positive number, or a zero point that no byte has."""
    tensors = (data_of(operation), weights_of(operation), output_of(operation))
    return any(_is_odd(tensor) for tensor in tensors if tensor)


def _is_odd(tensor: Tensor) -> bool:
    if tensor.dtype not in _BYTES:
        return False
    least, most = _BYTES[tensor.dtype]
    return any(not least <= each <= most for each in tensor.zero_points) or any(
        not 0 < each < math.inf for each in tensor.scales
    )
