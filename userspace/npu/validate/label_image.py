# SPDX-License-Identifier: MIT
"""The label_image smoke test: one image, one model, every delegate that the machine can have."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from bsp.base.errors import UserError, nearest
from bsp.base.output import finite
from bsp.base.progress import step

from ..model import operations, tiny_detector, tiny_model
from ..model.faults.known_faults import OURS
from ..model.graph import read_graph, read_model
from ..model.prediction import Prediction, predict, rules_for
from ..model.sinks import Sink, read_sinks
from ..profile.profile import profile
from . import model_check, models
from .delegates import ALL, REFERENCE, TEFLON, implied, rows
from .judge import accuracy, detect
from .judge.compare import MAX_ABS_DIFF
from .judge.delegation import parse_log
from .judge.detections import Detection
from .judge.outputs import proves_nothing, reference_of
from .judge.verdict import (
    Expected,
    Figure,
    find_reference,
    judge,
    settle_state,
    verdict,
)
from .machine import Machine
from .onboard.model_inputs import PLAIN, Filling
from .records import InputRecord, RowResult, RunnerDocument, SmokeDocument

NAME = "label_image"
_QUICK_RUNS = 3
TESTS = (NAME, detect.NAME)
DEFAULT_MIN_DELEGATED_SHARE = 0.5
# As many as the runner makes unless it is told otherwise.
DEFAULT_VIEWS = 8
# What the flags may be at most: seconds and counts that the timers and thread pools below still take.
_MOST = {"runs": 1_000_000, "threads": 1024, "budget_s": 1_000_000, "timeout_s": 1_000_000}
# Start of Python and numpy on the slowest machine that is meant: an emulated one, nothing compiled yet.
_START_UP_S = 120


@dataclass(frozen=True)
class SmokeTestRequest:
    """What to run.

    Attributes:
        delegate: as ``--delegate`` takes it.
        runs: measured runs at most, a row.
        views: crops and flips of the picture that run for the accuracy figure, at most.
        budget_s: time for the measured runs of a row, at most; at least one run is made.
        threads: CPU threads; None: all cores.
        timeout_s: a row that takes longer is a failure.
        environment: variables and values that the delegates get.
        test: ``label_image``, or ``detect``, whose models find objects.
        size: height and width (pixels) for a model that takes pictures of any size; None: the default.
        profile: take the times of the NPU's jobs, too, in inferences of their own.
    """

    delegate: str = "all"
    model: str | None = None
    image: str | None = None
    runs: int = 50
    budget_s: float = 20.0
    views: int = DEFAULT_VIEWS
    threads: int | None = None
    timeout_s: float = 300.0
    environment: tuple[tuple[str, str], ...] = ()
    test: str = NAME
    size: tuple[int, int] | None = None
    profile: bool = False

    def __post_init__(self) -> None:
        for name, most in _MOST.items():
            value = getattr(self, name)
            flag = name.removesuffix("_s")
            if value is not None and not value > 0:  # nor is NaN
                raise UserError(f"--{flag} is {value}, it has to be more than 0")
            if value is not None and value > most:
                raise UserError(f"--{flag} is {value:g}, it may be {most} at most")
        if self.views < 0:
            raise UserError(f"--views is {self.views}, it has to be 0 or more")


def quick(request: SmokeTestRequest) -> SmokeTestRequest:
    """Return what ``--quick`` makes of it: the project's own small model on the NPU, a few times."""
    own = tiny_detector.NAME if request.test == detect.NAME else tiny_model.NAME
    return replace(
        request,
        delegate=TEFLON if request.delegate == ALL else request.delegate,
        model=request.model or own,
        runs=min(request.runs, _QUICK_RUNS),
        views=0,
    )


def choose(request: SmokeTestRequest) -> models.Inputs:
    """Return the model, image and labels that a request means, looked at before anything runs.

    Raises:
        UserError, InfrastructureError: as ``models.choose``.
        UserError: they are broken, or the model is none for this test.
    """
    chosen = models.choose(request.model, request.image, detector=request.test == detect.NAME)
    inputs = model_check.checked(chosen, request.size)
    if request.test == detect.NAME:
        detect.check(model_check.output_shapes(inputs.model.path))
    return inputs


