# SPDX-License-Identifier: MIT
"""The label_image smoke test: one image, one model, every delegate that the machine can have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bsp.base.errors import UserError, nearest
from bsp.base.progress import step

from . import models, operations
from .delegates import implied, rows
from .judge import Expected, judge, verdict
from .machine import Machine

NAME = "label_image"
TESTS = (NAME,)
DEFAULT_MIN_DELEGATED_SHARE = 0.5
# Start of Python and numpy on the slowest machine that is meant: an emulated one, nothing compiled yet.
_START_UP_S = 120


@dataclass(frozen=True)
class Request:
    """What to run.

    Attributes:
        delegate: as ``--delegate`` takes it.
        runs: measured runs at most, a row.
        budget_s: time for the measured runs of a row, at most; at least one run is made.
        threads: CPU threads; None: all cores.
        timeout_s: a row that takes longer is a failure.
    """

    delegate: str = "all"
    model: str | None = None
    image: str | None = None
    runs: int = 50
    budget_s: float = 20.0
    threads: int | None = None
    timeout_s: float = 300.0

    def __post_init__(self) -> None:
        for name in ("runs", "threads", "budget_s", "timeout_s"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                flag = name.removesuffix("_s")
                raise UserError(f"--{flag} is {value}, it has to be more than 0")


def check_name(test: str) -> None:
    """Raise a UserError unless there is a smoke test of that name."""
    if test not in TESTS:
        raise UserError(
            f"unknown smoke test {test!r}{nearest(test, list(TESTS))}",
            hint=f"there is: {', '.join(TESTS)}",
        )


def smoke_test(
    machine: Machine,
    request: Request,
    *,
    host: str | None = None,
    board: str | None = None,
    min_delegated_share: float = DEFAULT_MIN_DELEGATED_SHARE,
    inputs: models.Inputs | None = None,
) -> dict[str, Any]:
    """Run the test and return the document of the command line's contract.

    Args:
        host, board: names for the document.
        min_delegated_share: the profile's; share of operations that a delegate must take, 0..1.
        inputs: model and image, where they are chosen already.

    Raises:
        UserError: unknown delegate, model or image; a file that is no model or no BMP.
        InfrastructureError: the machine cannot run it.
    """
    names = rows(request.delegate)
    inputs = inputs or models.choose(request.model, request.image)
    arguments = ["--model", machine.place(inputs.model), "--image", machine.place(inputs.image)]
    for name in names:
        arguments += ["--delegate", name]
    arguments += ["--runs", str(request.runs), "--budget", f"{request.budget_s:g}"]
    arguments += ["--timeout", f"{request.timeout_s:g}"]
    if request.threads:
        arguments += ["--threads", str(request.threads)]
    with step(f"Running {inputs.model.name} with {', '.join(names)}"):
        facts = machine.run_runner(
            arguments, timeout_s=_START_UP_S + request.timeout_s * len(names)
        )
    answer = models.answers().get((inputs.model.sha256, inputs.image.sha256))
    expected = Expected(answer.top, answer.tolerance) if answer else None
    results = judge(facts, inputs.labels, expected, min_delegated_share=min_delegated_share)
    for result in results:
        result["implied"] = result["delegate"] in implied(request.delegate)
    return {
        "test": NAME,
        "board": board,
        "host": host or "this machine",
        "model": _described(inputs.model),
        "image": {**_described(inputs.image), "path": str(inputs.image.path)},
        "note": inputs.note,
        "expected": answer.source if answer else None,
        "runtime": facts["runtime"],
        "machine": {key: facts[key] for key in ("machine", "kernel", "python", "numpy", "threads")},
        "npu_devices": facts["npu_devices"],
        "operations": operations.described(inputs.model.path),
        "results": results,
        "verdict": verdict(results),
    }


def _described(file: models.File) -> dict[str, str]:
    return {"name": file.name, "sha256": file.sha256, "origin": file.origin}
