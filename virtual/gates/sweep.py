# SPDX-License-Identifier: MIT
"""Runs cases with one version of the delegate on virtual NPUs, and judges each of them.

One client under qemu-user takes all cases; the engine runs in this process. A case's right answer is what
TFLite's portable kernels compute here. New buffers are filled with a poison byte first: what is right then
hangs on no byte that the driver never wrote; what is wrong is run again with the kernel's zeros.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bsp.base.errors import InfrastructureError
from bsp.base.words import counted
from userspace.npu.validate.runner import RUNTIMES, StageError, load_runtime
from userspace.payload import payload

from ..npu import shim
from ..npu.blame import blame_of
from ..npu.finding import Blame
from ..npu.identity import identity_names, load_identity
from ..npu.operands import operands_of
from ..npu.shim.host import CPU, qemu_user
from ..npu.shim.server import ClientReport, Server
from ..npu.vivante.audit import ModelAudit
from ..npu.vivante.audit_add import Inputs
from ..npu.vivante.coefficients import CoefficientCache
from ..npu.vivante.engine import Audit, HardwareMode, Requantisation
from ..npu.vivante.exact import operations
from .build import BuiltModel, build
from .cases import Case
from .packages import Delegate
from .witness import Witness

GOOD, WRONG, REFUSED, CRASHES, HANGS = "good", "wrong", "refused", "crashes", "hangs"
POISON = 0xA5
_TWO_ORDERS = "coefficient order:"
_CLIENT = Path(__file__).with_name("client.py")
_START_TIMEOUT_S = 120.0
_WARM_UP = Case("residual", 6, 6, 8, zero_points=(110, 90, 100))
_MORE_S = 30.0
_END_TIMEOUT_S = 10.0
_SAME_EVERYWHERE = "BUILTIN_REF"
"""TFLite's portable kernels: what is left to the CPU is the same on every machine."""


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

    def document(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self)


@dataclass
class Attempt:
    """One run of a model.

    Attributes:
        answer: what the client says: ``status`` (``ran``, ``crashes``, ``hangs``, ``error``), ``message``,
            ``partitions`` (how many the delegate took), ``log``.
        outputs: the model's, in their order; empty if it did not end.
        report: what the virtual NPU saw.
    """

    answer: dict[str, Any]
    outputs: list[NDArray[Any]]
    report: ClientReport


@dataclass
class _Witnessed(Attempt):
    witness: Witness


@contextlib.contextmanager
def runner(delegate: Delegate, *, timeout_s: float = 120.0, warm: bool = True) -> Iterator[Runner]:
    """Provide a started client for a block.

    Args:
        warm: let it run a small model first: many later ones then take less time.

    Raises:
        InfrastructureError: it does not start, or packages cannot be had.
    """
    site = payload.build_payload(distribution=delegate.distribution).folder / "site"
    command: list[str | Path] = ["prlimit", "--core=0", qemu_user(), "-cpu", CPU]
    command += ["-L", delegate.root, "-E", f"LD_PRELOAD={shim.build('aarch64')}"]
    command += [
        delegate.root / "usr/bin/python3",
        _CLIENT,
        site,
        delegate.root / delegate.library[1:],
        *RUNTIMES,
    ]
    with (
        tempfile.TemporaryDirectory(prefix="npu-bsp-gate-") as folder,
        (Path(folder) / "log").open("w+b") as log,
        subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
            start_new_session=True,
        ) as process,
    ):
        made = Runner(process, Path(folder), timeout_s)
        try:
            made.start(warm=warm)
            yield made
        finally:
            process.kill()


