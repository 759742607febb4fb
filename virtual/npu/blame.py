# SPDX-License-Identifier: MIT
"""Who is to blame for a fault, by what the fault says: for the gate, and wherever a fault is shown."""

from __future__ import annotations

from dataclasses import replace

from .finding import Blame, Finding

# What a fault's text has in it, who is to blame, and what that means; the first that fits counts.
_BY_FAULT = (
    ("(word ", Blame.NOT_UNDERSTOOD, "a field has a value that this emulator does not know"),
    ("state: expected", Blame.NOT_UNDERSTOOD, "a state that this emulator does not know is written"),
    ("FE opcode", Blame.NOT_UNDERSTOOD, "a command that this emulator does not know"),
    ("FE word", Blame.NOT_UNDERSTOOD, "a word of the command stream that is not a command"),
    ("LOAD_STATE", Blame.NOT_UNDERSTOOD, "a command that this emulator does not know"),
    ("GPU address", Blame.SUBMISSION, "a job reaches outside the buffers of its submit"),
    ("buffer flags", Blame.SUBMISSION, "a job uses a buffer against the submit's flags"),
    ("buffer address", Blame.SUBMISSION, "a buffer lies where the NPU cannot reach"),
    ("the emulator failed", Blame.EMULATOR, "the emulator itself failed"),
    ("post_multiplier", Blame.SUBMISSION, "the descriptor's scale is not the model's"),
    ("zero points of", Blame.SUBMISSION, "the descriptor's zero points are not the model's"),
    ("zero points and channels", Blame.NOT_UNDERSTOOD, "a job fits no operation of the model"),
    ("look-up table of", Blame.SUBMISSION, "the table in memory is not the operation's"),
    ("of a look-up job", Blame.NOT_UNDERSTOOD, "a look-up job of a kind that this emulator does not know"),
    ("sums of the ADD", Blame.SUBMISSION, "weights and bias in the stream are not those of the sum"),
    ("kernels an output channel", Blame.SUBMISSION, "the stream does not fit the descriptor"),
    ("depthwise channels", Blame.SUBMISSION, "a depthwise job has one kernel a channel of its input"),
    ("coefficient", Blame.SUBMISSION, "the stream does not fit the descriptor"),
    ("kernels_per_core", Blame.SUBMISSION, "the stream does not fit the descriptor"),
    ("written once", Blame.SUBMISSION, "a job writes a byte twice"),
    ("in_window_", Blame.SUBMISSION, "a job's window ends before it begins"),
    ("in_tile_", Blame.NOT_UNDERSTOOD, "a job's tiles do not fit its window"),
    ("_size: expected at least 1, found 0", Blame.NOT_UNDERSTOOD, "a job's image has no pixels"),
    ("_count: expected at least 1, found 0", Blame.NOT_UNDERSTOOD, "a job's loop has no steps"),
)  # fmt: skip


def blame_of(fault: str) -> tuple[Blame, str]:
    """Return who is to blame for a fault, and what the fault means; ``OPEN`` where nobody knows."""
    for text, blame, meaning in _BY_FAULT:
        if text in fault:
            return blame, meaning
    return Blame.OPEN, ""


def blamed(finding: Finding) -> Finding:
    """Return a fault's finding with its blame, where it has none yet."""
    if finding.blame is not Blame.OPEN:
        return finding
    blame, meaning = blame_of(str(finding))
    return replace(finding, blame=blame, evidence=finding.evidence or meaning)
