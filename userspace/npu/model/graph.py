# SPDX-License-Identifier: MIT
"""Reads what a delegate looks at from a .tflite file: operations, their tensors and options.

Slot numbers are positions in TensorFlow's tensorflow/compiler/mlir/lite/schema/schema.fbs, which is
append-only. The standard library is enough.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from bsp.base.errors import UserError

# enum BuiltinOperator, as far as image models use it; the others are shown by number.
OPERATIONS = {
    0: "ADD", 1: "AVERAGE_POOL_2D", 2: "CONCATENATION", 3: "CONV_2D", 4: "DEPTHWISE_CONV_2D",
    6: "DEQUANTIZE", 9: "FULLY_CONNECTED", 14: "LOGISTIC", 17: "MAX_POOL_2D", 18: "MUL", 19: "RELU",
    21: "RELU6", 22: "RESHAPE", 23: "RESIZE_BILINEAR", 25: "SOFTMAX", 28: "TANH", 32: "CUSTOM",
    34: "PAD", 39: "TRANSPOSE", 40: "MEAN", 41: "SUB", 43: "SQUEEZE", 45: "STRIDED_SLICE",
    49: "SPLIT", 97: "RESIZE_NEAREST_NEIGHBOR", 101: "ABS", 114: "QUANTIZE", 117: "HARD_SWISH",
}  # fmt: skip
# enum TensorType
_TYPES = {0: "float32", 2: "int32", 3: "uint8", 4: "int64", 7: "int16", 9: "int8", 1: "float16"}
ACTIVATIONS = ("NONE", "RELU", "RELU_N1_TO_1", "RELU6", "TANH", "SIGN_BIT")
# Slots of fused_activation_function, dilation_w and dilation_h in the operations' options.
_OPTION_SLOTS = {"CONV_2D": (3, 4, 5), "DEPTHWISE_CONV_2D": (4, 5, 6)}
_AXIS_SLOT = {"CONCATENATION": 0}
_VECTOR_LIMIT = 1 << 20


@dataclass(frozen=True)
class Tensor:
    """A tensor; ``scales`` has one entry per tensor, several per axis, none without quantisation.

    ``data`` holds a constant's bytes, and None where the value is computed.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    scales: tuple[float, ...]
    zero_points: tuple[int, ...]
    data: bytes | None


@dataclass(frozen=True)
class Operation:
    """One operation of the main graph.

    Attributes:
        inputs, outputs: its tensors; None where an optional one is left out.
        activation: the fused one: an entry of ``ACTIVATIONS``.
        dilation: across and down; 1, 1 where the operation has none.
        axis: of a concatenation; None elsewhere.
    """

    index: int
    kind: str
    version: int
    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Tensor | None, ...]
    activation: str
    dilation: tuple[int, int]
    axis: int | None


def read_graph(model: bytes) -> list[Operation]:
    """Return the operations of a model's main graph, in their order.

    Raises:
        UserError: it is no .tflite file, or a broken one.
    """
    if model[4:8] != b"TFL3":
        raise UserError(f"not a .tflite file: bytes 4-7 are {model[4:8]!r}, not b'TFL3'")
    try:
        return _operations(_Table(model, *struct.unpack_from("<I", model)))
    except (struct.error, IndexError, ValueError, UnicodeDecodeError) as error:
        raise UserError(f"the model is cut short or broken: {error}") from error


def _operations(model: _Table) -> list[Operation]:
    codes = [
        (max(code.number(0, "b"), code.number(3, "i")), code.number(2, "i", 1))
        for code in model.tables(1)
    ]
    buffers = [buffer.bytes(0) for buffer in model.tables(4)]
    graph = model.tables(2)[0]
    tensors = [_tensor(table, buffers) for table in graph.tables(0)]

    def named(numbers: tuple[int, ...]) -> tuple[Tensor | None, ...]:
        return tuple(tensors[number] if number >= 0 else None for number in numbers)

    found = []
    for index, operator in enumerate(graph.tables(3)):
        code, version = codes[operator.number(0, "I")]
        kind = OPERATIONS.get(code, f"builtin {code}")
        options = operator.table(4)
        activation, dilation = 0, (1, 1)
        if options and kind in _OPTION_SLOTS:
            slots = _OPTION_SLOTS[kind]
            activation = options.number(slots[0], "b")
            dilation = (options.number(slots[1], "i", 1), options.number(slots[2], "i", 1))
        axis = options.number(0, "i") if options and kind in _AXIS_SLOT else None
        found.append(
            Operation(index, kind, version, named(operator.vector(1, "i")),
                      named(operator.vector(2, "i")), ACTIVATIONS[activation], dilation, axis)
        )  # fmt: skip
    return found


def _tensor(table: _Table, buffers: list[bytes]) -> Tensor:
    quantisation = table.table(4)
    data = buffers[table.number(2, "I")]
    return Tensor(
        name=table.bytes(3).decode(errors="replace"),
        shape=table.vector(0, "i"),
        dtype=_TYPES.get(table.number(1, "b"), "another type"),
        scales=quantisation.vector(2, "f") if quantisation else (),
        zero_points=quantisation.vector(3, "q") if quantisation else (),
        data=data or None,
    )


class _Table:
    """A FlatBuffer table: fields by slot."""

    def __init__(self, content: bytes, place: int) -> None:
        self._content = content
        self._place = place
        (back,) = struct.unpack_from("<i", content, place)
        self._fields = place - back
        if not 0 <= self._fields < len(content):
            raise ValueError(f"a table at {place} lies outside")
        (self._size,) = struct.unpack_from("<H", content, self._fields)

    def _field(self, slot: int) -> int:
        if 4 + 2 * slot >= self._size:
            return 0
        (field,) = struct.unpack_from("<H", self._content, self._fields + 4 + 2 * slot)
        return self._place + int(field) if field else 0

    def number(self, slot: int, kind: str, default: int = 0) -> int:
        """Return a scalar of a ``struct`` kind."""
        field = self._field(slot)
        return int(struct.unpack_from(f"<{kind}", self._content, field)[0]) if field else default

    def _follow(self, place: int) -> int:
        (away,) = struct.unpack_from("<I", self._content, place)
        return place + int(away)

    def table(self, slot: int) -> _Table | None:
        """Return a sub-table; None where it is left out."""
        field = self._field(slot)
        return _Table(self._content, self._follow(field)) if field else None

    def _vector(self, slot: int) -> tuple[int, int]:
        field = self._field(slot)
        if not field:
            return 0, 0
        start = self._follow(field)
        (length,) = struct.unpack_from("<I", self._content, start)
        return start + 4, int(length)

    def vector(self, slot: int, kind: str) -> tuple[int, ...]:
        """Return a vector of scalars."""
        start, length = self._vector(slot)
        if length > _VECTOR_LIMIT:
            raise ValueError(f"a vector of {length} entries")
        return struct.unpack_from(f"<{length}{kind}", self._content, start) if length else ()

    def tables(self, slot: int) -> list[_Table]:
        """Return a vector of tables."""
        start, length = self._vector(slot)
        if length > _VECTOR_LIMIT:
            raise ValueError(f"a vector of {length} tables")
        return [_Table(self._content, self._follow(start + 4 * number)) for number in range(length)]

    def bytes(self, slot: int) -> bytes:
        """Return a vector of bytes, or a string."""
        start, length = self._vector(slot)
        if start + length > len(self._content):
            raise ValueError(f"a vector of {length} bytes at {start} is cut short")
        return self._content[start : start + length]
