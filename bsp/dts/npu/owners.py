# SPDX-License-Identifier: MIT
"""Whether more than one driver would take the NPU of a device tree. Pure."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from ...base.errors import UserError
from ...catalog import plain_string
from ...profile import Npu, Vendor
from ..registers import Addresses, overlap
from ..tree import Tree
from .available import is_on


@dataclass(frozen=True)
class Owner:
    """A node by which some other driver would take the NPU.

    Attributes:
        compatible: the node's strings.
        driver: the vendor's driver, where it is known.
        same_registers: whether the node has registers of the NPU's own node.
    """

    path: str
    compatible: tuple[str, ...]
    driver: str | None
    same_registers: bool

    def __str__(self) -> str:
        whose = f", for {self.driver}" if self.driver else ""
        where = ", at the same registers" if self.same_registers else ""
        return f"{self.path} ({'; '.join(self.compatible)}{whose}{where})"


def vendor_of(tree: Tree, npu: Npu) -> tuple[str, Vendor] | None:
    """Return the node by which a vendor's kernel describes the NPU, and what is known about that.

    None if the tree has no such node. The compatible strings are the profile's ``[[npu.vendor]]``. A node
    of the NPU alone comes before one that it shares with GPUs, one that is on before one that is off.
    Vendors give the NPUs of several chips the same string (``allwinner,npu``): a node at other registers
    is of another chip.
    """
    addresses = Addresses(tree)
    nodes = [
        (path, vendor)
        for vendor in npu.vendor
        for path, node in tree.nodes.items()
        if "compatible" in node
        and _is_for(vendor, tree.strings(path, "compatible"))
        and (vendor.shared or not _is_elsewhere(addresses.of(path), npu))
    ]
    return min(nodes, key=lambda one: (one[1].shared, not is_on(tree, one[0])), default=None)


def npu_of_another_chip(tree: Tree, npu: Npu) -> str | None:
    """Return the node by which a vendor's kernel describes another chip's NPU, for the same driver."""
    addresses = Addresses(tree)
    return next(
        (
            path
            for vendor in npu.vendor
            for path, node in tree.nodes.items()
            if "compatible" in node
            and not vendor.shared
            and _is_for(vendor, tree.strings(path, "compatible"))
            and _is_elsewhere(addresses.of(path), npu)
        ),
        None,
    )


def _is_for(vendor: Vendor, compatible: list[str]) -> bool:
    """Whether a vendor's driver takes a node; ``amlogic,galcore`` is what ``amlogic, galcore`` means."""
    strings = set(map(plain_string, vendor.compatible))
    return not strings.isdisjoint(map(plain_string, compatible))


def _is_elsewhere(registers: list[tuple[int, int]], npu: Npu) -> bool:
    """Whether registers are known and are not the NPU's, whose address is in the name of its node."""
    address = int(npu.node.rpartition("@")[2], 16)
    return bool(registers) and not any(first <= address < end for first, end in registers)


def other_owners(tree: Tree, npu: Npu) -> list[Owner]:
    """Return the nodes by which another driver would take the NPU: a vendor's, or any at its registers.

    Only nodes that are switched on count, and the NPU's own: a vendor's driver takes those, too, where they
    have its string beside the free driver's.
    """
    own = (npu.node, *npu.more_nodes)
    addresses = Addresses(tree)
    registers = [each for path in own if path in tree.nodes for each in addresses.of(path)]
    owners = []
    for path, node in tree.nodes.items():
        if "compatible" not in node:
            continue
        if path in own:
            owners += _second_of(tree, path, npu)
            continue
        if _related(path, own):
            continue
        words = tree.strings(path, "compatible")
        vendor = next((each for each in npu.vendor if _is_for(each, words)), None)
        same = "reg" in node and overlap(registers, addresses.of(path))
        if (vendor or same) and is_on(tree, path):
            owners.append(Owner(path, tuple(words), vendor.driver if vendor else None, same))
    return owners


def refuse_two_owners(tree: Tree, npu: Npu, what: str) -> None:
    """Refuse a tree in which another driver would take the NPU beside the free one.

    Args:
        what: what the tree is, for the error.

    Raises:
        UserError: there is such a node; both are named.
    """
    if npu.compatible not in tree.strings(npu.node, "compatible"):
        return
    owners = other_owners(tree, npu)
    if not owners:
        return
    own = (npu.node, *npu.more_nodes)
    step = "take the vendor's string off" if owners[0].path in own else "switch the other node off"
    raise UserError(
        f"{what} gives the NPU two owners: {npu.node} ({npu.compatible}, for the free driver {npu.driver}) "
        f"and {' and '.join(map(str, owners))}. Only one driver can have it.",
        hint=f"{step}: "
        + "; ".join(_left_to_one(tree, owner, npu) for owner in owners[:3])
        + "; or take the device tree of an upstream kernel",
    )


def _second_of(tree: Tree, path: str, npu: Npu) -> list[Owner]:
    """Return the vendor's driver that takes one of the NPU's own nodes, if its strings name one."""
    words = tree.strings(path, "compatible")
    return [
        Owner(path, tuple(words), vendor.driver, same_registers=True)
        for vendor in npu.vendor
        if _is_for(vendor, words)
    ][:1]


def _left_to_one(tree: Tree, owner: Owner, npu: Npu) -> str:
    """Return the command that takes the NPU from a second owner."""
    if owner.path not in (npu.node, *npu.more_nodes):
        return f"fdtput -t s FILE.dtb {owner.path} status disabled"
    strange = {plain_string(word) for vendor in npu.vendor for word in vendor.compatible}
    kept = [
        word for word in tree.strings(owner.path, "compatible") if plain_string(word) not in strange
    ]
    return f"fdtput -t s FILE.dtb {owner.path} compatible {shlex.join(kept)}"


def _related(path: str, own: tuple[str, ...]) -> bool:
    """Whether a node is above or below one of the NPU's own."""
    return any(
        path == "/" or each.startswith(f"{path}/") or path.startswith(f"{each}/") for each in own
    )