def environment_of(words: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Return ``NAME=VALUE`` words as pairs.

    Raises:
        UserError: one has another form.
    """
    for word in words:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*=.*", word, re.DOTALL):
            raise UserError(f"--env takes NAME=VALUE, found {word!r}")
    return tuple((name, value) for name, _, value in (word.partition("=") for word in words))


def threads_of(text: str) -> int | None:
    """Return the number that ``--threads`` was given; None where it was left out.

    Raises:
        UserError: it is not a whole number.
    """
    if not text:
        return None
    try:
        return int(text)
    except ValueError:
        raise UserError(f"--threads takes a whole number, found {text!r}") from None


def check_name(test: str) -> None:
    """Raise a UserError unless there is a smoke test of that name."""
    if test not in TESTS:
        raise UserError(
            f"unknown smoke test {test!r}{nearest(test, list(TESTS))}",
            hint=f"there is: {', '.join(TESTS)}",
        )


def smoke_test(
    machine: Machine,
    request: SmokeTestRequest,
    *,
    host: str | None = None,
    board: str | None = None,
    min_delegated_share: float = DEFAULT_MIN_DELEGATED_SHARE,
    inputs: models.Inputs | None = None,
    opencl: str | None = None,
    rusticl: str | None = None,
    published: Sequence[tuple[str, Figure]] = (),
    npu_expected: str = "",
    exact: bool = False,
) -> SmokeDocument:
    """Run the test and return the document of the command line's contract.

    Args:
        host, board: names for the document.
        min_delegated_share: the profile's; share of operations that a delegate must take, 0..1.
        inputs: model and image, where they are chosen already.
        opencl: folder on the machine that has the OpenCL delegate.
        rusticl: folder on the machine with an OpenCL driver for it; None: what is installed there.
        published: (model's name, figure) of the board's SoC.
        npu_expected: as ``judge`` takes it.
        exact: the NPU is one that computes as TFLite's portable kernels do: nothing may differ from
            them, and what a delegate leaves to the CPU runs on them, too.

    Raises:
        UserError: unknown delegate, model or image; a file that is not a model or not a BMP.
        InfrastructureError: the machine cannot run it.
    """
    names = rows(request.delegate)
    inputs = inputs or choose(request)
    arguments = _runner_arguments(request, names, exact=exact, opencl=opencl, rusticl=rusticl)
    facts = _run(machine, inputs, names, arguments, limit_s=request.timeout_s)
    fillings = model_check.fillings_of(inputs.model.path)
    _refuse_older_userspace(facts, fillings, host)
    content = inputs.model.path.read_bytes()
    note = settle_state(facts, keeps_state=read_model(content).keeps_state)
    objects_of_rows = detect.read(facts, inputs.labels) if request.test == detect.NAME else None
    answer = models.answers().get((inputs.model.sha256, inputs.image.sha256))
    sinks = read_sinks(content)
    results = judge(
        facts,
        inputs.labels,
        Expected(answer.top, answer.tolerance) if answer else None,
        min_delegated_share=min_delegated_share,
        predictions=_predictions(facts, content),
        published=[figure for model, figure in published if model == inputs.model.name],
        npu_expected=npu_expected,
        sinks=sinks,
        exact=exact,
    )
    _compare(facts, results, sinks, inputs, objects_of_rows, exact=exact)
    for result in results:
        result["implied"] = result["delegate"] in implied(request.delegate)
    _add_profiles(facts, results, inputs.model.path)
    return {
        "test": request.test,
        "board": board,
        "host": host or "this machine",
        **_inputs_described(inputs, fillings, note),
        "expected": answer.source if answer else None,
        **_run_described(facts),
        "operations": operations.described(inputs.model.path),
        "results": finite(results),
        "verdict": verdict(results),
    }


def _run(
    machine: Machine,
    inputs: models.Inputs,
    names: Sequence[str],
    arguments: list[str],
    *,
    limit_s: float,
) -> RunnerDocument:
    """Run all rows on the machine; ``limit_s`` is for each of them."""
    files = ["--model", machine.place(inputs.model), "--image", machine.place(inputs.image)]
    with step(f"Running {inputs.model.name} with {', '.join(names)}"):
        return machine.run_runner(
            [*files, *arguments], timeout_s=_START_UP_S + limit_s * len(names)
        )


def _compare(
    facts: RunnerDocument,
    results: list[RowResult],
    sinks: Sequence[Sink],
    inputs: models.Inputs,
    objects_of_rows: list[tuple[list[Detection], str]] | None,
    *,
    exact: bool,
) -> None:
    """Compare each row's answer with the reference's: objects where the model finds some, else outputs."""
    if objects_of_rows is not None:
        detect.add(objects_of_rows, results, inputs.labels, tolerance=MAX_ABS_DIFF)
    else:
        reference = find_reference(facts, sinks, inputs.labels)
        accuracy.add(facts, results, reference, exact=exact)
    _refuse_useless(facts, results, sinks, inputs, detector=objects_of_rows is not None)


def _runner_arguments(
    request: SmokeTestRequest,
    names: Sequence[str],
    *,
    exact: bool = False,
    opencl: str | None = None,
    rusticl: str | None = None,
) -> list[str]:
    """Return the runner's command line, without model and image; as ``smoke_test`` takes the values."""
    arguments = [word for name in names for word in ("--delegate", name)]
    arguments += ["--runs", str(request.runs), "--budget", f"{request.budget_s:g}"]
    arguments += ["--timeout", f"{request.timeout_s:g}"]
    if request.views != DEFAULT_VIEWS:
        arguments += ["--views", str(request.views)]
    if request.threads:
        arguments += ["--threads", str(request.threads)]
    for name, value in request.environment:
        arguments += ["--env", f"{name}={value}"]
    if exact:
        arguments.append("--portable")
    if request.profile:
        arguments.append("--profile")
    if opencl:
        arguments += ["--opencl", opencl]
    if rusticl:
        arguments += ["--rusticl", rusticl]
    return arguments


def _add_profiles(facts: RunnerDocument, results: Sequence[RowResult], model: Path) -> None:
    """Give the rows whose jobs were timed the time of each operation."""
    for row, result in zip(facts["results"], results, strict=True):
        if raw := row.get("profile"):
            result["profile"] = profile(
                raw,
                read_model(model.read_bytes()),
                result.get("delegated_nodes") or [],
                driver=result["driver"] or "",
                plain_ms=result["latency_ms"]["median"] if result["latency_ms"] else None,
            )


def _refuse_older_userspace(
    facts: RunnerDocument, fillings: Sequence[Filling], host: str | None
) -> None:
    if "inputs" not in facts and any(filling.text() != PLAIN for filling in fillings):
        raise UserError(
            f"the userspace on {host or 'this machine'} is older than this command: it runs only models "
            "with one picture of three channels as input",
            hint=f"./inv deploy --host {host}" if host else "./inv build-userspace",
        )


def _refuse_useless(
    facts: RunnerDocument,
    results: Sequence[RowResult],
    sinks: Sequence[Sink],
    inputs: models.Inputs,
    *,
    detector: bool,
) -> None:
    """Raise a UserError where what came out tells nothing of the machine, in whatever row.

    It is the model's own, or the picture's: no row has anything that could be compared. A row that could
    not run is a failure all the same, and one that did not is none.
    """
    rows = facts["results"]
    reference = next(
        (row for row in rows if row["delegate"] == REFERENCE and "output" in row), None
    )
    failed = [row for row, each in zip(rows, results, strict=True) if each["status"] == "fail"]
    if reference is None or any("error" in row for row in failed):
        return
    others = [row for row in rows if row is not reference and "error" not in row]
    why = proves_nothing(reference_of(reference, sinks, inputs.labels), others)
    if detector and not failed:
        why = why or detect.proves_nothing(facts)
    if why:
        raise UserError(
            f"{inputs.model.name} proves nothing with {inputs.image.name}: {why}, on TFLite's portable "
            "kernels, too. That is the model's own, and no fault of this machine's",
            hint="give another picture (--image), or a model whose outputs are numbers",
        )


def _inputs_described(
    inputs: models.Inputs, fillings: Sequence[Filling], note: str
) -> SmokeDocument:
    return {
        "model": _described(inputs.original or inputs.model),
        "inputs": [cast(InputRecord, filling.record()) for filling in fillings],
        "image": {**_described(inputs.image), "path": str(inputs.image.path)},
        "note": "; ".join(filter(None, [inputs.note, note])),
    }


def _run_described(facts: RunnerDocument) -> SmokeDocument:
    return {
        "runtime": facts["runtime"],
        "runner_seconds": facts["seconds"],
        "machine": {
            "machine": facts["machine"],
            "kernel": facts["kernel"],
            "python": facts["python"],
            "numpy": facts["numpy"],
            "threads": facts["threads"],
        },
        "npu_devices": facts["npu_devices"],
    }


def _predictions(facts: RunnerDocument, model: bytes) -> dict[str, Prediction]:
    """Return what Teflon was to take, where driver and Mesa version are known; our patches take less."""
    predictions = {}
    for row in facts["results"]:
        driver = parse_log(row.get("log", "")).driver
        mesa = row.get("mesa")
        rules = rules_for(driver, mesa) if driver and mesa and OURS not in mesa else None
        if rules:
            predictions[row["delegate"]] = predict(read_graph(model), rules)
    return predictions


def _described(file: models.File) -> dict[str, str]:
    return {"name": file.name, "sha256": file.sha256, "origin": file.origin}
