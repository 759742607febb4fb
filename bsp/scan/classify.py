# SPDX-License-Identifier: MIT
"""What one compiled device tree says about NPUs, beside what the kernel's drivers know. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..catalog import plain_string
from ..dts.npu.available import is_on, unavailable
from ..dts.npu.owners import other_owners, vendor_of
from ..dts.npu.required_changes import rates
from ..dts.npu.resources import defects
from ..dts.references import references
from ..dts.tree import Tree
from ..profile import Expectation, Identity, Npu, Soc
from .drivers import Driver

# The gaps that somebody can be told about, as they stand in the results.
NO_NODE, NO_DRIVER, UNKNOWN = "no node", "no driver", "not in the hardware database"
DISABLED, NO_RATES = "node disabled", "rates missing"
NO_NUMBERS = "the NPU's numbers are not known"
# These two are followed by a path.
VENDOR, SECOND_OWNER = "vendor node", "second owner"


@dataclass(frozen=True)
class Row:
    """An NPU of a board, as one kernel has it.

    Attributes:
        source: the board's device tree source: ``freescale/imx8mp-evk``.
        compatible: the root's strings, most specific first.
        model: the board's name in words.
        soc: the SoC's profile, where there is one.
        node: path of the NPU's node (of its first core); None where the tree has none.
        cores: how many such nodes there are.
        status: of the node: ``okay``, ``disabled``...
        clocks: (name, rate in hertz that the tree asks for; None where it asks for none).
        driver: the free driver for it, whether this kernel has it or not.
        in_database: whether the driver knows its identity; None where it needs no list, where it is not
            there, or where the NPU's numbers are not known.
        gap: what is missing, in the order in which one would mend it; empty: it works as it is.
    """

    source: str
    compatible: tuple[str, ...]
    model: str
    soc: str | None
    node: str | None
    cores: int
    status: str | None
    clocks: tuple[tuple[str, int | None], ...]
    driver: str
    in_database: bool | None
    gap: tuple[str, ...]

    def expectation(self) -> Expectation:
        """Return what this kernel does with this board's NPU, in a profile's word."""
        if NO_NODE in self.gap or self._has(VENDOR):
            return "no node"
        if NO_DRIVER in self.gap:
            return "no driver"
        if UNKNOWN in self.gap:
            return "not recognised"
        if NO_NUMBERS in self.gap:
            return "cannot be told"
        if self._has(SECOND_OWNER):
            return "two owners"
        if self._has("no"):
            return "supply missing"
        return "enable" if self.gap else "works"

    def _has(self, kind: str) -> bool:
        return any(gap.startswith(f"{kind} ") for gap in self.gap)

    def document(self) -> dict[str, Any]:
        """Return the row as a plain document; the names of its fields are stable."""
        return {
            "source": self.source,
            "compatible": list(self.compatible),
            "model": self.model,
            "soc": self.soc,
            "node": self.node,
            "cores": self.cores,
            "status": self.status,
            "clocks": [{"name": name, "rate_hz": rate_hz} for name, rate_hz in self.clocks],
            "driver": self.driver,
            "in_database": self.in_database,
            "gap": list(self.gap),
            "expect": self.expectation(),
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Row:
        """Return the row that :meth:`as_json` wrote."""
        return cls(
            source=document["source"],
            compatible=tuple(document["compatible"]),
            model=document["model"],
            soc=document["soc"],
            node=document["node"],
            cores=document["cores"],
            status=document["status"],
            clocks=tuple((clock["name"], clock["rate_hz"]) for clock in document["clocks"]),
            driver=document["driver"],
            in_database=document["in_database"],
            gap=tuple(document["gap"]),
        )


def telling_words(drivers: Iterable[Driver], socs: Iterable[Soc]) -> list[frozenset[str]]:
    """Return sets of words; a tree without all words of one of them in its source has no NPU for us."""
    words = [frozenset([f'"{string}"']) for soc in socs for string in _strings_of(soc)]
    for driver in drivers:
        for string in driver.compatible:
            names = [f"{driver.node_names}@"] if driver.node_names else []
            words.append(frozenset([f'"{string}"', *names]))
    return words


def _strings_of(soc: Soc) -> list[str]:
    """What a tree of a SoC may have: its own strings, and those of a vendor's node for the NPU."""
    vendors = soc.npu.vendor if soc.npu else ()
    return [
        *soc.compatible,
        *(word for vendor in vendors if not vendor.shared for word in vendor.compatible),
    ]


