# SPDX-License-Identifier: MIT
"""Reads a convolution's weights out of the order in which Mesa writes them.

Blocks of 32 kernels; in each, groups of 32 input channels (64 of a depthwise convolution); in each, the
taps row by row; for each tap, the kernels; for each kernel, the group's channels. Bytes are weight - 128.
The last group has as many channels as whole atoms of 16 make. Mesa up to 26.1 writes 24 channels without
those that fill the second atom, and boards compute its CI's convolution of 24 channels wrong (yolox-009).
Source: Mesa 26.1 src/gallium/drivers/rocket/rkt_coefs.c, rkt_fill_weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..decoded_cache import DecodedCache
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


@dataclass(frozen=True)
class Weights:
    """A task's weights, ready to multiply.

    Attributes:
        values: (kernels, channels, height, width), whole numbers, the task's offset added; a depthwise
            convolution has one kernel.
        largest_sum: of the absolute weights that one output sees: says which arithmetic is exact.
    """

    values: NDArray[np.float32]
    largest_sum: int

    @property
    def size_bytes(self) -> int:
        """Memory that this takes in the cache."""
        return self.values.nbytes


def weights_of(task: Task, memory: Memory, cache: DecodedCache) -> Weights:
    """Return a task's weights; tasks and inferences with the same ones share them.

    Raises:
        MemoryFaultError: they are not where the task says.
    """
    stored = memory.view(task.weights_address, task.weight_bytes, Access.READ)
    key = (
        "rocket", task.depthwise, task.kernels, task.channels, task.aligned_channels,
        task.kernel_height, task.kernel_width, task.weight_offset,
    )  # fmt: skip
    return cache.get(stored, key, lambda: _prepared(task, read_weights(task, memory)))


def _prepared(task: Task, weights: NDArray[np.int16]) -> Weights:
    sums = np.abs(weights.astype(np.int64)).sum(axis=(2, 3))
    largest = int(sums.max() if task.depthwise else sums.sum(axis=1).max())
    return Weights(weights.astype(np.float32), largest)


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
