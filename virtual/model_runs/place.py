# SPDX-License-Identifier: MIT
"""Runs a model with one Mesa on virtual NPUs, in exact mode: what differs from TFLite is no rounding.

New buffers are filled with a poison byte first, and with the kernel's zeros where that comes out wrong.
Where a job fits no operation of the model, it is computed as silicon is predicted to.
"""

from __future__ import annotations

import re
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bsp.base.errors import UserError
from userspace.npu.model.graph import Model, read_model
from userspace.npu.model.summary import macs, weights_of
from userspace.npu.model.trial.run import (
    CLOSE,
    CLOSE_STEPS,
    CPU,
    CRASHES,
    HANGS,
    MOVED,
    NOT_COMPARED,
    NOT_RUN,
    REFUSED,
    RIGHT,
    TFLITE_REFUSES,
    WRONG,
    Agreement,
    OperationRun,
    OutputRun,
    Run,
    RunRequest,
    looks,
)
from userspace.npu.validate.onboard.runner import delegated

from ..gates import sweep
from ..gates.model_runner import Attempt, ModelRunner, model_runner
from ..gates.packages import find_delegate
from ..gates.sweep import POISON
from ..npu.identity import driver_of, identity_names, load_identity
from ..npu.rocket.model import Model as RocketModel
from ..npu.rocket.model import tasks_of
from ..npu.vivante.coefficients import CoefficientCache
from .ledger import Entry, Ledger, LedgerAudit, LedgerExact
from .references import References, references

_ROCKET = "rocket"
_NAMED = re.compile(r"operation (\d+) \(")


