# SPDX-License-Identifier: MIT
"""What is switched off in a device tree among all that the NPU needs before Linux can drive it. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ...base.errors import UserError
from ...profile import Npu
from ..references import ancestors, providers, references
from ..tree import Tree

# Properties of the NPU's node by which it names others, the provider's count of arguments, and what the
# other one is. A regulator (NAME-supply) takes no arguments.
_NEEDED = (
    ("power-domains", "#power-domain-cells", "power domain"),
    ("clocks", "#clock-cells", "clock provider"),
    ("resets", "#reset-cells", "reset controller"),
    ("iommus", "#iommu-cells", "IOMMU"),
)
_MOST_DOMAINS = 16  # one above the other; a tree in which they form a circle ends there


@dataclass(frozen=True)
class Unavailable:
    """A node that is not switched on.

    Attributes:
        status: its ``status``; empty where the property has no value.
        role: what it is to the NPU, such as ``power domain``; ``NPU`` for its own nodes.
    """

    path: str
    status: str
    role: str

    def __str__(self) -> str:
        status = f'"{self.status}"' if self.status else "empty"
        return f"{self.path} ({self.role}) has the status {status}"


def unavailable(tree: Tree, npu: Npu) -> list[Unavailable]:
    """Return what is off among the NPU's nodes, the nodes above them, and what they refer to.

    The NPU's own nodes come first. Nodes that the tree does not have are left out: what is not there is
    another error.
    """
    by_path: dict[str, Unavailable] = {}
    for path, role in _needed(tree, npu):
        if path in tree.nodes and path not in by_path and not tree.is_available(path):
            by_path[path] = Unavailable(path, tree.status(path), role)
    return list(by_path.values())


def refuse_dangling(tree: Tree, npu: Npu, what: str, hint: str) -> None:
    """Refuse a tree in which something that the NPU needs is named and is not there.

    Args:
        what: what the tree is, for the error.
        hint: how to get a better one.

    Raises:
        UserError: a phandle leads nowhere.
    """
    for path in (npu.node, *npu.more_nodes):
        needed = [(name, cells) for name, cells, _ in _NEEDED]
        supplies = [(name, "") for name in tree.nodes.get(path, {}) if name.endswith("-supply")]
        for name, cells in needed + supplies:
            for phandle, *_ in references(tree, path, name, cells=cells):
                provider = tree.by_phandle(phandle)
                if phandle and provider is None:
                    raise UserError(
                        f"{what}: {name} of {path} names phandle {phandle:#x}, which no node has",
                        hint=hint,
                    )
                if provider and tree.get(provider, cells) is None:
                    break  # how long its entry is cannot be told


def is_on(tree: Tree, path: str) -> bool:
    """Whether a node becomes a device: it and all above it are switched on."""
    return all(tree.is_available(each) for each in (path, *ancestors(path)))


def _needed(tree: Tree, npu: Npu) -> Iterator[tuple[str, str]]:
    """Paths and roles, as far as the tree leads to them."""
    own = (npu.node, *npu.more_nodes)
    yield from ((path, "NPU") for path in own)
    for path in own:
        yield from _above(path, "the NPU")
    for path in own:
        for name, cells, role in _NEEDED:
            for provider in providers(tree, path, name, cells):
                yield provider, role
                yield from _above(provider, f"the {role}")
                if role == "power domain":
                    yield from _domains_above(tree, provider)
        for name in tree.nodes.get(path, {}):
            if name.endswith("-supply"):
                for provider in providers(tree, path, name, ""):
                    yield provider, "supply"
                    yield from _above(provider, "the supply")


def _above(path: str, whose: str) -> Iterator[tuple[str, str]]:
    yield from ((each, f"above {whose}") for each in ancestors(path))


def _domains_above(tree: Tree, domain: str) -> Iterator[tuple[str, str]]:
    """Power domains that a power domain is itself in."""
    waiting = [domain]
    for _ in range(_MOST_DOMAINS):
        if not waiting:
            return
        for parent in providers(tree, waiting.pop(), "power-domains", "#power-domain-cells"):
            yield parent, "power domain"
            yield from _above(parent, "the power domain")
            waiting.append(parent)
