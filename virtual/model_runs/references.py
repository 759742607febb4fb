# SPDX-License-Identifier: MIT
"""What TFLite's portable kernels compute of a model: its outputs, and each operation's first one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from userspace.npu.model.graph import Model, Operation, output_numbers, with_outputs

from ..npu.operands import unsigned
from ..npu.portable import DEADLINE_S, outputs_apart

Operands = tuple[NDArray[np.uint8], NDArray[np.uint8]]
_BYTES = (np.dtype(np.uint8), np.dtype(np.int8))

_HANDLES = ("resource", "variant")
_MOST_BYTES = 1 << 30
"""Of all tensors that are kept: above, only the model's outputs are compared."""


@dataclass(frozen=True)
class References:
    """Right values for given inputs.

    Attributes:
        outputs: of the model, in their order.
        by_operation: first outputs of operations, by index, as far as they are kept.
        operands: what ADDs of two computed tensors of bytes add, by index, as the NPU has it.
    """

    outputs: list[NDArray[Any]]
    by_operation: dict[int, NDArray[Any]]
    operands: dict[int, Operands] = field(default_factory=dict)


def references(
    content: bytes,
    model: Model,
    inputs: Sequence[NDArray[Any]],
    *,
    timeout_s: float = DEADLINE_S,
    outputs_only: bool = False,
) -> References:
    """Compute them on this machine.

    Args:
        outputs_only: keep no operation's values.

    Raises:
        ValueError: TFLite does not take the model, or these inputs, or does not end.
    """
    ends, firsts = output_numbers(content)
    # A handle of a variable is no value.
    handles = {each.index for each in model.operations if _is_handle(each)}
    firsts = {index: number for index, number in firsts.items() if index not in handles}
    sizes = sum(
        each.outputs[0].size_bytes for each in model.operations if each.outputs and each.outputs[0]
    )
    kept = firsts if sizes <= _MOST_BYTES and not outputs_only else {}
    # As outputs they are kept: an ADD may write its result over one of its inputs.
    tensors = list(dict.fromkeys([*ends, *kept.values()]))
    computed = outputs_apart(with_outputs(content, tensors), inputs, timeout_s)
    values = dict(zip(tensors, computed, strict=True))
    by_operation = {index: values[number] for index, number in kept.items()}
    return References(
        [values[number] for number in ends],
        by_operation,
        _operands(model, inputs, by_operation),
    )


def _is_handle(operation: Operation) -> bool:
    first = operation.outputs[0] if operation.outputs else None
    return first is not None and first.dtype in _HANDLES


def _operands(
    model: Model, inputs: Sequence[NDArray[Any]], by_operation: Mapping[int, NDArray[Any]]
) -> dict[int, Operands]:
    values = {id(tensor): value for tensor, value in zip(model.inputs, inputs, strict=False)}
    for each in model.operations:
        if each.index in by_operation:
            values[id(each.outputs[0])] = by_operation[each.index]
    operands = {}
    for each in model.operations:
        pair = [values.get(id(tensor)) for tensor in each.inputs[:2]]
        first, second = (*pair, None, None)[:2]
        if each.kind != "ADD" or first is None or second is None:
            continue
        if {first.dtype, second.dtype} <= set(_BYTES):
            operands[each.index] = (unsigned(first), unsigned(second))
    return operands
