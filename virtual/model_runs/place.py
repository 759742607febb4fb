# SPDX-License-Identifier: MIT
"""Runs a model with one Mesa on virtual NPUs, in exact mode: what differs from TFLite is not rounding.

New buffers are filled with a poison byte first, and with the kernel's zeros where that comes out wrong.
Where a job fits no operation of the model, it is computed as silicon is predicted to.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

from bsp.base.errors import UserError
from userspace.npu.model.faults.known_faults import OURS
from userspace.npu.model.graph import Model, read_model
from userspace.npu.model.trial.run import (
    CLOSE,
    CLOSE_STEPS,
    CRASHES,
    HANGS,
    NOT_RUN,
    REFUSED,
    RIGHT,
    TFLITE_REFUSES,
    WRONG,
    Agreement,
    Run,
    RunRequest,
)
from userspace.npu.validate.records import RowResult

from ..gates import sweep
from ..gates.model_runner import Attempt, ModelRunner, model_runner
from ..gates.packages import Delegate, find_delegate, is_version
from ..gates.sweep import POISON
from ..npu.decoded_cache import DecodedCache
from ..npu.engines import maker_for
from ..npu.finding import Blame
from ..npu.identity import driver_of, identity_names, load_identity, load_npu
from ..npu.shim.explain import explain
from ..npu.taken import not_in_the_main_graph
from ..npu.vivante.maker import Maker
from .ledger import Ledger, LedgerAudit, LedgerExact
from .outcome import (
    NAMED,
    agreement_of,
    exchanged,
    first_wrong,
    operations_of,
    output_of,
    taken_nodes,
    with_statuses,
)
from .references import References, references

_ROCKET = "rocket"
_EMPTY = "its outputs are empty: there is nothing to compare"


def _says_wrong(finding: str) -> bool:
    """Whether a finding, as text, says that values are wrong: few of them may be near by luck."""
    return any(f"[{blame.value}" in finding for blame in Blame if blame.says_wrong)


class VirtualNpus:
    """The virtual NPUs of this machine, as a ``RunPlace``; it may be asked by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: tuple[RunRequest, References | str] | None = None
        self._delegates: dict[str, Delegate] = {}

    def named(self, words: str) -> str:
        """Return the versions of what ``--mesa`` names, with commas; what is not a version is looked up.

        Raises:
            UserError: there is no such suite or file, or two have the same version.
            InfrastructureError: packages cannot be had.
        """
        names = []
        for word in filter(None, (each.strip() for each in words.split(","))):
            if is_version(word):
                names.append(word)
                continue
            delegate = find_delegate(word)
            name = delegate.upstream if delegate.patches else delegate.version
            name += f"+{OURS}.p{delegate.patches}" if delegate.patches else ""
            if self._delegates.setdefault(name, delegate).root != delegate.root:
                raise UserError(
                    f"--mesa {words}: two are of version {name}", hint="give one at a time"
                )
            names.append(name)
        return ",".join(names)

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
        right = not_in_the_main_graph(model) or self._references(request, model)
        if isinstance(right, str):
            return [Run(npu, request.mesa, NOT_RUN, right) for npu in request.npus]
        runs = []
        with (
            tempfile.TemporaryDirectory(prefix="npu-bsp-model-") as folder,
            model_runner(
                self._delegates.get(request.mesa) or find_delegate(request.mesa),
                timeout_s=request.timeout_s,
                warm=False,
            ) as client,
        ):
            path = Path(folder) / "model.tflite"
            path.write_bytes(request.model)
            for npu in request.npus:
                one = _OneNpu(client, path, model, request, npu, right)
                done = one.run()
                if request.sets and done.values:
                    done = replace(done, agreement=one.agreement())
                runs.append(done)
        return runs

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
        self._cache = DecodedCache()

    def run(self) -> Run:
        poisoned = self._exact(POISON)
        if poisoned.status in (RIGHT, REFUSED):
            return poisoned
        zeroed = self._exact(0)
        if zeroed.status == RIGHT:
            note = "right only because new buffers hold zeros"
            if poisoned.first_wrong is not None:
                note += f": with other bytes in them operation {poisoned.first_wrong} is wrong"
            return replace(zeroed, note=note)
        if zeroed.findings and not zeroed.values and driver_of(self._npu) != _ROCKET:
            return self._as_silicon(zeroed)
        return zeroed

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
            agreement_of(tensor.name, [(outputs[place], right[place]) for outputs, right in pairs])
            for place, tensor in enumerate(self._model.outputs)
        )

    def _rocket(self, poison: int) -> Run:
        """Run it on a Rockchip NPU; its jobs say what they read and write."""
        attempt = self._client.attempt(
            self._path,
            list(self._request.inputs),
            self._npu,
            maker=maker_for(load_npu(self._npu), exact_for=self._path),
            poison=poison,
        )
        ledger = Ledger({})
        for job in attempt.report.job_list:
            named = NAMED.match(job["operation"])
            ledger.job(int(named[1]) if named else None, job)
        return self._judged(attempt, ledger)

    def _exact(self, poison: int) -> Run:
        if driver_of(self._npu) == _ROCKET:
            return self._rocket(poison)
        identity = load_identity(self._npu)
        generation = identity.nn_generation
        ledger = Ledger(self._right.by_operation)
        attempt = self._client.attempt(
            self._path,
            list(self._request.inputs),
            self._npu,
            maker=Maker(
                identity,
                lambda: LedgerExact(self._path, generation, ledger),
                lambda: LedgerAudit(self._path, generation, ledger, operands=self._right.operands),
            ),
            cache=self._cache,
            poison=poison,
        )
        ledger.close()
        return self._judged(attempt, ledger)

    def _as_silicon(self, exact: Run) -> Run:
        """Run it as silicon is predicted to compute, where exact mode stopped at a job."""
        identity = load_identity(self._npu)
        ledger = Ledger({})
        attempt = self._client.attempt(
            self._path,
            list(self._request.inputs),
            self._npu,
            maker=Maker(
                identity, audit=lambda: LedgerAudit(self._path, identity.nn_generation, ledger)
            ),
            cache=self._cache,
        )
        ledger.close()
        predicted = self._judged(attempt, ledger)
        if predicted.status != WRONG or not predicted.values:
            return replace(exact, operations=with_statuses(exact, exact))
        steps = max(
            each.largest / (each.scale if each.scale and each.largest % 1 else 1)
            for each in predicted.outputs
        )
        blamed = [each for each in (*exact.findings, *predicted.findings) if _says_wrong(each)]
        if steps <= CLOSE_STEPS and not blamed:
            why = f"within {steps:g} steps of TFLite's, computed as silicon is predicted to"
            return replace(
                predicted, status=CLOSE, why=why, operations=with_statuses(predicted, exact)
            )
        first = exact.first_wrong
        return replace(
            predicted, why=exact.why, first_wrong=first, operations=with_statuses(predicted, exact)
        )

    def _judged(self, attempt: Attempt, ledger: Ledger) -> Run:
        answer, report = attempt.answer, attempt.report
        operations = operations_of(
            self._model, ledger, taken_nodes(answer, len(self._model.operations))
        )
        entries = ledger.entries.values()
        run = Run(
            self._npu,
            self._request.mesa,
            WRONG,
            first_wrong=first_wrong(operations, report.faults or report.wrong),
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
            output_of(tensor.name, output, right, tensor.scales)
            for tensor, output, right in zip(
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
            why = report.wrong[0] if report.wrong else self._missing(attempt, run)
            return replace(run, why=why)
        # Exact mode computes some of it as the model has it, whatever was submitted.
        if report.wrong:
            return replace(run, why=report.wrong[0])
        if not run.values:
            return replace(run, status=NOT_RUN, why=_EMPTY, first_wrong=None)
        return replace(run, status=RIGHT, first_wrong=None)

    def _missing(self, attempt: Attempt, run: Run) -> str:
        """Return why outputs are wrong though no job is: what is missing between jobs and TFLite."""
        pairs = zip(attempt.outputs, self._right.outputs, strict=True)
        outputs = [
            {
                "problem": "wrong" if each.different else "",
                "index": place,
                "order": exchanged(*pair),
            }
            for place, (each, pair) in enumerate(zip(run.outputs, pairs, strict=True))
        ]
        taken = taken_nodes(attempt.answer, len(self._model.operations))
        row = {"outputs": outputs, "delegated_nodes": sorted(taken)}
        reasons = explain(cast("RowResult", row), self._request.model)
        return str(reasons[0]) if reasons else "no job contradicts the model by itself"
