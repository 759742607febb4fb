# SPDX-License-Identifier: MIT
"""Runs models with one version of the delegate on virtual NPUs: a client under qemu-user, the engine here.

The right answer is what TFLite's portable kernels compute on this machine (``reference``).
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bsp.base.at_once import ended_by
from bsp.base.errors import InfrastructureError, UserError
from userspace.npu.model.trial.run import TFLITE_REFUSES
from userspace.npu.validate.onboard.child import signal_name
from userspace.npu.validate.onboard.environment import RUNTIMES, load_runtime
from userspace.npu.validate.onboard.loading import portable_kernels
from userspace.npu.validate.onboard.output_values import output_value
from userspace.npu.validate.onboard.stage_error import StageError
from userspace.payload import payload

from ..npu import shim
from ..npu.decoded_cache import DecodedCache
from ..npu.engines import Maker
from ..npu.identity import driver_of, load_npu, vivante_names
from ..npu.shim.host import arm64_python
from ..npu.shim.server import ClientReport, Server
from .build import build
from .cases import Case
from .packages import Delegate

_CLIENT = Path(__file__).with_name("client.py")
_NOT_LOADED = b"not loaded: "
_START_TIMEOUT_S = 120.0
_WARM_UP = Case("residual", 6, 6, 8, zero_points=(110, 90, 100))
_MORE_S = 30.0
_END_TIMEOUT_S = 10.0
_SAME_EVERYWHERE = "BUILTIN_REF"
"""TFLite's portable kernels: what is left to the CPU is the same on every machine."""


@dataclass
class Attempt:
    """One run of a model.

    Attributes:
        answer: what the client says: ``status`` (``ran``, ``crashes``, ``hangs``, ``error``), ``message``,
            ``partitions`` (how many the delegate took), ``log``; ``alone``: so without the delegate.
        outputs: the model's, in their order; empty if it did not end.
        report: what the virtual NPU saw.
    """

    answer: dict[str, Any]
    outputs: list[NDArray[Any]]
    report: ClientReport


@contextlib.contextmanager
def model_runner(
    delegate: Delegate,
    *,
    timeout_s: float = 120.0,
    warm: bool = True,
    preload: Path | None = None,
) -> Iterator[ModelRunner]:
    """Provide a started client for a block.

    Args:
        warm: let it run a small model first: many later ones then take less time.
        preload: library that stands for the device, in place of the shim.

    Raises:
        InfrastructureError: it does not start, or packages cannot be had.
    """
    site = payload.build_payload(distribution=delegate.distribution).folder / "site"
    command = [
        *arm64_python(delegate.root, {"LD_PRELOAD": str(preload or shim.build("aarch64"))}),
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
            start_new_session=True,
        ) as process,
    ):
        client = ModelRunner(process, Path(folder), timeout_s)
        try:
            with ended_by(lambda: _end(process)):
                client.start(warm=warm)
                yield client
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the client, and the fork in which it may be running a model."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


