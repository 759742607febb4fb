# SPDX-License-Identifier: MIT
"""Patch series: which of them a board's kernel needs, and putting them into a copy of its source.

Each folder below ``patches/`` is a series: ``series.toml`` says for which kernels and SoCs, and the
patches apply in the order of their names. A patch applies as it is, without fuzz, or not at all; one that
the tree has already is left out.
"""

from __future__ import annotations

import functools
import hashlib
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from msgspec import Struct

from ..base.errors import UserError, nearest
from ..base.process import run
from ..base.progress import step
from ..profile import Board

FOLDER = Path(__file__).with_name("patches")


class Mark(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a source says that has the same change in words of its own.

    Attributes:
        file: path in the source.
        matches: regular expression; a dot is any character, and a line's end too.
    """

    file: str
    matches: str

    def is_in(self, tree: Path) -> bool:
        """Whether the file is there and says so."""
        try:
            text = (tree / self.file).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return False
        return re.search(self.matches, text, re.DOTALL) is not None


class Series(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``series.toml``.

    Attributes:
        kernels: series of kernels (``6.5``) that need it.
        socs: whose boards need it; empty: all.
        already: by what a source is recognised that needs none of it.
        experiment: it is left out unless asked for by name.
        why: what is wrong without it.
        source: where the facts are from.
    """

    format: int
    title: str
    kernels: tuple[str, ...]
    socs: tuple[str, ...] = ()
    already: tuple[Mark, ...] = ()
    experiment: bool = False
    why: str
    source: str


@dataclass(frozen=True)
class Patch:
    """One patch of one series."""

    series: str
    path: Path

    @property
    def name(self) -> str:
        """``SERIES/NNNN-what.patch``."""
        return f"{self.series}/{self.path.name}"


@functools.cache
def all_series() -> dict[str, Series]:
    """Return the patch series by name."""
    return {
        file.parent.name: msgspec.convert(tomllib.loads(file.read_text(encoding="utf-8")), Series)
        for file in sorted(FOLDER.glob("*/series.toml"))
    }


def patches_for(board: Board, kernel_series: str, experiments: Sequence[str] = ()) -> list[Patch]:
    """Return the patches for a board's kernel, in order.

    Raises:
        UserError: an experiment that is asked for does not exist.
    """
    known = all_series()
    for name in experiments:
        if name not in known:
            raise UserError(
                f"there is no patch series {name!r}{nearest(name, list(known))}",
                hint=f"there are: {', '.join(known)}",
            )
    return [
        Patch(name, path)
        for name, series in known.items()
        if name in experiments
        or (
            kernel_series in series.kernels
            and not series.experiment
            and (not series.socs or board.soc in series.socs)
        )
        for path in sorted((FOLDER / name).glob("*.patch"))
    ]


def key_of(patches: Sequence[Patch]) -> str:
    """Return what tells one list of patches from another; empty for none."""
    if not patches:
        return ""
    digest = hashlib.sha256()
    for patch in patches:
        digest.update(patch.path.read_bytes())
    return digest.hexdigest()[:12]


def needed_by(tree: Path, patches: Sequence[Patch]) -> list[Patch]:
    """Leave out the series whose change the tree has in words of its own."""
    known = all_series()
    return [
        patch
        for patch in patches
        if not any(mark.is_in(tree) for mark in known[patch.series].already)
    ]


def missing_from(tree: Path, patches: Sequence[Patch]) -> list[Patch]:
    """Return the patches that the tree does not have already; looks at each alone."""
    return [patch for patch in patches if not _is_in(tree, patch.path)]


def apply_all(tree: Path, patches: Sequence[Patch]) -> list[Patch]:
    """Put patches into a tree, which is ours to write to; return those that were not there already.

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
                    f"the patch {patch.name} does not apply to this kernel: {problem}",
                    hint="it was made for another kernel: rebase it (git rebase, then git format-patch), "
                    f"or correct the kernels that {patch.series}/series.toml names",
                )
            run([*_command(tree, patch.path), "--no-backup-if-mismatch"])
        applied.append(patch)
    return applied


def failure(tree: Path, patch: Path) -> str:
    """Return which hunk of which file does not apply, and where; empty if all do."""
    done = run([*_command(tree, patch), "--dry-run"], check=False)
    if done.exit_code == 0:
        return ""
    said = done.stdout.decode(errors="replace") + done.stderr.decode(errors="replace")
    problems = []
    file = "?"
    for line in said.splitlines():
        started = re.match(r"(?:checking|patching) file '?([^']+)'?$", line)
        hunk = re.match(r"Hunk #(\d+) (?:FAILED|ignored) at (\d+)", line)
        if started:
            file = started.group(1)
        elif hunk:
            problems.append(f"hunk {hunk.group(1)} of {file} (line {hunk.group(2)})")
        elif "can't find file to patch" in line:
            names = re.findall(r"^\|?\+\+\+ b?/?(\S+)", said, re.M)
            problems.append(f"there is no file {names[-1] if names else ''}".rstrip())
        elif "Reversed (or previously applied)" in line:
            problems.append(f"{file} has a part of it already")
        elif "malformed patch" in line or "Only garbage" in line:
            problems.append(line.strip(" *"))
    return "; ".join(dict.fromkeys(problems)) or (said.strip().splitlines() or ["patch failed"])[-1]


def _is_in(tree: Path, patch: Path) -> bool:
    """Whether it could be taken out."""
    words = [*_command(tree, patch), "--dry-run", "--reverse"]
    return run(words, check=False).exit_code == 0


def _command(tree: Path, patch: Path) -> list[str | Path]:
    return ["patch", "--strip=1", "--fuzz=0", "--force", "--reject-file=-",
            "--directory", tree, "--input", patch.absolute()]  # fmt: skip
