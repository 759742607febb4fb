# SPDX-License-Identifier: MIT
"""Compares what a model picked out of many by a limit: WHERE, non-maximum suppression, TOPK. Pure.

How many there are, and in which order, depends on values that may be nearly the limit, or nearly equal:
kernels that round differently pick some others, and all are right. What most of them are does not hang on
that.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .kinds import is_list
from .values import Reals, Values

# Of all that either has picked, what only one of them has: a share, or as many.
_SHARE_OF_ONE = 0.3
_FEW = 3
# Picked numbers are the same to within this share of their spread, in each column.
_NEAR = 0.25
_MOST_PAIRS = 1 << 24


def compare_choices(output: Values, reference: Values, name: str) -> str | None:
    """Return what is wrong with a list of picked things, "" if most are the reference's.

    Args:
        name: the reference's name, for the words.

    Returns:
        None where it cannot be told: the reference picked next to nothing, or too much to look at.
    """
    ours, theirs = _things(output, reference)
    if ours.shape[1] != theirs.shape[1]:
        return f"its things are of {ours.shape[1]} numbers each, {name}'s of {theirs.shape[1]}"
    if len(ours) * len(theirs) * ours.shape[1] > _MOST_PAIRS:
        return None
    same = _same(ours, theirs, 0.0 if output.raw.dtype.kind in "iub" else _NEAR)
    in_both = min(int(same.any(axis=0).sum()), int(same.any(axis=1).sum()))
    of_one = len(ours) + len(theirs) - 2 * in_both
    if of_one <= max(_FEW, _SHARE_OF_ONE * (in_both + of_one)):
        return "" if in_both else None
    return f"it picked {len(ours)}, {name} {len(theirs)}, and only {in_both} are the same"


def _things(one: Values, two: Values) -> tuple[Reals, Reals]:
    """One thing a row: coordinates and boxes along the last axis; numbers of a list are each a thing."""
    reals = one.real, two.real
    rows = all(real.ndim > 1 and real.shape[-1] for real in reals)
    single = not rows or all(is_list(real.shape) or not real.size for real in reals)
    ours, theirs = (real.reshape(-1, 1 if single else real.shape[-1]) for real in reals)
    return ours, theirs


def _same(ours: Reals, theirs: Reals, near: float) -> NDArray[np.bool_]:
    spread = theirs.std(axis=0) if len(theirs) else np.zeros(theirs.shape[1])
    apart = np.abs(ours[:, None, :] - theirs[None, :, :])
    same: NDArray[np.bool_] = np.all(apart <= near * spread + 1e-9, axis=-1)
    return same
