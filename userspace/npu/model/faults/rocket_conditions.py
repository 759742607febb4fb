# SPDX-License-Identifier: MIT
"""Conditions of ``known_faults`` for Rockchip's driver: sums that it cannot fuse into a convolution.

It computes an ADD with the convolution that made its first operand, and gives that convolution the ADD's
output: whoever else looks for the operand finds nobody who made it, and the second operand has to be there
by then.

Source: Mesa 26.2 src/gallium/drivers/rocket/rkt_ml.c, rkt_ml_subgraph_create, rkt_ml_subgraph_invoke and
rkt_ml_subgraph_read_outputs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from ..graph import Operation
from ..summary import data_of, output_of

_CONVOLUTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D")


@dataclass(frozen=True)
class Fused:
    """What becomes of a partition's sums, by the operations' indices.

    Attributes:
        crashing: the driver looks for what is not there.
        early: the second operand is computed after the sum.
        lost: something is not computed: a first operand that a convolution reads as well, or the sum of an
            ADD before.
    """

    crashing: Collection[int] = ()
    early: Collection[int] = ()
    lost: Collection[int] = ()


class Around(Protocol):
    """What these conditions ask of ``known_faults.Surroundings``."""

    @property
    def fused(self) -> Fused:
        """What becomes of sums."""


def activation_left_out(operation: Operation, _: Around) -> bool:
    """A fused activation that ends at values which bytes have; the driver knows none."""
    output = output_of(operation)
    if operation.kind not in (*_CONVOLUTIONS, "ADD") or output is None or not output.is_bytes:
        return False
    if operation.activation in ("RELU", "RELU6"):
        return output.zero_point > 0
    return operation.activation == "RELU_N1_TO_1"


def is_sum(operation: Operation, _: Around) -> bool:
    """Any ADD."""
    return operation.kind == "ADD"


def sum_crashes(operation: Operation, where: Around) -> bool:
    """A sum for which the driver looks for what is not there."""
    return operation.index in where.fused.crashing


def sum_is_early(operation: Operation, where: Around) -> bool:
    """A sum that is computed before its second operand is."""
    return operation.index in where.fused.early


def sum_loses(operation: Operation, where: Around) -> bool:
    """A sum through which another value is not computed."""
    return operation.index in where.fused.lost


@dataclass
class _Lowered:
    """The driver's operations so far: convolutions, some with what is added to them.

    Attributes:
        makers: which convolution makes a tensor, by the tensor's id.
        added: what is added to a convolution, as the tensor's id, and the sum's index.
        taken: which sum took a tensor away, by its id.
    """

    makers: dict[int, int] = field(default_factory=dict)
    added: dict[int, tuple[int, int]] = field(default_factory=dict)
    taken: dict[int, int] = field(default_factory=dict)


def fused_in(
    operations: Iterable[Operation], from_cpu: Collection[int], to_cpu: Collection[int]
) -> Fused:
    """Return what becomes of the sums among a partition's operations, in their order.

    Args:
        from_cpu, to_cpu: ids of tensors that come from the CPU, and that go there.
    """
    inside = list(operations)
    read = {id(data_of(each)) for each in inside if each.kind in _CONVOLUTIONS}
    crashing, early, lost = set(), set(), set()
    lowered = _Lowered()
    for each in inside:
        output = id(output_of(each))
        if each.kind in _CONVOLUTIONS:
            lowered.makers[output] = each.index
        elif each.kind == "ADD":
            first, second = (id(tensor) for tensor in each.inputs[:2])
            maker = lowered.makers.pop(first, None)
            if maker is None:
                crashing.add(each.index)
                continue
            if lowered.makers.get(second, maker) > maker:
                early.add(each.index)
            if maker in lowered.added:
                lost.add(each.index)
            lowered.added[maker] = (second, each.index)
            lowered.makers[output] = maker
            lowered.taken[first] = each.index
            if first in read:
                lost.add(each.index)
    # Tensors have memory that a convolution reads or makes, in the end.
    crashing |= {
        index
        for tensor, index in lowered.added.values()
        if tensor not in read and tensor not in lowered.makers
    }
    crashing |= {index for tensor, index in lowered.taken.items() if tensor in to_cpu}
    crashing |= _read_by_sums_alone(lowered.added, read, from_cpu)
    return Fused(crashing, early - crashing, lost - crashing)


def _read_by_sums_alone(
    added: Mapping[int, tuple[int, int]], read: Collection[int], from_cpu: Collection[int]
) -> set[int]:
    """What the CPU hands over is laid out for the first convolution that reads it."""
    return {index for tensor, index in added.values() if tensor in from_cpu and tensor not in read}
