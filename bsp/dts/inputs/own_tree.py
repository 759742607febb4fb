# SPDX-License-Identifier: MIT
"""What the device tree beside a profile says of the NPU, in the words of ``board`` and ``boards``.

It is read with the functions of ``build-dts``, so that all three say the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...base.errors import UserError
from ...profile import Board, Npu
from ..npu.owners import refuse_two_owners, vendor_of
from ..npu.required_changes import plan_changes
from ..npu.switched_off import refuse_switched_off
from .given import board_tree
from .identity import OTHER_BOARD, check_identity
from .upstream import newer_tree

State = Literal[
    "no tree",  # the file cannot be read, or is of another board
    "vendor tree",  # it describes the NPU for a vendor's driver
    "no node",  # it does not describe the NPU
    "supply missing",  # or more than build-dts can add
    "two owners",  # another driver would take the NPU, too
    "switched off",  # somebody switched the NPU off on purpose: build-dts asks before it switches it on
    "enable",  # build-dts switches the NPU on, or sets its rates
    "works",  # nothing has to change
]


@dataclass(frozen=True)
class OwnTree:
    """A device tree beside a profile.

    Attributes:
        why: what is wrong with it, in words; empty: nothing.
        hint: what to do about that.
    """

    file: Path
    state: State
    why: str = ""
    hint: str = ""

    @property
    def usable(self) -> bool:
        """Whether ``build-dts`` makes a tree of it with which the NPU can work."""
        return self.state in ("enable", "works", "switched off")


def own_tree(board: Board, npu: Npu) -> OwnTree | None:
    """Return what a board's own device tree says; None where its tree comes from elsewhere."""
    if board.dts is not None or board.dtb is None:
        return None
    file = Path(board.dtb)
    hint = newer_tree(board, npu, file)
    try:
        _, tree = board_tree(file, flag="dtb =")
        check_identity(tree, board, file.name, newer=hint)
    except UserError as error:
        advice = error.hint
        if advice == OTHER_BOARD:
            advice = (
                f"put this board's tree in place of {file}, or correct 'compatible' in the profile"
            )
        return OwnTree(file, "no tree", error.message, advice)
    has_node = npu.compatible in tree.strings(npu.node, "compatible")
    try:
        changes = plan_changes(tree, npu, what=file.name, newer=hint)
    except UserError as error:
        state: State = "supply missing" if has_node else "no node"
        if not has_node and vendor_of(tree, npu) is not None:
            state = "vendor tree"
        return OwnTree(file, state, error.message, error.hint)
    if npu.enabled:
        try:
            refuse_two_owners(tree, npu, file.name)
        except UserError as error:
            return OwnTree(file, "two owners", error.message, error.hint)
        try:
            refuse_switched_off(tree, board, npu, what=file.name, series=None, from_source=False)
        except UserError as error:
            return OwnTree(file, "switched off", error.message, error.hint)
    return OwnTree(file, "enable" if changes else "works")
