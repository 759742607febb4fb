# SPDX-License-Identifier: MIT
"""Patch series: which of them a board's kernel needs, and putting them into a copy of its source.

Each folder below ``patches/`` is a series: ``series.toml`` says for which kernels and SoCs, and the
patches apply in the order of their names. A patch applies as it is, without fuzz, or not at all; one that
the tree has already is left out.
"""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from ..base.compile.patching import Patch
from ..base.errors import UserError, nearest
from ..profile import Board

FOLDER = Path(__file__).with_name("patches")


class Mark(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a source contains that has made the same change in its own way.

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
    available = all_series()
    for name in experiments:
        if name not in available:
            raise UserError(
                f"there is no patch series {name!r}{nearest(name, list(available))}",
                hint=f"there are: {', '.join(available)}",
            )
    return [
        Patch(name, path)
        for name, series in available.items()
        if name in experiments
        or (
            kernel_series in series.kernels
            and not series.experiment
            and (not series.socs or board.soc in series.socs)
        )
        for path in sorted((FOLDER / name).glob("*.patch"))
    ]


def needed_by(tree: Path, patches: Sequence[Patch]) -> list[Patch]:
    """Leave out the series whose change the tree has made in its own way."""
    available = all_series()
    return [
        patch
        for patch in patches
        if not any(mark.is_in(tree) for mark in available[patch.series].already)
    ]
