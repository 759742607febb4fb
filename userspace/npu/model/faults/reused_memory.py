# SPDX-License-Identifier: MIT
"""Sums whose weights lie in memory that was used before, with Mesa 25.0 on NN generation 7.

An ADD has 8 bytes of weights; to correct its bias the driver reads 4 for each channel of its tensors. A new
buffer holds zeros there, as the kernel gives them. One from the pool of freed buffers holds what was in it:
while operations are lowered, a depthwise convolution alone frees one, with its weights made dense. Others
are freed as a partition is compiled, and may get to an ADD of the next: that is not predicted.

Source: Mesa 25.0 src/gallium/drivers/etnaviv/etnaviv_ml_nn.c (expand_depthwise, transpose,
strided_to_normal, etna_ml_lower_add), etnaviv_ml_nn_v7.c (calculate_bias_correction),
src/etnaviv/drm/etnaviv_bo_cache.c.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable

from ..graph import Operation
from ..summary import data_of, output_of, weights_of

_SMALLEST_BUFFER_BYTES = 4096
_SUM_BYTES = 8
_MOST_UNREAD_CHANNELS = 2
"""Of so many channels, all that is read are the weights themselves."""


def sums_in_reused_memory(operations: Iterable[Operation]) -> Collection[int]:
    """Return which ADDs of a partition, by index, get such memory, in the order of its operations."""
    pool: deque[int] = deque()

    def take(size_bytes: int) -> int:
        """Take a buffer; return how many of its first bytes were used before."""
        fits = 0 < size_bytes <= _SMALLEST_BUFFER_BYTES
        return pool.popleft() if fits and pool else 0

    sums = set()
    for each in operations:
        if each.kind == "ADD":
            used = take(_SUM_BYTES)
            take(_SUM_BYTES)  # for its bias
            if used > _SUM_BYTES and _reads_on(each):
                sums.add(each.index)
            continue
        dense, final = _buffers(each)
        used = take(dense)
        take(final)
        if 0 < dense <= _SMALLEST_BUFFER_BYTES:
            pool.append(max(dense, used))
    return sums


def _reads_on(operation: Operation) -> bool:
    first = data_of(operation)
    if first is None or len(first.shape) != 4:
        return False
    return first.zero_point > 0 and first.shape[3] > _MOST_UNREAD_CHANNELS


def _buffers(operation: Operation) -> tuple[int, int]:
    """Return the sizes of a convolution's buffers: of dense weights, freed at once, and of those kept.

    0 where there is no such buffer.
    """
    data, weights, output = data_of(operation), weights_of(operation), output_of(operation)
    depthwise = operation.kind == "DEPTHWISE_CONV_2D"
    if not depthwise and operation.kind != "CONV_2D":
        return 0, 0
    if data is None or weights is None or output is None:
        return 0, 0
    if not len(data.shape) == len(weights.shape) == len(output.shape) == 4:
        return 0, 0
    channels, outputs = data.shape[3], output.shape[3]
    rows, columns = weights.shape[1:3]
    strided = max(operation.strides) > 1
    size = outputs * rows * columns * channels
    dense = size if depthwise and (outputs > 1 or strided) else 0
    keeps_pixels = (depthwise and not 2 < data.shape[2] < 8) or (
        not depthwise and rows == columns == 1
    )
    if strided and not keeps_pixels:
        return dense, outputs * -(-rows // 2) * -(-columns // 2) * channels * 4
    return dense, size if channels > 1 else 0
