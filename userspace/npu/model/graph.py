# SPDX-License-Identifier: MIT
"""Reads a .tflite file's main graph: operations, their tensors and options.

Slot numbers are positions in TensorFlow's tensorflow/compiler/mlir/lite/schema/schema.fbs, which is
append-only.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from bsp.base.errors import UserError

from .flatbuffer import Table
from .operation_names import OPERATIONS, TYPE_BITS, TYPES

ACTIVATIONS = ("NONE", "RELU", "RELU_N1_TO_1", "RELU6", "TANH", "SIGN_BIT")
# Slots of fused_activation_function, dilation_w and dilation_h in the operations' options.
_OPTION_SLOTS = {"CONV_2D": (3, 4, 5), "DEPTHWISE_CONV_2D": (4, 5, 6)}
_AXIS_SLOT = {"CONCATENATION": 0}
_ACTIVATION_SLOT = {"ADD": 0, "SUB": 0, "FULLY_CONNECTED": 0}
# What a delegate or the virtual NPU looks at, and how many inputs such an operation has at least.
_LEAST_INPUTS = {
    "CONV_2D": 2, "DEPTHWISE_CONV_2D": 2, "FULLY_CONNECTED": 2, "ADD": 2, "RELU": 1, "ABS": 1,
    "LOGISTIC": 1, "CONCATENATION": 1, "SPLIT": 2, "PAD": 2,
}  # fmt: skip
# That run other graphs of the file.
_CALLS = ("IF", "WHILE", "CALL", "CALL_ONCE", "STABLEHLO_WHILE", "STABLEHLO_COMPOSITE")
_MOST_DIMENSIONS = 16  # runtimes take 8 at most
# Operations on what is kept beside the tensors.
_VARIABLES = ("VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE")
# Of a tensor.
_SHAPE_SLOT, _IS_VARIABLE_SLOT, _SIGNATURE_SLOT = 0, 5, 7

# Mesa reads eight numbers of a PAD's paddings, of however many there are.
_READ_ON_BYTES = 32

_Buffer = tuple[bytes, bytes]
_Found = TypeVar("_Found")


@dataclass(frozen=True)
class Tensor:
    """A tensor; ``scales`` has one entry per tensor, several per axis, none without quantisation.

    ``data`` holds a constant's bytes, and None where the value is computed. ``signature`` is the shape with
    -1 where any size will do; empty where the file has none. ``behind`` is what follows a constant's few
    bytes in the file: what a driver gets that reads on past their end.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    scales: tuple[float, ...]
    zero_points: tuple[int, ...]
    data: bytes | None = field(default=None, repr=False, compare=False)
    signature: tuple[int, ...] = ()
    behind: bytes = field(default=b"", repr=False, compare=False)

    @property
    def is_signed(self) -> bool:
        """Whether its values are signed bytes."""
        return self.dtype == "int8"

    @property
    def is_bytes(self) -> bool:
        """Whether its values are bytes, signed or not: what Vivante's NPU computes with."""
        return self.dtype in ("uint8", "int8")

    @property
    def zero_point(self) -> int:
        """The (first) zero point, of unsigned bytes: Mesa moves int8 tensors by 128."""
        return (self.zero_points[0] if self.zero_points else 0) + 128 * self.is_signed

    @property
    def size_bytes(self) -> int:
        """How many bytes its values take; 0 where the type has no fixed size, or the shape is nonsense."""
        return -(-self.elements * TYPE_BITS.get(self.dtype, 0) // 8)

    @property
    def elements(self) -> int:
        """How many values its shape has room for; 0 where the shape is nonsense."""
        if len(self.shape) > _MOST_DIMENSIONS or min(self.shape, default=1) < 0:
            return 0
        return math.prod(self.shape)

    def signed_values(self) -> NDArray[np.int64]:
        """Return a constant's bytes less its zero point, in the tensor's shape.

        Raises:
            ValueError: it has not as many bytes as its shape says.
        """
        values = np.frombuffer(self.data or b"", np.int8 if self.is_signed else np.uint8)
        return values.reshape(self.shape).astype(np.int64) - (
            self.zero_point - 128 * self.is_signed
        )


@dataclass(frozen=True)
class Operation:
    """One operation of the main graph.

    Attributes:
        index: its place in the graph, which is the order of execution.
        inputs, outputs: its tensors; None where an optional one is left out.
        activation: the fused one: an entry of ``ACTIVATIONS``.
        dilation: across and down; 1, 1 where the operation has none.
        axis: of a concatenation; None elsewhere.
        same: whether a convolution pads as SAME does (else VALID).
        strides: of a convolution: rows, columns.
        custom: name of a custom operation, whose kind is ``CUSTOM``.
    """

    index: int
    kind: str
    version: int
    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Tensor | None, ...]
    activation: str = "NONE"
    dilation: tuple[int, int] = (1, 1)
    axis: int | None = None
    same: bool = False
    strides: tuple[int, int] = (1, 1)
    custom: str = ""

    @property
    def name(self) -> str:
        """Name for findings: kind and place."""
        return f"operation {self.index} ({self.kind})"


