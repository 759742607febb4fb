# SPDX-License-Identifier: MIT
"""Compares every output of a row with the reference's, one by one, and says what was not compared. Pure.

Outputs belong together by their place in the model. What each is, the reference and the model's file say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bsp.base.words import counted

from ...model.sinks import Sink
from ..records import ComparedOutput, OutputRecord, RunnerRow
from .choices import compare_choices
from .compare import MAX_ABS_DIFF, compare, relative_error
from .detections import THRESHOLD, arrangement, detections, differences
from .kinds import Kind, detection_group, is_list, kinds_of
from .values import Values, are_numbers, comparable, lifeless_values, values_of

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

    records: list[ComparedOutput] = field(default_factory=list)
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
    compared = Compared()
    dead = []
    for number, values in enumerate(reference.outputs):
        words = _useless(values, _named(number, reference))
        if words:
            dead.append(words)
        else:
            compared.notes += _not_numbers(number, reference)
        compared.records.append(_record(number, reference, values, None, "") | {"compared": False})
    if len(dead) == len(reference.outputs):
        compared.problems += dead[:1]
    else:
        compared.notes += [f"{words}, which proves nothing" for words in dead]
    compared.notes += _unseen(reference)
    return compared


def _useless(values: Values, what: str) -> str:
    """Say why nothing can be compared with an output of the reference; "" if something can."""
    if not values.raw.size:
        return f"{what} is empty"
    if not np.any(are_numbers(values)):
        return f"{what} holds no number that is finite"
    if values.short is not None:
        return ""  # all pixels of one class, and it is known how much better that is than others
    return lifeless_values(values.raw, what) if np.all(are_numbers(values)) else ""


def _not_numbers(number: int, reference: Reference) -> list[str]:
    """Say how many of an output's numbers are not compared, as they are none in the reference."""
    values = reference.outputs[number]
    strange = int(np.count_nonzero(~are_numbers(values)))
    if strange in (0, values.real.size):
        return []
    return [
        f"{strange} of {values.real.size} numbers of {_named(number, reference)} not compared: they are "
        f"not finite in {reference.name}"
    ]


def proves_nothing(reference: Reference, others: Sequence[RunnerRow]) -> str:
    """Say why a model with this picture tells nothing of a machine, "" if it does.

    Every output of the reference is of no use, and so it is for the others, which all ran to their end.
    """
    alike = [reference, *(reference_of(row, reference.sinks, reference.labels) for row in others)]
    if any(not _useless(values, "it") for each in alike for values in each.outputs):
        return ""
    return _useless(reference.outputs[0], _named(0, reference)) if reference.outputs else ""


def compare_row(row: RunnerRow, reference: Reference, *, exact: bool = False) -> Compared:
    """Compare all outputs of a row.

    Args:
        exact: nothing may differ.
    """
    compared = Compared()
    records = records_of(row)
    if len(records) != len(reference.records):
        compared.problems.append(
            f"the model has {counted(len(records), 'output')} here, "
            f"{reference.name} has {len(reference.records)}"
        )
    for number, (record, expected) in enumerate(zip(records, reference.outputs, strict=False)):
        what = _named(number, reference)
        step = expected.step if expected.raw.dtype.kind == "f" else 0.0
        output = values_of(record, step=step)
        problem, error = "", None
        if not has_form(output, expected):
            problem = f"{what} is {_form(output)}, {reference.name}'s is {_form(expected)}"
        elif expected.raw.size and not np.any(are_numbers(expected)):
            compared.notes.append(f"{what} was not compared: {reference.name}'s is not finite")
        elif output.raw.tobytes() != expected.raw.tobytes():
            problem, error = _problem(what, number, output, reference, exact=exact)
        else:
            error = 0.0
        same_type = output.raw.dtype == expected.raw.dtype
        if problem and not exact and same_type and _is_chosen(number, reference):
            problem = _choice_problem(what, output, expected, reference, compared)
        record_of_output = _record(number, reference, output, error, problem)
        if (
            problem
            and record_of_output["compared"]
            and _by_channel(number, output, reference, exact=exact)
        ):
            record_of_output["order"] = BY_CHANNEL
            problem += f"; its values are {reference.name}'s, {BY_CHANNEL}"
        compared.records.append(record_of_output)
        compared.problems += [problem] if problem else []
        compared.notes += _not_numbers(number, reference)
    if not exact and not compared.problems:
        _compare_objects(records, reference, compared)
    compared.notes += _unseen(reference)
    return compared


