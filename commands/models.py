# SPDX-License-Identifier: MIT
"""Models: what will an NPU do with one?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from invoke.context import Context

from bsp.base.result import FAILED_VALIDATION, Answer, Result

from .face.command import command
from .face.flags import ACCEPT_NEW_KEY, ANY_MESA, HOST

if TYPE_CHECKING:
    from pathlib import Path

    from bsp.remote.inventory import Host
    from userspace.npu.model.trial.trial import TrialRequest
    from userspace.npu.profile.measured import Measured
    from userspace.npu.validate.label_image import SmokeTestRequest
    from userspace.npu.validate.records import SmokeDocument


@command(
    help={
        "model": "a .tflite file",
        "npu": "SoCs, separated by commas: a311d, imx8mp, rk3588, imx93 (default: the first two)",
        "mesa": f"{ANY_MESA}; several with commas (default: versions that the rules were compared with)",
        "run": "run it on each virtual NPU with each Mesa, however long that takes",
        "no-run": "do not run it (default: run what takes about half a minute)",
        "image": "picture for the inputs that take one: BMP, PNG, JPEG (default: generated data)",
        "input": "NumPy array (.npy) for an input; may be repeated, in the order of the model's inputs",
        "html": "write the report as one HTML page there",
        "host": f"{HOST}: run it there, too, and take the time of each operation on the NPU",
        "calibration": "with --host: write the times there as JSON, for estimates on other models",
        "accept-new-key": ACCEPT_NEW_KEY,
        "inputs": "folder of pictures or arrays: run it with each, and say how far the outputs agree",
        "size": "HEIGHTxWIDTH for a model that takes pictures of any size (default: 224x224)",
    },
    positional=["model"],
    iterable=["input"],
)
def model_report(
    _: Context,
    model: str,
    npu: str = "",
    mesa: str = "",
    run: bool = False,
    no_run: bool = False,
    image: str = "",
    input: list[str] | None = None,
    inputs: str = "",
    html: str = "",
    size: str = "",
    host: str = "",
    calibration: str = "",
    accept_new_key: bool = False,
) -> Result:
    """Report what an NPU does with a model, and if it is right. Example: ./inv model-report m.tflite."""
    from dataclasses import replace
    from pathlib import Path

    from bsp.base.errors import BspError, UserError
    from bsp.base.flags import refuse_flags
    from bsp.remote.inventory import resolve
    from userspace.npu.model.report import document, files, report, text
    from userspace.npu.model.trial import trial
    from userspace.npu.profile import measured
    from userspace.npu.validate import smoke
    from userspace.npu.validate.fixed_size import size_of
    from virtual.model_runs.place import VirtualNpus

    if calibration and not host:
        raise UserError(
            "--calibration writes times that were measured on a board", hint="add --host NAME"
        )
    if no_run:
        for_runs = {"input": input, "inputs": inputs, "run": run}
        for_runs |= {} if host else {"image": image, "size": size}
        refuse_flags(for_runs, "--no-run forbids the run that other flags are for")
    board_host = resolve(host) if host else None
    request = trial.TrialRequest(
        when=trial.ALWAYS if run else trial.NEVER if no_run else trial.AUTO,
        files=tuple(Path(each) for each in input or []),
        picture=Path(image) if image else None,
        size=size_of(size),
        folder=Path(inputs) if inputs else None,
    )
    target = files.target(html)
    place = VirtualNpus()
    board_npu = smoke.npu_on(board_host) if board_host else ""
    if board_host and calibration:
        measured.check_calibration(board_npu or npu, emulated=smoke.is_emulated(board_host))
    facts = report.report(Path(model), npu=npu or board_npu, mesa=place.named(mesa))
    if board_host:
        on_board = _measured_on(board_host, facts.path, request, accept_new_key=accept_new_key)
        facts = replace(facts, measured=on_board)
    facts = trial.with_runs(facts, request, place)
    answer = document.document(facts)
    failed = facts.measured is not None and facts.measured.row["status"] == "fail"
    code = FAILED_VALIDATION if failed else 0
    try:
        if facts.measured and calibration:
            content = measured.calibration(facts.measured, facts.model, board_npu or npu)
            measured.write_calibration(content, Path(calibration))
        if target:
            answer["html"] = str(files.write(facts, target))
    except BspError as error:  # what was found out counts, and is printed
        return Answer(answer, text.text(facts), code or error.exit_code, error.lines())
    return Answer(answer, text.text(facts), code)


def _measured_on(
    host: Host, model: Path, request: TrialRequest, *, accept_new_key: bool
) -> Measured:
    """Run the model on a board with a profile."""
    from userspace.npu.profile import measured
    from userspace.npu.validate import smoke

    def run_there(smoke_request: SmokeTestRequest) -> SmokeDocument:
        return smoke.smoke_test(
            "label_image", smoke_request, host=host, accept_new_key=accept_new_key
        )

    return measured.measured(model, request.picture, request.size, run_there)
