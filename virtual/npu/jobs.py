# SPDX-License-Identifier: MIT
"""What one job was, for reports and traces: the record that all engines make."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class JobRecord:
    """What one job was, for reports and traces.

    Attributes:
        number: counts the jobs of this engine, from 0.
        unit: ``NN`` or ``TP`` of a Vivante NPU; ``CNA`` of a Rockchip one, each task of a job.
        macs: multiplications as a dense convolution; 0 for TP jobs.
        coefficient_bytes: stored size of the coefficients; 0 for TP jobs.
    """

    number: int
    unit: str
    address: int
    description: str
    operation: str
    seconds: float
    macs: int = 0
    coefficient_bytes: int = 0
