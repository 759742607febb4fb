# SPDX-License-Identifier: MIT
"""Which operations run together on an NPU, and what goes to and fro between it and the CPU.

TFLite hands a delegate as many operations at once as it can: all that can run before one that the delegate
does not take has to (tensorflow/lite/graph_info.cc, PartitionGraphIntoIndependentNodeSubsets). Pure.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from .graph import Model, Operation, Tensor


@dataclass(frozen=True)
class Partition:
    """Operations that a delegate gets as one.

    Attributes:
        operations: their indices, in order.
        inputs: computed tensors that come from the CPU, the model's inputs among them.
        outputs: tensors that the CPU gets, the model's outputs among them.
    """

    operations: tuple[int, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    @property
    def bytes_in(self) -> int:
        """Bytes that an inference takes to the NPU."""
        return sum(tensor.size_bytes for tensor in self.inputs)

    @property
    def bytes_out(self) -> int:
        """Bytes that an inference takes back."""
        return sum(tensor.size_bytes for tensor in self.outputs)


def partitions(model: Model, taken: Collection[int]) -> list[Partition]:
    """Return what the delegate gets, in the order of execution.

    Args:
        taken: indices of the operations that it takes.
    """
    taken_set = set(taken)
    users: dict[int, set[int]] = defaultdict(set)
    for each in model.operations:
        for tensor in _tensors(each.inputs):
            users[id(tensor)].add(each.index)
    ends = {id(tensor) for tensor in model.outputs}
    return [
        _partition([model.operations[index] for index in subset], users, ends)
        for subset in _subsets(model.operations, taken_set)
        if subset[0] in taken_set
    ]


def _subsets(operations: tuple[Operation, ...], taken: set[int]) -> list[list[int]]:
    """Return indices of operations in sets of one kind each, taken or not, that run one after another.

    Operations whose inputs never come (a broken model's) are in none.
    """
    makers = {id(tensor): each.index for each in operations for tensor in _tensors(each.outputs)}
    waits: dict[int, int] = {}
    followers: dict[int, list[int]] = defaultdict(list)
    ready: dict[bool, list[int]] = {True: [], False: []}
    for each in operations:
        sources = {makers[id(t)] for t in _tensors(each.inputs) if id(t) in makers}
        waits[each.index] = len(sources)
        for source in sources:
            followers[source].append(each.index)
        if not sources:
            heapq.heappush(ready[each.index in taken], each.index)
    subsets = []
    while ready[True] or ready[False]:
        # The first operation that can run says whose turn it is.
        kind = min((queue[0], kind) for kind, queue in ready.items() if queue)[1]
        subset = []
        while ready[kind]:
            index = heapq.heappop(ready[kind])
            subset.append(index)
            for follower in followers[index]:
                waits[follower] -= 1
                if not waits[follower]:
                    heapq.heappush(ready[follower in taken], follower)
        subsets.append(sorted(subset))
    return subsets


def _partition(
    operations: list[Operation], users: dict[int, set[int]], ends: set[int]
) -> Partition:
    inside = {each.index for each in operations}
    produced = {id(tensor): tensor for each in operations for tensor in _tensors(each.outputs)}
    sources = {
        id(tensor): tensor
        for each in operations
        for tensor in _tensors(each.inputs)
        if tensor.data is None and id(tensor) not in produced
    }
    leaving = [
        tensor for key, tensor in produced.items() if key in ends or not users[key] <= inside
    ]
    return Partition(tuple(sorted(inside)), tuple(sources.values()), tuple(leaving))


def _tensors(tensors: Iterable[Tensor | None]) -> Iterable[Tensor]:
    return (tensor for tensor in tensors if tensor is not None)
