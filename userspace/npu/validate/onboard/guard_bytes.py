# SPDX-License-Identifier: MIT
"""Guard bytes around what a delegate writes: does it keep to its outputs?

Shipped to boards beside ``runner.py``: the standard library and numpy. TFLite lays tensors into one block,
each at a multiple of 64 bytes, so that behind most of them there are bytes that belong to none. Those are
filled with a pattern before the first run. Where another tensor begins at once, there are none.

Source: tensorflow/lite/simple_memory_arena.{h,cc}: the block is 63 bytes longer than what lies in it, and
begins at the first multiple of 64 of what malloc returned.
"""

from __future__ import annotations

import ctypes
from typing import Any

_ALIGNMENT_BYTES = 64
_MOST_BYTES = 64
# Behind the last tensor: 63 bytes, less what the beginning was moved by. malloc's multiples are 16.
_LAST_BYTES = 15
# No two neighbours are alike, and none is 0 or 255, which a delegate may well write.
_PATTERN = bytes(0xA0 + 7 * number % 89 for number in range(_MOST_BYTES))

Extent = tuple[int, int]
"""Address of the first byte, and of the one behind the last."""


class GuardBytes:
    """Guard bytes of one interpreter, whose tensors are allocated, and that has not run yet.

    Args:
        interpreter: of the TFLite runtime.
        total_ops: the model's operators; the nodes behind them are a delegate's.
        total_tensors: the model's tensors; those behind them are the runtime's own.
    """

    def __init__(self, interpreter: Any, total_ops: int, total_tensors: int) -> None:
        self._interpreter = interpreter
        self._plain: set[int] = set()
        self._outputs: dict[int, Extent] = {}
        self._guards: dict[int, Extent] = {}
        try:
            nodes = interpreter._get_ops_details()
            wrapper = interpreter._interpreter
            count = wrapper.NumTensors(0) if nodes[total_ops:] else 0
            # Not all of the model's: tflite-runtime 2.14 crashes when it is asked for a sparse constant.
            sinks = {int(each) for node in nodes for each in node["outputs"]}
            ends = {int(each["index"]) for each in interpreter.get_input_details()}
            computed = {*sinks, *ends, *range(total_tensors, count)}
            self._plain = {each for each in computed if _is_plain(wrapper.TensorType(each, 0))}
        except (AttributeError, TypeError, ValueError):
            return  # this runtime cannot tell which are a delegate's, or of what type
        numbers = sorted({int(each) for node in nodes[total_ops:] for each in node["outputs"]})
        written = {number: self._extent(number) for number in numbers}
        self._outputs = {number: extent for number, extent in written.items() if extent}
        in_block = [*self._outputs.values(), *filter(None, map(self._extent, ends))]
        extents = sorted(filter(None, map(self._extent, self._plain)))
        for number, own in self._outputs.items():
            if guard := _guard(own, in_block, extents):
                self._guards[number] = guard
                begin, end = guard
                ctypes.memmove(begin, _PATTERN, end - begin)

    def overrun(self) -> list[int]:
        """Return the numbers of the delegate's outputs behind which bytes are others than before.

        None are where a tensor lies elsewhere by now: the bytes may be another's.
        """
        if any(self._extent(number) != own for number, own in self._outputs.items()):
            return []
        return [
            number
            for number, (begin, end) in self._guards.items()
            if ctypes.string_at(begin, end - begin) != _PATTERN[: end - begin]
        ]

    def _extent(self, number: int) -> Extent | None:
        """Where a tensor's bytes lie; None where it has none, none yet, or no numbers."""
        if number not in self._plain:
            return None
        try:
            values = self._interpreter.tensor(number)()
        except (ValueError, RuntimeError):
            return None
        # Only numbers are kept: the interpreter does not run while there is an array of its memory.
        begin = int(values.__array_interface__["data"][0])
        return (begin, begin + values.nbytes) if values.nbytes else None


def _is_plain(dtype: Any) -> bool:
    """Whether a tensor is of numbers: an array takes the bytes of strings for Python's objects."""
    import numpy

    return dtype is not None and numpy.dtype(dtype).kind in "biufc"


def _guard(own: Extent, in_block: list[Extent], extents: list[Extent]) -> Extent | None:
    """Return the bytes behind a tensor that belong to no other one, in the block; None: there are none."""
    begin, end = own
    if begin % _ALIGNMENT_BYTES or any(first < end < last for first, last in extents):
        return None  # not in the block; or another tensor was there before, or will be
    behind = [first for first, _ in in_block if first >= end]
    stop = end + (_MOST_BYTES if behind else _LAST_BYTES)
    stop = min([stop, *behind, *(first for first, _ in extents if first >= end)])
    return (end, stop) if stop > end else None