def _is_chosen(number: int, reference: Reference) -> bool:
    """Whether an output is a list of what the model chose, which rounding may change."""
    detector = reference.kinds[number] is Kind.DETECTIONS
    return not detector and number < len(reference.sinks) and reference.sinks[number].chosen


def _choice_problem(
    what: str, output: Values, expected: Values, reference: Reference, compared: Compared
) -> str:
    """Say what is wrong with a list that is not the reference's; what rounding explains becomes a note."""
    problem = compare_choices(output, expected, reference.name)
    if problem:
        return f"{what}: {problem}"
    if problem == "":
        compared.notes.append(f"{what}: most of what was chosen is {reference.name}'s, not all")
        return ""
    few = f"{what} is {_form(output)}, {reference.name}'s is {_form(expected)}"
    if len(reference.outputs) == 1:
        return f"{few}: nothing is the same, and there is no other output"
    compared.notes.append(f"{few}: not compared, as too little was chosen")
    return ""


def has_form(output: Values, expected: Values) -> bool:
    """Whether an output has the shape and the type of another."""
    return output.raw.dtype == expected.raw.dtype and output.raw.shape == expected.raw.shape


def compare_view(output: Values, expected: Values, reference: Reference, *, exact: bool) -> str:
    """Return what is wrong with the first output for another picture, "" if nothing is."""
    chosen = _is_chosen(0, reference) and output.raw.dtype == expected.raw.dtype
    if not has_form(output, expected) and (exact or not chosen):
        return f"{_form(output)} in place of {_form(expected)}"
    if output.raw.tobytes() == expected.raw.tobytes():
        return ""
    if exact and _differ(output, expected):
        return "not exactly the reference's"
    if exact or reference.kinds[0] is Kind.DETECTIONS:
        return (
            ""  # objects need all four outputs, and of other pictures only the first one is known
        )
    if chosen:
        return compare_choices(output, expected, reference.name) or ""
    output, expected, strange = comparable(output, expected)
    alive = lifeless_values(output.raw)
    return (
        strange
        or alive
        or compare(
            reference.kinds[0], output, expected, reference.labels, name=reference.name
        ).problem
    )


def shown_output(reference: Reference) -> int | None:
    """Return which output has scores or raw scores of classes, for people; None if none has."""
    if Kind.SCORES in reference.kinds:
        return reference.kinds.index(Kind.SCORES)
    first = reference.kinds[0] is Kind.VECTOR and is_list(reference.outputs[0].raw.shape)
    return 0 if first else None


def _problem(
    what: str, number: int, output: Values, reference: Reference, *, exact: bool
) -> tuple[str, float | None]:
    """Say what is wrong with an output that is not bit for bit the reference's."""
    expected, kind = reference.outputs[number], reference.kinds[number]
    differ = _differ(output, expected)
    if exact and not differ:  # but for the bits of NaNs
        return "", 0.0
    finite = bool(np.all(are_numbers(expected)))
    dead = lifeless_values(output.raw, what)
    if finite and not np.all(are_numbers(output)):
        return dead or f"{what} holds numbers that are not finite", None
    output, expected, strange = comparable(output, expected)
    error = relative_error(output, expected)
    # Classes of pixels, and classes and scores of objects, may well be all the same.
    may_be = kind in (Kind.INDICES, Kind.DETECTIONS)
    if dead and finite and not lifeless_values(expected.raw) and not may_be:
        return dead, error
    if exact:
        largest = float(np.max(np.abs(output.real - expected.real)))
        by = f"{largest / expected.step:.0f} steps" if expected.step else f"{largest:.4g}"
        return (
            f"{what} is not exactly {reference.name}'s: {differ} of {output.raw.size} values differ, by up "
            f"to {by}",
            error,
        )
    if strange:
        return f"{what}: {strange}, {reference.name}'s are", error
    if kind is Kind.DETECTIONS:
        return "", error
    words = compare(kind, output, expected, reference.labels, name=reference.name).problem
    alone = len(reference.outputs) == 1
    return (words if alone or not words else f"{what}: {words}"), error


