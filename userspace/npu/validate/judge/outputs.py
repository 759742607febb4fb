# SPDX-License-Identifier: MIT
"""Compares every output of a row with the reference's, one by one, and says what was not compared. Pure.

Outputs belong together by their place in the model. What each is, the reference and the model's file say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bsp.base.words import counted

from ...model.sinks import Sink
from ..records import OutputRecord, RunnerRow
from .compare import MAX_ABS_DIFF, compare, relative_error
from .detections import THRESHOLD, arrangement, detections, differences
from .kinds import Kind, detection_group, is_list, kinds_of
from .values import Values, lifeless_values, values_of

# Of a picture on which the reference is sure of nothing, its best objects are looked at: from these shares
# of the best score on, and to within these.
_WEAK_THRESHOLD = 0.6
_WEAK_TOLERANCE = 0.3
_OBJECTS_NAMED = 3
BY_CHANNEL = "channel by channel"
"""Another order than TFLite's, in which all channels of a pixel stand together."""


@dataclass(frozen=True)
class Reference:
    """What rows are compared with.

    Attributes:
        name: of the row, for the words.
        records: the runner's records of its outputs.
        outputs: their values, and what each is.
        sinks: the model's outputs as its file has them; empty where the file is not at hand.
    """

    name: str
    records: tuple[OutputRecord, ...]
    outputs: tuple[Values, ...]
    kinds: tuple[Kind, ...]
    sinks: tuple[Sink, ...]
    labels: tuple[str, ...]


@dataclass
class Compared:
    """What a row's comparison came to.

    Attributes:
        records: one for each output, for the document.
        problems: what is wrong, as clauses.
        notes: what was not compared, or proves nothing.
    """

    records: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def records_of(row: RunnerRow) -> list[OutputRecord]:
    """Return the runner's records of a row's outputs; none if it did not run to its end."""
    if "output" not in row:
        return []
    return [row["output"], *row.get("other_outputs", [])]


def reference_of(row: RunnerRow, sinks: Sequence[Sink], labels: Sequence[str]) -> Reference:
    """Read the row that the others are compared with."""
    records = records_of(row)
    outputs = [
        values_of(record, step=sinks[number].step if number < len(sinks) else 0.0)
        for number, record in enumerate(records)
    ]
    kinds = kinds_of(outputs, sinks, labels)
    return Reference(
        row["delegate"], tuple(records), tuple(outputs), tuple(kinds), tuple(sinks), tuple(labels)
    )


def look_at(reference: Reference) -> Compared:
    """Look at the reference's own outputs: they have to be of use for a comparison."""
    found = Compared()
    dead = []
    for number, values in enumerate(reference.outputs):
        words = lifeless_values(values.raw, _named(number, reference))
        if values.short is not None:
            words = (
                ""  # all pixels of one class, and it is known how much better that is than others
            )
        if words and not np.all(np.isfinite(values.real)):
            found.problems.append(words)
        elif words:
            dead.append(words)
        found.records.append(_record(number, reference, values, None, "") | {"compared": False})
    if len(dead) == len(reference.outputs):
        found.problems += dead[:1]
    else:
        found.notes += [f"{words}, which proves nothing" for words in dead]
    found.notes += _unseen(reference)
    return found


def compare_row(row: RunnerRow, reference: Reference, *, exact: bool = False) -> Compared:
    """Compare all outputs of a row.

    Args:
        exact: nothing may differ.
    """
    found = Compared()
    records = records_of(row)
    if len(records) != len(reference.records):
        found.problems.append(
            f"the model has {counted(len(records), 'output')} here, "
            f"{reference.name} has {len(reference.records)}"
        )
    for number, (record, theirs) in enumerate(zip(records, reference.outputs, strict=False)):
        what = _named(number, reference)
        step = theirs.step if theirs.raw.dtype.kind == "f" else 0.0
        ours = values_of(record, step=step)
        problem, error = "", None
        if ours.raw.dtype != theirs.raw.dtype or ours.raw.shape != theirs.raw.shape:
            problem = f"{what} is {_form(ours)}, {reference.name}'s is {_form(theirs)}"
        elif not np.all(np.isfinite(theirs.real)):
            found.notes.append(f"{what} was not compared: {reference.name}'s is not finite")
        elif ours.raw.tobytes() != theirs.raw.tobytes():
            problem, error = _problem(what, number, ours, reference, exact=exact)
        else:
            error = 0.0
        made = _record(number, reference, ours, error, problem)
        if problem and made["compared"] and _by_channel(number, ours, reference, exact=exact):
            made["order"] = BY_CHANNEL
            problem += f"; its values are {reference.name}'s, {BY_CHANNEL}"
        found.records.append(made)
        found.problems += [problem] if problem else []
    if not exact and not found.problems:
        _compare_objects(records, reference, found)
    found.notes += _unseen(reference)
    return found


def compare_view(ours: Values, theirs: Values, reference: Reference, *, exact: bool) -> str:
    """Return what is wrong with the first output for another picture, "" if nothing is."""
    if ours.raw.tobytes() == theirs.raw.tobytes():
        return ""
    if exact:
        return "not exactly the reference's"
    if reference.kinds[0] is Kind.DETECTIONS:
        return (
            ""  # objects need all four outputs, and of other pictures only the first one is known
        )
    alive = lifeless_values(ours.raw)
    return (
        alive
        or compare(reference.kinds[0], ours, theirs, reference.labels, name=reference.name).problem
    )


