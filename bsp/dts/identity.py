# SPDX-License-Identifier: MIT
"""Whether a device tree is a board's own, by the strings of its root."""

from __future__ import annotations

from collections.abc import Sequence

from ..base.errors import UserError
from ..profile import (
    Board,
    board_names,
    load_board,
    load_soc,
    names_no_board,
    runs_as,
    soc_names,
)
from .owners import vendor_of
from .required_changes import Change, for_vendor, newer_kernel
from .tree import Tree


def check_identity(tree: Tree, board: Board, what: str, *, newer: str = "") -> None:
    """Refuse the device tree of another board.

    Args:
        what: what the tree is, for the error.
        newer: how to get an upstream tree, for the hint.

    Raises:
        UserError: the root's ``compatible`` does not name the board, or the profile's names none.
    """
    own = board.compatible[0]
    if names_no_board(own):
        raise UserError(
            f"the profile of {board.name} names no board: its first compatible string {own!r} is that of a "
            "chip or a module, which many boards have",
            hint="put a string of the board's own before it in the profile's 'compatible'",
        )
    if own not in tree.compatible and not _runs_as(tree, board):
        _refuse_another(tree, board, what, newer)
    lacking = set(load_soc(board.soc).without_npu) & set(tree.compatible)
    if lacking:
        raise UserError(
            f"{what} is of a relative of board {board.name} whose chip ({', '.join(lacking)}) has no NPU",
            hint="nothing can be enabled there, although the tree may have the node",
        )


def _runs_as(tree: Tree, board: Board) -> bool:
    return runs_as(board, tree.compatible, (tree.strings("/", "model") or [""])[0])


def names_another(compatible: Sequence[str], board: Board) -> bool:
    """Whether a root's strings name another board or chip that is known."""
    others = {each.compatible[0] for each in map(load_board, board_names())} - {board.compatible[0]}
    chips = {string for name in soc_names() for string in load_soc(name).compatible}
    return bool((others | chips - set(load_soc(board.soc).compatible)) & set(compatible))


def _refuse_another(tree: Tree, board: Board, what: str, newer: str) -> None:
    """Refuse a tree without the board's string, and say so where it is one for a vendor's kernel.

    Raises:
        UserError: always.
    """
    found = ", ".join(tree.compatible) or "nothing"
    npu = load_soc(board.soc).npu
    vendor = vendor_of(tree, npu) if npu and not names_another(tree.compatible, board) else None
    if npu is not None and vendor is not None:
        raise UserError(
            f"{for_vendor(what, vendor, npu)} Its root says {found}; an upstream tree of board "
            f"{board.name} says {board.compatible[0]!r}.",
            hint=newer or newer_kernel(npu),
        )
    raise UserError(
        f"{what} is of another board: board {board.name} is {board.compatible[0]!r}, "
        f"the tree says {found}",
        hint="./inv boards lists the boards; --board has to fit the tree",
    )


def own_name(tree: Tree, board: Board) -> list[Change]:
    """Return the change that gives a board's string to a tree that only has its maker's; else nothing."""
    if board.compatible[0] in tree.compatible or not _runs_as(tree, board):
        return []
    return [Change("/", "compatible", tuple(tree.compatible), board.compatible)]
