# SPDX-License-Identifier: MIT
"""Which profile a machine has, by its root ``compatible`` strings."""

from __future__ import annotations

from collections.abc import Sequence

from ..base.errors import UserError
from ..profile import Board, board_names, load_board


def identify(compatible: Sequence[str], *, what: str) -> Board:
    """Return the board whose own string comes first among a machine's ``compatible``.

    Args:
        what: the machine or tree, for the error.

    Raises:
        UserError: no profile is for it.
    """
    known = {board.compatible[0]: board for board in map(load_board, board_names())}
    for word in compatible:
        if word in known:
            return known[word]
    soc = soc_of(compatible)
    raise UserError(
        f"{what} is {', '.join(compatible) or 'nothing that says what it is'}, which no profile is for"
        + (f"; its SoC {soc} is known" if soc else ""),
        hint="./inv new-board NAME --from-host H (or --from-dtb F) writes one"
        if soc
        else "./inv boards lists the boards; --board says which one it is",
    )


def soc_of(compatible: Sequence[str]) -> str | None:
    """Return the SoC that the most specific known ``compatible`` string belongs to; None: none does."""
    known: dict[str, set[str]] = {}
    for board in map(load_board, board_names()):
        for word in board.compatible[1:]:
            known.setdefault(word, set()).add(board.soc)
    for word in compatible:
        if len(known.get(word, ())) == 1:
            return next(iter(known[word]))
    return None