def _compare_objects(
    records: Sequence[OutputRecord], reference: Reference, compared: Compared
) -> None:
    """Compare the objects of a detector's four outputs, in whatever order it names them."""
    group = detection_group([each.raw.shape for each in reference.outputs])
    if not group:
        return
    four = [reference.records[number] for number in group]
    order = arrangement(four)
    expected = detections(four, order)
    output = detections([records[number] for number in group], order)
    if expected is None or output is None:
        compared.notes.append(
            f"outputs {group.start} to {group.stop - 1} not compared: a detector's, in no known order"
        )
        return
    best = max((each.score for each in expected), default=0.0)
    threshold = min(THRESHOLD, _WEAK_THRESHOLD * best) if best > 0 else THRESHOLD
    tolerance = min(MAX_ABS_DIFF, _WEAK_TOLERANCE * best) if best > 0 else MAX_ABS_DIFF
    compared.problems += differences(output, expected, tolerance=tolerance, threshold=threshold)[
        :_OBJECTS_NAMED
    ]


def _unseen(reference: Reference) -> list[str]:
    in_model, recorded = len(reference.sinks), len(reference.records)
    if in_model <= recorded:
        return []
    some = (
        f"output {recorded}"
        if in_model == recorded + 1
        else f"outputs {recorded} to {in_model - 1}"
    )
    return [f"{some} not compared: the runner did not give them"]


def _record(
    number: int, reference: Reference, values: Values, error: float | None, problem: str
) -> ComparedOutput:
    expected = reference.outputs[number]
    same_form = values.raw.shape == expected.raw.shape
    largest = None
    if same_form:
        output, finite, _ = comparable(values, expected)
        largest = float(np.max(np.abs(output.real - finite.real), initial=0.0))
    name = reference.sinks[number].name if number < len(reference.sinks) else ""
    return {
        "index": number,
        "name": reference.records[number].get("name") or name,
        "shape": list(values.raw.shape),
        "dtype": values.raw.dtype.name,
        "kind": str(reference.kinds[number]),
        "compared": bool(same_form and np.any(are_numbers(expected))),
        "values": int(values.raw.size),
        "different": _differ(values, expected) if same_form else None,
        "max_abs_diff": _number(largest),
        "error": _number(error),
        "order": "",
        "problem": problem,
    }


def _differ(output: Values, expected: Values) -> int:
    """How many values differ; NaN in both does not count."""
    return int(np.count_nonzero(~_same(output.raw, expected.raw)))


def _same(output: NDArray[Any], expected: NDArray[Any]) -> NDArray[np.bool_]:
    same: NDArray[np.bool_] = output == expected
    return same | (np.isnan(output) & np.isnan(expected)) if output.dtype.kind == "f" else same


def _by_channel(number: int, output: Values, reference: Reference, *, exact: bool) -> bool:
    """Whether an output is the reference's if its bytes stand channel by channel."""
    if output.raw.ndim != 4 or 1 in (
        output.raw.shape[3],
        output.raw.shape[1] * output.raw.shape[2],
    ):
        return False
    expected = reference.outputs[number]
    batch, height, width, channels = output.raw.shape
    raw, real = (
        np.moveaxis(each.reshape(batch, channels, height, width), 1, -1)
        for each in (output.raw, output.real)
    )
    if exact or np.array_equal(raw, expected.raw):
        return np.array_equal(raw, expected.raw)
    other = Values(raw, real, output.step)
    return not compare(Kind.VALUES, other, expected, (), name=reference.name).problem


def _number(value: float | None) -> float | None:
    """Return a number as JSON has it: none that is not finite."""
    return round(value, 6) if value is not None and np.isfinite(value) else None


def _named(number: int, reference: Reference) -> str:
    return "the output" if len(reference.records) == 1 else f"output {number}"


def _form(values: Values) -> str:
    return f"{'x'.join(map(str, values.raw.shape)) or 'one number'} {values.raw.dtype.name}"
