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
        parent = path.rpartition("/")[0] or "/"
        if path == "/":
            return []
        windows = self._windows_of(parent)
        ranges = []
        for child, size in self._pairs(path, "reg", parent):
            if not size:
                continue
            if windows is None:
                ranges.append((child, child + size))
                continue
            for first, length, cpu in windows:
                if first <= child and child + size <= first + length:
                    ranges.append((child - first + cpu, child - first + cpu + size))
                    break
        return ranges

    def _windows_of(self, bus: str) -> tuple[tuple[int, int, int], ...] | None:
        if bus not in self._windows:
            self._windows[bus] = self._translated(bus)
        return self._windows[bus]

    def _translated(self, bus: str) -> tuple[tuple[int, int, int], ...] | None:
        parent = bus.rpartition("/")[0] or "/"
        above = self._windows_of(parent)
        ranges = self._tree.get(bus, "ranges")
        if ranges is None:
            return ()  # its children's addresses are not the CPU's
        if not ranges:
            return above
        child_cells, size_cells = self._counts(bus)
        parent_cells = self._counts(parent)[0]
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

    def _pairs(self, path: str, name: str, parent: str) -> list[Range]:
        address_cells, size_cells = self._counts(parent)
        step = address_cells + size_cells
        words = self._tree.cells(path, name)[: _MOST * step]
        return [
            (_number(words[at : at + address_cells]), _number(words[at + address_cells : at + step]))
            for at in range(0, len(words) - step + 1, step)
        ]  # fmt: skip

    def _counts(self, bus: str) -> tuple[int, int]:
        """``#address-cells`` and ``#size-cells``; absurd ones count as the specification's defaults."""
        address = (self._tree.cells(bus, "#address-cells") or [2])[0]
        size = (self._tree.cells(bus, "#size-cells") or [1])[0]
        return (address if 1 <= address <= 3 else 2), (size if size <= 2 else 1)


def overlap(one: list[Range], other: list[Range]) -> bool:
    """Whether two lists of addresses have one in common."""
    return any(a < d and c < b for a, b in one for c, d in other)


def _number(words: list[int]) -> int:
    value = 0
    for word in words:
        value = value << 32 | word
    return value
