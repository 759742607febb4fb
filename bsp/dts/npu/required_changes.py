# SPDX-License-Identifier: MIT
"""What a device tree lacks for the NPU: the smallest set of changes, or a refusal. Pure."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from ...base.errors import UserError
from ...kernel.distribution import all_series, series_key
from ...profile import Clock, Npu, Vendor
from ..references import references
from ..tree import Tree
from .available import refuse_dangling, unavailable
from .owners import vendor_of
from .resources import refuse_defects

Value = str | tuple[str, ...] | tuple[int, ...]


@dataclass(frozen=True)
class Change:
    """One property that is to have another value.

    Attributes:
        path: the node.
        property: the property's name.
        before: its value in the base tree: a string, strings, cells, or None where it is absent.
        after: its new value.
        labels: (index, label) of those cells in ``after`` that are references to nodes.
        of_this_tree: some are references to nodes without a label, by phandles that only this tree has.
    """

    path: str
    property: str
    before: Value | None
    after: Value
    labels: tuple[tuple[int, str], ...] = ()
    of_this_tree: bool = False

    def after_bytes(self) -> bytes:
        """Return the new value as it stands in a DTB."""
        if is_text(self.after):
            return b"".join(text.encode() + b"\0" for text in texts(self.after))
        return struct.pack(f">{len(self.after)}I", *self.after)


def is_text(value: Value) -> bool:
    """Whether a value is one or several strings, and not cells."""
    return isinstance(value, str) or (bool(value) and isinstance(value[0], str))


def texts(value: Value) -> tuple[str, ...]:
    """Return the strings of a value that is text."""
    return (value,) if isinstance(value, str) else tuple(str(text) for text in value)


def plan_changes(
    tree: Tree, npu: Npu, *, what: str, lacks: tuple[str, ...] = (), newer: str = ""
) -> list[Change]:
    """Return the changes that make the tree what the profile wants; empty if it is so already.

    All that is off and that the NPU needs is switched on: whether that is right is asked before
    (``switched_off.py``).

    Args:
        tree: the base tree.
        npu: what is wanted.
        what: what the tree is, for errors (``the device tree of Linux 6.1.176``).
        lacks: what the kernel source was found to lack, in words.
        newer: how to get a newer tree, for the hint; empty: take a newer kernel's.

    Raises:
        UserError: the tree lacks more than properties, or a rate cannot be reached.
    """
    newer = newer or newer_kernel(npu)
    if npu.compatible not in tree.strings(npu.node, "compatible"):
        _refuse_without_node(tree, npu, what, lacks, newer)
    missing = [name for name in npu.requires if not tree.get(npu.node, name)]
    if missing and npu.enabled:
        supplies = [name for name in missing if name.endswith("-supply")]
        raise UserError(
            f"{what}: node {npu.node} has no {' and no '.join(missing)}",
            hint="which regulator feeds the NPU is written in the board's own device tree only; "
            "its maker or its schematic knows"
            if supplies == missing
            else newer,
        )
    for node in npu.more_nodes:
        if node not in tree.nodes:
            raise UserError(f"{what} has no node {node}, which the NPU needs", hint=newer)
    if npu.enabled:
        refuse_dangling(tree, npu, what, newer)
        refuse_defects(tree, npu, what, newer)
        paths = [each.path for each in unavailable(tree, npu)]
    else:
        paths = [node for node in (npu.node, *npu.more_nodes) if tree.is_available(node)]
    changes = [_status_change(tree, path, "okay" if npu.enabled else "disabled") for path in paths]
    if npu.enabled:
        changes += _rate_changes(tree, npu, what, newer)
        changes += _rates_of_other_nodes(tree, npu, what)
    return changes


def _status_change(tree: Tree, path: str, after: str) -> Change:
    before = None if tree.get(path, "status") is None else tree.status(path)
    return Change(path, "status", before, after)


def for_vendor(what: str, vendor: tuple[str, Vendor], npu: Npu) -> str:
    """Say that a tree is for a vendor's kernel.

    Args:
        vendor: what :func:`vendor_of` returned.
    """
    path, maker = vendor
    return (
        f"{what} is for a vendor's kernel: its NPU is {path} ({', '.join(maker.compatible)}), "
        f"for the vendor's driver {maker.driver}. The free driver {npu.driver} wants a node "
        f"{npu.node} with clocks and power domains of the upstream kernel."
    )


def _refuse_without_node(
    tree: Tree, npu: Npu, what: str, lacks: tuple[str, ...], newer: str
) -> None:
    vendor = vendor_of(tree, npu)
    if vendor is not None:
        raise UserError(for_vendor(what, vendor, npu), hint=newer)
    others = tree.strings(npu.node, "compatible")
    if others:
        raise UserError(
            f"{what} has no NPU at {npu.node} for the driver {npu.driver}: the node says "
            f"{', '.join(map(repr, others))}, not {npu.compatible!r}: somebody changed it, or the tree "
            "is for another driver",
            hint=f"the node has to be as in an upstream kernel, without overlays that change it: {newer}",
        )
    if npu.on_by_default and npu.rates_node in tree.nodes:
        by = npu.switched_off
        raise UserError(
            f"{what} has no NPU at {npu.node} (compatible {npu.compatible!r}), but {npu.rates_node}, which "
            "kernels have for nothing else. So somebody took the NPU's node out: a bootloader, an overlay, "
            "or who made this tree"
            + (f"; {by.by} is known to switch it off: {by.why}" if by else ""),
            hint=f"if the chip has an NPU (it is written on it, and in its order code): {newer}",
        )
    raise UserError(
        f"{what} has no NPU at {npu.node} (compatible {npu.compatible!r}): enabling it takes "
        f"more than device tree.\nmissing: {', '.join(lacks) or npu.kernel_lacks}",
        hint=newer,
    )


def newer_kernel(npu: Npu) -> str:
    """Return the hint for a kernel that is too old: the first packaged one that is not."""
    since = npu.kernel_since
    if since is None:
        return "no kernel so far drives this NPU"
    fit = [name for name in all_series() if series_key(name)[:2] >= series_key(since)]
    return f"take Linux {since} or later: --kernel {fit[0] if fit else 'tarball:URL#sha256=...'}"


def rates(tree: Tree, npu: Npu) -> list[tuple[str, int | None]]:
    """Return each clock's name and the rate in hertz that the tree asks for; None: it asks for none."""
    node = npu.rates_node or npu.node
    assigned_hz = tree.cells(node, "assigned-clock-rates")
    try:
        assigned = [entry[1:] for entry in references(tree, node, "assigned-clocks", npu.node)]
    except UserError:
        assigned = []
    pairs: list[tuple[str, int | None]] = []
    for clock in npu.clocks:
        at = assigned.index((clock.cell,)) if (clock.cell,) in assigned else len(assigned_hz)
        pairs.append((clock.name, (assigned_hz[at] or None) if at < len(assigned_hz) else None))
    return pairs