class ModelRunner:
    """A client that takes models; ``model_runner`` makes it."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path, timeout_s: float) -> None:
        self._process = process
        self._folder = folder
        self._timeout_s = timeout_s
        self._number = 0

    def start(self, *, warm: bool = True) -> None:
        """Wait until the client takes requests.

        Raises:
            UserError: the delegate does not load: another C library, a symbol that nothing has.
        """
        line = self._line(_START_TIMEOUT_S)
        if line.startswith(_NOT_LOADED):
            words = line.removeprefix(_NOT_LOADED).decode(errors="replace").strip()
            raise UserError(
                f"this delegate does not load in a system of Debian's: {words}",
                hint="build it against Debian's packages: ./inv build-mesa",
            )
        if line != b"ready\n":
            log = (self._folder / "log").read_text(encoding="utf-8", errors="replace")
            raise InfrastructureError(f"the arm64 client did not start: {log.strip()[-2000:]}")
        if not warm:
            return
        built = build(_WARM_UP)
        path = self.file(built.model)
        for npu in vivante_names():
            # The client itself runs a model that its forks can run too: they take a seventh of the time.
            if self.attempt(path, list(built.inputs), npu).answer["status"] == "ran":
                self.attempt(path, list(built.inputs), npu, here=True)

    def file(self, model: bytes) -> Path:
        """Write a model where ``attempt`` can take it from; the next one replaces it."""
        path = self._folder / "case.tflite"
        path.write_bytes(model)
        return path

    def attempt(
        self,
        path: Path,
        inputs: list[NDArray[Any]],
        npu: str,
        *,
        maker: Maker | None = None,
        cache: DecodedCache | None = None,
        poison: int = 0,
        here: bool = False,
        resolver: str = _SAME_EVERYWHERE,
    ) -> Attempt:
        """Run a model once.

        Args:
            maker: makes the engine: how it rounds, and what compares its jobs with the model.
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
            "NPU_SHIM_DRIVER": driver_of(npu),
        }
        server = Server(place, load_npu(npu), maker=maker, cache=cache)
        threading.Thread(target=server.serve, daemon=True).start()
        with closing(server):
            answer, outputs = self._run(path, inputs, resolver, environment, here=here)
            if answer["status"] in ("crashes", "error"):
                alone, _ = self._run(path, inputs, resolver, None, here=False)
                answer = alone_too(answer, alone)
            deadline = time.monotonic() + _END_TIMEOUT_S
            while not here and time.monotonic() < deadline:
                if all(report.ended for report in server.reports):
                    break
                time.sleep(0.002)
            reports = server.reports
        place.unlink(missing_ok=True)
        return Attempt(answer, outputs, reports[-1] if reports else ClientReport())

    def log_of(self, model: bytes, inputs: list[NDArray[Any]], environment: dict[str, str]) -> str:
        """Return what the delegate logs of a model, with these settings, however that ends."""
        path = self.file(model)
        answer, _ = self._run(path, inputs, _SAME_EVERYWHERE, environment, here=False)
        return str(answer.get("log", ""))

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
        sent, taken = self._folder / "inputs.npz", self._folder / "outputs.npz"
        np.savez(sent, *inputs)
        taken.unlink(missing_ok=True)
        request = {
            "here": here,
            "model": str(path),
            "inputs": str(sent),
            "outputs": str(taken),
            "timeout_s": self._timeout_s,
            "resolver": resolver,
            "delegate": environment is not None,
            "environment": environment or {},
        }
        answer = self._ask(request)
        if answer["status"] != "ran":
            return answer, []  # what died in the middle of its writing has left a part of a file
        with np.load(taken) as file:
            return answer, [file[f"arr_{number}"] for number in range(len(file.files))]

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        if not self._process.stdin:
            raise RuntimeError("the client was started without pipes")
        line = b""
        with contextlib.suppress(BrokenPipeError):
            # Not through Python's buffer, which would be written once more when it is closed.
            os.write(self._process.stdin.fileno(), json.dumps(request).encode() + b"\n")
            line = self._line(self._timeout_s + _MORE_S)
        if not line.endswith(b"\n"):
            raise InfrastructureError(self._how_it_ended())
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _how_it_ended(self) -> str:
        """Say how the client itself ended, and what it said last."""
        how = "ended"
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._process.wait(_END_TIMEOUT_S)
            how = f"crashed with {signal_name(-code)}" if code < 0 else f"ended (exit code {code})"
        log = (self._folder / "log").read_text(encoding="utf-8", errors="replace")
        last_words = log.strip()[-2000:] or "it said nothing"
        return f"the arm64 client that runs models {how} before it answered: {last_words}"

    def _line(self, timeout_s: float) -> bytes:
        if not self._process.stdout:
            raise RuntimeError("the client was started without pipes")
        ready, _, _ = select.select([self._process.stdout], [], [], timeout_s)
        if not ready:
            raise InfrastructureError(f"the arm64 client did not answer within {timeout_s:g} s")
        return self._process.stdout.readline()


def alone_too(answer: dict[str, Any], alone: dict[str, Any]) -> dict[str, Any]:
    """Return a failed run's answer; if it fails without the delegate as well, one that says so."""
    if alone["status"] == "ran":
        return answer
    reason = (
        alone["message"] if alone["status"] == "error" else f"{alone['status']}: {alone['message']}"
    )
    return {**answer, "status": "error", "alone": True, "message": f"{TFLITE_REFUSES}: {reason}"}


def reference(
    model: bytes, inputs: list[NDArray[Any]], *, resolver: str = _SAME_EVERYWHERE
) -> list[NDArray[Any]]:
    """Return a model's outputs from TFLite's portable kernels (or others), on this machine.

    Raises:
        ValueError: TFLite does not take the model.
    """
    module = tflite_runtime()
    kernels = getattr(module.OpResolverType, resolver)
    if resolver == _SAME_EVERYWHERE:
        kernels = portable_kernels(module, model)
    interpreter = module.Interpreter(
        model_content=model,
        experimental_op_resolver_type=kernels,
        num_threads=1,
    )
    try:
        interpreter.allocate_tensors()
        for details, pixels in zip(interpreter.get_input_details(), inputs, strict=True):
            interpreter.set_tensor(details["index"], pixels)
        interpreter.invoke()
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    return [output_value(interpreter, each) for each in interpreter.get_output_details()]


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
