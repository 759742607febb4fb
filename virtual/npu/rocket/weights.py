# SPDX-License-Identifier: MIT
"""Reads a convolution's weights out of the order in which Mesa writes them.

Blocks of 32 kernels; in each, groups of 32 input channels (64 of a depthwise convolution); in each, the
taps row by row; for each tap, the kernels; for each kernel, the group's channels. Bytes are weight - 128.
The last group has as many channels as whole atoms of 16 make. Mesa up to 26.1 writes 24 channels without
those that fill the second atom, and boards compute its CI's convolution of 24 channels wrong (yolox-009).
Source: Mesa 26.1 src/gallium/drivers/rocket/rkt_coefs.c, rkt_fill_weights.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..memory import Access, Memory
from .task import Task

_KERNELS = 32
_CHANNELS = 32
_DEPTHWISE_CHANNELS = 64


def group_sizes(aligned_channels: int, *, depthwise: bool) -> list[int]:
    """Return how many bytes each group of input channels has for a kernel and tap."""
    whole = _DEPTHWISE_CHANNELS if depthwise else _CHANNELS
    sizes = [whole] * (aligned_channels // whole)
    return [*sizes, aligned_channels % whole] if aligned_channels % whole else sizes


def read_weights(task: Task, memory: Memory) -> NDArray[np.int16]:
    """Return a task's weights, (kernels, channels, height, width), with the task's offset added.

    A depthwise convolution has one kernel.

    Raises:
        MemoryFaultError: they are not where the task says.
    """
    sizes = group_sizes(task.aligned_channels, depthwise=task.depthwise)
    taps = task.kernel_height * task.kernel_width
    data = memory.view(task.weights_address, task.weight_bytes, Access.READ).view(np.int8)
    result = np.empty((task.kernels, sum(sizes), taps), np.int16)
    place = 0
    for first in range(0, task.kernels, _KERNELS):
        count = min(_KERNELS, task.kernels - first)
        channel = 0
        for size in sizes:
            block = data[place : place + taps * count * size].reshape(taps, count, size)
            result[first : first + count, channel : channel + size] = block.transpose(1, 2, 0)
            place += taps * count * size
            channel += size
    shaped = result[:, : task.channels].reshape(
        task.kernels, -1, task.kernel_height, task.kernel_width
    )
    return shaped + np.int16(task.weight_offset)
