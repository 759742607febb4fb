# SPDX-License-Identifier: MIT
"""Patches, put into a copy of a source: as they are, without fuzz, or not at all.

One that the source has already is left out, so what is upstream later drops out by itself.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from ..process import run
from ..progress import step


@dataclass(frozen=True)
class Patch:
    """One patch of one series."""

    series: str
    path: Path

    @property
    def name(self) -> str:
        """``SERIES/NNNN-what.patch``."""
        return f"{self.series}/{self.path.name}"


def key_of(patches: Sequence[Patch]) -> str:
    """Return what tells one list of patches from another; empty for none."""
    if not patches:
        return ""
    digest = hashlib.sha256()
    for patch in patches:
        digest.update(patch.path.read_bytes())
    return digest.hexdigest()[:12]


def missing_from(tree: Path, patches: Sequence[Patch]) -> list[Patch]:
    """Return the patches that the tree does not have already; looks at each alone."""
    return [patch for patch in patches if not _is_in(tree, patch.path)]


def apply_all(
    tree: Path, patches: Sequence[Patch], what: str = "kernel", correct: str = "the kernels"
) -> list[Patch]:
    """Put patches into a tree, which is ours to write to; return those that were not there already.

    Args:
        what: whose source it is, for messages; correct: what of ``series.toml`` may be wrong.

    Raises:
        UserError: one does not apply; which hunk of which file. The tree is then of no use.
    """
    applied = []
    for patch in patches:
        if _is_in(tree, patch.path):
            continue
        with step(f"Patching: {patch.path.name}"):
            problem = failure(tree, patch.path)
            if problem:
                raise UserError(
                    f"the patch {patch.name} does not apply to this {what}: {problem}",
                    hint=f"it was made for another {what}: rebase it (git rebase, then git format-patch), "
                    f"or correct {correct} that {patch.series}/series.toml names",
                )
            run([*_command(tree, patch.path), "--no-backup-if-mismatch"])
        applied.append(patch)
    return applied


def failure(tree: Path, patch: Path) -> str:
    """Return which hunk of which file does not apply, and where; empty if all do."""
    done = run([*_command(tree, patch), "--dry-run"], check=False)
    if done.exit_code == 0:
        return ""
    output = done.stdout.decode(errors="replace") + done.stderr.decode(errors="replace")
    problems = []
    file = "?"
    for line in output.splitlines():
        started = re.match(r"(?:checking|patching) file '?([^']+)'?$", line)
        hunk = re.match(r"Hunk #(\d+) (?:FAILED|ignored) at (\d+)", line)
        if started:
            file = started.group(1)
        elif hunk:
            problems.append(f"hunk {hunk.group(1)} of {file} (line {hunk.group(2)})")
        elif "can't find file to patch" in line:
            names = re.findall(r"^\|?\+\+\+ b?/?(\S+)", output, re.M)
            problems.append(f"there is no file {names[-1] if names else ''}".rstrip())
        elif "Reversed (or previously applied)" in line:
            problems.append(f"{file} has a part of it already")
        elif "malformed patch" in line or "Only garbage" in line:
            problems.append(line.strip(" *"))
    return (
        "; ".join(dict.fromkeys(problems)) or (output.strip().splitlines() or ["patch failed"])[-1]
    )


def _is_in(tree: Path, patch: Path) -> bool:
    """Whether it could be taken out."""
    words = [*_command(tree, patch), "--dry-run", "--reverse"]
    return run(words, check=False).exit_code == 0


def _command(tree: Path, patch: Path) -> list[str | Path]:
    return ["patch", "--strip=1", "--fuzz=0", "--force", "--reject-file=-",
            "--directory", tree, "--input", patch.absolute()]  # fmt: skip
