# SPDX-License-Identifier: MIT
"""What the units of one task compute: feature maps in, sums of products, feature maps out.

Values are signed bytes, 128 less than TFLite's unsigned ones. What is not published is taken from what
Mesa's CI saw on boards; each place says so.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..convolution import Window, dense, depthwise, exact_type
from ..memory import Access, Memory
from .task import ATOM, Addend, Conversion, Task
from .weights import Weights


@dataclass(frozen=True)
class Maps:
    """What a task computes before its output is converted, each (output channels, height, width).

    Attributes:
        sums: of products, without biases.
        addends: the second tensor as it lies in memory, signed bytes; None where there is none.
    """

    sums: NDArray[np.int64]
    addends: NDArray[np.int64] | None


def read_input(task: Task, memory: Memory) -> NDArray[np.int16]:
    """Return the task's input, (channels, height, width), without what surrounds it.

    Raises:
        MemoryFaultError: it is not where the task says.
    """
    if conversion := task.input_conversion:
        size = (task.height - 1) * task.line_bytes + task.width
        data = memory.view(task.input_address, size, Access.READ)
        plane = np.lib.stride_tricks.as_strided(
            data, (1, task.height, task.width), (0, task.line_bytes, 1), writeable=False
        ).astype(np.int64)
        values = rounded((plane + conversion.offset) * conversion.scale, conversion.shift)
        return np.clip(values, -128, 127).astype(np.int16)
    return _feature_map(
        task.input_address, task.channels, task.height, task.width, task.line_bytes,
        task.surface_bytes, memory,
    )  # fmt: skip


def _feature_map(
    address: int,
    channels: int,
    height: int,
    width: int,
    line_bytes: int,
    surface_bytes: int,
    memory: Memory,
) -> NDArray[np.int16]:
    """Return channels of a feature map: surfaces of 16 channels, of rows, of pixels of 16 bytes."""
    result = np.empty((channels, height, width), np.int16)
    for first in range(0, channels, ATOM):
        size = (height - 1) * line_bytes + width * ATOM
        data = memory.view(address + first // ATOM * surface_bytes, size, Access.READ).view(np.int8)
        pixels = np.lib.stride_tricks.as_strided(
            data, (height, width, ATOM), (line_bytes, ATOM, 1), writeable=False
        )
        count = min(ATOM, channels - first)
        result[first : first + count] = pixels[:, :, :count].transpose(2, 0, 1)
    return result


def padded(task: Task, image: NDArray[np.int16]) -> NDArray[np.int16]:
    """Return the image with its surroundings, as far as the window reaches."""
    rows, columns = task.reached
    result = np.empty((image.shape[0], rows, columns), np.int16)
    result[...] = pad_values(task, image.shape[0])[:, None, None]
    high = max(0, min(image.shape[1], rows - task.pad_top))
    wide = max(0, min(image.shape[2], columns - task.pad_left))
    result[:, task.pad_top : task.pad_top + high, task.pad_left : task.pad_left + wide] = image[
        :, :high, :wide
    ]
    return result


def pad_values(task: Task, channels: int) -> NDArray[np.int16]:
    """Return what stands outside the image, for each channel.

    Of a dense convolution it is the word's lowest byte; the channels of a depthwise one take its two lowest
    bytes in turn. Mesa's CI says so: on boards, depthwise convolutions whose zero point is 132 fail (their
    word is 0x0004), those of 139 pass (Mesa gives them 0x0b0b), and dense ones pass with either.
    """
    pair = np.array([task.pad_value & 0xFF, task.pad_value >> 8 & 0xFF], np.uint8).view(np.int8)
    if not task.depthwise:
        pair[1] = pair[0]
    return np.resize(pair, channels).astype(np.int16)


def as_buffered(task: Task, image: NDArray[np.int16]) -> NDArray[np.int16]:
    """Return the input as it is read back from the convolution buffer, of which rows may overlap.

    A row takes as many entries of 64 bytes as ``Task.row_entries`` says; its data begin ``data_entries``
    behind those of the row above. Where that is less, the next row lies over the end of each row.
    """
    short = task.row_entries - task.data_entries
    if task.planar or short <= 0:
        return image
    result = image.copy()
    kept = task.width * task.data_entries // task.row_entries
    result[:, :-1, kept:] = image[:, 1:, : task.width - kept]
    return result


def accumulate(task: Task, image: NDArray[np.int16], weights: Weights) -> NDArray[np.int64]:
    """Return the sums of products, (output channels, height, width).

    Args:
        image: with its surroundings, (channels, height, width).
    """
    dtype = exact_type(weights.largest_sum * 128)
    image, values = image.astype(dtype), weights.values.astype(dtype, copy=False)
    window = Window(task.out_height, task.out_width, task.stride_y, task.stride_x)
    if task.depthwise:
        return depthwise(image, values[0], window).astype(np.int64)
    sums = dense(image, values[: task.out_channels], window).astype(np.int64)
    missing = task.out_channels - len(
        sums
    )  # where more channels are written than there are kernels
    return np.pad(sums, ((0, missing), (0, 0), (0, 0)))


def rounded(values: NDArray[np.int64], shift: int) -> NDArray[np.int64]:
    """Return values / 2**shift, rounded to nearest, halves away from zero.

    NVDLA's converters round so. Of the usual ways it is the one with which MobileNetV1 stays within the
    tolerance of Mesa's CI, as it does on boards (differences of up to 7; half up: 10, to even: 11).
    """
    if not shift:
        return values
    # Registers have room for shifts of thousands; of sums of less than 2**60 nothing is left long before.
    shift = min(shift, 62)
    half = 1 << shift - 1
    return np.where(values >= 0, (values + half) >> shift, -((half - values) >> shift))


def convert(values: NDArray[np.int64], conversion: Conversion) -> NDArray[np.int8]:
    """Return what the output's converter makes of sums: signed bytes, at their limits where beyond."""
    result = rounded(values * conversion.scale, conversion.shift) + conversion.offset
    return np.clip(result, -128, 127).astype(np.int8)


