# SPDX-License-Identifier: MIT
"""What a deployment did: its outcome, its figures, and the error that it stands for."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypedDict

import msgspec

from bsp.base import progress
from bsp.base.errors import BoardStateUnknownError, BspError, RolledBackError, UserError
from bsp.boot_survey.survey import Survey

from .checks import drift, health
from .plan import Plan
from .transfer.agent import Progress


class StepRecord(TypedDict):
    """A step of a deployment, and how long it took."""

    name: str
    seconds: float


class GivenBack(TypedDict):
    """What undoing an adoption did, or would do: ``returned`` names the files that are restored."""

    host: str
    outcome: str
    returned: list[str]


@dataclass
class Deployment:
    """What a deployment did; ``document()`` is its JSON.

    Attributes:
        outcome: planned, refused (--dry-run; --persist after its trial) | tried, persisted (--try) |
            unchanged | confirmed | rolled-back | unknown.
        health: the checks that were made before confirming.
        verified: every deployed file was re-hashed, instead of trusting the board's manifest.
        drift: the files that then were not as they were deployed.
        problem: why it was not confirmed.
        running_dtb_matches: None where the running tree could not be read.
        survey: how the board boots today, where that was looked at.
        uboot_lacks: commands and variables that the boot script missed in the board's U-Boot.
    """

    host: str
    board: str
    before: str | None
    to: str
    outcome: str = "planned"
    sent: Progress = field(default_factory=Progress)
    bytes_total: int = 0
    steps: list[StepRecord] = field(default_factory=list)
    running_dtb_matches: bool | None = None
    plan: Plan | None = None
    health: list[health.Verdict] = field(default_factory=list)
    verified: bool = False
    drift: list[drift.Change] = field(default_factory=list)
    problem: str = ""
    hint: str = ""
    console: str = ""
    survey: Survey | None = None
    uboot_lacks: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0, or the code of the error that this is."""
        codes = {
            "rolled-back": RolledBackError.exit_code,
            "unknown": BoardStateUnknownError.exit_code,
            "refused": UserError.exit_code,
        }
        return codes.get(self.outcome, 0)

    def document(self) -> dict[str, Any]:
        """The result as others may rely on it."""
        return {
            "host": self.host,
            "board": self.board,
            "from": self.before,
            "to": self.to,
            "outcome": self.outcome,
            "bytes_sent": self.sent.sent_bytes,
            "files_sent": self.sent.sent_files,
            "bytes_on_wire": self.sent.wire_bytes,
            "files_patched": self.sent.patched_files,
            "bytes_of_patches": self.sent.patch_bytes,
            "bytes_total": self.bytes_total,
            "steps": self.steps,
            "running_dtb_matches": self.running_dtb_matches,
            "verified": self.verified,
            "drift": [dataclasses.asdict(each) for each in self.drift],
            "health": [msgspec.structs.asdict(each) for each in self.health],
            "plan": [str(step) for step in self.plan.steps] if self.plan else [],
            "problem": self.problem,
            "hint": self.hint,
            "console": self.console,
            "survey": self.survey.document() if self.survey else None,
            "uboot_lacks": list(self.uboot_lacks),
        }

    @contextmanager
    def step(self, name: str) -> Iterator[progress.Step]:
        """A step that is shown, and listed in the result."""
        with progress.step(name) as current:
            try:
                yield current
            finally:
                seconds = time.monotonic() - current.started
                self.steps.append({"name": name, "seconds": round(seconds, 3)})


def raise_for(result: Deployment) -> None:
    """Raise the error that a result is.

    Raises:
        RolledBackError, BoardStateUnknownError: as its outcome says.
    """
    kinds: dict[str, type[BspError]] = {
        "rolled-back": RolledBackError,
        "unknown": BoardStateUnknownError,
    }
    kind = kinds.get(result.outcome)
    if kind:
        console = f"\n{result.console}" if result.console else ""
        raise kind(f"{result.problem}{console}", hint=result.hint)
