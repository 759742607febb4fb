# SPDX-License-Identifier: MIT
"""Runs the model of a report at a command's place: what takes little time, or all that was asked for."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bsp.base.at_once import at_once
from bsp.base.download import sha256_of
from bsp.base.errors import BspError, UserError
from bsp.base.progress import step

from ...validate import fixed_size, models
from ...validate.model_check import inputs_in
from .. import foreign
from ..report import document as report_document
from ..report.report import Facts, as_run
from .given import input_values, sets_in
from .run import NOT_RUN, Run, RunPlace, RunRequest

AUTO, ALWAYS, NEVER = "auto", "always", "never"
BUDGET_S = 30.0
"""What is run unasked takes about so long, on two idle cores."""
# Measured on two cores: a client under QEMU's user mode, the emulator with its audit, and how long Mesa
# takes to code weights there.
_START_S, _NPU_S, _MACS_A_SECOND = 3.0, 1.5, 250e6
_WEIGHTS_BYTES_A_SECOND = {"a311d": 0.8e6}
_OTHER_WEIGHTS_BYTES_A_SECOND = 6e6
_RUNS_IF_WRONG = 3
"""With new buffers poisoned, with zeros, and as silicon is predicted to compute."""
_TIMEOUT_S = {AUTO: 120.0, ALWAYS: 1800.0}
_AT_ONCE = 2
_MOST_BYTES_UNASKED = 100_000_000


@dataclass(frozen=True)
class TrialRequest:
    """What of a model is to be run.

    Attributes:
        when: ``auto`` (what takes about ``BUDGET_S``), ``always`` (each Mesa on each NPU) or ``never``.
        files: .npy files for the first inputs; picture: for those that take one.
        size: height and width for a model that takes pictures of any size.
        folder: more inputs, over which outputs are compared.
    """

    when: str = AUTO
    files: tuple[Path, ...] = ()
    picture: Path | None = None
    size: tuple[int, int] | None = None
    folder: Path | None = None


Pair = tuple[str, str]
"""A Mesa and an NPU."""


def with_runs(facts: Facts, request: TrialRequest, place: RunPlace) -> Facts:
    """Return the facts with what became of the model where it was run.

    Raises:
        UserError: a given file does not fit the model; with ``always``, the model cannot be run at all.
        InfrastructureError: with ``always``: packages cannot be had.
    """
    if request.when == NEVER:
        return facts
    try:
        return _with_runs(facts, request, place)
    except BspError as error:
        if request.when == ALWAYS or request.files or request.picture or request.folder:
            raise
        return replace(facts, not_run=f"it was not run: {error.message}")


def _with_runs(facts: Facts, request: TrialRequest, place: RunPlace) -> Facts:
    # Before anything runs: what was given is looked at, also where nothing is run in the end.
    content = _fixed(facts.path, request.size)
    values, words = input_values(content, request.files, request.picture)
    facts = replace(facts, given=words)
    sets = sets_in(content, request.folder) if request.folder else ()
    pairs = _pairs(facts, place.npus())
    if not pairs and not any(npu in place.npus() for npu in facts.npus):
        names = ", ".join(facts.npus)
        if request.when == ALWAYS:
            emulated = ", ".join(place.npus())
            raise UserError(
                f"nothing emulates {names}", hint=f"--npu {emulated}, or leave --run out"
            )
        return replace(facts, not_run=f"it was not run: nothing emulates {names}")
    if not pairs:
        return replace(facts, not_run="it was not run: no Mesa that is looked at takes any of it")
    if facts.size_bytes > _MOST_BYTES_UNASKED and request.when == AUTO:
        return replace(
            facts, not_run=f"it was not run: it has {facts.size_bytes} bytes; --run does it"
        )
    chosen = pairs if request.when == ALWAYS else _affordable(facts, pairs)
    if not chosen:
        needed = _seconds(facts, pairs[:1])
        return replace(
            facts, not_run=f"it was not run: that takes about {needed:.0f} s; --run does it"
        )
    by_mesa: dict[str, list[str]] = {}
    for mesa, npu in chosen:
        by_mesa.setdefault(mesa, []).append(npu)
    requests = [
        RunRequest(content, values, mesa, tuple(npus), _TIMEOUT_S[request.when], sets)
        for mesa, npus in by_mesa.items()
    ]
    with step("Running it on virtual NPUs"), at_once(_AT_ONCE) as pool:
        runs_of_mesa = list(pool.map(lambda each: _tried(place, each, request.when), requests))
    runs = sorted(
        (run for some in runs_of_mesa for run in some),
        key=lambda run: pairs.index((run.mesa, run.npu)),
    )
    left = len(pairs) - len(chosen)
    note = f"{left} more of Mesa and NPU: --run runs all" if left else ""
    return as_run(replace(facts, runs=tuple(runs), not_run=note))


def _tried(place: RunPlace, request: RunRequest, when: str) -> Sequence[Run]:
    try:
        return place.run(request)
    except BspError as error:
        if when == ALWAYS:
            raise
        return [Run(npu, request.mesa, NOT_RUN, error.message) for npu in request.npus]


def _pairs(facts: Facts, emulated: Collection[str]) -> list[Pair]:
    """Each Mesa that takes something, with each NPU; first what the verdict speaks of."""
    first, npu = report_document.best(facts)
    return [
        (each.mesa, name)
        for each, name in sorted(
            facts.pairs, key=lambda pair: (pair[0] is not first, pair[1] != npu)
        )
        if each.taken and name in emulated
    ]


def _affordable(facts: Facts, pairs: Sequence[Pair]) -> list[Pair]:
    chosen: list[Pair] = []
    for pair in pairs:
        if _seconds(facts, [*chosen, pair]) <= BUDGET_S:
            chosen.append(pair)
    return chosen


def _seconds(facts: Facts, pairs: Sequence[Pair]) -> float:
    """About how long runs take: each Mesa's one after another, two Mesas at a time."""
    wrong = {(each.mesa, npu) for each, npu in facts.pairs if each.faults_on(npu)}
    by_mesa: dict[str, float] = {}
    for pair in pairs:
        mesa, npu = pair
        rate = _WEIGHTS_BYTES_A_SECOND.get(npu, _OTHER_WEIGHTS_BYTES_A_SECOND)
        one_s = _NPU_S + sum(facts.macs) / _MACS_A_SECOND + facts.parameters_bytes / rate
        by_mesa.setdefault(mesa, _START_S)
        by_mesa[mesa] += one_s * (_RUNS_IF_WRONG if pair in wrong else 1)
    return max(sum(by_mesa.values()) / _AT_ONCE, *by_mesa.values())


def _fixed(path: Path, size: tuple[int, int] | None) -> bytes:
    """Return the model, with one size where it takes pictures of any."""
    content = foreign.read(path)
    file = models.File(path.name, path, sha256_of(path), "given")
    inputs = models.Inputs(file, file, ())
    return fixed_size.fixed(inputs, inputs_in(content), size).model.path.read_bytes()