def classify(
    source: str, tree: Tree, drivers: Mapping[str, Driver], socs: Iterable[Soc]
) -> Row | None:
    """Return the NPU that a compiled tree has, or should have; None if the board has none.

    Args:
        source: what the tree was compiled from.
        tree: the compiled tree.
        drivers: the kernel's NPU drivers.
        socs: the SoCs whose NPUs are known.
    """
    root = [plain_string(string) for string in tree.compatible]
    all_socs = list(socs)
    if any(string in root for soc in all_socs for string in soc.without_npu):
        return None
    soc = next((soc for soc in all_socs if any(string in root for string in soc.compatible)), None)
    npu_nodes = _npu_nodes(tree, drivers)
    if soc is not None and soc.nodeless is not None:
        return _nodeless(source, tree, soc, drivers)
    npu = soc.npu if soc else None
    if npu is not None and npu.compatible in tree.strings(npu.node, "compatible"):
        nodes = [npu.node, *(path for path, _ in npu_nodes if path != npu.node)]
        return _with_node(source, tree, soc, npu, nodes, drivers[npu.driver])
    if npu_nodes:
        return _with_node(source, tree, soc, npu, [path for path, _ in npu_nodes], npu_nodes[0][1])
    if npu is not None and soc is not None:
        vendor = vendor_of(tree, npu)
        gap = f"{VENDOR} {vendor[0]}" if vendor else NO_NODE
        return _without_node(source, tree, soc, drivers[npu.driver], npu.identity, gap)
    return _of_a_vendor(source, tree, drivers, all_socs) if soc is None else None


def _of_a_vendor(
    source: str, tree: Tree, drivers: Mapping[str, Driver], socs: Iterable[Soc]
) -> Row | None:
    """A tree whose root names no chip that is known, with a vendor's node for an NPU that is."""
    matches = [
        (soc, soc.npu, vendor[0])
        for soc in socs
        if soc.npu and (vendor := vendor_of(tree, soc.npu)) and not vendor[1].shared
    ]
    if not matches:
        return None
    soc, npu, path = matches[0]
    alone = len(matches) == 1  # else the node does not tell which chip it is
    return _without_node(
        source,
        tree,
        soc if alone else None,
        drivers[npu.driver],
        npu.identity if alone else None,
        f"{VENDOR} {path}",
    )


def _npu_nodes(tree: Tree, drivers: Mapping[str, Driver]) -> list[tuple[str, Driver]]:
    strings = {
        string.encode(): driver for driver in drivers.values() for string in driver.compatible
    }
    nodes = []
    for path, node in tree.nodes.items():
        value = node.get("compatible")
        if value is None:
            continue
        driver = next(
            (strings[part] for part in value.rstrip(b"\0").split(b"\0") if part in strings), None
        )
        if driver is not None and driver.is_npu(path):
            nodes.append((path, driver))
    return nodes


def _with_node(
    source: str, tree: Tree, soc: Soc | None, npu: Npu | None, nodes: list[str], driver: Driver
) -> Row:
    node = nodes[0]
    profile = npu if npu is not None and npu.node == node else None
    clocks = tuple(rates(tree, profile)) if profile and profile.clocks else _own_rates(tree, node)
    has_driver = driver.takes(tree.strings(node, "compatible"))
    identity = profile.identity if profile else None
    in_database = driver.knows(identity) if has_driver else None
    gap = []
    if not has_driver:
        gap.append(NO_DRIVER)
    elif in_database is False:
        gap.append(UNKNOWN)
    elif driver.entries is not None and identity is None:
        gap.append(NO_NUMBERS)
    gap += _lacking(tree, node, profile)
    if clocks and not any(rate_hz for _, rate_hz in clocks) and not _all_fixed(tree, node):
        gap.append(NO_RATES)
    return _row(
        source,
        tree,
        soc,
        driver.name,
        node=node,
        cores=len(nodes),
        status=tree.status(node),
        clocks=clocks,
        in_database=in_database,
        gap=tuple(gap),
    )


