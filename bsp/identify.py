# SPDX-License-Identifier: MIT
"""Which profile a machine has, by its root ``compatible`` strings."""

from __future__ import annotations

from collections.abc import Sequence

from .base.errors import UserError
from .dts.required_changes import vendor_of
from .dts.tree import Tree
from .profile import Board, by_compatible, load_soc, soc_names


def identify(compatible: Sequence[str], *, what: str) -> Board:
    """Return the board whose own string comes first among a machine's ``compatible``.

    Args:
        what: the machine or tree, for the error.

    Raises:
        UserError: no profile is for it.
    """
    known = by_compatible()
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
    """Return the SoC with an NPU that the first known ``compatible`` string is of; None: none is known."""
    socs = [load_soc(name) for name in soc_names()]
    for word in compatible:
        for soc in socs:
            if word in soc.without_npu:
                return None
            if word in soc.compatible:
                return soc.name
    return None


def vendor_words(tree: Tree) -> str:
    """Say which vendor's driver a tree is for, by the nodes that only such kernels have; else nothing."""
    for name in soc_names():
        npu = load_soc(name).npu
        found = vendor_of(tree, npu) if npu else None
        if found:
            path, vendor = found
            return f"its node {path} is for the vendor's NPU driver {vendor.driver}"
    return ""
