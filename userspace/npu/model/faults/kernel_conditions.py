# SPDX-License-Identifier: MIT
"""Conditions of ``known_faults``: kernels of convolutions that the driver takes for other ones."""

from __future__ import annotations

from ..graph import Operation
from ..summary import weights_of

_CONVOLUTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D")
_LARGE = 7
_LEAST_EVEN = 4


def _kernel(operation: Operation) -> tuple[int, int]:
    weights = weights_of(operation)
    if operation.kind not in _CONVOLUTIONS or weights is None or len(weights.shape) != 4:
        return 0, 0
    return weights.shape[1], weights.shape[2]


def unequal_sides(operation: Operation, _: object) -> bool:
    """A kernel with another number of rows than of columns."""
    rows, columns = _kernel(operation)
    return rows != columns


def even_of_stride_2(operation: Operation, _: object) -> bool:
    """A kernel of 4 or more, even, with stride 2 and padding SAME."""
    size = max(_kernel(operation))
    return size >= _LEAST_EVEN and size % 2 == 0 and operation.same and max(operation.strides) > 1


def large(operation: Operation, _: object) -> bool:
    """A kernel of 7 or more with padding SAME."""
    return operation.same and max(_kernel(operation)) >= _LARGE


def even_depthwise(operation: Operation, where: object) -> bool:
    """An even kernel of stride 2, of a depthwise convolution."""
    return operation.kind == "DEPTHWISE_CONV_2D" and even_of_stride_2(operation, where)


def even_from_6(operation: Operation, where: object) -> bool:
    """An even kernel of 6 or more, of stride 2."""
    return even_of_stride_2(operation, where) and max(_kernel(operation)) > _LEAST_EVEN


def large_in_26_2(operation: Operation, where: object) -> bool:
    """A kernel of 7 or more with padding SAME, which 26.2 knows in convolutions of stride 2."""
    mended = operation.kind == "CONV_2D" and operation.strides != (1, 1)
    return large(operation, where) and not mended
