# SPDX-License-Identifier: MIT
"""A model's report as the document that ``--json`` prints, and the answer in one sentence."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from bsp.base.words import counted

from ..estimate import Estimate, estimate
from ..faults.known_faults import is_swept
from ..graph import Tensor
from ..summary import output_of
from ..trial.run import BAD, CRASHES, GOOD, HANGS, TFLITE_REFUSES, Run
from .advice import Advice
from .report import Facts, Version
from .which_mesa import is_wrong, run_of, which_mesa

FITS, PARTLY, WRONG = "fits", "partly", "comes out wrong"
CHANGE, ELSEWHERE = "change it first", "other hardware"
_NEARLY_ALL, _HARDLY_ANY = 0.9, 0.01
NO_ESTIMATE = "it was not run with the Mesa and on the NPU that do best: no run, no estimate"


@dataclass(frozen=True)
class ModelVerdict:
    """The first thing to say: ``answer`` is one of the constants above."""

    answer: str
    why: str


def verdict(facts: Facts) -> ModelVerdict:
    """Return whether a model belongs on the NPU, judged by the Mesa that does best with it."""
    if facts.elsewhere:
        return ModelVerdict(ELSEWHERE, facts.elsewhere)
    if facts.numbers.kind in ("float", "float16", "dynamic range"):
        return ModelVerdict(
            CHANGE, f"it computes in {facts.numbers.kind}; the NPU computes with 8-bit integers"
        )
    if facts.lacking:
        return ModelVerdict(CHANGE, facts.lacking[0].what)
    if facts.runs and all(TFLITE_REFUSES in run.why for run in facts.runs):
        return ModelVerdict(CHANGE, f"{facts.runs[0].why} (with {', '.join(facts.given)})")
    version, npu = best(facts)
    taken, total = len(version.taken), len(facts.macs)
    if not taken:
        takes = any(each.taken for each in facts.versions)
        return ModelVerdict(
            CHANGE,
            "what a Mesa takes of it comes out wrong"
            if takes
            else "no Mesa that is looked at takes any of its operations",
        )
    why = f"{taken} of {counted(total, 'operation')}"
    if sum(facts.macs):
        why += f" and {percent(facts.share(version))} of the multiplications"
    why += f" go to the NPU with {_mesa(version)}"
    if facts.share(version) < _HARDLY_ANY:
        return ModelVerdict(CHANGE, why)
    run = run_of(facts, version, npu)
    if run and run.status in BAD:
        return ModelVerdict(WRONG, f"{why}; run on a virtual {npu}, {_ended(run)}")
    wrong = {index for index, _ in version.faults_on(npu)}
    # What is known to come out wrong in general, and did not here, is told further below.
    if wrong and not (run and run.status in GOOD):
        are = "is" if len(wrong) == 1 else "are"
        return ModelVerdict(
            WRONG, f"{why}; {len(wrong)} of them {are} known to come out wrong on {npu}"
        )
    if not is_swept(version.mesa, npu):
        why += "; what comes out wrong there is not known"
    others = [name for each, name in facts.pairs if each is version and is_wrong(facts, each, name)]
    if others:
        why += f"; on {npu} (not on {', '.join(others)}, where some come out wrong)"
    return ModelVerdict(FITS if facts.share(version) >= _NEARLY_ALL else PARTLY, why)


def _mesa(version: Version) -> str:
    driver = version.rules.driver
    return f"Mesa {version.mesa}" if driver == "etnaviv" else f"{driver} of Mesa {version.mesa}"


def _ended(run: Run) -> str:
    if run.status == CRASHES:
        return "the driver crashes"
    if run.status == HANGS:
        return "the driver hangs"
    if run.first_wrong is None:
        return f"{run.different} of {run.values} values come out wrong"
    each = run.operations[run.first_wrong]
    return f"it comes out wrong from operation {each.index} ({each.operation}) on"


def best(facts: Facts) -> tuple[Version, str]:
    """Return the Mesa and the NPU that do best: most multiplications right, then least that is wrong.

    Less than a hundredth of all multiplications does not count before that. Where it was run and came out
    wrong, nothing counts as right.
    """
    hundredth = max(sum(facts.macs) // 100, 1)

    def right(pair: tuple[Version, str]) -> tuple[int, int, int, int]:
        version, npu = pair
        run = run_of(facts, version, npu)
        if run:
            taken = version.taken if run.status in GOOD else ()
            macs = round(sum(facts.macs[index] for index in taken) / hundredth)
            return bool(taken), macs, bool(taken), 0
        wrong = {index for index, _ in version.faults_on(npu)}
        good = [index for index in version.taken if index not in wrong]
        macs = round(sum(facts.macs[index] for index in good) / hundredth)
        return True, macs, bool(good) - len(wrong), -len(wrong)

    return max(facts.pairs, key=right)


def document(facts: Facts) -> dict[str, Any]:
    """Return the report as plain data."""
    answer = verdict(facts)
    guess = best_estimate(facts)
    return {
        "model": {
            "path": str(facts.path),
            "size_bytes": facts.size_bytes,
            "schema": facts.model.schema,
            "numbers": facts.numbers.kind,
            "weights": facts.numbers.weights,
            "macs": sum(facts.macs),
            "parameters_bytes": facts.parameters_bytes,
        },
        "verdict": {"answer": answer.answer, "why": answer.why},
        "advice": [
            {"what": each.what, "how": each.how, "operations": list(each.operations)}
            for each in all_advice(facts)
        ],
        "inputs": [_tensor(tensor) for tensor in facts.model.inputs],
        "outputs": [_tensor(tensor) for tensor in facts.model.outputs],
        "drivers": [_driver(facts, version) for version in (*facts.versions, *facts.others)],
        "operations": [_operation(facts, index) for index in range(len(facts.macs))],
        "partitions": [
            {
                "driver": version.rules.driver,
                "mesa": version.mesa,
                "operations": list(each.operations),
                "inputs": [_crossing(tensor) for tensor in each.inputs],
                "outputs": [_crossing(tensor) for tensor in each.outputs],
                "bytes_in": each.bytes_in,
                "bytes_out": each.bytes_out,
            }
            for version in (*facts.versions, *facts.others)
            for each in version.partitions
        ],
        "known_faults": [
            {
                "npu": npu,
                "mesa": version.mesa,
                "operation": index,
                "what": fault.what,
                "way_out": fault.way_out,
                "finding": f"docs/findings/{fault.page}" if fault.page else None,
            }
            for version in facts.versions
            for npu, index, fault in version.faults
        ],
        "estimate_ms": _milliseconds(guess),
        "estimate_why": guess if isinstance(guess, str) else guess.how,
        "runs": [_run(facts, run) for run in facts.runs],
        "inputs_given": list(facts.given),
        "not_run": facts.not_run,
        "measured": facts.measured.as_document() if facts.measured else None,
    }


def all_advice(facts: Facts) -> tuple[Advice, ...]:
    """Return what to do: which Mesa to take first, then what to change in the model."""
    return (*which_mesa(facts), *facts.advice)


def best_estimate(facts: Facts) -> Estimate | str:
    """Return the time with the Mesa and the NPU that do best, or why there is none."""
    version, npu = best(facts)
    run = run_of(facts, version, npu)
    return estimate(run) if run else NO_ESTIMATE


def compile_ratios(facts: Facts) -> dict[tuple[str, str], float]:
    """Return how many times as long each Mesa compiles as the first that ran, by NPU and Mesa."""
    first: dict[str, float] = {}
    ratios = {}
    for run in sorted(facts.runs, key=lambda each: _version_order(each.mesa)):
        if run.load_s > 0:
            ratios[run.npu, run.mesa] = run.load_s / first.setdefault(run.npu, run.load_s)
    return ratios


def _version_order(mesa: str) -> list[int]:
    return [int(word) for word in re.findall(r"\d+", mesa)]


def _run(facts: Facts, run: Run) -> dict[str, Any]:
    guess = estimate(run)
    ratio = compile_ratios(facts).get((run.npu, run.mesa))
    return run.document() | {
        "estimate_ms": _milliseconds(guess),
        "estimate_why": guess if isinstance(guess, str) else guess.how,
        "compile_ratio": round(ratio, 2) if ratio else None,
    }


def _milliseconds(guess: Estimate | str) -> dict[str, float] | None:
    return None if isinstance(guess, str) else guess.document()


def percent(share: float) -> str:
    """Return a share in words: 100 % only where it is all."""
    if share >= 1:
        return "100 %"
    return f"{min(share * 100, 99.9):.1f} %"


def _driver(facts: Facts, version: Version) -> dict[str, Any]:
    return {
        "driver": version.rules.driver,
        "mesa": version.mesa,
        "source": version.rules.source,
        "compared": version.mesa in version.rules.compared,
        "warning": version.rules.warning,
        "taken": len(version.taken),
        "operations": len(facts.macs),
        "macs_share": round(facts.share(version), 6),
        "partitions": len(version.partitions),
        "crossings": version.crossings,
        "bytes_across": version.bytes_across,
    }


def _operation(facts: Facts, index: int) -> dict[str, Any]:
    operation = facts.model.operations[index]
    output = output_of(operation)
    taken = {
        version.name: True if (refusal := version.refusals[index]) is None else refusal.why
        for version in (*facts.versions, *facts.others)
    }
    record = {
        "index": index,
        "operation": operation.kind,
        "shape": list(output.shape) if output else [],
        "inputs": [list(tensor.shape) for tensor in operation.inputs if tensor],
        "type": output.dtype if output else "",
        "macs": facts.macs[index],
        "parameters_bytes": facts.parameters[index],
        "taken": taken,
        "advice": facts.by_operation[index],
    }
    return record | ({"custom": operation.custom} if operation.custom else {})


def _tensor(tensor: Tensor) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "shape": list(tensor.signature or tensor.shape),
        "type": tensor.dtype,
        "scale": tensor.scales[0] if len(tensor.scales) == 1 else list(tensor.scales) or None,
        "zero_point": tensor.zero_points[0]
        if len(tensor.zero_points) == 1
        else list(tensor.zero_points) or None,
    }


def _crossing(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "shape": list(tensor.shape), "bytes": tensor.size_bytes}
