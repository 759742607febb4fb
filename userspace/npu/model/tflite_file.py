# SPDX-License-Identifier: MIT
"""Writes small .tflite models: enough operators for a quantised image classifier.

The FlatBuffer is built with the PyPI ``flatbuffers`` package; the slot numbers below are the
positions of the fields in TensorFlow's ``tensorflow/compiler/mlir/lite/schema/schema.fbs`` (a public,
append-only schema: they never change). The generated classes exist only in newer runtimes' wheels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flatbuffers.builder import Builder
from numpy.typing import NDArray

_new_builder: Any = Builder  # the package has no types

_SCHEMA_VERSION = 3
_IDENTIFIER = b"TFL3"
_TENSOR_TYPES = {
    "float32": 0, "float16": 1, "int32": 2, "uint8": 3, "int64": 4, "string": 5, "bool": 6, "int16": 7,
    "complex64": 8, "int8": 9, "resource": 13,
}  # fmt: skip
SAME, VALID = 0, 1
NO_ACTIVATION, RELU = 0, 1


@dataclass(frozen=True)
class Tensor:
    """A tensor: ``data`` is None where the runtime computes it.

    ``scale`` and ``zero_point``: real value = scale * (stored - zero_point); scale 0 is unquantised.
    ``signature``: the shape with -1 where any size will do. ``is_variable``: it is kept from run to run.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    scale: float = 0.0
    zero_point: int = 0
    data: NDArray[Any] | None = None
    signature: tuple[int, ...] = ()
    is_variable: bool = False


@dataclass(frozen=True)
class Operator:
    """One operator; ``inputs`` and ``outputs`` are indices into the model's tensors.

    Attributes:
        code: ``BuiltinOperator`` of the schema.
        options_type: ``BuiltinOptions`` of the schema.
        options: value for each slot of the options table: (kind, slot, value).
        version: of the operator.
        custom: name of a custom operator, whose code is ``CUSTOM``.
    """

    code: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options_type: int
    options: tuple[tuple[str, int, float], ...] = ()
    version: int = 1
    custom: str = ""

    @property
    def key(self) -> tuple[int, int, str]:
        """What operators share that have one entry among the model's operator codes."""
        return self.code, self.version, self.custom


CUSTOM = 32


def conv(
    inputs: Sequence[int],
    output: int,
    *,
    stride: int,
    activation: int = RELU,
    padding: int = SAME,
) -> Operator:
    """2-D convolution (input, weights O x H x W x I, bias)."""
    slots = (
        ("int8", 0, padding),
        ("int32", 1, stride),
        ("int32", 2, stride),
        ("int8", 3, activation),
    )
    return Operator(3, tuple(inputs), (output,), 1, slots)


def depthwise_conv(
    inputs: Sequence[int], output: int, *, stride: int, activation: int = RELU
) -> Operator:
    """Depthwise convolution (input, weights 1 x H x W x C, bias), multiplier 1, padding SAME."""
    slots = (("int8", 0, SAME), ("int32", 1, stride), ("int32", 2, stride), ("int32", 3, 1),
             ("int8", 4, activation))  # fmt: skip
    return Operator(4, tuple(inputs), (output,), 2, slots)


def average_pool(source: int, output: int, *, size: int) -> Operator:
    """Average over ``size`` x ``size``, stride ``size``, padding VALID."""
    slots = (("int8", 0, VALID), *(("int32", slot, size) for slot in (1, 2, 3, 4)))
    return Operator(1, (source,), (output,), 5, slots)


def reshape(source: int, shape: int, output: int) -> Operator:
    """The same values in the int32 shape that is in tensor ``shape``."""
    return Operator(22, (source, shape), (output,), 17)


def softmax(source: int, output: int) -> Operator:
    """Softmax over the last dimension."""
    return Operator(25, (source,), (output,), 9, (("float32", 0, 1.0),))


def resize_bilinear(source: int, size: int, output: int) -> Operator:
    """Bilinear resize to the int32 (height, width) in tensor ``size``; neither option set."""
    return Operator(23, (source, size), (output,), 15)


@dataclass
class GraphBuilder:
    """The tensors and operators of a graph, in the order in which they are added."""

    tensors: list[Tensor] = field(default_factory=list)
    operators: list[Operator] = field(default_factory=list)

    def add(self, tensor: Tensor) -> int:
        """Add a tensor; return its index."""
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def write(self, *, inputs: Sequence[int], outputs: Sequence[int], description: str) -> bytes:
        """Return the .tflite file; see ``write_model``."""
        return write_model(
            self.tensors, self.operators, inputs=inputs, outputs=outputs, description=description
        )