def assigned_parent(tree: Tree, npu: Npu, clock: Clock, what: str) -> int | None:
    """Return the number of the parent that the tree chooses for a clock; None if it chooses none.

    Raises:
        UserError: the tree's lists of clocks are damaged.
    """
    node = npu.rates_node or npu.node
    assigned = references(tree, node, "assigned-clocks", what)
    parents = references(tree, node, "assigned-clock-parents", what)
    for entry, parent in zip(assigned, parents, strict=False):
        if entry[1:] == (clock.cell,) and len(parent) > 1:
            return parent[1]
    return None


def _refuse_unreachable(clock: Clock, rate_hz: int, parent_cell: int | None) -> None:
    reachable = clock.reachable_hz(parent_cell)
    # The kernel rounds fractions of a hertz in its own way: 666666666 or 666666667 are both meant.
    if not reachable or any(abs(rate_hz - other_hz) <= 1 for other_hz in reachable):
        return
    near = sorted(reachable, key=lambda other_hz: abs(other_hz - rate_hz))[:6]
    raise UserError(
        f"the NPU's clock {clock.name!r} cannot run at {rate_hz} Hz: no parent clock reaches that, "
        "and the kernel would silently take another rate.\nreachable near it: "
        f"{', '.join(str(other_hz) for other_hz in sorted(near, reverse=True))} Hz",
        hint="set one of these in the board's [npu.rates_hz] or the SoC's [[npu.clocks]]",
    )


