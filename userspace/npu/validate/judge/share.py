# SPDX-License-Identifier: MIT
"""What a delegate took of a model, and whether that is enough."""

from __future__ import annotations

from bsp.base.words import counted

from ...model.prediction import Prediction
from ..delegates import TEFLON
from ..records import NotDelegated, RunnerRow
from .delegation import kind_of, parse_log

# How many operations are named where too few were taken.
_NAMED_OPERATIONS = 4


def operations_taken(row: RunnerRow) -> int | None:
    """Operations that the delegate took: what runtime and log agree on; None where neither can tell."""
    taken = row.get("delegated_ops")
    counts = [] if taken is None else [taken]
    log = parse_log(row.get("log", ""))
    if kind_of(row) == TEFLON or log.driver:
        counts.append(log.operations)
    return min(counts, default=None)


def partitions(row: RunnerRow) -> int | None:
    """Graphs that the delegate made of what it took: from the runtime, or its own log."""
    count = row.get("partitions")
    if count is not None:
        return count
    log = parse_log(row.get("log", ""))
    return len(log.compiled_ms) if log.driver else None


def not_taken(row: RunnerRow, prediction: Prediction | None) -> list[NotDelegated]:
    """Operations that stayed on the CPU, with the reason where the rules know one."""
    return [
        {
            "index": each["index"],
            "op": each["op"],
            "why": prediction.why(each["index"]) if prediction else "",
        }
        for each in row.get("on_cpu") or []
    ]


def _refusals(row: RunnerRow, prediction: Prediction | None) -> str:
    """Name the operations that were not taken, with their reasons, the same ones together."""
    refused = parse_log(row["log"]).unsupported
    if refused:
        return ", ".join(f"{name} x{count}" for name, count in refused)
    together: dict[tuple[str, str], list[int]] = {}
    for each in not_taken(row, prediction):
        together.setdefault((each["op"], each["why"]), []).append(each["index"])
    named = [
        f"{op} {'x' + str(len(places)) if len(places) > 1 else 'at ' + str(places[0])}"
        + (f" ({why})" if why else "")
        for (op, why), places in sorted(together.items(), key=lambda item: -len(item[1]))
    ]
    more = (
        f" and {len(named) - _NAMED_OPERATIONS} kinds more"
        if len(named) > _NAMED_OPERATIONS
        else ""
    )
    return ", ".join(named[:_NAMED_OPERATIONS]) + more


def not_delegated(
    row: RunnerRow, total_ops: int, min_share: float, prediction: Prediction | None
) -> str:
    """Say why what a delegate took is not enough for a pass; "" if it is."""
    log = parse_log(row["log"])
    operations = operations_taken(row)
    if log.errors:
        return f"Mesa reports: {'; '.join(log.errors[:3])}"
    if kind_of(row) == TEFLON and log.driver is None:
        return "the delegate named no driver: the model ran on the CPU"
    who = f"the delegate ({log.driver})" if log.driver else "the delegate"
    if operations is None:
        return f"{who} does not say what it took, and this runtime cannot tell"
    if not operations:
        refused = _refusals(row, prediction) if prediction else ""
        return f"{who} took no operation: the model ran on the CPU" + (
            f"; refused: {refused}" if refused else ""
        )
    if log.driver and not log.invocations:
        return f"{who} compiled {counted(operations, 'operation')} and ran none"
    if operations < min_share * total_ops:
        refused = _refusals(row, prediction)
        return (
            f"only {operations} of {total_ops} operations were delegated, expected at least "
            f"{min_share:.0%}" + (f"; refused: {refused}" if refused else "")
        )
    if prediction and operations < len(prediction.taken):
        return (
            f"only {operations} operations were delegated, {len(prediction.taken)} were predicted "
            f"({prediction.source})"
        )
    return ""
