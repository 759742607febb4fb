# SPDX-License-Identifier: MIT
"""Whether the NPU's nodes have what any driver needs to take them: registers and an interrupt. Pure.

A driver's probe fails where one is absent (``devm_platform_ioremap_resource`` and ``platform_get_irq`` in
drivers/base/platform.c), and finds nothing, or hangs the bus, where the registers are somewhere else.
"""

from __future__ import annotations

from collections.abc import Iterator

from ...base.errors import UserError
from ...profile import Npu
from ..references import references
from ..registers import Addresses, cells_below
from ..tree import Tree

# Properties by which a node names others, and the provider's count of arguments.
_LISTS = (
    ("power-domains", "#power-domain-cells"),
    ("clocks", "#clock-cells"),
    ("resets", "#reset-cells"),
    ("iommus", "#iommu-cells"),
)


def defects(tree: Tree, npu: Npu) -> list[str]:
    """Return what is wrong with the resources of the NPU's nodes, in words; empty: nothing.

    Nodes that the tree does not have are left out: what is not there is another error.
    """
    addresses = Addresses(tree)
    wrong: list[str] = []
    for path in (npu.node, *npu.more_nodes):
        if path in tree.nodes:
            wrong += [f"{path} {each}" for each in _of_node(tree, path, addresses)]
    if npu.node in tree.nodes:
        names = tree.strings(npu.node, "clock-names")
        wrong += [
            f"{npu.node} has no clock {clock.name!r} (clock-names: {', '.join(names) or 'none'})"
            for clock in npu.clocks
            if clock.name not in names
        ]
    return wrong


def refuse_defects(tree: Tree, npu: Npu, what: str, hint: str) -> None:
    """Refuse a tree in which no driver could take the NPU.

    Args:
        what: what the tree is, for the error.
        hint: how to get a better one.

    Raises:
        UserError: as :func:`defects` says.
    """
    wrong = defects(tree, npu)
    if wrong:
        raise UserError(f"{what}: no driver can take the NPU: {'; '.join(wrong)}", hint=hint)


def _of_node(tree: Tree, path: str, addresses: Addresses) -> Iterator[str]:
    yield from _registers(tree, path, addresses)
    yield from _interrupts(tree, path)
    for name, cells in _LISTS:
        entries = references(tree, path, name, cells=cells)
        for phandle, *arguments in entries:
            provider = tree.by_phandle(phandle)
            if not phandle or provider is None:
                continue
            count = tree.cells(provider, cells)
            if not count:
                yield f"names {provider} in {name}, which has no {cells}"
                break
            if len(arguments) < count[0]:
                yield f"has {name} that end within an entry: {provider} takes {count[0]} cells"
        if len(tree.get(path, name) or b"") % 4:
            yield f"has {name} that are no cells"
    clocks, names = references(tree, path, "clocks"), tree.strings(path, "clock-names")
    if len(names) > len(clocks):
        yield f"has {len(names)} clock-names for {len(clocks)} clocks"


def _registers(tree: Tree, path: str, addresses: Addresses) -> Iterator[str]:
    value = tree.get(path, "reg")
    if not value:
        yield "has no registers (reg)"
        return
    address_cells, size_cells = cells_below(tree, path.rpartition("/")[0] or "/")
    if len(value) % (4 * (address_cells + size_cells)):
        yield (
            f"has a reg of {len(value) / 4:g} cells, and its bus has {address_cells} for an address and "
            f"{size_cells} for a size"
        )
        return
    expected = int(path.rpartition("@")[2], 16)
    first = addresses.first(path)
    if first is None:
        yield "has a reg that is at no address of the CPU"
    elif first[0] != expected:
        yield f"has its registers at {first[0]:#x}, not at {expected:#x}"


def _interrupts(tree: Tree, path: str) -> Iterator[str]:
    extended = tree.get(path, "interrupts-extended")
    if extended:
        for phandle, *arguments in references(
            tree, path, "interrupts-extended", cells="#interrupt-cells"
        ):
            controller = tree.by_phandle(phandle)
            count = tree.cells(controller or "", "#interrupt-cells")
            if not count or len(arguments) < count[0]:
                yield "has interrupts-extended that name no interrupt of a controller"
                return
        return
    value = tree.get(path, "interrupts")
    if not value:
        yield "has no interrupts"
        return
    controller = _interrupt_parent(tree, path)
    if controller is None:
        yield "has interrupts, and no node above it names a controller (interrupt-parent)"
        return
    each = tree.cells(controller, "#interrupt-cells")[0]
    if not each or len(value) % (4 * each):
        yield f"has interrupts of {len(value) / 4:g} cells, and {controller} takes {each} for each"


def _interrupt_parent(tree: Tree, path: str) -> str | None:
    """Return the controller of a node's interrupts, as ``of_irq_find_parent`` in drivers/of/irq.c does."""
    passed = set()
    node: str | None = path
    while node is not None and node not in passed:
        passed.add(node)
        phandle = tree.cells(node, "interrupt-parent")
        if phandle:
            node = tree.by_phandle(phandle[0])
        else:
            node = None if node == "/" else node.rpartition("/")[0] or "/"
        if node is not None and tree.cells(node, "#interrupt-cells"):
            return node
    return None
