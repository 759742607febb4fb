# SPDX-License-Identifier: MIT
"""What makes each output of a model, as far as it says how the output is to be compared.

Read from the .tflite file alone: behind which operation an output lies, in which steps its values come,
and whether they were picked out of others. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .graph import Operation, Tensor, read_outputs

# What only gives values another shape, another type, or the same values as other numbers.
_PASSES_ON = {"RESHAPE", "SQUEEZE", "EXPAND_DIMS", "DEQUANTIZE", "QUANTIZE", "CAST"}
_KEEPS_STEPS = {"RESHAPE", "SQUEEZE", "EXPAND_DIMS", "DEQUANTIZE"}
CHOOSES = {"TOPK_V2", "WHERE", "UNIQUE", "NON_MAX_SUPPRESSION_V4", "NON_MAX_SUPPRESSION_V5"}
"""Operations that choose some of many: which, and in what order, may hang on rounding."""
PICKS = {"ARG_MAX", "ARG_MIN", *CHOOSES}
"""Operations behind which a value may jump: they compare values that may be nearly equal, and pick one."""


@dataclass(frozen=True)
class Sink:
    """An output of a model.

    Attributes:
        name: the tensor's.
        maker: the operation that computes the values, as ``graph.OPERATIONS`` names it; "" for an output
            that is an input or a constant. Operations that only hand values on are passed over.
        step: by how much neighbouring values differ: the scale of a quantised tensor, or of the one that
            was dequantised last; 0 where values are not in steps, or nobody knows.
        picked: whether an operation of ``PICKS`` is among those that the output depends on.
        chosen: whether one of ``CHOOSES`` is.
    """

    name: str
    maker: str
    step: float
    picked: bool
    chosen: bool = False


def read_sinks(model: bytes) -> list[Sink]:
    """Return the outputs of a model's main graph, in their order.

    Raises:
        UserError: it is not a .tflite file, or a broken one.
    """
    operations, outputs = read_outputs(model)
    makers = {id(tensor): each for each in operations for tensor in each.outputs if tensor}
    return [_sink(tensor, makers) for tensor in outputs]


def _sink(output: Tensor, makers: Mapping[int, Operation]) -> Sink:
    maker = makers.get(id(output))
    visited: set[int] = set()
    while maker and maker.kind in _PASSES_ON and maker.index not in visited:
        visited.add(maker.index)
        source = maker.inputs[0] if maker.inputs else None
        maker = makers.get(id(source)) if source else None
    kinds = {each.kind for each in _ancestors(output, makers)}
    kind = maker.kind if maker else ""
    return Sink(
        output.name, kind, _step(output, makers), bool(kinds & PICKS), bool(kinds & CHOOSES)
    )


def _step(output: Tensor, makers: Mapping[int, Operation]) -> float:
    tensor: Tensor | None = output
    for _ in range(len(makers) + 1):
        if tensor is None:
            return 0.0
        if tensor.scales:
            return float(tensor.scales[0]) if len(tensor.scales) == 1 else 0.0
        maker = makers.get(id(tensor))
        if maker is None or maker.kind not in _KEEPS_STEPS:
            return 0.0
        tensor = maker.inputs[0] if maker.inputs else None
    return 0.0


def _ancestors(output: Tensor, makers: Mapping[int, Operation]) -> list[Operation]:
    ancestors: dict[int, Operation] = {}
    open_ends = [output]
    while open_ends:
        maker = makers.get(id(open_ends.pop()))
        if maker is None or maker.index in ancestors:
            continue
        ancestors[maker.index] = maker
        open_ends += [tensor for tensor in maker.inputs if tensor]
    return list(ancestors.values())
