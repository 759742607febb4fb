# SPDX-License-Identifier: MIT
"""Models: what will an NPU do with one?"""

from __future__ import annotations

from invoke.context import Context

from bsp.base.result import Answer, Result

from .face.command import command
from .face.flags import ANY_MESA


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
        "inputs": "folder of pictures or arrays: how outputs agree over all of them",
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
) -> Result:
    """Say what an NPU does with a model, and whether right. Example: ./inv model-report m.tflite."""
    from pathlib import Path

    from bsp.base.errors import UserError
    from userspace.npu.model.report import document, files, report, text
    from userspace.npu.model.trial import trial
    from userspace.npu.validate.fixed_size import size_of
    from virtual.model_runs.place import VirtualNpus

    given = {"--image": image, "--input": input, "--inputs": inputs, "--size": size, "--run": run}
    if no_run and any(given.values()):
        named = next(name for name, value in given.items() if value)
        raise UserError(
            f"{named} is for a run, and --no-run forbids that", hint="leave one of them out"
        )
    request = trial.TrialRequest(
        when=trial.ALWAYS if run else trial.NEVER if no_run else trial.AUTO,
        files=tuple(Path(each) for each in input or []),
        picture=Path(image) if image else None,
        size=size_of(size),
        folder=Path(inputs) if inputs else None,
    )
    target = files.target(html)
    place = VirtualNpus()
    facts = report.report(Path(model), npu=npu, mesa=place.named(mesa))
    facts = trial.with_runs(facts, request, place)
    answer = document.document(facts)
    if target:
        answer["html"] = str(files.write(facts, target))
    return Answer(answer, text.text(facts))
