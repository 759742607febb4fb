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
from ..delegates import OPENCL, TEFLON, TIM_VX
from ..records import (
    Class,
    DeviceRecord,
    Latency,
    NotDelegated,
    OutputRecord,
    RowResult,
    RunnerDocument,
    RunnerRow,
)
from .compare import MAX_ABS_DIFF, best, named
from .delegation import is_npus, parse_log, parse_opencl
from .kernel_log import out_of_memory, troubles
from .outputs import (
    Compared,
    Reference,
    compare_row,
    look_at,
    records_of,
    reference_of,
    shown_output,
)
from .values import Reals, scores

TOP = 5
# label_image.cc and get_top_n.h: what it prints, and what is too small to print.
THRESHOLD = 0.001
NO_DEVICE = "no NPU device"
NO_OPENCL = "no OpenCL device"
_OPENCL_BROKEN = "libOpenCL.so does not load: "  # the runner's words: it is there
# How many operations are named where too few were taken.
_NAMED_OPERATIONS = 4
REFERENCE = "cpu-reference"
_CPU = ("cpu", REFERENCE)
# Delegates that a board need not have, and how to come by them.
_OTHERS = {
    OPENCL: " (./inv build-delegate opencl makes it)",
    TIM_VX: " (the vendor's library, which npu-bsp may not distribute)",
}


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
    on_cpu = row["delegate"] in _CPU
    problems = [
        _kernel_said(result["kernel_log"]) if result["kernel_log"] else "",
        "" if on_cpu else _not_delegated(row, facts["total_ops"], min_delegated_share, prediction),
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
        "reason": "; ".join(filter(None, [*problems, *compared.notes, _other_kernels(row)])),
        "status": "fail" if any(problems) else "pass",
    }
    return result | answered


def _facts_of_row(
    row: RunnerRow, facts: RunnerDocument, prediction: Prediction | None
) -> RowResult:
    """The result of a row before anything is known of its answer: who ran it, what it took."""
    on_cpu = row["delegate"] in _CPU
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
        "delegated_ops": None if on_cpu else _operations(row),
        "total_ops": facts["total_ops"],
        "partitions": None if on_cpu else _partitions(row),
        "predicted_ops": len(prediction.taken) if prediction else None,
        "not_delegated": [] if on_cpu else _not_taken(row, prediction),
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
    status, reason = _why_not(row, facts)
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
    """Say what a delegate wrote over though it may only read it; "" if nothing.

    An input that the runtime's own kernels do not leave as it is does not count.
    """
    reference = next((each for each in facts["results"] if each["delegate"] == REFERENCE), None)
    usual = reference.get("changed_inputs", []) if reference else []
    inputs = [place for place in row.get("changed_inputs", []) if place not in usual]
    places = [f"input {place}" for place in inputs]
    if row.get("changed_model"):
        places.append("the model's own constants (its weights)")
    if not places:
        return ""
    return f"the delegate wrote into {' and '.join(places)}, which it may only read"


def _other_kernels(row: RunnerRow) -> str:
    lacks = row.get("lacks_portable")
    return f"TFLite's portable kernels have no {lacks}: its optimised ones ran" if lacks else ""


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


def _why_not(row: RunnerRow, facts: RunnerDocument) -> tuple[str, str]:
    """Status and reason of a row that did not run to its end.

    It is ``skip`` only where what it needs is absent and nothing of the model ran: the library or the
    vendor's device node is not there, or the delegate was loaded and found no device. All else is
    ``fail``.
    """
    stage, message = row["error"]["stage"], row["error"]["message"]
    name = _kind(row)
    if name in _CPU:
        return "fail", message
    log = parse_log(row.get("log", ""))
    devices = facts["npu_devices"]
    usable = [device for device in devices if any(core["npu"] for core in device["cores"])]
    if stage == "library":
        if name == TEFLON:
            return ("skip", message) if usable else _without_npu(devices)
        return ("skip", f"{message}{_OTHERS[name]}") if name in _OTHERS else ("fail", message)
    if stage == "device":  # the runner did not dare to open it
        return _without_npu(devices)
    if stage == "delegate":
        return _not_loaded(row, usable, devices)
    if stage == "prepare":
        return "fail", f"the delegate could not prepare this model: {_last_words(row, message)}"
    killed = out_of_memory(row.get("kernel_log") or [])
    if stage == "crash" and killed:
        return "fail", f"{message}, out of memory; the kernel says: {killed}"
    if log.driver:
        done = f"after it compiled {len(log.compiled_ms)} of {len(log.graphs)} graphs"
        return "fail", f"{message} (driver {log.driver}, {done})"
    return "fail", message


