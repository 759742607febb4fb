# SPDX-License-Identifier: MIT
"""Judges what the runner found: pure, from its JSON to one verdict.

A row passes only with all of: the delegate loaded, took at least the demanded share of operations (by
its own log) and ran; each of its outputs is that of the CPU's portable kernels, by the output's own measure
(``outputs``), and the answer on file. What is absent is ``skip``, with the reason; a run on the CPU under
another name is ``fail``.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bsp.base.words import counted

from ...model.prediction import Prediction
from ...model.sinks import Sink
from ..delegates import REFERENCE
from ..onboard.devices import LOST
from ..records import (
    Class,
    Latency,
    OutputRecord,
    RowResult,
    RunnerDocument,
    RunnerRow,
)
from .compare import MAX_ABS_DIFF, best, named
from .delegation import CPU_ROWS, is_npus, parse_log, parse_opencl
from .kernel_log import troubles
from .not_run import NO_DEVICE, why_not
from .outputs import (
    Compared,
    Reference,
    compare_row,
    look_at,
    records_of,
    reference_of,
    shown_output,
)
from .share import not_delegated, not_taken, operations_taken, partitions
from .values import Reals, scores

TOP = 5
# label_image.cc and get_top_n.h: what it prints, and what is too small to print.
THRESHOLD = 0.001
# Of tensors in one sentence.
_NAMED = 3


@dataclass(frozen=True)
class Figure:
    """A published latency of a board's SoC.

    Attributes:
        delegate: row that it belongs to.
        median_ms: milliseconds an inference.
        source: where it was published.
    """

    delegate: str
    median_ms: float
    source: str


@dataclass(frozen=True)
class Expected:
    """The answer on file for one model and one image.

    Attributes:
        top: (class index, score), best first.
        tolerance: how far a score may be from the one on file, 0..1.
    """

    top: tuple[tuple[int, float], ...]
    tolerance: float = MAX_ABS_DIFF


def top_classes(
    values: NDArray[np.float64], labels: Sequence[str], *, count: int = TOP
) -> list[Class]:
    """Return the best classes above the threshold, best first; the higher index first on a tie."""
    order = sorted(range(len(values)), key=lambda index: (-values[index], -index))
    return [
        {
            "index": index,
            "label": labels[index] if index < len(labels) else "",
            "score": round(float(values[index]), 6),
        }
        for index in order[:count]
        if values[index] >= THRESHOLD and np.isfinite(values[index])
    ]


def latency(runs_ms: Sequence[float]) -> Latency:
    """Return median, 95th percentile (nearest rank), minimum, maximum in ms, and the count."""
    ordered = sorted(runs_ms)
    return {
        "median": round(statistics.median(ordered), 3),
        "p95": round(ordered[-(-len(ordered) * 95 // 100) - 1], 3),
        "min": round(ordered[0], 3),
        "max": round(ordered[-1], 3),
        "n": len(ordered),
    }


def judge(
    facts: RunnerDocument,
    labels: Sequence[str],
    expected: Expected | None,
    *,
    min_delegated_share: float,
    predictions: Mapping[str, Prediction] | None = None,
    published: Sequence[Figure] = (),
    npu_expected: str = "",
    sinks: Sequence[Sink] = (),
    exact: bool = False,
) -> list[RowResult]:
    """Return one result a delegate, as in the command line's contract.

    Args:
        facts: the runner's document.
        expected: the answer on file; None where there is none, so that only the reference counts.
        min_delegated_share: share of the model's operations that a delegate must take, 0..1.
        predictions: delegate -> what it was expected to take.
        published: figures for this board and model.
        npu_expected: why an NPU must be there, as a clause: where none is found, Teflon's row fails with
            it. "" where there need not be one: then the row is skipped.
        sinks: the model's outputs as its file has them; empty where it is not at hand.
        exact: a row of the NPU may not differ from the reference by a single step.
    """
    reference = find_reference(facts, sinks, labels)
    results = [
        _judge_row(
            row,
            facts,
            labels,
            expected,
            reference,
            min_delegated_share,
            (predictions or {}).get(row["delegate"]),
            exact=exact and is_npus(row),
        )
        for row in facts["results"]
    ]
    _compare_speed(results, published)
    for result in results if npu_expected else ():
        if result["status"] == "skip" and result["reason"].startswith(NO_DEVICE):
            result["status"] = "fail"
            result["reason"] += f"; but {npu_expected}"
    return results


def find_reference(
    facts: RunnerDocument, sinks: Sequence[Sink], labels: Sequence[str]
) -> Reference | None:
    """Return the row that the others are compared with; None if it has not run, or says nothing."""
    for row in facts["results"]:
        if row["delegate"] == REFERENCE and records_of(row):
            candidate = reference_of(row, sinks, labels)
            return None if look_at(candidate).problems else candidate
    return None


def _compare_speed(results: Sequence[RowResult], published: Sequence[Figure]) -> None:
    """Put ratios of the medians into results: above 1 is slower than what it is compared with."""
    medians = {row["delegate"]: row["latency_ms"]["median"] for row in results if row["latency_ms"]}
    for row in results:
        name = row["delegate"].partition(":")[0]
        median, on_cpu = medians.get(row["delegate"]), medians.get("cpu")
        row["ratio_to_cpu"] = round(median / on_cpu, 4) if median and on_cpu else None
        row["published"] = [
            {
                "median_ms": figure.median_ms,
                "source": figure.source,
                "ratio": round(median / figure.median_ms, 4) if median else None,
            }
            for figure in published
            if figure.delegate == name
        ]


def verdict(results: Sequence[RowResult]) -> str:
    """Return ``pass``, ``fail`` or ``skip`` for all rows.

    pass: no row failed, and at least one that was asked for has run and passed; skip: of those asked for
    none could run.
    """
    requested = [row for row in results if not row.get("implied")]
    if any(row["status"] == "fail" for row in results):
        return "fail"
    return "pass" if any(row["status"] == "pass" for row in requested) else "skip"


def settle_state(facts: RunnerDocument, *, keeps_state: bool) -> str:
    """Have the first run's outputs compared where a model keeps something from run to run.

    The reference tells: its outputs are not the same after its last run, with the same input. Rows make
    different numbers of runs; crops of the picture would meet what earlier ones have left.

    Args:
        keeps_state: the model's file has variables: that the reference's few runs were alike says nothing
            of the others' many.

    Returns:
        A note; "" where the model keeps nothing.
    """
    rows = facts["results"]
    changing = [row for row in rows if row.get("unlike_first") or row.get("first_outputs")]
    if not changing or not (keeps_state or any(row["delegate"] == REFERENCE for row in changing)):
        return ""
    for row in rows:
        row.pop("unlike_first", None)
        if first := row.get("first_outputs"):
            row["output"], *row["other_outputs"] = first
        if "output" in row:
            row["views"] = []
    return (
        "the model's outputs change from run to run (it keeps a state): those of the first are compared, "
        "and no crops of the picture"
    )


def _judge_row(
    row: RunnerRow,
    facts: RunnerDocument,
    labels: Sequence[str],
    expected: Expected | None,
    reference: Reference | None,
    min_delegated_share: float,
    prediction: Prediction | None,
    *,
    exact: bool,
) -> RowResult:
    result = _facts_of_row(row, facts, prediction)
    if "error" in row:
        return result | _without_answer(row, facts, result)
    # What a row's outputs are, the reference says; without one, the row itself.
    own = reference_of(row, reference.sinks if reference else (), labels)
    values = _class_scores(row, own, reference)
    compared = _compared(row, own, reference, exact=exact)
    on_cpu = row["delegate"] in CPU_ROWS
    problems = [
        _kernel_said(result["kernel_log"]) if result["kernel_log"] else "",
        "" if on_cpu else not_delegated(row, facts["total_ops"], min_delegated_share, prediction),
        _changes(row),
        "" if on_cpu else _overwritten(row, facts),
        *compared.problems,
        _unlike_expected(values, labels, expected),
    ]
    difference = _score_difference(own.records[0], reference.records[0]) if reference else None
    answered: RowResult = {
        "top": top_classes(values, labels) if values is not None else [],
        "latency_ms": latency(row["runs_ms"]),
        "delegated_nodes": row.get("delegated_nodes"),
        "runs_ms": [round(run_ms, 3) for run_ms in row["runs_ms"]],
        "first_ms": round(row["first_ms"], 3),
        "prepare_ms": round(row["prepare_ms"], 3),
        "max_abs_diff": difference,
        "outputs": compared.records,
        "reason": "; ".join(
            filter(None, [*problems, *compared.notes, _other_kernels(row), _lost_messages(row)])
        ),
        "status": "fail" if any(problems) else "pass",
    }
    return result | answered


def _facts_of_row(
    row: RunnerRow, facts: RunnerDocument, prediction: Prediction | None
) -> RowResult:
    """The result of a row before anything is known of its answer: who ran it, what it took."""
    on_cpu = row["delegate"] in CPU_ROWS
    log = parse_log(row.get("log", ""))
    opencl = parse_opencl(row.get("log", ""))
    device = opencl.devices[0] if opencl and opencl.devices else None
    kernel = row.get("kernel_log")
    return {
        "delegate": row["delegate"],
        "status": "fail",
        "reason": "",
        "top": [],
        "latency_ms": None,
        "first_ms": None,
        "prepare_ms": None,
        "delegated_ops": None if on_cpu else operations_taken(row),
        "total_ops": facts["total_ops"],
        "partitions": None if on_cpu else partitions(row),
        "predicted_ops": len(prediction.taken) if prediction else None,
        "not_delegated": [] if on_cpu else not_taken(row, prediction),
        "driver": device[1] if device else log.driver,
        "library": row.get("library"),
        "max_abs_diff": None,
        "outputs": [],
        "ratio_to_cpu": None,
        "published": [],
        "environment": row.get("environment", {}),
        "versions": {
            "kernel": facts.get("kernel"),
            "mesa": device[2] if device else row.get("mesa"),
            "runtime": facts.get("runtime"),
        },
        "signal": row.get("signal"),
        "kernel_log": None if kernel is None else troubles(kernel),
    }


def _without_answer(row: RunnerRow, facts: RunnerDocument, result: RowResult) -> RowResult:
    """What of the result is different where the row did not run to its end."""
    status, reason = why_not(row, facts)
    if result["kernel_log"]:
        status, reason = "fail", f"{reason}; {_kernel_said(result['kernel_log'])}"
    changed: RowResult = {"status": status, "reason": reason}
    if not parse_log(row.get("log", "")).graphs:
        changed |= {"delegated_ops": None, "partitions": None}  # it came to nothing
    return changed


def _changes(row: RunnerRow) -> str:
    """Say that a row's outputs are not those of its first run; "" where they are, or it has a state."""
    unlike, runs = row.get("unlike_first"), len(row["runs_ms"])
    if not unlike:
        return ""
    of_runs = "all later runs" if unlike == runs else f"{unlike} of {counted(runs, 'later run')}"
    return (
        f"the same input does not give the same outputs: those of {of_runs} are not the first one's, "
        "and the model keeps no state"
    )


