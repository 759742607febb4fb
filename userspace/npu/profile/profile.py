# SPDX-License-Identifier: MIT
"""Time by operation, from when each submit to an NPU began and ended. Pure.

The NPU takes one job after another: a job's time is from its submit, or from the end of the one before it,
to its own end. What is left of an inference is nobody's job: operations on the CPU, tensors that are
converted and copied, the driver.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..model.graph import Model
from ..validate.records import OperationTime, ProfileRecord, RunnerProfile
from .attribute import Owners, Submit, owners

_MS = 1e6
_FEW = 0.5
"""At least so many of the inferences have to have had the same jobs."""


@dataclass
class _Inference:
    """One inference, in milliseconds: the whole, each submit, and the time around them."""

    total: float
    submits: list[Submit] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)
    before: float = 0.0
    after: float = 0.0


def profile(
    raw: RunnerProfile,
    model: Model,
    taken: Sequence[int],
    *,
    driver: str,
    plain_ms: float | None,
) -> ProfileRecord:
    """Return the time of each operation.

    Args:
        taken: indices of the operations that the delegate took.
        plain_ms: the median of inferences without a profile, for its overhead.
    """
    if "error" in raw:
        return {"error": raw["error"]["message"]}
    alike = _alike([_inference(raw, place) for place in range(len(raw["runs"]))])
    if not alike:
        return {"error": "the inferences had not the same jobs, or jobs were not seen to end"}
    kept = _middle(alike)
    submits = kept[0].submits
    times = [statistics.fmean(each.busy[place] for each in kept) for place in range(len(submits))]
    total = statistics.fmean(each.total for each in kept)
    one_job = driver == "rocket" or raw["one_job_a_submit"]
    whose = owners(driver, submits, model, taken, one_job=one_job)
    before = statistics.fmean(each.before for each in kept)
    after = statistics.fmean(each.after for each in kept)
    busy = sum(times)
    return {
        "inference_ms": round(total, 4),
        "npu_ms": round(busy, 4),
        "before_ms": round(before, 4),
        "between_ms": round(max(total - busy - before - after, 0.0), 4),
        "after_ms": round(after, 4),
        "overhead": round(total / plain_ms - 1, 4) if plain_ms else None,
        "runs": len(alike),
        "driver": driver,
        "one_job_a_submit": one_job,
        "nn_jobs": sum(each.nn for each in submits),
        "tp_jobs": sum(each.tp for each in submits),
        "operations": _rows(submits, times, whose, [each.kind for each in model.operations], total),
        "on_cpu": sorted(set(range(len(model.operations))) - set(taken)),
    }


def _inference(raw: RunnerProfile, place: int) -> _Inference | None:
    """Return one inference; None if a job of it was not seen to end."""
    begin, end = raw["runs"][place]
    inference = _Inference((end - begin) / _MS)
    last = first = None
    for began, ended, nn, tp, group in raw["events"]:
        if not begin <= began < end or not (nn or tp):
            continue
        if ended is None:
            return None
        # The inference waited for its jobs; the thread that stamps their ends may come after it.
        ended = min(ended, end)
        first = began if first is None else first
        inference.submits.append(Submit(nn, tp, group))
        inference.busy.append(max(ended - max(began, last or 0), 0) / _MS)
        last = max(ended, last or 0)
    if first is not None and last is not None:
        inference.before = (first - begin) / _MS
        inference.after = (end - last) / _MS
    return inference


def _alike(inferences: Sequence[_Inference | None]) -> list[_Inference]:
    """Return the inferences that had the same jobs as most; none if these are few, or had no jobs."""
    kinds = [tuple(_numbered(each.submits)) if each else () for each in inferences]
    (most, count), *_ = Counter(kinds).most_common(1) or [((), 0)]
    if not most or count < _FEW * len(inferences):
        return []
    return [each for each, kind in zip(inferences, kinds, strict=True) if each and kind == most]


def _middle(inferences: Sequence[_Inference]) -> list[_Inference]:
    """Return the middle half by time: means of these are not disturbed, and add up."""
    quarter = (len(inferences) + 1) // 4
    return sorted(inferences, key=lambda each: each.total)[quarter : len(inferences) - quarter]


def _numbered(submits: Sequence[Submit]) -> list[Submit]:
    """Number buffers by when they were first written: handles differ from inference to inference."""
    names: dict[int, int] = {}
    return [
        Submit(each.nn, each.tp, names.setdefault(each.group, len(names) + 1) if each.group else 0)
        for each in submits
    ]


def _rows(
    submits: Sequence[Submit],
    times: Sequence[float],
    whose: Owners | None,
    kinds: Sequence[str],
    total: float,
) -> list[OperationTime]:
    keys = whose or tuple((-1 - place,) for place in range(len(submits)))
    rows: list[OperationTime] = []
    for key in sorted(set(keys), key=lambda each: each if whose else (-each[0],)):
        places = [place for place, other in enumerate(keys) if other == key]
        spent = sum(times[place] for place in places)
        rows.append(
            {
                "operations": list(key) if whose else [],
                "name": _name(key, kinds) if whose else f"submit {places[0]}",
                "ms": round(spent, 4),
                "share": round(spent / total, 4) if total else 0.0,
                "submits": len(places),
                "nn_jobs": sum(submits[place].nn for place in places),
                "tp_jobs": sum(submits[place].tp for place in places),
            }
        )
    return rows


def _name(key: tuple[int, ...], kinds: Sequence[str]) -> str:
    if len(key) == 1:
        return kinds[key[0]]
    return f"partition of {len(key)} operations, {key[0]} to {key[-1]}"
