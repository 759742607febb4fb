# SPDX-License-Identifier: MIT
"""What all engines make: steps of a submission, and a record of each job that has run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Step:
    """One step of a submission, to be taken in order.

    Attributes:
        unit: of the job that it starts; "" where it starts none.
        address: of the job's descriptor or commands.
        run: takes the step; raises FaultError.
    """

    unit: str
    address: int
    run: Callable[[], None]


@dataclass(frozen=True)
class JobRecord:
    """What one job was, for reports and traces.

    Attributes:
        number: counts the jobs of this engine, from 0.
        unit: ``NN`` or ``TP`` of a Vivante NPU; ``CNA`` of a Rockchip one, each task of a job.
        macs: multiplications as a dense convolution; 0 for TP jobs.
        coefficient_bytes: stored size of the coefficients; 0 for TP jobs.
        read_bytes, written_bytes: what it reads besides, and writes; of a Rockchip NPU only.
    """

    number: int
    unit: str
    address: int
    description: str
    operation: str
    seconds: float
    macs: int = 0
    coefficient_bytes: int = 0
    read_bytes: int = 0
    written_bytes: int = 0


class Watch(Protocol):
    """Sees each job come and go; see ``recorder.Recorder``."""

    def job_begins(self, unit: str, address: int) -> None:
        """Be told of a job before anything of it is read."""
        ...

    def job_ends(self, record: JobRecord | None) -> None:
        """Be told of a job that has run, or (None) that stopped at a fault."""
        ...