def _overwritten(row: RunnerRow, facts: RunnerDocument) -> str:
    """Say what a delegate wrote over though it may only read it, or not even that; "" if nothing.

    An input that the runtime's own kernels do not leave as it is does not count.
    """
    reference = next((each for each in facts["results"] if each["delegate"] == REFERENCE), None)
    usual = reference.get("changed_inputs", []) if reference else []
    inputs = [place for place in row.get("changed_inputs", []) if place not in usual]
    places = [f"input {place}" for place in inputs]
    if row.get("changed_model"):
        places.append("the model's own constants (its weights)")
    words = []
    if places:
        words.append(f"the delegate wrote into {' and '.join(places)}, which it may only read")
    if overrun := row.get("overrun"):
        names = ", ".join(map(repr, overrun[:_NAMED]))
        more = f" and {len(overrun) - _NAMED} more" if len(overrun) > _NAMED else ""
        words.append(f"the delegate wrote behind the end of its output {names}{more}")
    return "; ".join(words)


def _other_kernels(row: RunnerRow) -> str:
    lacks = row.get("lacks_portable")
    return f"TFLite's portable kernels have no {lacks}: its optimised ones ran" if lacks else ""


def _lost_messages(row: RunnerRow) -> str:
    """Say that the kernel may have reported something that nobody has read; "" if all was read."""
    lost = LOST in (row.get("kernel_log") or [])
    return "not all of the kernel's log could be read: messages were lost" if lost else ""


