# SPDX-License-Identifier: MIT
"""Whether a device tree is a board's own, by the strings of its root."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...base.errors import UserError
from ...catalog import (
    load_soc,
    names_no_board,
    npu_of,
    plain_string,
    runs_as,
    soc_names,
)
from ...profile import Board
from ...readable_boards import readable_boards
from ..npu.available import unavailable
from ..npu.owners import refuse_two_owners, vendor_of
from ..npu.required_changes import Change, for_vendor, newer_kernel
from ..npu.resources import refuse_defects
from ..tree import Tree
from .given import board_tree

OTHER_BOARD = "./inv boards lists the boards; --board has to fit the tree"


def check_identity(
    tree: Tree, board: Board, what: str, *, newer: str = "", derived: bool = False
) -> None:
    """Refuse the device tree of another board.

    Args:
        what: what the tree is, for the error.
        newer: how to get an upstream tree, for the hint.
        derived: it may be of a board that was derived from this one.

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
    if own in tree.compatible[1:] and not derived:
        raise UserError(
            f"{what} is of another board, which was derived from {board.name}: its root says "
            f"{', '.join(tree.compatible)}",
            hint="./inv new-board NAME --from-dtb FILE (or --from-host HOST) writes a profile for it",
        )
    lacking = set(load_soc(board.soc).without_npu) & set(map(plain_string, tree.compatible))
    if lacking:
        raise UserError(
            f"{what} is of a relative of board {board.name} whose chip ({', '.join(lacking)}) has no NPU",
            hint="nothing can be enabled there, although the tree may have the node",
        )


def _runs_as(tree: Tree, board: Board) -> bool:
    return runs_as(board, tree.compatible, (tree.strings("/", "model") or [""])[0])


def names_another(compatible: Sequence[str], board: Board) -> bool:
    """Whether a root's strings name another board or chip that is known."""
    own = load_soc(board.soc)
    others = {each.compatible[0] for each in readable_boards()} - {board.compatible[0]}
    chips = {string for name in soc_names() for string in load_soc(name).compatible}
    strangers = others | chips - set(own.compatible) | set(own.without_npu)
    return bool(strangers & {plain_string(string) for string in compatible})


def _refuse_another(tree: Tree, board: Board, what: str, newer: str) -> None:
    """Refuse a tree without the board's string, and say so where it is one for a vendor's kernel.

    Raises:
        UserError: always.
    """
    root = ", ".join(tree.compatible) or "nothing"
    npu = load_soc(board.soc).npu
    vendor = vendor_of(tree, npu) if npu and not names_another(tree.compatible, board) else None
    if npu is not None and vendor is not None:
        raise UserError(
            f"{for_vendor(what, vendor, npu)} Its root says {root}; an upstream tree of board "
            f"{board.name} says {board.compatible[0]!r}.",
            hint=newer or newer_kernel(npu),
        )
    raise UserError(
        f"{what} is of another board than {board.name}: expected root compatible "
        f"{board.compatible[0]!r}, found {', '.join(map(repr, tree.compatible)) or 'none'}",
        hint=OTHER_BOARD,
    )


def own_name(tree: Tree, board: Board) -> list[Change]:
    """Return the change that gives a board's string to a tree that only has its maker's; else nothing."""
    if board.compatible[0] in tree.compatible or not _runs_as(tree, board):
        return []
    return [Change("/", "compatible", tuple(tree.compatible), board.compatible)]


def dtb_of_board(path: Path, board: Board, *, flag: str = "--dtb") -> bytes:
    """Return the content of a DTB that a board is to boot with as it is.

    Args:
        flag: what the file was named with, for the hint.

    Raises:
        UserError: it is not a device tree, another board's, or gives the NPU two owners or none.
    """
    blob, tree = board_tree(path, flag=flag)
    check_identity(tree, board, str(path))
    npu = npu_of(board)
    if npu is not None and npu.enabled:
        refuse_two_owners(tree, npu, str(path))
        if npu.compatible in tree.strings(npu.node, "compatible") and not unavailable(tree, npu):
            refuse_defects(tree, npu, str(path), newer_kernel(npu))
    return blob
