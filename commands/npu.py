# SPDX-License-Identifier: MIT
"""Traces of the virtual NPU: described, and run again."""

from __future__ import annotations

from invoke.context import Context

from bsp.base.result import FAILED_VALIDATION, Answer, Result

from .face.command import command


@command(
    help={
        "file": "a trace: smoke-test --npu ... --record FILE, or virtual.up --record FILE",
        "model": "the .tflite file that was run: compare each job with it too",
        "timeout": "seconds that it may take",
    },
    positional=["file"],
)
def replay(_: Context, file: str, model: str = "", timeout: float = 600.0) -> Result:
    """Run a trace's jobs again, and compare what they write. Example: ./inv npu.replay v1.npu."""
    from pathlib import Path

    from virtual.npu.traces import replay as replaying
    from virtual.npu.traces.trace_text import replayed_text

    against = Path(model) if model else None
    comparison = replaying.replay(Path(file), model=against, timeout_s=timeout)
    wrong = bool(comparison.differences or comparison.blamed)
    return Answer(
        comparison.document(), replayed_text(comparison), FAILED_VALIDATION if wrong else 0
    )


@command(
    help={
        "file": "a trace: smoke-test --npu ... --record FILE, or virtual.up --record FILE",
        "job": "only the job of this number, with all fields of its descriptor",
    },
    positional=["file"],
)
def show(_: Context, file: str, job: int = -1) -> Result:
    """Describe the NPU's jobs in a trace. Example: ./inv npu.show v1.npu."""
    from pathlib import Path

    from virtual.npu.traces import show as showing
    from virtual.npu.traces.trace_text import shown_text

    shown = showing.show(Path(file), job=job if job >= 0 else None)
    return Answer(shown.document(), shown_text(shown, fields=job >= 0))