def biases(task: Task, memory: Memory) -> NDArray[np.int64]:
    """Return the bias of each output channel.

    Raises:
        MemoryFaultError: they are not where the task says.
    """
    data = memory.view(task.bias_address, 4 * task.out_channels, Access.READ)
    return data.view(np.int32).astype(np.int64)


def addends(task: Task, addend: Addend, memory: Memory) -> NDArray[np.int64]:
    """Return the second tensor, (channels, height, width), as signed bytes.

    Two units read it, one every second surface.
    """
    line = task.out_width * ATOM
    result = np.empty((task.out_channels, task.out_height, task.out_width), np.int64)
    for first in range(0, task.out_channels, ATOM):
        pair, second = divmod(first // ATOM, 2)
        if second:
            place = addend.second_address + pair * addend.second_pair_bytes
        else:
            place = addend.address + pair * addend.pair_bytes
        count = min(ATOM, task.out_channels - first)
        result[first : first + count] = _feature_map(
            place, count, task.out_height, task.out_width, line, 0, memory
        )
    return result


def converted(task: Task, maps: Maps, biased: NDArray[np.int64]) -> NDArray[np.int8]:
    """Return the output as silicon is predicted to compute it, from the registers alone."""
    total = rounded(maps.sums, task.truncate) + biased[:, None, None]
    if task.addend and maps.addends is not None:
        conversion = task.addend.conversion
        total += rounded((maps.addends + conversion.offset) * conversion.scale, conversion.shift)
    return convert(total, task.output)


def write_output(task: Task, values: NDArray[np.int8], memory: Memory) -> None:
    """Write the task's output as a feature map.

    Raises:
        MemoryFaultError: the task's output does not lie in memory that may be written.
    """
    size = task.out_height * task.out_width * ATOM
    for first in range(0, task.out_channels, ATOM):
        place = task.output_address + first // ATOM * task.out_surface_bytes
        target = memory.view(place, size, Access.WRITE).view(np.int8)
        pixels = target.reshape(task.out_height, task.out_width, ATOM)
        count = min(ATOM, task.out_channels - first)
        pixels[:, :, :count] = values[first : first + count].transpose(1, 2, 0)
