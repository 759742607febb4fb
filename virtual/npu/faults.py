# SPDX-License-Identifier: MIT
"""What the engine says about a submission that it cannot or must not run.

A finding names the job, the field, what was expected and what was found. Where a job cannot be run it
is raised as a ``FaultError``; where it can, but nobody knows what silicon would do, it is noted.
"""

from __future__ import annotations

from dataclasses import replace

from .finding import Finding

__all__ = ["FaultError", "Finding", "MemoryFaultError"]


class FaultError(Exception):
    """The NPU stopped at a job (or a word of the command stream); ``finding`` says why."""

    def __init__(
        self, field: str, expected: str, found: str, *, address: int | None = None
    ) -> None:
        super().__init__()
        self.finding = Finding(field, expected, found, address=address)

    def at(self, *, job: int, unit: str, address: int | None, operation: str = "") -> None:
        """Add where it happened, keeping what is known already."""
        earlier = self.finding
        self.finding = replace(
            earlier,
            job=job,
            unit=earlier.unit or unit,
            address=earlier.address if earlier.address is not None else address,
            operation=earlier.operation or operation,
        )

    def __str__(self) -> str:
        return str(self.finding)


class MemoryFaultError(FaultError):
    """An access outside the memory that the NPU may use: on silicon the MMU stops it."""
