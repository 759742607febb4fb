# SPDX-License-Identifier: MIT
"""What the engine says about a submission that it cannot or must not run.

A finding names the job, the field, what was expected and what was found. Where a job cannot be run it
is raised as a ``FaultError``; where it can, but nobody knows what silicon would do, it is noted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a submission.

    Attributes:
        field: descriptor field, state or word that is wrong, in Mesa's name for it.
        expected: what a right submission has there.
        found: what stands there.
        job: number of the job in this process (from 0), None outside a job.
        unit: ``FE``, ``NN`` or ``TP``.
        address: GPU address of the descriptor or of the bad access, where there is one.
        operation: the model's operation that this job belongs to, where the model is known.
    """

    field: str
    expected: str
    found: str
    job: int | None = None
    unit: str = ""
    address: int | None = None
    operation: str = ""

    def __str__(self) -> str:
        where = [part for part in (self.operation, self.unit) if part]
        if self.job is not None:
            where.append(f"job {self.job}")
        if self.address is not None:
            where.append(f"at {self.address:#010x}")
        place = " ".join(where)
        return f"{place}: {self.field}: expected {self.expected}, found {self.found}".removeprefix(
            ": "
        )


class FaultError(Exception):
    """The NPU stopped at a job (or a word of the command stream); ``finding`` says why."""

    def __init__(
        self, field: str, expected: str, found: str, *, address: int | None = None
    ) -> None:
        super().__init__()
        self.finding = Finding(field, expected, found, address=address)

    def at(self, *, job: int, unit: str, address: int | None, operation: str = "") -> None:
        """Add where it happened, keeping what is known already."""
        known = self.finding
        self.finding = replace(
            known,
            job=job,
            unit=known.unit or unit,
            address=known.address if known.address is not None else address,
            operation=known.operation or operation,
        )

    def __str__(self) -> str:
        return str(self.finding)


class MemoryFaultError(FaultError):
    """An access outside the memory that the NPU may use: on silicon the MMU stops it."""
