# SPDX-License-Identifier: MIT
"""One task of a Rockchip NPU in words and figures, from a trace."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..faults import FaultError
from ..memory import Access, Buffers
from ..rocket.engine import jobs_of
from ..rocket.registers import fields_of
from ..rocket.task import parse
from ..rocket.weights import read_weights
from .trace import Job, Submit


class TaskReader:
    """Reads the tasks of one submission after another."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}

    def submission(self, submit: Submit) -> None:
        """Look how many commands each task of a submission has."""
        stream = np.frombuffer(submit.stream[: len(submit.stream) & ~3], "<u4")
        try:
            self._counts = dict(pair for job in jobs_of(stream) for pair in job.tasks)
        except FaultError:
            self._counts = {}

    def read(self, job: Job, memory: Buffers) -> tuple[dict[str, int], dict[str, Any]]:
        """Return the fields of a task's registers, and what ``JobShown`` says of it.

        Raises:
            FaultError: it is not understood.
        """
        size_bytes = 8 * self._counts.get(job.address, 0)
        fields = fields_of(memory.view(job.address, size_bytes, Access.READ).view("<u8"))
        task = parse(fields)
        weights = read_weights(task, memory)
        return fields, {
            "kind": "depthwise" if task.depthwise else "conv",
            "what": task.describe().partition(" ")[2],
            "macs": task.macs,
            "useful_macs": task.macs,
            "weights": weights.size,
            "zero_weights": weights.size - int(np.count_nonzero(weights)),
            "stored_bytes": task.weight_bytes,
            "read_bytes": size_bytes + task.read_bytes + task.weight_bytes,
            "written_bytes": task.written_bytes,
        }
