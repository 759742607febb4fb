# SPDX-License-Identifier: MIT
"""Why outputs are wrong though no job contradicts the model: what is missing between the jobs and TFLite.

Mesa's driver has its tensors channel by channel, TFLite has all channels of a pixel together. Where a graph
of the delegate begins and ends, jobs bring one into the other; and where such a job is missing, each of
the others is right by itself. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from userspace.npu.model.graph import Operation, Tensor, read_model
from userspace.npu.validate.records import RowResult

from ..finding import Blame, Finding
from ..taken import wrongly_taken

_NONE = "none: no job that was submitted is for it"


def explain(row: RowResult, model: bytes) -> list[Finding]:
    """Return what is missing, for a row of the NPU's in a smoke test's results whose outputs are wrong."""
    wrong = [each for each in row["outputs"] if each["problem"]]
    if not wrong:
        return []
    graph = read_model(model)
    operations, outputs = graph.operations, graph.outputs
    taken = set(row.get("delegated_nodes") or [])
    reasons = [*wrongly_taken(graph, taken), *_splits(operations, outputs, taken)]
    makers = {id(tensor): each for each in operations for tensor in each.outputs if tensor}
    named = {each.operation for each in reasons}
    for each in wrong:
        maker = makers.get(id(outputs[each["index"]]))
        if each.get("order") and not (maker and maker.name in named):
            reasons.append(
                Finding(
                    f"order of output {each['index']}",
                    "a job that brings it into TFLite's order",
                    _NONE,
                    operation=maker.name if maker else "",
                    blame=Blame.SUBMISSION,
                    evidence="its values are the reference's, channel by channel",
                )
            )
    return reasons


def _splits(
    operations: Sequence[Operation], outputs: Sequence[Tensor], taken: set[int]
) -> Iterator[Finding]:
    """Inside Etnaviv a SPLIT is an offset into a buffer: it must lie between jobs, not at an end."""
    makers = {id(tensor): each.index for each in operations for tensor in each.outputs}
    readers: dict[int, set[int]] = {}
    for each in operations:
        for tensor in each.inputs:
            readers.setdefault(id(tensor), set()).add(each.index)
    ends = {id(tensor) for tensor in outputs}
    for each in operations:
        if each.kind != "SPLIT" or each.index not in taken:
            continue
        source = each.inputs[-1]
        if source is not None and makers.get(id(source)) not in taken:
            yield _split(each, "its input channel by channel")
        leaving = [
            part
            for part in each.outputs
            if id(part) in ends or not readers.get(id(part), set()) <= taken
        ]
        if leaving:
            yield _split(
                each, f"{len(leaving)} of its {len(each.outputs)} parts into TFLite's order"
            )


def _split(operation: Operation, what: str) -> Finding:
    return Finding(
        "order of a SPLIT's bytes",
        f"a job that brings {what}",
        _NONE,
        operation=operation.name,
        blame=Blame.SUBMISSION,
        evidence="Mesa takes a SPLIT as an offset into a buffer, and here it lies at an end of the graph",
    )