class VirtualNpus:
    """The virtual NPUs of this machine, as a ``RunPlace``; it may be asked by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: tuple[RunRequest, References | str] | None = None

    def npus(self) -> Sequence[str]:
        """Return the names of the NPUs that can be emulated."""
        return identity_names()

    def run(self, request: RunRequest) -> Sequence[Run]:
        """Run a model with one Mesa on each NPU.

        Raises:
            UserError: there is no such Mesa or NPU.
            InfrastructureError: packages cannot be had, or the arm64 client does not start.
        """
        model = read_model(request.model)
        right = self._references(request, model)
        if isinstance(right, str):
            return [Run(npu, request.mesa, NOT_RUN, right) for npu in request.npus]
        found = []
        with (
            tempfile.TemporaryDirectory(prefix="npu-bsp-model-") as folder,
            model_runner(
                find_delegate(request.mesa), timeout_s=request.timeout_s, warm=False
            ) as client,
        ):
            path = Path(folder) / "model.tflite"
            path.write_bytes(request.model)
            for npu in request.npus:
                one = _OneNpu(client, path, model, request, npu, right)
                done = one.run()
                if request.sets and done.values:
                    done = replace(done, agreement=one.agreement())
                found.append(done)
        return found

    def _references(self, request: RunRequest, model: Model) -> References | str:
        """Return the right values, computed once for the same model and inputs, or why there are none."""
        with self._lock:
            if self._known:
                last, right = self._known
                if last.model is request.model and last.inputs is request.inputs:
                    return right
            try:
                right = references(
                    request.model, model, request.inputs, timeout_s=request.timeout_s
                )
            except ValueError as error:
                right = f"{TFLITE_REFUSES}: {error}"
            self._known = (request, right)
            return right


class _OneNpu:
    """Runs a model on one NPU."""

    def __init__(
        self,
        client: ModelRunner,
        path: Path,
        model: Model,
        request: RunRequest,
        npu: str,
        right: References,
    ) -> None:
        self._client = client
        self._path = path
        self._model = model
        self._request = request
        self._npu = npu
        self._right = right
        self._cache = CoefficientCache()

    def run(self) -> Run:
        poisoned = self._exact(POISON)
        if poisoned.status in (RIGHT, REFUSED):
            return poisoned
        found = self._exact(0)
        if found.status == RIGHT:
            note = "right only because new buffers hold zeros"
            if poisoned.first_wrong is not None:
                note += f": with other bytes in them operation {poisoned.first_wrong} is wrong"
            return replace(found, note=note)
        if found.findings and not found.values and driver_of(self._npu) != _ROCKET:
            return self._as_silicon(found)
        return found

    def agreement(self) -> tuple[Agreement, ...]:
        """Run all sets of inputs as silicon is predicted to compute, and compare each output.

        Raises:
            UserError: TFLite does not run the model with one of them, or the NPU did not.
        """
        pairs = []
        for number, inputs in enumerate(self._request.sets):
            attempt = self._client.attempt(self._path, list(inputs), self._npu, cache=self._cache)
            if attempt.answer["status"] != "ran":
                raise UserError(f"set {number} of the inputs: {attempt.answer.get('message', '')}")
            try:
                right = references(self._request.model, self._model, inputs, outputs_only=True)
            except ValueError as error:
                raise UserError(f"set {number} of the inputs: {error}") from error
            pairs.append((attempt.outputs, right.outputs))
        return tuple(
            agreement_of(tensor.name, [(found[place], right[place]) for found, right in pairs])
            for place, tensor in enumerate(self._model.outputs)
        )

    def _rocket(self, poison: int) -> Run:
        """Run it on a Rockchip NPU; its jobs are counted, what they read and write is not."""
        known = tasks_of(self._path)
        attempt = self._client.attempt(
            self._path,
            list(self._request.inputs),
            self._npu,
            model=lambda: RocketModel(known, exact=True),
            poison=poison,
        )
        ledger = Ledger({})
        for job in attempt.report.job_list:
            named = _NAMED.match(job["operation"])
            ledger.job(int(named[1]) if named else None)
        return self._judged(attempt, ledger)

    def _exact(self, poison: int) -> Run:
        if driver_of(self._npu) == _ROCKET:
            return self._rocket(poison)
        generation = load_identity(self._npu).nn_generation
        ledger = Ledger(self._right.by_operation)
        attempt = self._client.attempt(
            self._path,
            list(self._request.inputs),
            self._npu,
            requantisation=lambda: LedgerExact(self._path, generation, ledger),
            audit=lambda: LedgerAudit(
                self._path, generation, ledger, operands=self._right.operands
            ),
            cache=self._cache,
            poison=poison,
        )
        ledger.close()
        return self._judged(attempt, ledger)

    def _as_silicon(self, exact: Run) -> Run:
        """Run it as silicon is predicted to compute, where exact mode stopped at a job."""
        generation = load_identity(self._npu).nn_generation
        ledger = Ledger({})
        attempt = self._client.attempt(
            self._path,
            list(self._request.inputs),
            self._npu,
            audit=lambda: LedgerAudit(self._path, generation, ledger),
            cache=self._cache,
        )
        ledger.close()
        found = self._judged(attempt, ledger)
        if found.status != WRONG or not found.values:
            return replace(exact, operations=_with_statuses(exact, exact))
        steps = max(
            each.largest / (each.scale if each.scale and each.largest % 1 else 1)
            for each in found.outputs
        )
        if steps <= CLOSE_STEPS:
            why = f"within {steps:g} steps of TFLite's, computed as silicon is predicted to"
            return replace(found, status=CLOSE, why=why, operations=_with_statuses(found, exact))
        first = exact.first_wrong
        return replace(
            found, why=exact.why, first_wrong=first, operations=_with_statuses(found, exact)
        )

    def _judged(self, attempt: Attempt, ledger: Ledger) -> Run:
        answer, report = attempt.answer, attempt.report
        operations = _operations(
            self._model, ledger, taken_nodes(answer, len(self._model.operations))
        )
        entries = ledger.entries.values()
        run = Run(
            self._npu,
            self._request.mesa,
            WRONG,
            first_wrong=_first_wrong(operations, report.faults or report.wrong),
            nn_jobs=ledger.nn_jobs,
            tp_jobs=ledger.tp_jobs,
            read_bytes=sum(each.read_bytes for each in entries),
            written_bytes=sum(each.written_bytes for each in entries),
            coefficient_bytes=sum(each.coefficient_bytes for each in entries),
            weights_bytes=sum(each.weights_bytes for each in operations if each.coefficient_bytes),
            hardware_error=ledger.hardware_error,
            load_s=round(float(answer.get("load_s", 0.0)), 3),
            operations=operations,
            findings=(*report.faults, *report.wrong),
        )
        if answer["status"] != "ran":
            status = HANGS if answer["status"] == sweep.HANGS else CRASHES
            if answer["status"] == "error":
                status = NOT_RUN
            return replace(run, status=status, why=str(answer.get("message", "")))
        if not answer["partitions"]:
            return replace(run, status=REFUSED, why="the delegate takes none of its operations")
        if report.faults:
            return replace(run, why=report.faults[0])
        outputs = tuple(
            _output(tensor.name, found, right, tensor.scales)
            for tensor, found, right in zip(
                self._model.outputs, attempt.outputs, self._right.outputs, strict=True
            )
        )
        run = replace(
            run,
            outputs=outputs,
            values=sum(each.values for each in outputs),
            different=sum(each.different for each in outputs),
        )
        if run.different:
            why = report.wrong[0] if report.wrong else "no job contradicts the model by itself"
            return replace(run, why=why)
        return replace(run, status=RIGHT, first_wrong=None)


def taken_nodes(answer: dict[str, Any], operations: int) -> set[int]:
    """Indices of the operations that the delegate took, as the runtime lists them."""
    nodes = answer.get("nodes", [])
    if len(nodes) < operations:
        return set()  # it did not come so far
    return set(
        delegated(SimpleNamespace(_get_ops_details=lambda: nodes), operations)["delegated_nodes"]
    )


def _operations(model: Model, ledger: Ledger, taken: set[int]) -> tuple[OperationRun, ...]:
    found = []
    for each in model.operations:
        entry = ledger.entries.get(each.index, Entry())
        status = MOVED if each.index in taken or entry.jobs else CPU
        if entry.computed:
            status = NOT_COMPARED
        if entry.compared:
            status = WRONG if entry.different else RIGHT
        weights = weights_of(each)
        found.append(
            OperationRun(
                each.index,
                each.kind,
                status,
                entry.different,
                entry.values,
                entry.largest,
                entry.jobs,
                entry.read_bytes,
                entry.written_bytes,
                entry.coefficient_bytes,
                len(weights.data) if weights and weights.data else 0,
                macs(each),
            )
        )
    return tuple(found)


def _first_wrong(operations: Sequence[OperationRun], faults: Sequence[str]) -> int | None:
    """Return the first operation with wrong values, or at whose job it stopped."""
    found = [each.index for each in operations if each.status == WRONG]
    named = _NAMED.match(faults[0]) if faults else None
    # What ran behind a fault had no right inputs.
    if named and int(named[1]) < len(operations):
        return min([int(named[1]), *found])
    return min(found, default=None)


def _with_statuses(run: Run, exact: Run) -> tuple[OperationRun, ...]:
    """Return a run's operations, with what was compared in another run of it, up to where that stopped."""
    found = []
    for each, other in zip(run.operations, exact.operations, strict=True):
        if exact.first_wrong is not None and each.index > exact.first_wrong:
            behind = NOT_COMPARED if each.status in (RIGHT, WRONG) else each.status
            found.append(replace(each, status=behind, different=0, values=0, largest=0))
        elif each.index == exact.first_wrong:
            found.append(replace(each, status=WRONG))
        else:
            seen = {
                name: getattr(other, name) for name in ("status", "different", "values", "largest")
            }
            found.append(replace(each, **seen))
    return tuple(found)