def _lacking(tree: Tree, node: str, npu: Npu | None) -> list[str]:
    """What the tree lacks, or has switched off, for the NPU at a node; ``npu``: as profiles know it."""
    gap = []
    if npu:
        gap += [f"no {name}" for name in npu.requires if tree.get(node, name) is None]
        gap += [f"no working node: {defect}" for defect in defects(tree, npu)]
        gap += [f"{SECOND_OWNER} {owner.path}" for owner in other_owners(tree, npu)]
    off = [part.role for part in unavailable(tree, npu)] if npu else []
    if not is_on(tree, node) or "NPU" in off:
        gap.append(DISABLED)
    return gap + [f"{role} disabled" for role in off if role != "NPU"]


def _nodeless(source: str, tree: Tree, soc: Soc, drivers: Mapping[str, Driver]) -> Row:
    """A chip that no tree describes: once one does, any node that the driver matches is it."""
    nodeless = soc.nodeless
    if nodeless is None:
        raise RuntimeError("the SoC has no entry for a chip without a node")
    driver = drivers[nodeless.driver]
    nodes = [path for path in tree.nodes if nodeless.compatible in tree.strings(path, "compatible")]
    if not nodes:
        return _without_node(source, tree, soc, driver, nodeless.identity, NO_NODE)
    in_database = driver.knows(nodeless.identity)
    gap = [UNKNOWN] if in_database is False else []
    gap += [] if is_on(tree, nodes[0]) else [DISABLED]
    return _row(
        source, tree, soc, driver.name, node=nodes[0], cores=1, status=tree.status(nodes[0]),
        clocks=_own_rates(tree, nodes[0]), in_database=in_database, gap=tuple(gap),
    )  # fmt: skip


def _without_node(
    source: str,
    tree: Tree,
    soc: Soc | None,
    driver: Driver,
    identity: Identity | None,
    instead: str,
) -> Row:
    """A tree without the free driver's node; ``instead`` says what it has."""
    in_database = driver.knows(identity) if driver.compatible else None
    gap = [NO_DRIVER] if not driver.compatible else [UNKNOWN] if in_database is False else []
    return _row(source, tree, soc, driver.name, in_database=in_database, gap=(*gap, instead))


def _row(
    source: str,
    tree: Tree,
    soc: Soc | None,
    driver: str,
    *,
    node: str | None = None,
    cores: int = 0,
    status: str | None = None,
    clocks: tuple[tuple[str, int | None], ...] = (),
    in_database: bool | None = None,
    gap: tuple[str, ...],
) -> Row:
    return Row(
        source=source,
        compatible=tuple(tree.compatible),
        model=(tree.strings("/", "model") or [""])[0],
        soc=soc.name if soc else None,
        node=node,
        cores=cores,
        status=status,
        clocks=clocks,
        driver=driver,
        in_database=in_database,
        gap=gap,
    )


def _own_rates(tree: Tree, node: str) -> tuple[tuple[str, int | None], ...]:
    """Clocks of a node that no profile describes, with the rates that the node itself assigns."""
    names = tree.strings(node, "clock-names")
    clocks = references(tree, node, "clocks")
    assigned = references(tree, node, "assigned-clocks")
    assigned_rates = tree.cells(node, "assigned-clock-rates")
    clock_rates: list[tuple[str, int | None]] = []
    for index, reference in enumerate(clocks):
        at = assigned.index(reference) if reference in assigned else len(assigned_rates)
        name = names[index] if index < len(names) else str(index)
        clock_rates.append(
            (name, (assigned_rates[at] or None) if at < len(assigned_rates) else None)
        )
    return tuple(clock_rates)


def _all_fixed(tree: Tree, node: str) -> bool:
    providers = [tree.by_phandle(entry[0]) for entry in references(tree, node, "clocks")]
    return bool(providers) and all(
        path is not None and "fixed-clock" in tree.strings(path, "compatible") for path in providers
    )
