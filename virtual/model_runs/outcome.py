# SPDX-License-Identifier: MIT
"""What a run's jobs and outputs say of each operation and each output of the model. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from userspace.npu.model.graph import Model
from userspace.npu.model.summary import macs, weights_of
from userspace.npu.model.trial.run import (
    CPU,
    MOVED,
    NOT_COMPARED,
    RIGHT,
    WRONG,
    Agreement,
    OperationRun,
    OutputRun,
    Run,
    oddity_of,
)
from userspace.npu.validate.onboard.delegation import delegated

from ..gates.order import differences
from .ledger import Entry, Ledger

NAMED = re.compile(r"operation (\d+) \(")


def taken_nodes(answer: dict[str, Any], operations: int) -> set[int]:
    """Indices of the operations that the delegate took, as the runtime lists them."""
    nodes = answer.get("nodes", [])
    if len(nodes) < operations:
        return set()  # it did not come so far
    return set(
        delegated(SimpleNamespace(_get_ops_details=lambda: nodes), operations)["delegated_nodes"]
    )


def operations_of(model: Model, ledger: Ledger, taken: set[int]) -> tuple[OperationRun, ...]:
    """Return what became of each operation, in the order of the model."""
    outcomes = []
    for each in model.operations:
        entry = ledger.entries.get(each.index, Entry())
        status = MOVED if each.index in taken or entry.jobs else CPU
        if entry.computed:
            status = NOT_COMPARED
        if entry.compared:
            status = WRONG if entry.different else RIGHT
        weights = weights_of(each)
        outcomes.append(
            OperationRun(
                each.index,
                each.kind,
                status,
                entry.different,
                entry.values,
                entry.largest,
                entry.jobs,
                entry.read_bytes,
                entry.written_bytes,
                entry.coefficient_bytes,
                len(weights.data) if weights and weights.data else 0,
                macs(each),
            )
        )
    return tuple(outcomes)


def first_wrong(operations: Sequence[OperationRun], faults: Sequence[str]) -> int | None:
    """Return the first operation with wrong values, or at whose job it stopped."""
    wrong = [each.index for each in operations if each.status == WRONG]
    named = NAMED.match(faults[0]) if faults else None
    # What ran behind a fault had no right inputs.
    if named and int(named[1]) < len(operations):
        return min([int(named[1]), *wrong])
    return min(wrong, default=None)


def with_statuses(run: Run, exact: Run) -> tuple[OperationRun, ...]:
    """Return a run's operations, with what was compared in another run of it, up to where that stopped."""
    outcomes = []
    for each, other in zip(run.operations, exact.operations, strict=True):
        if exact.first_wrong is not None and each.index > exact.first_wrong:
            behind = NOT_COMPARED if each.status in (RIGHT, WRONG) else each.status
            outcomes.append(replace(each, status=behind, different=0, values=0, largest=0))
        elif each.index == exact.first_wrong:
            outcomes.append(replace(each, status=WRONG))
        else:
            comparison = {
                name: getattr(other, name) for name in ("status", "different", "values", "largest")
            }
            outcomes.append(replace(each, **comparison))
    return tuple(outcomes)


def agreement_of(name: str, pairs: Sequence[tuple[NDArray[Any], NDArray[Any]]]) -> Agreement:
    """Return how an output agrees over pairs of what the NPU and what TFLite computed."""
    gaps = [differences(output, right) for output, right in pairs]
    values = sum(gap.size for gap in gaps)
    is_scores = all(right.size > 1 and right.size == right.shape[-1] for _, right in pairs)
    tops = (
        [int(output.argmax()) == int(right.argmax()) for output, right in pairs]
        if is_scores
        else []
    )
    ties = [int((right == right.max()).sum()) > 1 for _, right in pairs] if is_scores else []
    return Agreement(
        name,
        len(pairs),
        values,
        sum(int(np.count_nonzero(gap)) for gap in gaps),
        max((float(gap.max(initial=0)) for gap in gaps), default=0.0),
        sum(float(gap.sum()) for gap in gaps) / max(values, 1),
        sum(tops) if is_scores else None,
        sum(ties),
    )


def output_of(
    name: str, output: NDArray[Any], right: NDArray[Any], scales: Sequence[float]
) -> OutputRun:
    """Return how an output of the NPU's differs from TFLite's."""
    if output.shape != right.shape:
        return OutputRun(name, right.size, right.size, float("inf"))
    gap = differences(output, right)
    return OutputRun(
        name,
        right.size,
        int(np.count_nonzero(gap)),
        float(np.nan_to_num(gap, nan=np.inf).max(initial=0)),
        scales[0] if len(scales) == 1 else 0.0,
        oddity_of(right),
    )


def exchanged(output: NDArray[Any], right: NDArray[Any]) -> bool:
    """Whether an output has the right values, but channel by channel."""
    if output.ndim != 4 or output.shape != right.shape:
        return False
    batch, rows, columns, channels = right.shape
    moved = np.moveaxis(output.reshape(batch, channels, rows, columns), 1, -1)
    return bool(np.array_equal(moved, right))
