# SPDX-License-Identifier: MIT
"""Runs cases with one version of the delegate on virtual NPUs, and judges each of them.

A case's right answer is what TFLite's portable kernels compute here. New buffers are filled with a poison
byte first: a result that is right then depends on no byte that the driver never wrote; one that is wrong
is run again with the kernel's zeros.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from bsp.base.errors import UserError
from bsp.base.words import counted
from userspace.npu.model.graph import Model, read_model
from userspace.npu.validate.onboard.delegation import delegated

from ..npu.blame import blame_of
from ..npu.engines import maker_for
from ..npu.finding import Blame
from ..npu.identity import RocketIdentity, load_npu
from ..npu.operands import operands_of
from ..npu.taken import wrongly_taken
from ..npu.tflite.operations import Inputs, operations
from ..npu.vivante.audit.jobs import ModelAudit
from ..npu.vivante.maker import Maker
from .build import BuiltModel
from .model_runner import Attempt, ModelRunner, model_runner
from .order import differences, wrong_order
from .packages import Delegate
from .records import OutcomeRecord
from .witness import Witness

GOOD, WRONG, REFUSED, CRASHES, HANGS = "good", "wrong", "refused", "crashes", "hangs"
POISON = 0xA5
_TWO_ORDERS = "coefficient order:"
_FLOAT_TOLERANCE = 1e-4
"""Part of an output's largest value that two machines' kernels may be apart where it is float."""
_LARGEST = 2**31 - 1
_OPEN = ("unknown", Blame.NOT_UNDERSTOOD.value)


@dataclass
class Outcome:
    """What became of one case on one NPU.

    Attributes:
        status: ``good`` (no value differs from TFLite's), ``wrong``, ``refused`` (the CPU did it),
            ``crashes``, ``hangs``.
        different: values that differ, of ``values``; largest: by how much at most.
        hardware_error: as ``Witness.hardware_error``.
        blame: for what is not good: ``submission``, ``emulator``, ``not understood`` or ``unknown``.
        note: what is odd about a good one.
    """

    npu: str
    name: str
    kind: str
    status: str
    different: int = 0
    values: int = 0
    largest: int = 0
    hardware_error: int = 0
    jobs: int = 0
    seconds: float = 0.0
    blame: str = ""
    evidence: str = ""
    note: str = ""
    faults: list[str] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)

    def document(self) -> OutcomeRecord:
        """The same as plain data."""
        return cast(OutcomeRecord, asdict(self))


@dataclass
class _Witnessed(Attempt):
    witness: Witness
    model: bytes


@contextlib.contextmanager
def runner(delegate: Delegate, *, timeout_s: float = 120.0) -> Iterator[Runner]:
    """Provide a started client for a block.

    Raises:
        InfrastructureError: it does not start, or packages cannot be had.
    """
    with model_runner(delegate, timeout_s=timeout_s) as models:
        yield Runner(models)


class Runner:
    """Runs and judges cases and model files; ``runner`` makes it."""

    def __init__(self, models: ModelRunner) -> None:
        self._models = models
        self._operands: dict[int, Inputs] = {}

    def run(self, built: BuiltModel, npu: str, expected: list[NDArray[Any]]) -> Outcome:
        """Run a case on one NPU, and judge it.

        Raises:
            UserError: the TFLite runtime does not run it without a delegate either.
        """
        name, kind = built.case.name, built.case.kind
        path = self._models.file(built.model)
        return self.run_file(path, list(built.inputs), npu, expected, name, kind, built)

    def run_model(
        self,
        model: bytes,
        inputs: list[NDArray[Any]],
        npu: str,
        expected: list[NDArray[Any]],
        name: str,
        kind: str,
    ) -> Outcome:
        """Run a model on one NPU, and judge it by ``expected``."""
        return self.run_file(self._models.file(model), inputs, npu, expected, name, kind)

    def run_file(
        self,
        path: Path,
        inputs: list[NDArray[Any]],
        npu: str,
        expected: list[NDArray[Any]],
        name: str,
        kind: str,
        built: BuiltModel | None = None,
    ) -> Outcome:
        """Run a model from a file on one NPU, and judge it by ``expected``."""
        outcome = Outcome(npu, name, kind, WRONG)
        self._operands = operands_of(path.read_bytes(), inputs)
        attempt = self._attempt(path, inputs, npu, built, POISON)
        _judge(outcome, attempt, expected)
        if outcome.status in (WRONG, CRASHES, HANGS):
            poisoned = outcome
            outcome = Outcome(npu, name, kind, WRONG)
            _judge(outcome, self._attempt(path, inputs, npu, built, 0), expected)
            if outcome.status == GOOD:
                outcome.note = (
                    "right only because new buffers hold zeros: with other bytes in them "
                    + (poisoned.faults[0] if poisoned.faults else f"it is {poisoned.status}")
                )
        return outcome

    def _attempt(
        self,
        path: Path,
        inputs: list[NDArray[Any]],
        npu: str,
        built: BuiltModel | None,
        poison: int,
    ) -> _Witnessed:
        identity = load_npu(npu)
        if isinstance(identity, RocketIdentity):
            attempt = self._models.attempt(
                path,
                inputs,
                npu,
                maker=maker_for(identity, exact_for=path),
                poison=poison,
            )
            silent = Witness([], 0, None)  # what contradicts the model is among the findings
            return _Witnessed(
                attempt.answer, attempt.outputs, attempt.report, silent, path.read_bytes()
            )
        generation = identity.nn_generation
        witness = Witness(operations(path), generation, built)
        attempt = self._models.attempt(
            path,
            inputs,
            npu,
            maker=Maker(
                identity,
                lambda: witness,
                lambda: ModelAudit(path, generation, operands=self._operands),
            ),
            poison=poison,
        )
        return _Witnessed(
            attempt.answer, attempt.outputs, attempt.report, witness, path.read_bytes()
        )


def _judge(outcome: Outcome, attempt: _Witnessed, expected: list[NDArray[Any]]) -> None:
    answer, report, witness = attempt.answer, attempt.report, attempt.witness
    if answer.get("alone"):
        raise UserError(
            f"{outcome.name}: {answer['message']}",
            hint="./inv model-report says what is odd about a model",
        )
    outcome.faults = list(report.faults)
    outcome.findings = list(report.findings)
    outcome.jobs = report.nn_jobs + report.tp_jobs
    outcome.seconds = float(answer.get("seconds", 0.0))
    outcome.hardware_error = witness.hardware_error
    outcome.values = sum(each.size for each in expected)
    if expected and not outcome.values:
        raise UserError(
            f"{outcome.name}: its outputs are empty: there is nothing to compare",
            hint="give a model whose outputs are numbers",
        )
    if answer["status"] in (CRASHES, HANGS, "error"):
        _judge_an_end(outcome, answer)
    elif not answer["partitions"]:
        outcome.status = REFUSED
    else:
        _judge_values(outcome, attempt, expected)


def _judge_an_end(outcome: Outcome, answer: dict[str, Any]) -> None:
    """The delegate's process did not come to its end."""
    outcome.status = HANGS if answer["status"] == HANGS else CRASHES
    when = (
        f"after {counted(outcome.jobs, 'job')}" if outcome.jobs else "before it submitted any job"
    )
    outcome.blame = "submission" if not outcome.faults else ""
    last = [line for line in answer["log"].strip().splitlines() if "ssert" in line]
    last_words = f": {last[-1].strip()}" if last else ""
    outcome.evidence = f"the delegate's process: {answer['message']}, {when}{last_words}"


def _compare(output: NDArray[Any], right: NDArray[Any]) -> tuple[int, int]:
    """Return how many values differ, and by how much at most (of real numbers rounded up)."""
    if output.shape != right.shape or output.dtype != right.dtype:
        return right.size, _LARGEST
    apart = differences(output, right)
    wrong = apart != 0
    if right.dtype.kind in "fc":
        finite = np.isfinite(right)  # what is not has to be the same
        bound = _FLOAT_TOLERANCE * float(np.abs(right[finite]).max(initial=0))
        wrong &= ~(finite & (apart <= bound))
    if not wrong.any():
        return 0, 0
    largest = float(np.nan_to_num(apart, nan=_LARGEST, posinf=_LARGEST).max())
    return int(wrong.sum()), min(math.ceil(largest), _LARGEST)


def _judge_values(outcome: Outcome, attempt: _Witnessed, expected: list[NDArray[Any]]) -> None:
    for output, right in zip(attempt.outputs, expected, strict=True):
        different, largest = _compare(output, right)
        outcome.different += different
        outcome.largest = max(outcome.largest, largest)
    order = next((each for each in outcome.findings if _TWO_ORDERS in each), "")
    # Exact mode computes some of it as the model has it, whatever was submitted: the audit tells.
    contradicted = bool(attempt.report.wrong)
    if not outcome.faults and not outcome.different and not order and not contradicted:
        outcome.status = GOOD
        notes = [*outcome.findings, *attempt.witness.contradictions]
        outcome.note = notes[0] if notes else ""
        return
    outcome.status = WRONG
    outcome.blame, outcome.evidence = _blame(outcome, attempt.witness)
    graph = read_model(attempt.model)
    if outcome.blame in _OPEN and (blame := wrongly_taken(graph, _taken(attempt, graph))):
        outcome.blame, outcome.evidence = blame[0].blame.value, str(blame[0])
    if outcome.faults:
        return
    if order and not outcome.different:
        outcome.evidence = f"two orders under one descriptor, silicon reads one: {order}"
    if not outcome.different:
        return
    for output, right, tensor in zip(attempt.outputs, expected, graph.outputs, strict=True):
        if exchanged := wrong_order(output, right, tensor, graph.operations):
            outcome.blame, outcome.evidence = "submission", exchanged


def _taken(attempt: Attempt, graph: Model) -> set[int]:
    """Return the operations that the delegate took, by index."""
    details = SimpleNamespace(_get_ops_details=lambda: attempt.answer["nodes"])
    return set(delegated(details, len(graph.operations))["delegated_nodes"])


def _blame(outcome: Outcome, witness: Witness) -> tuple[str, str]:
    """Return who is to blame for wrong values, and on what evidence."""
    for fault in outcome.faults:
        fault_blame, meaning = blame_of(fault)
        if fault_blame is not Blame.OPEN:
            return fault_blame.value, fault if meaning in fault else f"{meaning}: {fault}"
    if witness.contradictions:
        return "submission", "; ".join(witness.contradictions)
    # The audit says of each of its findings whose fault it is: the gravest first.
    for blame in (Blame.EMULATOR, Blame.SUBMISSION, Blame.NOT_UNDERSTOOD):
        for finding in outcome.findings:
            if f"[{blame.value}" in finding:
                return blame.value, finding
    if outcome.findings:
        return "submission", outcome.findings[0]
    if outcome.faults:
        return "unknown", outcome.faults[0]
    if not outcome.jobs:
        return "submission", "the delegate took the operation, and submitted no job for it"
    return "unknown", "every job could be run, and nothing in them contradicts the model by itself"