def shown_output(reference: Reference) -> int | None:
    """Return which output has scores or raw scores of classes, for people; None if none has."""
    if Kind.SCORES in reference.kinds:
        return reference.kinds.index(Kind.SCORES)
    first = reference.kinds[0] is Kind.VECTOR and is_list(reference.outputs[0].raw.shape)
    return 0 if first else None


def _problem(
    what: str, number: int, ours: Values, reference: Reference, *, exact: bool
) -> tuple[str, float | None]:
    """Say what is wrong with an output that is not bit for bit the reference's."""
    theirs, kind = reference.outputs[number], reference.kinds[number]
    dead = lifeless_values(ours.raw, what)
    if not np.all(np.isfinite(ours.real)):
        return dead, None
    error = relative_error(ours, theirs)
    # Classes of pixels, and classes and scores of objects, may well be all the same.
    if dead and not lifeless_values(theirs.raw) and kind not in (Kind.INDICES, Kind.DETECTIONS):
        return dead, error
    if exact:
        differ = int(np.count_nonzero(ours.raw != theirs.raw))
        largest = float(np.max(np.abs(ours.real - theirs.real)))
        by = f"{largest / theirs.step:.0f} steps" if theirs.step else f"{largest:.4g}"
        return (
            f"{what} is not exactly {reference.name}'s: {differ} of {ours.raw.size} values differ, by up "
            f"to {by}",
            error,
        )
    if kind is Kind.DETECTIONS:
        return "", error
    words = compare(kind, ours, theirs, reference.labels, name=reference.name).problem
    alone = len(reference.outputs) == 1
    return (words if alone or not words else f"{what}: {words}"), error


def _compare_objects(
    records: Sequence[OutputRecord], reference: Reference, found: Compared
) -> None:
    """Compare the objects of a detector's four outputs, in whatever order it names them."""
    group = detection_group([each.raw.shape for each in reference.outputs])
    if not group:
        return
    four = [reference.records[number] for number in group]
    known = arrangement(four)
    theirs = detections(four, known)
    ours = detections([records[number] for number in group], known)
    if theirs is None or ours is None:
        found.notes.append(
            f"outputs {group.start} to {group.stop - 1} not compared: a detector's, in no known order"
        )
        return
    best = max((each.score for each in theirs), default=0.0)
    threshold = min(THRESHOLD, _WEAK_THRESHOLD * best) if best > 0 else THRESHOLD
    tolerance = min(MAX_ABS_DIFF, _WEAK_TOLERANCE * best) if best > 0 else MAX_ABS_DIFF
    found.problems += differences(ours, theirs, tolerance=tolerance, threshold=threshold)[
        :_OBJECTS_NAMED
    ]


def _unseen(reference: Reference) -> list[str]:
    known, given = len(reference.sinks), len(reference.records)
    if known <= given:
        return []
    some = f"output {given}" if known == given + 1 else f"outputs {given} to {known - 1}"
    return [f"{some} not compared: the runner did not give them"]


def _record(
    number: int, reference: Reference, values: Values, error: float | None, problem: str
) -> dict[str, Any]:
    theirs = reference.outputs[number]
    same_form = values.raw.shape == theirs.raw.shape
    with np.errstate(invalid="ignore"):  # infinity less infinity
        largest = (
            float(np.max(np.abs(values.real - theirs.real), initial=0.0)) if same_form else None
        )
    name = reference.sinks[number].name if number < len(reference.sinks) else ""
    return {
        "index": number,
        "name": reference.records[number].get("name") or name,
        "shape": list(values.raw.shape),
        "dtype": values.raw.dtype.name,
        "kind": str(reference.kinds[number]),
        "compared": bool(same_form and np.all(np.isfinite(theirs.real))),
        "values": int(values.raw.size),
        "different": int(np.count_nonzero(values.raw != theirs.raw)) if same_form else None,
        "max_abs_diff": _number(largest),
        "error": _number(error),
        "order": "",
        "problem": problem,
    }


def _by_channel(number: int, ours: Values, reference: Reference, *, exact: bool) -> bool:
    """Whether an output is the reference's if its bytes stand channel by channel."""
    if ours.raw.ndim != 4 or 1 in (ours.raw.shape[3], ours.raw.shape[1] * ours.raw.shape[2]):
        return False
    theirs = reference.outputs[number]
    batch, height, width, channels = ours.raw.shape
    raw, real = (
        np.moveaxis(each.reshape(batch, channels, height, width), 1, -1)
        for each in (ours.raw, ours.real)
    )
    if exact or np.array_equal(raw, theirs.raw):
        return np.array_equal(raw, theirs.raw)
    other = Values(raw, real, ours.step)
    return not compare(Kind.VALUES, other, theirs, (), name=reference.name).problem


def _number(value: float | None) -> float | None:
    """Return a number as JSON has it: none that is not finite."""
    return round(value, 6) if value is not None and np.isfinite(value) else None


def _named(number: int, reference: Reference) -> str:
    return "the output" if len(reference.records) == 1 else f"output {number}"


def _form(values: Values) -> str:
    return f"{'x'.join(map(str, values.raw.shape)) or 'one number'} {values.raw.dtype.name}"