def _rate_changes(tree: Tree, npu: Npu, what: str, newer: str) -> list[Change]:
    node = npu.rates_node or npu.node
    if node not in tree.nodes:
        raise UserError(
            f"{what} has no node {node}, where the NPU's clock rates are assigned",
            hint=newer,
        )
    if tree.get(node, "assigned-clock-rates-u64") is not None:
        raise UserError(f"{what}: {node} assigns 64-bit clock rates, which are not supported")
    assigned = references(tree, node, "assigned-clocks", what)
    parents = references(tree, node, "assigned-clock-parents", what)
    old_assigned, old_parents = list(assigned), list(parents)
    old_rates = tree.cells(node, "assigned-clock-rates")
    new_rates = list(old_rates)
    for clock in npu.clocks:
        if clock.rate_hz is None:
            continue
        wanted = (_provider(tree, npu, clock, what), clock.cell)
        if wanted not in assigned:
            assigned.append(wanted)
        at = assigned.index(wanted)
        if clock.parent_cell is not None:
            parents += [(0,)] * (at + 1 - len(parents))  # (0,): leave that clock's parent alone
            parents[at] = (wanted[0], clock.parent_cell)
        parent = parents[at] if at < len(parents) else ()
        _refuse_unreachable(clock, clock.rate_hz, parent[1] if len(parent) > 1 else None)
        new_rates += [0] * (at + 1 - len(new_rates))  # 0: leave that clock alone
        new_rates[at] = clock.rate_hz
    changes = []
    for name, old, new in (
        ("assigned-clocks", old_assigned, assigned),
        ("assigned-clock-parents", old_parents, parents),
    ):
        if old != new:
            changes.append(_reference_change(tree, node, name, old, new))
    if new_rates != old_rates:
        changes.append(
            Change(node, "assigned-clock-rates", tuple(old_rates) or None, tuple(new_rates))
        )
    return changes


def _rates_of_other_nodes(tree: Tree, npu: Npu, what: str) -> list[Change]:
    """Return what further nodes ask for the same clocks: the last driver that is bound decides."""
    changes = []
    for node in npu.more_nodes:
        present = tree.cells(node, "assigned-clock-rates")
        wanted = list(present)
        assigned = references(tree, node, "assigned-clocks", what)[: len(present)]
        for clock in npu.clocks:
            if clock.rate_hz is None:
                continue
            same = (_provider(tree, npu, clock, what), clock.cell)
            wanted = [
                clock.rate_hz if entry == same else old
                for entry, old in zip(assigned, wanted, strict=False)
            ] + wanted[len(assigned) :]
        if wanted != present:
            changes.append(Change(node, "assigned-clock-rates", tuple(present), tuple(wanted)))
    return changes


def _reference_change(
    tree: Tree, node: str, name: str, old: list[tuple[int, ...]], new: list[tuple[int, ...]]
) -> Change:
    labels: list[tuple[int, str]] = []
    index = 0
    for entry in new:
        label = tree.label_of(tree.by_phandle(entry[0]) or "")
        if label:
            labels.append((index, label))
        index += len(entry)
    before = tuple(cell for entry in old for cell in entry)
    after = tuple(cell for entry in new for cell in entry)
    of_this_tree = len(labels) < sum(1 for entry in new if entry[0])
    return Change(node, name, before or None, after, tuple(labels), of_this_tree)


def _provider(tree: Tree, npu: Npu, clock: Clock, what: str) -> int:
    """Return the phandle of the clock controller, from the NPU's own ``clocks``."""
    names = tree.strings(npu.node, "clock-names")
    taken = references(tree, npu.node, "clocks", what)
    if clock.name not in names or names.index(clock.name) >= len(taken):
        raise UserError(
            f"{what}: node {npu.node} has no clock {clock.name!r} "
            f"(clock-names: {', '.join(names) or 'none'})",
            hint="the profile's [[npu.clocks]] and the tree have to agree",
        )
    return taken[names.index(clock.name)][0]
