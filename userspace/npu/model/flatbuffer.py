# SPDX-License-Identifier: MIT
"""A FlatBuffer's tables, read by slot with the ``flatbuffers`` package, and bounded: files may be hostile.

Its generated classes come only with a TFLite runtime, which reading a model must not need.
"""

from __future__ import annotations

from typing import Any

_VECTOR_LIMIT = 1 << 20
_TABLES_LIMIT = 1 << 17
# A hostile file names the same bytes again and again; an honest one names each of them about once.
_READ_AGAIN = 4
_LEAST_BUDGET_BYTES = 1 << 20


class _Budget:
    """How many bytes may still be read from a file, all its tables together."""

    def __init__(self, left: int) -> None:
        self._left = left

    def spend(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise ValueError("its parts overlap: reading them takes several times the file's size")


class Table:
    """A table: fields by slot, the position in the schema. What is left out reads as 0, empty or None.

    Raises:
        Exception: whatever flatbuffers and struct raise on garbage; readers turn it into an error.
    """

    def __init__(self, content: bytes, position: int, budget: _Budget | None = None) -> None:
        from flatbuffers import number_types, table

        self._content = content
        self._budget = budget or _Budget(_READ_AGAIN * len(content) + _LEAST_BUDGET_BYTES)
        self._types: Any = number_types
        make: Any = table.Table
        self._table: Any = make(content, position)

    def number(self, slot: int, kind: str, default: int = 0) -> int:
        """Return a scalar; ``kind`` is a name of ``flatbuffers.number_types``, such as ``Int32``."""
        place = self._table.Offset(4 + 2 * slot)
        flags = getattr(self._types, f"{kind}Flags")
        return int(self._table.Get(flags, self._table.Pos + place)) if place else default

    def table(self, slot: int) -> Table | None:
        """Return a sub-table."""
        place = self._table.Offset(4 + 2 * slot)
        if not place:
            return None
        position = self._table.Indirect(self._table.Pos + place)
        return Table(self._content, position, self._budget)

    def text(self, slot: int) -> str:
        """Return a string."""
        return self.raw(slot).decode(errors="replace")

    def raw(self, slot: int) -> bytes:
        """Return a vector of bytes, or a string's."""
        place = self._table.Offset(4 + 2 * slot)
        if not place:
            return b""
        return self.outside(self._table.Vector(place), self._table.VectorLen(place))

    def behind(self, slot: int, count: int) -> bytes:
        """Return the bytes of the file that follow a vector of bytes; fewer at the file's end."""
        place = self._table.Offset(4 + 2 * slot)
        if not place:
            return b""
        end = self._table.Vector(place) + self._table.VectorLen(place)
        return self._content[end : end + count]

    def outside(self, start: int, length: int) -> bytes:
        """Return bytes by their place in the file, where they may lie behind the FlatBuffer."""
        if start + length > len(self._content):
            raise ValueError(f"{length} bytes at {start}, behind the end")
        self._budget.spend(length)
        return self._content[start : start + length]

    def tables(self, slot: int) -> list[Table]:
        """Return a vector of tables."""
        start, length = self.span(slot)
        if length > _TABLES_LIMIT:
            raise ValueError(f"a vector of {length} tables")
        self._budget.spend(4 * length)
        positions = (self._table.Indirect(start + 4 * index) for index in range(length))
        return [Table(self._content, position, self._budget) for position in positions]

    def vector(self, slot: int, kind: str) -> tuple[Any, ...]:
        """Return a vector of scalars."""
        start, length = self.span(slot)
        flags = getattr(self._types, f"{kind}Flags")
        self._budget.spend(flags.bytewidth * length)
        return tuple(
            self._table.Get(flags, start + flags.bytewidth * index) for index in range(length)
        )

    def span(self, slot: int) -> tuple[int, int]:
        """Return where a vector's entries begin in the content, and how many there are; 0, 0 without."""
        place = self._table.Offset(4 + 2 * slot)
        if not place:
            return 0, 0
        length = self._table.VectorLen(place)
        if length > _VECTOR_LIMIT:
            raise ValueError(f"a vector of {length} entries")
        return self._table.Vector(place), length

    def offset_place(self, slot: int) -> int:
        """Return where the offset of a vector, string or table stands in the content; 0 without."""
        place = self._table.Offset(4 + 2 * slot)
        return self._table.Pos + place if place else 0
