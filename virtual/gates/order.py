# SPDX-License-Identifier: MIT
"""How outputs differ, and which have the right values in a wrong order: channel by channel. Pure."""

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


def differences(output: NDArray[Any], right: NDArray[Any]) -> NDArray[np.float64]:
    """Return by how much values differ, of complex ones too; NaN where only one of two is a number.

    Two that are no numbers are the same, and two infinite ones of one sign.
    """
    wide = {"c": np.complex128, "f": np.float64}.get(right.dtype.kind)
    with np.errstate(invalid="ignore", over="ignore"):
        first, second = (output.astype(wide), right.astype(wide)) if wide else (output, right)
        same = first == second
        if wide:
            same |= np.isnan(first) & np.isnan(second)
        apart = np.abs(first.astype(wide or np.float64) - second.astype(wide or np.float64))
    # Of whole numbers that are too large for it a difference may round to none.
    apart = np.where(~same & (apart == 0), 1.0, apart)
    return np.where(same, 0.0, apart)


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