def _class_scores(row: RunnerRow, own: Reference, reference: Reference | None) -> Reals | None:
    """The scores of the classes; None where no output has them."""
    shown = shown_output(reference or own)
    answer = row.get("answer")  # of a detector: its classes' best scores
    if answer is None and shown is not None and shown < len(own.records):
        answer = own.records[shown]
    return scores(answer) if answer else None


def _compared(
    row: RunnerRow, own: Reference, reference: Reference | None, *, exact: bool
) -> Compared:
    """The row's outputs, compared with the reference's where the row is another's."""
    if row["delegate"] == REFERENCE:
        return look_at(own)
    if reference:
        return compare_row(row, reference, exact=exact)
    compared = look_at(own)
    compared.problems.append(f"there is no result of {REFERENCE} to compare with")
    return compared


def _score_difference(record: OutputRecord, reference: OutputRecord) -> float | None:
    """Largest difference of the first outputs, as label_image's scores; None where there is none."""
    values, expected = scores(record), scores(reference)
    if values.shape != expected.shape or not (
        np.all(np.isfinite(values)) and np.all(np.isfinite(expected))
    ):
        return None
    return round(float(np.max(np.abs(values - expected), initial=0.0)), 6)


def _kernel_said(lines: Sequence[str]) -> str:
    more = f" (and {len(lines) - 2} more)" if len(lines) > 2 else ""
    return f"the kernel reports: {'; '.join(lines[:2])}{more}"


def _unlike_expected(
    values: NDArray[np.float64] | None, labels: Sequence[str], expected: Expected | None
) -> str:
    if expected is None:
        return ""
    expected_class, _ = expected.top[0]
    if values is None or expected_class >= values.size:
        size = 0 if values is None else values.size
        return f"the answer on file is class {expected_class}, the model has {size} classes"
    if values[expected_class] != values.max():
        return (
            f"top class is {named(best(values), labels)}, expected {named(expected_class, labels)}"
        )
    for index, score in expected.top:
        if abs(values[index] - score) > expected.tolerance:
            return (
                f"{named(index, labels)} has score {values[index]:.6g}, expected {score:.6g} "
                f"within {expected.tolerance:g}"
            )
    return ""
