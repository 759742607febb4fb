# SPDX-License-Identifier: MIT
"""One thing that is wrong with a submission, and whose fault it is: the record that all checks share.

The engine's faults, the audit against a model, a replayed trace and the gates all say what they found
with it: operation, job, field, expected, found; and, where it was looked into, who is to blame.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Blame(enum.StrEnum):
    """Who is to blame for a wrong value, as far as the evidence goes.

    SUBMISSION: what Mesa submitted does not mean the model. EMULATOR: the submission is right, but was
    computed wrongly here. NOT_UNDERSTOOD: the submission asks for what this emulator does not know.
    """

    SUBMISSION = "submission"
    EMULATOR = "emulator"
    NOT_UNDERSTOOD = "not understood"
    OPEN = ""

    @property
    def says_wrong(self) -> bool:
        """Whether it says that values are wrong; where something is not understood, nobody can tell."""
        return self in (Blame.SUBMISSION, Blame.EMULATOR)


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
        blame: whose fault it is, where that was looked into.
        evidence: what the blame rests on, in one sentence.
    """

    field: str
    expected: str
    found: str
    job: int | None = None
    unit: str = ""
    address: int | None = None
    operation: str = ""
    blame: Blame = Blame.OPEN
    evidence: str = ""

    def __str__(self) -> str:
        where = [part for part in (self.operation, self.unit) if part]
        if self.job is not None:
            where.append(f"job {self.job}")
        if self.address is not None:
            where.append(f"at {self.address:#010x}")
        place = " ".join(where)
        text = f"{place}: {self.field}: expected {self.expected}, found {self.found}"
        if self.blame is not Blame.OPEN:
            text += f" [{self.blame}{': ' if self.evidence else ''}{self.evidence}]"
        return text.removeprefix(": ")
