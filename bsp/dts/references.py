# SPDX-License-Identifier: MIT
"""References from one node of a device tree to others: phandles with their arguments. Pure."""

from __future__ import annotations

from ..base.errors import UserError
from .tree import Tree


def references(
    tree: Tree, path: str, name: str, what: str | None = None, *, cells: str = "#clock-cells"
) -> list[tuple[int, ...]]:
    """Split a list of references into (phandle, arguments...), by each provider's number of cells.

    Args:
        what: what the tree is, for the error; None goes on where a phandle leads nowhere, as if that
            provider took no arguments.
        cells: the property of a provider that says how many arguments it takes.

    Raises:
        UserError: a phandle leads nowhere.
    """
    words = tree.cells(path, name)
    entries: list[tuple[int, ...]] = []
    counts = {0: 0}  # of each provider's arguments; an empty place (phandle 0) has none
    at = 0
    while at < len(words):
        phandle = words[at]
        if phandle not in counts:
            provider = tree.by_phandle(phandle)
            if provider is None and what is not None:
                raise UserError(
                    f"{what}: {name} of {path} names phandle {phandle:#x}, which no node has"
                )
            counts[phandle] = (tree.cells(provider or "", cells) or [0])[0]
        entries.append(tuple(words[at : at + 1 + counts[phandle]]))
        at += 1 + counts[phandle]
    return entries


def providers(tree: Tree, path: str, name: str, cells: str) -> list[str]:
    """Return the nodes that a list of references names, each once, without those that do not exist."""
    phandles = dict.fromkeys(entry[0] for entry in references(tree, path, name, cells=cells))
    nodes = (tree.by_phandle(phandle) for phandle in phandles)
    return [provider for provider in nodes if provider is not None]


def ancestors(path: str) -> list[str]:
    """Return the nodes above a node, nearest first; the root is left out."""
    words = path.split("/")[1:-1]
    return ["/" + "/".join(words[:count]) for count in range(len(words), 0, -1)]
