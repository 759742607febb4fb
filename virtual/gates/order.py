# SPDX-License-Identifier: MIT
"""Outputs that have the right values in a wrong order: channel by channel, not as TFLite has them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from userspace.npu.model.graph import Operation, Tensor

_MISSING = (
    "the output has the right values, but channel by channel: the job that brings them into "
    "TFLite's order is missing"
)
_ONE_TOO_MANY = (
    "the output has the right values in a wrong order: a job took them for channel by channel, "
    "and they were in TFLite's order already"
)


def wrong_order(
    output: NDArray[Any], right: NDArray[Any], tensor: Tensor, operations: Sequence[Operation]
) -> str:
    """Return what to say of an output that has the right values in a wrong order; "" where it has not.

    Args:
        tensor: the output in the model's graph; behind a RESHAPE its source's shape counts.
    """
    shape, words = _picture(tensor, operations)
    if len(shape) != 4 or output.size != right.size:
        return ""
    if np.array_equal(_channels_last(output, shape), right.reshape(shape)):
        return words + _MISSING
    if np.array_equal(output.reshape(shape), _channels_last(right, shape)):
        return words + _ONE_TOO_MANY
    return ""


def _picture(tensor: Tensor, operations: Sequence[Operation]) -> tuple[tuple[int, ...], str]:
    """Return the shape of the picture that an output's values are of, and how the output comes from it."""
    makers = {id(each): operation for operation in operations for each in operation.outputs}
    maker = makers.get(id(tensor))
    if maker is None or maker.kind != "RESHAPE":
        return tensor.shape, ""
    source = maker.inputs[0]
    if source is None or len(source.shape) != 4:
        return tensor.shape, ""
    return source.shape, f"{maker.name} copies its input as it stands in the NPU's memory: "


def _channels_last(values: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Return a picture's values, which stand channel by channel, in TFLite's order."""
    batch, height, width, channels = shape
    return np.moveaxis(values.reshape(batch, channels, height, width), 1, -1)