def agreement_of(name: str, pairs: Sequence[tuple[NDArray[Any], NDArray[Any]]]) -> Agreement:
    """Return how an output agrees over pairs of what the NPU and what TFLite computed."""
    gaps = [np.abs(found.astype(np.float64) - right.astype(np.float64)) for found, right in pairs]
    values = sum(gap.size for gap in gaps)
    is_scores = all(right.size > 1 and right.size == right.shape[-1] for _, right in pairs)
    tops = (
        [int(found.argmax()) == int(right.argmax()) for found, right in pairs] if is_scores else []
    )
    ties = [int((right == right.max()).sum()) > 1 for _, right in pairs] if is_scores else []
    return Agreement(
        name,
        len(pairs),
        values,
        sum(int(np.count_nonzero(gap)) for gap in gaps),
        max((float(gap.max(initial=0)) for gap in gaps), default=0.0),
        sum(float(gap.sum()) for gap in gaps) / max(values, 1),
        sum(tops) if is_scores else None,
        sum(ties),
    )


def _output(
    name: str, found: NDArray[Any], right: NDArray[Any], scales: Sequence[float]
) -> OutputRun:
    if found.shape != right.shape:
        return OutputRun(name, right.size, right.size, float("inf"))
    wide = np.float64 if right.dtype.kind == "f" else np.int64
    first, second = found.astype(wide), right.astype(wide)
    same = (
        (first == second) | (np.isnan(first) & np.isnan(second))
        if wide is np.float64
        else first == second
    )
    gap = np.where(same, 0, np.abs(first - second))
    return OutputRun(
        name,
        right.size,
        int(np.count_nonzero(~same)),
        float(gap.max(initial=0)),
        scales[0] if len(scales) == 1 else 0.0,
        looks(right),
    )
