# SPDX-License-Identifier: MIT
"""Accuracy over a set of inputs: how often a row's answer is that of the portable kernels.

One picture proves little: it may be right by luck, or wrong by a hair. The set is made of the picture
itself (``preprocess.views``: mirrored, and cut in fixed ways): it needs no data set, and is the same
everywhere. The model's first output is compared: class scores by their top class, others by their own
measure (``outputs``). Pure: the runner's records in, figures out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..records import Agreement, OutputRecord, RowResult, RunnerDocument, RunnerRow
from .compare import MAX_ABS_DIFF, top_differs
from .delegation import is_npus
from .kinds import Kind
from .outputs import Reference, compare_view, has_form
from .values import Values, comparable, values_of

# Of the views, at most one in four may have a clearly different answer.
LEAST_SHARE = 0.75
# Scores that are another picture's differ from the reference's for that one by so much less.
_MUCH_NEARER = 3


def agreement(
    views: list[Values], reference_views: list[Values], reference: Reference, *, exact: bool = False
) -> Agreement | None:
    """Return how far two rows agree on the views that both have seen; None if there are none.

    Args:
        views, reference_views: a row's and the reference's first output, one a view.
        exact: nothing may differ.
    """
    pairs = list(zip(views, reference_views, strict=False))
    if not pairs:
        return None
    by_class = reference.kinds[0] is Kind.SCORES and not exact
    pictures = [reference.outputs[0], *reference_views]
    same = clear = others = 0
    for output, expected in pairs:
        if by_class and has_form(output, expected):
            if is_of_another(output, expected, pictures):
                others += 1
                clear += 1
                continue
            output, expected, _ = comparable(output, expected)
            one, two = output.real.ravel(), expected.real.ravel()
            same += bool(np.any((one == one.max()) & (two == two.max())))
            clear += top_differs(one, two, step=expected.step)
        else:
            differs = bool(compare_view(output, expected, reference, exact=exact))
            same, clear = same + (not differs), clear + differs
    count = len(pairs)
    return {
        "inputs": count,
        "same": same,
        "top1": round(same / count, 4),
        "clear": clear,
        "others": others,
    }


def is_of_another(output: Values, expected: Values, pictures: Sequence[Values]) -> bool:
    """Whether scores are not those of their picture, but of another one of the reference's.

    A delegate that reads an input late, or hands out what an earlier run has computed, is right as long as
    the input is the same, and mostly of the right class on crops of one picture.
    """
    scale = max(1.0, float(np.ptp(comparable(expected, expected)[0].real)))  # of raw scores
    limit = max(MAX_ABS_DIFF * scale, 2 * expected.step)
    own = _largest(output, expected)
    if own <= limit:
        return False
    return any(
        _largest(output, each) <= own / _MUCH_NEARER for each in pictures if has_form(each, output)
    )


def _largest(one: Values, two: Values) -> float:
    one, two, _ = comparable(one, two)
    return float(np.max(np.abs(one.real - two.real), initial=0.0))


def problem(figures: Agreement | None, *, by_class: bool = True, exact: bool = False) -> str:
    """Say what is wrong with an agreement, or return an empty string."""
    allowed = 0.0 if exact else 1 - LEAST_SHARE
    if figures is None or figures["clear"] <= allowed * figures["inputs"]:
        return ""
    where = f"on {figures['clear']} of {figures['inputs']} crops and flips of the picture"
    if figures["others"] > allowed * figures["inputs"]:
        return (
            f"unlike the reference {where}, and on {figures['others']} its scores are those of another, "
            "or of the picture itself: they are not computed from the input of their run"
        )
    if exact:
        return f"not exactly the reference's answer {where}"
    return f"{'another top class than' if by_class else 'unlike'} the reference {where}"


def add(
    facts: RunnerDocument,
    results: list[RowResult],
    reference: Reference | None,
    *,
    exact: bool = False,
) -> None:
    """Put ``agreement`` into each result; one that clearly disagrees with the reference fails.

    Args:
        facts: the runner's document, whose rows are in the order of ``results``.
        exact: nothing may differ in rows of the NPU.
    """
    views_of_rows = [_views(row) for row in facts["results"]]
    names = [row["delegate"] for row in facts["results"]]
    reference_views = views_of_rows[names.index(reference.name)] if reference else []
    for row, result, views in zip(facts["results"], results, views_of_rows, strict=True):
        if reference and result["delegate"] == reference.name:
            continue
        exactly = exact and is_npus(row)
        figures = agreement(views, reference_views, reference, exact=exactly) if reference else None
        result["agreement"] = figures
        by_class = reference is not None and reference.kinds[0] is Kind.SCORES
        if wrong := problem(figures, by_class=by_class, exact=exactly):
            result["status"] = "fail"
            result["reason"] = "; ".join(filter(None, [result["reason"], wrong]))


def _views(row: RunnerRow) -> list[Values]:
    # Runners of older payloads make none.
    views = row.get("views") or []
    values = []
    for number, data in enumerate(views):
        record: OutputRecord = {**row["output"], "data": data}
        record.pop("short", None)  # the picture's own
        if shapes := row.get("view_shapes"):
            record["shape"] = shapes[number]
        if row.get("scored_views"):
            record |= row["scored_views"][number]
        values.append(values_of(record))
    return values