class Runner:
    """A client that takes models; ``runner`` makes it."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path, timeout_s: float) -> None:
        self._process = process
        self._folder = folder
        self._timeout_s = timeout_s
        self._number = 0
        self._operands: dict[int, Inputs] = {}

    def start(self, *, warm: bool = True) -> None:
        """Wait until the client takes requests."""
        if self._line(_START_TIMEOUT_S) != b"ready\n":
            said = (self._folder / "log").read_text(encoding="utf-8", errors="replace")
            raise InfrastructureError(f"the arm64 client did not start: {said.strip()[-2000:]}")
        for npu in identity_names() if warm else ():
            self._warm_up(build(_WARM_UP), npu)

    def _warm_up(self, built: BuiltModel, npu: str) -> None:
        """Let the client itself run a model that its forks can run too: they take a seventh of the time."""
        path = self._folder / "case.tflite"
        path.write_bytes(built.model)
        if self._attempt(path, list(built.inputs), npu, built, 0).answer["status"] == "ran":
            self._attempt(path, list(built.inputs), npu, built, 0, here=True)

    def run(self, built: BuiltModel, npu: str, expected: list[NDArray[Any]]) -> Outcome:
        """Run a case on one NPU, and judge it."""
        name, kind = built.case.name, built.case.kind
        path = self._folder / "case.tflite"
        path.write_bytes(built.model)
        return self.run_file(path, list(built.inputs), npu, expected, name, kind, built)

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
        *,
        here: bool = False,
    ) -> _Witnessed:
        generation = load_identity(npu).nn_generation
        witness = Witness(operations(path), generation, built)
        attempt = self.attempt(
            path,
            inputs,
            npu,
            requantisation=lambda: witness,
            audit=lambda: ModelAudit(path, generation, operands=self._operands),
            poison=poison,
            here=here,
        )
        return _Witnessed(attempt.answer, attempt.outputs, attempt.report, witness)

    def attempt(
        self,
        path: Path,
        inputs: list[NDArray[Any]],
        npu: str,
        *,
        requantisation: Callable[[], Requantisation] = HardwareMode,
        audit: Callable[[], Audit] | None = None,
        cache: CoefficientCache | None = None,
        poison: int = 0,
        here: bool = False,
        resolver: str = _SAME_EVERYWHERE,
    ) -> Attempt:
        """Run a model once.

        Args:
            requantisation: makes how the NPU rounds; audit: what compares its jobs with the model.
            cache: decoded coefficients, kept from run to run.
            poison: the byte that new buffers are filled with; the kernel's own are zeros.
            here: run it in the client itself, not in a fork.
            resolver: TFLite's kernels for what is left to the CPU.
        """
        self._number += 1
        place = self._folder / f"{self._number}.sock"
        environment = {
            "NPU_SHIM_SOCKET": str(place),
            "NPU_SHIM_POISON": str(poison),
            "NPU_SHIM_TIMEOUT_S": str(round(self._timeout_s)),
            "NPU_SHIM_MEMORY_MIB": "1024",
        }
        server = Server(
            place,
            load_identity(npu),
            requantisation=requantisation,
            audit=audit,
            cache=cache,
        )
        threading.Thread(target=server.serve, daemon=True).start()
        with closing(server):
            answer, outputs = self._run(path, inputs, resolver, environment, here=here)
            deadline = time.monotonic() + _END_TIMEOUT_S
            while not here and time.monotonic() < deadline:
                if all(report.ended for report in server.reports):
                    break
                time.sleep(0.002)
            reports = server.reports
        place.unlink(missing_ok=True)
        return Attempt(answer, outputs, reports[-1] if reports else ClientReport())

    def on_cpu(
        self, path: Path, inputs: list[NDArray[Any]], *, resolver: str = _SAME_EVERYWHERE
    ) -> Attempt:
        """Run a model once, without the delegate, on the emulated arm64 CPU."""
        answer, outputs = self._run(path, inputs, resolver, None, here=False)
        return Attempt(answer, outputs, ClientReport())

    def _run(
        self,
        path: Path,
        inputs: list[NDArray[Any]],
        resolver: str,
        environment: dict[str, str] | None,
        *,
        here: bool,
    ) -> tuple[dict[str, Any], list[NDArray[Any]]]:
        """Have the client run a model; with an ``environment`` of the shim, by the delegate."""
        given, taken = self._folder / "inputs.npz", self._folder / "outputs.npz"
        np.savez(given, *inputs)
        taken.unlink(missing_ok=True)
        request = {
            "here": here,
            "model": str(path),
            "inputs": str(given),
            "outputs": str(taken),
            "timeout_s": self._timeout_s,
            "resolver": resolver,
            "delegate": environment is not None,
            "environment": environment or {},
        }
        answer = self._ask(request)
        outputs: list[NDArray[Any]] = []
        if taken.exists():
            with np.load(taken) as file:
                outputs = [file[f"arr_{number}"] for number in range(len(file.files))]
        return answer, outputs

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        line = self._line(self._timeout_s + _MORE_S)
        if not line:
            log = (self._folder / "log").read_text(encoding="utf-8", errors="replace")
            raise InfrastructureError(f"the arm64 client ended: {log.strip()[-2000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _line(self, timeout_s: float) -> bytes:
        assert self._process.stdout
        ready, _, _ = select.select([self._process.stdout], [], [], timeout_s)
        if not ready:
            raise InfrastructureError(f"the arm64 client did not answer within {timeout_s:g} s")
        return self._process.stdout.readline()


def reference(
    model: bytes, inputs: list[NDArray[Any]], *, resolver: str = _SAME_EVERYWHERE
) -> list[NDArray[Any]]:
    """Return a model's outputs from TFLite's portable kernels (or others), on this machine.

    Raises:
        ValueError: TFLite does not take the model.
    """
    module = tflite_runtime()
    interpreter = module.Interpreter(
        model_content=model,
        experimental_op_resolver_type=getattr(module.OpResolverType, resolver),
        num_threads=1,
    )
    try:
        interpreter.allocate_tensors()
        for details, pixels in zip(interpreter.get_input_details(), inputs, strict=True):
            interpreter.set_tensor(details["index"], pixels)
        interpreter.invoke()
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    return [interpreter.get_tensor(each["index"]) for each in interpreter.get_output_details()]


def tflite_runtime() -> Any:
    """Return the interpreter module of this Python: the runner's choice, where there are several.

    Raises:
        InfrastructureError: there is none.
    """
    try:
        return load_runtime()[0]
    except StageError as error:
        raise InfrastructureError(
            str(error), hint="./inv sets it up; run the task through it"
        ) from error


def _judge(outcome: Outcome, attempt: _Witnessed, expected: list[NDArray[Any]]) -> None:
    answer, report, witness = attempt.answer, attempt.report, attempt.witness
    outcome.faults = list(report.faults)
    outcome.findings = list(report.findings)
    outcome.jobs = report.nn_jobs + report.tp_jobs
    outcome.seconds = float(answer.get("seconds", 0.0))
    outcome.hardware_error = witness.hardware_error
    outcome.values = sum(each.size for each in expected)
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
    said = f": {last[-1].strip()}" if last else ""
    outcome.evidence = f"the delegate's process: {answer['message']}, {when}{said}"


def _judge_values(outcome: Outcome, attempt: _Witnessed, expected: list[NDArray[Any]]) -> None:
    for found, right in zip(attempt.outputs, expected, strict=True):
        difference = np.abs(found.astype(np.int32) - right.astype(np.int32))
        outcome.different += int((difference != 0).sum())
        outcome.largest = max(outcome.largest, int(difference.max(initial=0)))
    order = next((each for each in outcome.findings if _TWO_ORDERS in each), "")
    if not outcome.faults and not outcome.different and not order:
        outcome.status = GOOD
        notes = [*outcome.findings, *attempt.witness.contradictions]
        outcome.note = notes[0] if notes else ""
        return
    outcome.status = WRONG
    outcome.blame, outcome.evidence = _blame(outcome, attempt.witness)
    if outcome.faults:
        return
    if order and not outcome.different:
        outcome.evidence = f"two orders under one descriptor, silicon reads one: {order}"
        return
    for found, right in zip(attempt.outputs, expected, strict=True):
        if exchanged := _exchanged(found, right):
            outcome.blame, outcome.evidence = "submission", exchanged


def _exchanged(found: NDArray[Any], right: NDArray[Any]) -> str:
    """What to say of an output that has the right values in a wrong order; empty where it has not."""
    if found.ndim != 4:
        return ""
    if np.array_equal(_channels_first(found), right):
        return (
            "the output has the right values, but channel by channel: the job that brings them into "
            "TFLite's order is missing"
        )
    if np.array_equal(found, _channels_first(right)):
        return (
            "the output has the right values in a wrong order: a job took them for channel by channel, "
            "and they were in TFLite's order already"
        )
    return ""


def _channels_first(found: NDArray[Any]) -> NDArray[Any]:
    """Return what an output would be if its bytes stood channel by channel."""
    batch, height, width, channels = found.shape
    return np.moveaxis(found.reshape(batch, channels, height, width), 1, -1)


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