@dataclass
class _Writer:
    builder: Any = field(default_factory=lambda: _new_builder(1024))

    def table(self, fields: Sequence[tuple[str, int, Any]]) -> int:
        """Write one table; ``fields`` are (kind, slot, value); offsets must be written before."""
        slots = 1 + max((slot for _, slot, _ in fields), default=-1)
        self.builder.StartObject(slots)
        for kind, slot, value in fields:
            name = {"offset": "UOffsetTRelative"}.get(kind, kind.capitalize())
            getattr(self.builder, f"Prepend{name}Slot")(slot, value, 0)
        return int(self.builder.EndObject())

    def offsets(self, values: Sequence[int]) -> int:
        self.builder.StartVector(4, len(values), 4)
        for value in reversed(values):
            self.builder.PrependUOffsetTRelative(value)
        return int(self.builder.EndVector())

    def numbers(self, values: Any, dtype: str) -> int:
        array = np.asarray(values, dtype=dtype)
        if array.size:
            return int(self.builder.CreateNumpyVector(array))
        self.builder.StartVector(4, 0, 4)
        return int(self.builder.EndVector())

    def data(self, content: bytes) -> int:
        """Write raw tensor data; TFLite wants it at a multiple of 16 bytes (``force_align: 16``)."""
        self.builder.StartVector(1, len(content), 16)
        self.builder.head -= len(content)
        head = self.builder.head
        self.builder.Bytes[head : head + len(content)] = content
        return int(self.builder.EndVector())


def write_model(
    tensors: Sequence[Tensor],
    operators: Sequence[Operator],
    *,
    inputs: Sequence[int],
    outputs: Sequence[int],
    description: str,
) -> bytes:
    """Return a .tflite file with one graph."""
    writer = _Writer()
    builder = writer.builder

    buffers = [writer.table([])]  # buffer 0 is the empty one
    buffer_of: dict[int, int] = {}
    for index, tensor in enumerate(tensors):
        if tensor.data is not None:
            stored = (
                "uint8" if tensor.dtype == "string" else tensor.dtype
            )  # as bytes, with their places
            content = np.ascontiguousarray(tensor.data, dtype=stored).tobytes()
            buffer_of[index] = len(buffers)
            buffers.append(writer.table([("offset", 0, writer.data(content))]))

    tensor_offsets = [
        _tensor_table(writer, tensor, buffer_of.get(index, 0))
        for index, tensor in enumerate(tensors)
    ]
    codes = sorted({operator.key for operator in operators})
    operator_offsets = [
        _operator_table(writer, operator, codes.index(operator.key)) for operator in operators
    ]
    graph_fields = [
        ("offset", 0, writer.offsets(tensor_offsets)),
        ("offset", 1, writer.numbers(inputs, "int32")),
        ("offset", 2, writer.numbers(outputs, "int32")),
        ("offset", 3, writer.offsets(operator_offsets)),
    ]
    graph = writer.table(graph_fields)
    code_offsets = [_code_table(writer, *code) for code in codes]
    model_fields = [
        ("uint32", 0, _SCHEMA_VERSION),
        ("offset", 1, writer.offsets(code_offsets)),
        ("offset", 2, writer.offsets([graph])),
        ("offset", 3, builder.CreateString(description)),
        ("offset", 4, writer.offsets(buffers)),
    ]
    table = writer.table(model_fields)
    builder.minalign = 16  # also where a model has no data
    builder.Finish(table, file_identifier=_IDENTIFIER)
    return _aligned(builder)


def _tensor_table(writer: _Writer, tensor: Tensor, buffer: int) -> int:
    name = writer.builder.CreateString(tensor.name)
    shape = writer.numbers(tensor.shape, "int32")
    fields: list[tuple[str, int, Any]] = [
        ("offset", 0, shape),
        ("int8", 1, _TENSOR_TYPES[tensor.dtype]),
        ("uint32", 2, buffer),
        ("offset", 3, name),
    ]
    if tensor.scale:
        scale = writer.numbers([tensor.scale], "float32")
        zero_point = writer.numbers([tensor.zero_point], "int64")
        quantization = writer.table([("offset", 2, scale), ("offset", 3, zero_point)])
        fields.append(("offset", 4, quantization))
    if tensor.is_variable:
        fields.append(("bool", 5, True))
    if tensor.signature:
        fields.append(("offset", 7, writer.numbers(tensor.signature, "int32")))
    return writer.table(fields)


def _operator_table(writer: _Writer, operator: Operator, code: int) -> int:
    ins = writer.numbers(operator.inputs, "int32")
    outs = writer.numbers(operator.outputs, "int32")
    options = writer.table(operator.options)
    fields = [
        ("uint32", 0, code),
        ("offset", 1, ins),
        ("offset", 2, outs),
        ("uint8", 3, operator.options_type),
        ("offset", 4, options),
    ]
    return writer.table(fields)


def _code_table(writer: _Writer, code: int, version: int, custom: str) -> int:
    """Slot 0 is the old 8-bit code, slot 3 the present one: readers take the larger of the two."""
    name = [("offset", 1, writer.builder.CreateString(custom))] if custom else []
    return writer.table(
        [("int8", 0, min(code, 127)), *name, ("int32", 2, version), ("int32", 3, code)]
    )


def _aligned(builder: Any) -> bytes:
    """Return what was built.

    A FlatBuffer grows towards its start, and alignment counts from its end; ``Finish`` pads the start so
    that offsets from the start keep the largest alignment that was asked for (16).
    """
    content = bytes(builder.Output())
    if len(content) % 16:
        raise AssertionError(
            f"a FlatBuffer of {len(content)} bytes does not keep 16-byte alignment"
        )
    return content
