# SPDX-License-Identifier: MIT
"""Where a node's registers are, as the CPU sees them. Pure.

A node's ``reg`` is translated through the ``ranges`` of the buses above it:
Devicetree Specification 0.4, 2.3.6 and 2.3.8.
"""

from __future__ import annotations

from .tree import Tree

# No device of a SoC has more, and a tree that was made to keep a program busy is not followed further.
_MOST = 16

Range = tuple[int, int]
"""First address and one past the last."""


class Addresses:
    """Addresses of one tree's nodes; what was computed for a bus is kept."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        # Of each bus: (first child address, size, first CPU address); None: any address is itself.
        self._windows: dict[str, tuple[tuple[int, int, int], ...] | None] = {"/": None}

    def of(self, path: str) -> list[Range]:
        """Return the CPU's addresses of a node's registers; empty where it has none that the CPU sees."""
        if path == "/":
            return []
        windows = self._windows_of(_parent(path))
        translated = (_to_cpu(windows, child, size) for child, size in self._pairs(path))
        return [each for each in translated if each is not None]

    def first(self, path: str) -> Range | None:
        """Return the CPU's addresses of a node's first registers; None where the CPU sees none there."""
        pairs = self._pairs(path)
        return _to_cpu(self._windows_of(_parent(path)), *pairs[0]) if pairs else None

    def _windows_of(self, bus: str) -> tuple[tuple[int, int, int], ...] | None:
        if bus not in self._windows:
            self._windows[bus] = self._translated(bus)
        return self._windows[bus]

    def _translated(self, bus: str) -> tuple[tuple[int, int, int], ...] | None:
        parent = _parent(bus)
        above = self._windows_of(parent)
        ranges = self._tree.get(bus, "ranges")
        if ranges is None:
            return ()  # its children's addresses are not the CPU's
        if not ranges:
            return above
        child_cells, size_cells = cells_below(self._tree, bus)
        parent_cells = cells_below(self._tree, parent)[0]
        words = self._tree.cells(bus, "ranges")
        step = child_cells + parent_cells + size_cells
        windows: list[tuple[int, int, int]] = []
        for at in range(0, min(len(words), _MOST * step) - step + 1, step):
            child = _number(words[at : at + child_cells])
            address = _number(words[at + child_cells : at + child_cells + parent_cells])
            size = _number(words[at + child_cells + parent_cells : at + step])
            if above is None:
                windows.append((child, size, address))
            for first, length, cpu in above or ():
                if first <= address and address + size <= first + length:
                    windows.append((child, size, address - first + cpu))
        return tuple(windows[:_MOST])

    def _pairs(self, path: str) -> list[Range]:
        """Return (address on the bus, size) of a node's registers."""
        address_cells, size_cells = cells_below(self._tree, _parent(path))
        step = address_cells + size_cells
        words = self._tree.cells(path, "reg")[: _MOST * step]
        return [
            (_number(words[at : at + address_cells]), _number(words[at + address_cells : at + step]))
            for at in range(0, len(words) - step + 1, step)
        ]  # fmt: skip


def cells_below(tree: Tree, bus: str) -> tuple[int, int]:
    """Return how many cells an address and a size have in nodes below a bus.

    A bus that does not say so has what the nearest one above it says, and the root 1 and 1
    (``of_bus_n_addr_cells`` in drivers/of/base.c); absurd counts are passed over.
    """
    return _count(tree, bus, "#address-cells", (1, 3)), _count(tree, bus, "#size-cells", (0, 2))


def _count(tree: Tree, bus: str, name: str, limits: tuple[int, int]) -> int:
    while True:
        cells = tree.cells(bus, name)
        if cells and limits[0] <= cells[0] <= limits[1]:
            return cells[0]
        if bus == "/":
            return 1
        bus = _parent(bus)


def _parent(path: str) -> str:
    return path.rpartition("/")[0] or "/"


Windows = tuple[tuple[int, int, int], ...] | None


def _to_cpu(windows: Windows, child: int, size: int) -> Range | None:
    """Return the CPU's addresses of a stretch on a bus; None: it is empty, or the CPU does not see it."""
    if not size:
        return None
    if windows is None:
        return child, child + size
    for first, length, cpu in windows:
        if first <= child and child + size <= first + length:
            return child - first + cpu, child - first + cpu + size
    return None


def overlap(one: list[Range], other: list[Range]) -> bool:
    """Whether two lists of addresses have one in common."""
    return any(a < d and c < b for a, b in one for c, d in other)


def _number(words: list[int]) -> int:
    value = 0
    for word in words:
        value = value << 32 | word
    return value