@dataclass(frozen=True)
class Model:
    """A whole model, as far as it is read here.

    Attributes:
        schema: version of the file's schema; runtimes take 3 alone.
        operations: of the main graph, in their order.
        inputs, outputs: of the main graph, in their order.
        graphs: how many the file has; those behind the first belong to IF, WHILE and CALL_ONCE, or to other
            signatures.
        signatures: names of those that are of another graph than the first, which alone is run.
        inner: the operations of the other graphs, one graph after the other.
        keeps_state: whether a graph has something that it keeps from run to run.
    """

    schema: int
    operations: tuple[Operation, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    graphs: int
    signatures: tuple[str, ...] = ()
    inner: tuple[Operation, ...] = ()
    keeps_state: bool = False

    @property
    def calls(self) -> tuple[Operation, ...]:
        """The operations of the main graph that run other graphs."""
        return tuple(each for each in self.operations if each.kind in _CALLS) if self.inner else ()


def read_model(model: bytes, *, what: str = "the model") -> Model:
    """Return a model; a tensor is one object, wherever it is named.

    Raises:
        UserError: as ``read_graph``.
    """

    def whole(table: Table) -> Model:
        buffers = _buffers(table)
        graph = table.tables(2)[0]
        tensors = _tensors(graph, buffers)
        inputs, outputs = (_ends(graph, slot, tensors) for slot in (1, 2))
        operations = tuple(_operations(table, graph, tensors))
        graphs = len(table.tables(2))
        others = tuple(each.text(2) for each in table.tables(7) if each.number(4, "Uint32"))
        inner = tuple(
            operation
            for graph in table.tables(2)[1:]
            for operation in _operations(table, graph, _tensors(graph, buffers))
        )
        kept = any(
            tensor.number(_IS_VARIABLE_SLOT, "Bool")
            for graph in table.tables(2)
            for tensor in graph.tables(0)
        ) or any(each.kind in _VARIABLES for each in (*operations, *inner))
        version = table.number(0, "Uint32")
        return Model(version, operations, inputs, outputs, graphs, others, inner, kept)

    return _read(model, what, whole)


def read_file(path: Path) -> list[Operation]:
    """Return the operations of a .tflite file's main graph, in their order.

    Raises:
        UserError: the file cannot be read, or is not a model, or a broken one.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    return read_graph(content, what=str(path))


def read_graph(model: bytes, *, what: str = "the model") -> list[Operation]:
    """Return the operations of a model's main graph, in their order.

    Args:
        what: name of the model in an error.

    Raises:
        UserError: it is not a .tflite file, or a broken one.
    """
    return read_outputs(model, what=what)[0]


def read_outputs(model: bytes, *, what: str = "the model") -> tuple[list[Operation], list[Tensor]]:
    """Return the operations, and the tensors that are the main graph's outputs.

    A tensor is one object, wherever it is named: as an operation's input or output, or the graph's output.

    Raises:
        UserError: as ``read_graph``.
    """

    def whole(table: Table) -> tuple[list[Operation], list[Tensor]]:
        graph, tensors = _graph_and_tensors(table)
        outputs = list(_ends(graph, 2, tensors))
        return list(_operations(table, graph, tensors)), outputs

    return _read(model, what, whole)


def read_ends(
    model: bytes, *, what: str = "the model"
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return the inputs and the outputs of a model's main graph, in their order.

    Raises:
        UserError: as ``read_graph``.
    """

    def ends(table: Table) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        graph, tensors = _graph_and_tensors(table)
        inputs, outputs = (_ends(graph, slot, tensors) for slot in (1, 2))
        return inputs, outputs

    return _read(model, what, ends)


def with_shapes(model: bytes, shapes: Mapping[int, Sequence[int]]) -> bytes:
    """Return a model whose tensors have other shapes, of the same ranks, and fixed ones.

    Args:
        shapes: by the tensor's index in the main graph. Tensors of another rank keep theirs, and indices
            behind the last, which runtimes use for tensors of their own, do not count.

    Raises:
        UserError: as ``read_graph``.
    """

    def changed(table: Table) -> bytes:
        content = bytearray(model)
        for index, tensor in enumerate(table.tables(2)[0].tables(0)):
            shape = shapes.get(index, ())
            for slot in (_SHAPE_SLOT, _SIGNATURE_SLOT):
                start, length = tensor.span(slot)
                if length == len(shape):
                    struct.pack_into(f"<{length}i", content, start, *shape)
        return bytes(content)

    return _read(model, "the model", changed)


def operation_tensors(model: bytes, kind: str) -> dict[int, tuple[int, int]]:
    """Return the first two inputs, as indices of tensors, of each operation of a kind, by its place.

    Operations with fewer inputs, or with constant ones, are left out.

    Raises:
        UserError: as ``read_graph``.
    """

    def pairs(table: Table) -> dict[int, tuple[int, int]]:
        graph, tensors = _graph_and_tensors(table)
        operators = graph.tables(3)
        tensor_pairs = {}
        for each in _operations(table, graph, tensors):
            numbers = operators[each.index].vector(1, "Int32")[:2]
            if each.kind != kind or len(numbers) < 2 or min(numbers) < 0:
                continue
            if not any(tensors[number].data for number in numbers):
                tensor_pairs[each.index] = (int(numbers[0]), int(numbers[1]))
        return tensor_pairs

    return _read(model, "the model", pairs)


def output_numbers(model: bytes) -> tuple[list[int], dict[int, int]]:
    """Return the graph's outputs, and each operation's first output by its place, as indices of tensors.

    Raises:
        UserError: as ``read_graph``.
    """

    def numbers(table: Table) -> tuple[list[int], dict[int, int]]:
        graph = table.tables(2)[0]
        firsts = {}
        for index, operator in enumerate(graph.tables(3)):
            outputs = operator.vector(2, "Int32")
            if len(outputs) and outputs[0] >= 0:
                firsts[index] = int(outputs[0])
        return [int(number) for number in graph.vector(2, "Int32")], firsts

    return _read(model, "the model", numbers)


def with_outputs(model: bytes, tensors: Sequence[int]) -> bytes:
    """Return a model whose main graph has these tensors, by index, as its outputs, in this order.

    Raises:
        UserError: as ``read_graph``; the graph has no outputs in the file.
    """

    def changed(table: Table) -> bytes:
        place = table.tables(2)[0].offset_place(2)
        if not place:
            raise ValueError("the graph has no outputs")
        content = bytearray(model)
        content += b"\0" * (-len(content) % 16)
        # A new vector behind the end, where an offset may lead.
        struct.pack_into("<I", content, place, len(content) - place)
        content += struct.pack(f"<I{len(tensors)}i", len(tensors), *tensors)
        return bytes(content + b"\0" * (-len(content) % 16))

    return _read(model, "the model", changed)


def _read(model: bytes, what: str, reader: Callable[[Table], _Found]) -> _Found:
    if model[4:8] != b"TFL3":
        raise UserError(f"{what} is not a .tflite file: bytes 4-7 are {model[4:8]!r}, not b'TFL3'")
    try:
        return reader(Table(model, int.from_bytes(model[:4], "little")))
    except Exception as error:  # whatever flatbuffers and struct raise on garbage
        raise UserError(f"{what} is cut short or broken: {str(error) or repr(error)}") from error


def _graph_and_tensors(model: Table) -> tuple[Table, list[Tensor]]:
    buffers = _buffers(model)
    graph = model.tables(2)[0]
    return graph, _tensors(graph, buffers)


def _ends(graph: Table, slot: int, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the graph's inputs (1) or outputs (2)."""
    numbers = graph.vector(slot, "Int32")
    if any(number < 0 for number in numbers):
        raise ValueError(f"the graph has tensor {min(numbers)} among its inputs or outputs")
    return tuple(tensors[number] for number in numbers)


def _buffer(table: Table) -> bytes:
    """Return a buffer's bytes; of files beyond 2 GB they lie behind the FlatBuffer, by offset and size."""
    offset, size = table.number(1, "Uint64"), table.number(2, "Uint64")
    return table.outside(offset, size) if offset > 1 else table.raw(0)


def _buffers(model: Table) -> list[_Buffer]:
    """Return each buffer's bytes, and what follows them in the file where they are few."""
    buffers = []
    for table in model.tables(4):
        data = _buffer(table)
        few = len(data) < _READ_ON_BYTES
        buffers.append((data, table.behind(0, _READ_ON_BYTES - len(data)) if few else b""))
    return buffers


def _tensors(graph: Table, buffers: list[_Buffer]) -> list[Tensor]:
    return [_tensor(table, buffers) for table in graph.tables(0)]


def _operations(model: Table, graph: Table, tensors: list[Tensor]) -> Iterator[Operation]:
    codes = [
        (
            max(code.number(0, "Int8"), code.number(3, "Int32")),
            code.number(2, "Int32", 1),
            code.text(1),
        )
        for code in model.tables(1)
    ]

    def named(numbers: tuple[int, ...]) -> tuple[Tensor | None, ...]:
        if any(number < -1 for number in numbers):
            raise ValueError(f"an operation has tensor {min(numbers)}; -1 alone is one left out")
        return tuple(tensors[number] if number >= 0 else None for number in numbers)

    for index, operator in enumerate(graph.tables(3)):
        code, version, custom = codes[operator.number(0, "Uint32")]
        kind = OPERATIONS.get(code, f"builtin {code}")
        inputs, outputs = named(operator.vector(1, "Int32")), named(operator.vector(2, "Int32"))
        least = _LEAST_INPUTS.get(kind, 0)
        if least and (len(inputs) < least or not outputs):
            raise ValueError(f"operation {index} ({kind}) lacks inputs or outputs")
        options = operator.table(4)
        if options and kind in _OPTION_SLOTS:
            activation, across, down = _OPTION_SLOTS[kind]
            yield Operation(
                index, kind, version, inputs, outputs,
                activation=_activation(options.number(activation, "Int8")),
                dilation=(options.number(across, "Int32", 1), options.number(down, "Int32", 1)),
                # Conv2DOptions and DepthwiseConv2DOptions begin alike: padding, stride_w, stride_h.
                same=options.number(0, "Int8") == 0,
                strides=(options.number(2, "Int32"), options.number(1, "Int32")),
            )  # fmt: skip
        else:
            slot = _AXIS_SLOT.get(kind)
            axis = options.number(slot, "Int32") if options and slot is not None else None
            slot = _ACTIVATION_SLOT.get(kind)
            fused = options.number(slot, "Int8") if options and slot is not None else 0
            yield Operation(
                index, kind, version, inputs, outputs,
                activation=_activation(fused), axis=axis, custom=custom,
            )  # fmt: skip


def _activation(code: int) -> str:
    """Return a fused activation's name; what TFLite does not know is none to it (``ConvertActivation``)."""
    return ACTIVATIONS[code] if 0 <= code < len(ACTIVATIONS) else ACTIVATIONS[0]


def _tensor(table: Table, buffers: list[_Buffer]) -> Tensor:
    quantisation = table.table(4)
    name, buffer = table.text(3), table.number(2, "Uint32")
    if buffer >= len(buffers):
        raise ValueError(f"tensor {name!r} has its values in buffer {buffer}, of {len(buffers)}")
    data, behind = buffers[buffer]
    return Tensor(
        name=name,
        shape=table.vector(_SHAPE_SLOT, "Int32"),
        dtype=TYPES.get(table.number(1, "Int8"), "another type"),
        scales=quantisation.vector(2, "Float32") if quantisation else (),
        zero_points=quantisation.vector(3, "Int64") if quantisation else (),
        data=data or None,
        signature=table.vector(_SIGNATURE_SLOT, "Int32"),
        behind=behind if data else b"",
    )
