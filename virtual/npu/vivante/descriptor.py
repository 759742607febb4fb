# SPDX-License-Identifier: MIT
"""Bit fields of job descriptors, as tables: name, width, and what Mesa must have left there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..faults import FaultError

Words = NDArray[np.uint32]


@dataclass(frozen=True)
class Field:
    """A field of 1 to 32 bits inside one word.

    ``only`` lists the values that are understood; empty means any.
    """

    name: str
    bits: int
    only: tuple[int, ...] = ()


class Layout:
    """A descriptor: fields in order, LSB first, none across a word boundary."""

    def __init__(self, fields: tuple[Field, ...]) -> None:
        position = 0
        self._places: list[tuple[Field, int, int]] = []
        for field in fields:
            word, shift = divmod(position, 32)
            if shift + field.bits > 32:
                raise ValueError(f"field {field.name} crosses a word boundary at bit {position}")
            self._places.append((field, word, shift))
            position += field.bits
        if position % 32:
            raise ValueError(f"the fields end inside a word, at bit {position}")
        self.size_words = position // 32
        self.names = tuple(field.name for field in fields)
        if len(set(self.names)) != len(self.names):
            raise ValueError("a field name stands twice")

    def place(self, name: str) -> tuple[Field, int, int]:
        """Return a field, its word and its lowest bit in it."""
        return self._places[self.names.index(name)]

    def unpack(self, words: Words) -> dict[str, int]:
        """Return the fields of a descriptor.

        Raises:
            FaultError: a field has a value that is not understood (reserved bits among them).
        """
        values: dict[str, int] = {}
        plain = words.tolist()
        for field, word, shift in self._places:
            value = plain[word] >> shift & (1 << field.bits) - 1
            if field.only and value not in field.only:
                expected = " or ".join(f"{each:#x}" for each in field.only)
                raise FaultError(f"{field.name} (word {word})", expected, f"{value:#x}")
            values[field.name] = value
        return values

    def pack(self, values: Mapping[str, int]) -> Words:
        """Return the words of a descriptor; fields that are not given get their first understood value.

        Raises:
            ValueError: a name is unknown, or a value does not fit its field.
        """
        unknown = set(values) - set(self.names)
        if unknown:
            raise ValueError(f"no such field: {', '.join(sorted(unknown))}")
        words = [0] * self.size_words
        for field, word, shift in self._places:
            value = values.get(field.name, field.only[0] if field.only else 0)
            if not 0 <= value < 1 << field.bits:
                raise ValueError(f"{field.name}: {value} does not fit {field.bits} bits")
            words[word] |= value << shift
        return np.array(words, np.uint32)
