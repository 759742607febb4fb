# SPDX-License-Identifier: MIT
"""Which operation of a model a job belongs to, from the order in which Mesa's drivers submit them. Pure.

etnaviv has one NN job for each operation that it computes there, in the order of the model, and TP jobs
that bring a tensor into another order before it, or move bytes or look values up for operations of their
own (Mesa src/gallium/drivers/etnaviv/etnaviv_ml.c, lower_operations). rocket has one or more jobs for each
convolution, which write one buffer; an addition is computed with the convolution before it
(src/gallium/drivers/rocket/rkt_ml.c). ethosu has one job for a partition. Where the numbers do not fit
these rules, no job is given to an operation.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ..model.graph import Model
from ..model.partitions import partitions

_CONVOLUTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D")
_ON_NN = (*_CONVOLUTIONS, "ADD", "SUB", "FULLY_CONNECTED")
_ON_TP = ("PAD", "RELU", "ABS", "LOGISTIC", "TRANSPOSE")


@dataclass(frozen=True)
class Submit:
    """What was submitted at once: NN jobs, TP jobs; ``group``: what it writes (rocket), else 0."""

    nn: int
    tp: int
    group: int = 0


Owners = tuple[tuple[int, ...], ...]
"""For each submit the operations that it is for, by index."""


def owners(
    driver: str,
    submits: Sequence[Submit],
    model: Model,
    taken: Collection[int],
    *,
    one_job: bool,
) -> Owners | None:
    """Return the operation that each submit of an inference belongs to; None where that is unknown.

    Args:
        taken: indices of the operations that the delegate took.
        one_job: each submit is one job.
    """
    parts = [each.operations for each in partitions(model, taken)]
    kinds = [each.kind for each in model.operations]
    if driver == "rocket":
        return _by_group(submits, [i for part in parts for i in part if kinds[i] in _CONVOLUTIONS])
    if driver == "etnaviv" and one_job:
        return _by_order(submits, parts, kinds)
    return tuple(parts) if len(parts) == len(submits) else None


def _by_group(submits: Sequence[Submit], convolutions: Sequence[int]) -> Owners | None:
    numbers: list[int] = []
    last: int | None = None
    for each in submits:
        if each.group != last or not each.group:
            numbers.append(len(set(numbers)))
            last = each.group
        else:
            numbers.append(numbers[-1])
    if len(set(numbers)) != len(convolutions):
        return None
    return tuple((convolutions[number],) for number in numbers)


def _by_order(
    submits: Sequence[Submit], parts: Sequence[tuple[int, ...]], kinds: Sequence[str]
) -> Owners | None:
    order = [index for part in parts for index in part]
    computed = [index for index in order if kinds[index] in _ON_NN]
    if len(computed) != sum(each.nn > 0 for each in submits) or not computed:
        return None
    starts = {part[0] for part in parts}
    owners: list[tuple[int, ...]] = []
    waiting = 0
    behind = 0  # the place in ``order`` behind the operation of the last NN job
    following = iter(computed)
    for each in submits:
        if not each.nn:
            waiting += 1
            continue
        owner = next(following)
        place = order.index(owner)
        between = order[behind:place]
        is_start = bool(starts & {*between, owner})
        owners += _moves(waiting, between, kinds, owner, first=is_start)
        owners.append((owner,))
        waiting, behind = 0, place + 1
    return tuple(owners + _moves(waiting, order[behind:], kinds, computed[-1], first=False))


def _moves(
    count: int, between: Sequence[int], kinds: Sequence[str], owner: int, *, first: bool
) -> list[tuple[int, ...]]:
    """Attribute TP submits: to operations of their own, and to ``owner``, whose come first or last."""
    own = [(index,) for index in between if kinds[index] in _ON_TP]
    more = count - len(own)
    if more < 0:
        return [(owner,)] * count
    rest = [(owner,)] * more
    return [*rest, *own] if first else [*own, *rest]
