# SPDX-License-Identifier: MIT
"""Looks at the two operands of an ADD's job: are they the operation's two inputs?

An ADD comes out wrong, though its job agrees with its descriptor and with the model, where the driver has
not put both of its inputs into the job's memory. What the inputs are, TFLite's portable kernels say
(``operands``), for the first inference; without them, at least the bytes of two inputs are not the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from userspace.npu.model.graph import Operation

from ...finding import Blame, Finding
from ...memory import Bytes
from ...tflite.operations import Inputs

_LEAST_BYTES = 16
"""Of shorter operands equal bytes prove nothing."""
_LIKE = 0.5
"""Root mean square of the differences, as a share of a tensor's spread, up to which bytes are that tensor:
what the NPU computed before may be rounded otherwise."""
_AS_IN_TFLITE, _BY_CHANNEL = "in TFLite's order", "channel by channel"
_NAMES = ("first", "second")


class Operands:
    """What one client's ADDs read in the first inference.

    Args:
        expected: by the operation's place in the graph.
    """

    def __init__(self, expected: Mapping[int, Inputs]) -> None:
        self._expected = dict(expected)
        self._seen: set[int] = set()

    def look(self, operator: Operation, image: Bytes) -> Iterator[Finding]:
        """Return what is wrong with the operands of an ADD's job.

        Args:
            image: the job's input, (planes, rows, columns).
        """
        if operator.index in self._seen:
            return  # another picture, or the same again
        self._seen.add(operator.index)
        halves = np.ascontiguousarray(image).reshape(2, -1)
        inputs = self._expected.get(operator.index)
        if inputs and all(each.size == halves.shape[1] for each in inputs):
            yield from _against(halves, inputs)
            return
        first, second = (*operator.inputs, None, None)[:2]
        same = halves.shape[1] >= _LEAST_BYTES and np.array_equal(halves[0], halves[1])
        if same and first is not second and np.ptp(halves[0]):
            yield _wrong("its two inputs", "one of them, twice", "both operands are the same bytes")


def _against(halves: Bytes, inputs: Inputs) -> Iterator[Finding]:
    if np.array_equal(*inputs):
        return
    held = [_held(half, inputs) for half in halves]
    orders = [{order for _, order in each} for each in held]
    numbers = [{number for number, _ in each} for each in held]
    evidence = "compared with what TFLite's portable kernels compute of this picture"
    if not any(numbers):
        # What came before is wrong already, whosoever's fault that is; but bytes that are all the same are
        # no tensor of this picture's, right or wrong.
        flat = [number for number, half in enumerate(halves) if not np.ptp(half)]
        if flat and all(np.ptp(each) for each in inputs):
            found = f"bytes that are all {halves[flat[0]][0]} in the place of the {_NAMES[flat[0]]}"
            yield _wrong("its first and its second input", found, evidence)
        return
    if not ({0, 1} <= numbers[0] | numbers[1] and all(numbers)):
        found = " and ".join(_named(each) for each in numbers)
        yield _wrong("its first and its second input", found, evidence)
    elif not orders[0] & orders[1]:
        both = " and one ".join(min(each) for each in orders)
        yield _wrong("both inputs in one order", f"one {both}", evidence)


def _held(half: Bytes, inputs: Inputs) -> set[tuple[int, str]]:
    """Return which inputs an operand is, and in which order."""
    matches = set()
    for number, tensor in enumerate(inputs):
        orders = {_AS_IN_TFLITE: tensor.reshape(-1)}
        if tensor.ndim > 1:
            orders[_BY_CHANNEL] = np.moveaxis(tensor, -1, 0).reshape(-1)
        spread = max(float(tensor.std()), 1.0)
        for order, values in orders.items():
            apart = half.astype(np.float64) - values
            if float(np.sqrt(np.mean(apart**2))) <= _LIKE * spread:
                matches.add((number, order))
    return matches


def _named(numbers: set[int]) -> str:
    names = [f"the {_NAMES[number]}" for number in sorted(numbers)]
    return " or ".join(names) or "what is neither of the two"


def _wrong(expected: str, found: str, evidence: str) -> Finding:
    return Finding(
        "operands of the ADD", expected, found, blame=Blame.SUBMISSION, evidence=evidence
    )