def _not_loaded(
    row: RunnerRow, usable: Sequence[DeviceRecord], devices: Sequence[DeviceRecord]
) -> tuple[str, str]:
    """Status and reason of a row whose library is there and gave no delegate."""
    opencl = parse_opencl(row.get("log", ""))
    if opencl and opencl.problem:
        message = str(row["error"]["message"])
        if message.startswith(_OPENCL_BROKEN):
            return "fail", message
        return "skip", f"{NO_OPENCL}: {opencl.problem}"
    if parse_log(row.get("log", "")).no_device:
        if not usable:
            return _without_npu(devices)
        nodes = ", ".join(device.get("by_path") or device["node"] for device in usable)
        return "fail", f"the delegate finds no device, although {nodes} is there"
    message = _why_it_did_not(row["error"]["message"], row.get("log", ""))
    return "fail", f"the delegate does not load: {message}"


def _without_npu(devices: Sequence[DeviceRecord]) -> tuple[str, str]:
    """Status and reason where the kernel shows no NPU; ``devices`` are nodes without one."""
    for device in devices:
        if device["error"]:
            return "fail", (
                f"{device['node']} ({device['driver']}) cannot be opened: {device['error']}; "
                "the user must be in the group render"
            )
    if not devices:
        return "skip", NO_DEVICE
    nodes = ", ".join(f"{device['node']} ({device['driver']})" for device in devices)
    unsafe = [device for device in devices if "unsafe" in device]
    if unsafe:
        return "fail", (
            f"opening {unsafe[0]['node']} ({unsafe[0]['driver']}) {unsafe[0]['unsafe']}, as happens "
            "where the kernel's driver found no core; see dmesg"
        )
    models = sorted({f"GC{core['model']:x}" for device in devices for core in device["cores"]})
    # Linux drivers/gpu/drm/etnaviv/etnaviv_gpu.c gives up a core that reads model 0.
    cores = "no core that is an NPU, only " + ", ".join(models) if models else "no core"
    return "skip", f"{NO_DEVICE}: the kernel's driver found {cores} behind {nodes}"


def _operations(row: RunnerRow) -> int | None:
    """Operations that the delegate took: what runtime and log agree on; None where neither can tell."""
    taken = row.get("delegated_ops")
    counts = [] if taken is None else [taken]
    log = parse_log(row.get("log", ""))
    if _kind(row) == TEFLON or log.driver:
        counts.append(log.operations)
    return min(counts, default=None)


def _partitions(row: RunnerRow) -> int | None:
    """Graphs that the delegate made of what it took: from the runtime, or its own log."""
    count = row.get("partitions")
    if count is not None:
        return count
    log = parse_log(row.get("log", ""))
    return len(log.compiled_ms) if log.driver else None


def _not_taken(row: RunnerRow, prediction: Prediction | None) -> list[NotDelegated]:
    """Operations that stayed on the CPU, with the reason where the rules know one."""
    return [
        {
            "index": each["index"],
            "op": each["op"],
            "why": prediction.why(each["index"]) if prediction else "",
        }
        for each in row.get("on_cpu") or []
    ]


def _kernel_said(lines: Sequence[str]) -> str:
    more = f" (and {len(lines) - 2} more)" if len(lines) > 2 else ""
    return f"the kernel reports: {'; '.join(lines[:2])}{more}"


def _refusals(row: RunnerRow, prediction: Prediction | None) -> str:
    """Name the operations that were not taken, with their reasons, the same ones together."""
    refused = parse_log(row["log"]).unsupported
    if refused:
        return ", ".join(f"{name} x{count}" for name, count in refused)
    together: dict[tuple[str, str], list[int]] = {}
    for each in _not_taken(row, prediction):
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


def _not_delegated(
    row: RunnerRow, total_ops: int, min_share: float, prediction: Prediction | None
) -> str:
    log = parse_log(row["log"])
    operations = _operations(row)
    if log.errors:
        return f"Mesa reports: {'; '.join(log.errors[:3])}"
    if _kind(row) == TEFLON and log.driver is None:
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


def _kind(row: RunnerRow) -> str:
    """Return the delegate of a row without its options."""
    return str(row["delegate"]).partition(":")[0]


def _last_words(row: RunnerRow, message: str) -> str:
    """What a delegate printed last, and the runtime's message; Mesa's own log has no reasons in it."""
    log = row.get("log", "").partition("Exception ignored in")[0]
    printed = [line.strip() for line in log.splitlines() if line.strip()]
    words = " ".join(message.split())
    if not printed or parse_log(log).driver:
        return f"TFLite says: {words}"
    return f"{printed[-1]} (TFLite says: {words})"


def _why_it_did_not(message: str, log: str) -> str:
    """Return why a delegate did not load: in the words of its library, or of the dynamic linker.

    The runtime's own first line says only which library it was. Where the delegate reported nothing, what
    it printed counts; Python's complaints about the half-made delegate come behind that.
    """
    first, _, rest = message.partition("\n")
    words = rest if first.startswith("Failed to load delegate from") else message
    printed = log.partition("Exception ignored in")[0].splitlines()
    lines = [line.strip() for line in words.splitlines() or printed[-1:]]
    return " ".join(filter(None, lines)) or "it refused, and did not say why"
