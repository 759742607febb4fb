# SPDX-License-Identifier: MIT
"""Reads what the checks need from a .tflite file: operators, shapes, quantisation.

Slot numbers are positions in TensorFlow's tensorflow/compiler/mlir/lite/schema/schema.fbs, which is
append-only. Read with the ``flatbuffers`` package alone: no TFLite runtime is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bsp.base.errors import UserError

# enum BuiltinOperator
KINDS = {
    0: "ADD",
    2: "CONCATENATION",
    3: "CONV_2D",
    4: "DEPTHWISE_CONV_2D",
    9: "FULLY_CONNECTED",
    14: "LOGISTIC",
    19: "RELU",
    101: "ABS",
}
# enum TensorType
_SIGNED = 9
_BYTES = {3: False, _SIGNED: True}
_VECTOR_LIMIT = 1 << 20


@dataclass(frozen=True)
class Tensor:
    """A tensor; ``scales`` has one entry per tensor, several per axis, none without quantisation.

    ``zero_point`` is that of unsigned bytes: Mesa moves int8 tensors by 128. ``content`` is what a
    constant holds, as in the file; empty for what is computed.
    """

    name: str
    shape: tuple[int, ...]
    is_bytes: bool
    scales: tuple[float, ...]
    zero_point: int
    content: bytes = field(default=b"", repr=False, compare=False)
    is_signed: bool = False

    def signed_values(self) -> NDArray[np.int64]:
        """Return a constant's bytes less its zero point, in the tensor's shape.

        Raises:
            ValueError: it has not as many bytes as its shape says.
        """
        values = np.frombuffer(self.content, np.int8 if self.is_signed else np.uint8)
        return values.reshape(self.shape).astype(np.int64) - (
            self.zero_point - 128 * self.is_signed
        )


@dataclass(frozen=True)
class Operator:
    """One operator: its place in the graph, and its tensors in order (None: left out).

    Attributes:
        same: whether a convolution pads as SAME does (else VALID).
        strides: of a convolution: rows, columns.
    """

    index: int
    kind: str
    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Tensor | None, ...]
    same: bool = False
    strides: tuple[int, int] = (1, 1)

    @property
    def name(self) -> str:
        """Name for findings: kind and place."""
        return f"operation {self.index} ({self.kind})"


def operators(path: Path) -> list[Operator]:
    """Return the operators of a model's main graph, in order of execution.

    Raises:
        UserError: the file cannot be read or is no model.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if content[4:8] != b"TFL3":
        raise UserError(f"{path} is no .tflite file: bytes 4-7 are {content[4:8]!r}")
    try:
        return list(_operators(content))
    except Exception as error:  # whatever flatbuffers and struct raise on garbage
        raise UserError(f"{path} is cut short or broken: {error!r}") from error


def _operators(content: bytes) -> Iterator[Operator]:
    model = _Table(content, int.from_bytes(content[:4], "little"))
    codes = []
    for entry in model.tables(1):
        codes.append(max(entry.number(0, "Int8"), entry.number(3, "Int32")))
    graph = next(iter(model.tables(2)))
    contents = [entry.raw(0) for entry in model.tables(4)]
    tensors = [_tensor(table, contents) for table in graph.tables(0)]

    def named(numbers: list[int]) -> tuple[Tensor | None, ...]:
        return tuple(tensors[number] if number >= 0 else None for number in numbers)

    for index, operator in enumerate(graph.tables(3)):
        code = codes[operator.number(0, "Uint32")]
        kind = KINDS.get(code, f"builtin {code}")
        # Conv2DOptions and DepthwiseConv2DOptions begin alike: padding, stride_w, stride_h.
        options = operator.table(4) if kind.endswith("CONV_2D") else None
        yield Operator(
            index,
            kind,
            named(operator.vector(1, "Int32")),
            named(operator.vector(2, "Int32")),
            same=options is not None and options.number(0, "Int8") == 0,
            strides=(options.number(2, "Int32"), options.number(1, "Int32")) if options else (1, 1),
        )


def _tensor(table: _Table, contents: list[bytes]) -> Tensor:
    kind = table.number(1, "Int8")
    quantisation = table.table(4)
    scales = quantisation.vector(2, "Float32") if quantisation else []
    zero_points = quantisation.vector(3, "Int64") if quantisation else []
    zero_point = int(zero_points[0]) if zero_points else 0
    return Tensor(
        name=table.text(3),
        shape=tuple(table.vector(0, "Int32")),
        is_bytes=kind in _BYTES,
        scales=tuple(scales),
        zero_point=zero_point + (128 if kind == _SIGNED else 0),
        content=contents[table.number(2, "Uint32")],
        is_signed=kind == _SIGNED,
    )


class _Table:
    """A FlatBuffer table: fields by slot."""

    def __init__(self, content: bytes, position: int) -> None:
        from flatbuffers import number_types, table

        self._content = content
        self._types: Any = number_types
        make: Any = table.Table
        self._table: Any = make(content, position)

    def number(self, slot: int, kind: str) -> int:
        """Return a scalar; 0 where it is left out."""
        place = self._table.Offset(4 + 2 * slot)
        flags = getattr(self._types, f"{kind}Flags")
        return int(self._table.Get(flags, self._table.Pos + place)) if place else 0

    def table(self, slot: int) -> _Table | None:
        """Return a sub-table."""
        place = self._table.Offset(4 + 2 * slot)
        if not place:
            return None
        return _Table(self._content, self._table.Indirect(self._table.Pos + place))

    def text(self, slot: int) -> str:
        """Return a string; "" where it is left out."""
        place = self._table.Offset(4 + 2 * slot)
        if not place:
            return ""
        raw: bytes = self._table.String(self._table.Pos + place)
        return raw.decode(errors="replace")

    def raw(self, slot: int) -> bytes:
        """Return a vector of bytes; b"" where it is left out."""
        place = self._table.Offset(4 + 2 * slot)
        if not place:
            return b""
        start, length = self._table.Vector(place), self._table.VectorLen(place)
        if start + length > len(self._content):
            raise ValueError(f"{length} bytes at {start}, behind the end")
        return self._content[start : start + length]

    def tables(self, slot: int) -> list[_Table]:
        """Return a vector of tables."""
        start, length = self._vector(slot)
        return [
            _Table(self._content, self._table.Indirect(start + 4 * index))
            for index in range(length)
        ]

    def vector(self, slot: int, kind: str) -> list[Any]:
        """Return a vector of scalars."""
        start, length = self._vector(slot)
        flags = getattr(self._types, f"{kind}Flags")
        return [self._table.Get(flags, start + flags.bytewidth * index) for index in range(length)]

    def _vector(self, slot: int) -> tuple[int, int]:
        place = self._table.Offset(4 + 2 * slot)
        if not place:
            return 0, 0
        length = self._table.VectorLen(place)
        if length > _VECTOR_LIMIT:
            raise ValueError(f"a vector of {length} entries")
        return self._table.Vector(place), length
