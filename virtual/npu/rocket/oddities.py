# SPDX-License-Identifier: MIT
"""What of a task comes out wrong on boards, as the registers alone show: Mesa's CI has seen each of it."""

from __future__ import annotations

from collections.abc import Iterator

from ..finding import Blame, Finding
from .task import Task


def oddities(task: Task) -> Iterator[Finding]:
    """Return what is wrong with a task whatever the model."""
    if not task.planar and task.data_entries < task.row_entries and task.height > 1:
        yield Finding(
            "CBUF_CON1.DATA_ENTRIES",
            f"at least {task.row_entries}: {task.width} pixels of {task.channels} channels",
            str(task.data_entries),
            blame=Blame.SUBMISSION,
            evidence="rows overlap in the convolution buffer; such ones fail in Mesa's CI on boards",
        )
    low, high = task.pad_value & 0xFF, task.pad_value >> 8 & 0xFF
    if task.depthwise and low != high and _meets_surroundings(task):
        yield Finding(
            "PAD_CON1",
            f"{low << 8 | low:#06x}: the same for every channel",
            f"{task.pad_value & 0xFFFF:#06x}",
            blame=Blame.SUBMISSION,
            evidence="every second channel gets another value; such ones fail in Mesa's CI on boards",
        )


def _meets_surroundings(task: Task) -> bool:
    """Whether the window reaches over the image's edges."""
    rows, columns = task.reached
    beyond = rows - task.pad_top > task.height or columns - task.pad_left > task.width
    return bool(task.pad_top or task.pad_left or beyond)
