# SPDX-License-Identifier: MIT
"""Models: what will an NPU do with one?"""

from __future__ import annotations

from invoke.context import Context

from bsp.base.result import Answer, Result

from .face import command


@command(
    help={
        "model": "a .tflite file",
        "npu": "NPUs whose known faults count, with commas: a311d, imx8mp (default: all)",
        "mesa": "versions of Mesa, with commas (default: those that its rules were compared with)",
    },
    positional=["model"],
)
def model_report(_: Context, model: str, npu: str = "", mesa: str = "") -> Result:
    """Say what an NPU takes of a model, what not and why. Example: ./inv model-report model.tflite."""
    from pathlib import Path

    from userspace.npu.model import report, report_document, report_text

    facts = report.report(Path(model), npu=npu, mesa=mesa)
    return Answer(report_document.document(facts), report_text.text(facts))
