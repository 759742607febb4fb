# SPDX-License-Identifier: MIT
"""Which Mesa to take for a model on each NPU, where it comes out wrong with some of them."""

from __future__ import annotations

from ..faults.known_faults import OURS, is_swept
from ..trial.run import BAD, GOOD, Run
from .advice import Advice
from .report import Facts, Version

_BUILD = "./inv build-mesa leaves what comes out wrong to the CPU, or mends it"
_ZEROS = "right only while new buffers hold zeros"


def run_of(facts: Facts, version: Version, npu: str) -> Run | None:
    """Return the run with a Mesa on an NPU; None where there is none that says anything."""
    return next(
        (
            run
            for run in facts.runs
            if (run.mesa, run.npu) == (version.mesa, npu) and run.status in (*BAD, *GOOD)
        ),
        None,
    )


def is_wrong(facts: Facts, version: Version, npu: str) -> bool:
    """Return whether a model comes out wrong: as it was run, else by what is known in general."""
    run = run_of(facts, version, npu)
    return run.status in BAD if run else bool(version.faults_on(npu))


def which_mesa(facts: Facts) -> list[Advice]:
    """Return one piece of advice for each NPU on which the model comes out wrong with some Mesa."""
    advice = []
    for npu in facts.npus:
        versions = [version for version, name in facts.pairs if name == npu]
        wrong = [each for each in versions if is_wrong(facts, each, npu)]
        if not wrong:
            continue
        right = [each for each in versions if each not in wrong and _is_known(facts, each, npu)]
        how = f"take Mesa {_names(right)}" if right else ""
        if right and all(_needs_zeros(facts, each, npu) for each in right):
            how += f" ({_ZEROS})"
        if facts.npus[npu] == "etnaviv" and not any(OURS in each.mesa for each in versions):
            how += f"; or {_BUILD}" if how else _BUILD
        if how:
            advice.append(Advice(f"on {npu} it comes out wrong with Mesa {_names(wrong)}", how))
    return advice


def _is_known(facts: Facts, version: Version, npu: str) -> bool:
    run = run_of(facts, version, npu)
    return bool(version.taken) and (run is not None or is_swept(version.mesa, npu))


def _needs_zeros(facts: Facts, version: Version, npu: str) -> bool:
    run = run_of(facts, version, npu)
    return bool(run and run.note)


def _names(versions: list[Version]) -> str:
    names = [each.mesa for each in versions]
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
