# SPDX-License-Identifier: MIT
"""Accuracy over a set of inputs: how often a delegate has the same top class as the portable kernels.

One picture proves little: it may be right by luck, or wrong by a hair. The set is made of the picture
itself (``preprocess.views``: mirrored, and cut in fixed ways): it needs no data set, and is the same
everywhere. Pure: the runner's records in, figures out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .judge import scores

_REFERENCE = "cpu-reference"

# Of the views that have a clear answer, at least so many have to be answered alike.
LEAST_SHARE = 0.75


def agreement(
    found: list[NDArray[np.float64]], reference: list[NDArray[np.float64]], *, tolerance: float
) -> dict[str, Any] | None:
    """Return how far two rows agree on the views that both have seen; None if there are none.

    Args:
        found, reference: scores of all classes, 0..1, one array a view.
        tolerance: a top class whose lead over the other's is smaller is a matter of taste.

    Returns:
        ``inputs``, ``same`` (top classes that are equal), ``top1`` (their share), ``clear`` (views on
        which they differ although the reference is sure).
    """
    pairs = [
        (one, two) for one, two in zip(found, reference, strict=False) if one.shape == two.shape
    ]
    if not pairs:
        return None
    same = clear = 0
    for one, two in pairs:
        mine, wanted = int(np.argmax(one)), int(np.argmax(two))
        if mine == wanted or one[mine] == one[wanted]:
            same += 1
        elif two[wanted] - two[mine] > tolerance:
            clear += 1
    count = len(pairs)
    return {"inputs": count, "same": same, "top1": round(same / count, 4), "clear": clear}


def problem(figures: dict[str, Any] | None) -> str:
    """Say what is wrong with an agreement, or return an empty string."""
    if figures is None or figures["clear"] <= (1 - LEAST_SHARE) * figures["inputs"]:
        return ""
    return (
        f"another top class than the reference on {figures['clear']} of {figures['inputs']} crops and "
        "flips of the picture"
    )


def add(facts: dict[str, Any], results: list[dict[str, Any]], *, tolerance: float) -> None:
    """Put ``agreement`` into each result; one that clearly disagrees with the reference fails.

    Args:
        facts: the runner's document, whose rows are in the order of ``results``.
    """
    seen = [_views(row) for row in facts["results"]]
    reference = next(
        (
            views
            for row, views in zip(facts["results"], seen, strict=True)
            if row["delegate"] == _REFERENCE
        ),
        [],
    )
    for result, views in zip(results, seen, strict=True):
        if result["delegate"] == _REFERENCE:
            continue
        result["agreement"] = agreement(views, reference, tolerance=tolerance)
        if wrong := problem(result["agreement"]):
            result["status"] = "fail"
            result["reason"] = "; ".join(filter(None, [result["reason"], wrong]))


def _views(row: dict[str, Any]) -> list[NDArray[np.float64]]:
    # Runners of older payloads make none.
    return [
        scores({"dtype": row["output"]["dtype"], "data": data}) for data in row.get("views") or []
    ]
