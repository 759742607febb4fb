# SPDX-License-Identifier: MIT
"""Models of several graphs: a loop, and a second signature."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tests.support.models.inputs import Model
from userspace.npu.model import tflite_file as t

WHILE, LESS, ADD, RANDOM_UNIFORM = 119, 58, 0, 148


@dataclass(frozen=True)
class Graph:
    model: Model
    inputs: Sequence[int]
    outputs: Sequence[int]


def written(graphs: Sequence[Graph], signatures: Sequence[tuple[str, int]] = ()) -> bytes:
    """A .tflite file of graphs, the main one first; signatures are names and numbers of graphs."""
    writer = t._Writer()
    builder = writer.builder
    buffers = [writer.table([])]
    codes = sorted({each.key for graph in graphs for each in graph.model.operators})
    tables = []
    for graph in graphs:
        tensors = []
        for tensor in graph.model.tensors:
            number = 0
            if tensor.data is not None:
                content = np.ascontiguousarray(tensor.data, dtype=tensor.dtype).tobytes()
                number = len(buffers)
                buffers.append(writer.table([("offset", 0, writer.data(content))]))
            tensors.append(t._tensor_table(writer, tensor, number))
        operators = [
            t._operator_table(writer, each, codes.index(each.key)) for each in graph.model.operators
        ]
        parts = (
            writer.offsets(tensors), writer.numbers(graph.inputs, "int32"),
            writer.numbers(graph.outputs, "int32"), writer.offsets(operators),
        )  # fmt: skip
        tables.append(writer.table([("offset", slot, part) for slot, part in enumerate(parts)]))
    named = []
    for name, number in signatures:
        ends = [
            writer.offsets(
                [writer.table([("offset", 0, builder.CreateString("x")), ("uint32", 1, tensor)])]
            )
            for tensor in (graphs[number].inputs[0], graphs[number].outputs[0])
        ]
        key = builder.CreateString(name)
        slots = [("offset", 0, ends[0]), ("offset", 1, ends[1]), ("offset", 2, key)]
        named.append(writer.table([*slots, ("uint32", 4, number)]))
    fields = [
        ("uint32", 0, 3),
        ("offset", 1, writer.offsets([t._code_table(writer, *code) for code in codes])),
        ("offset", 2, writer.offsets(tables)),
        ("offset", 3, builder.CreateString("made for a test")),
        ("offset", 4, writer.offsets(buffers)),
        ("offset", 7, writer.offsets(named)),
    ]
    table = writer.table(fields)
    builder.minalign = 16
    builder.Finish(table, file_identifier=b"TFL3")
    return t._aligned(builder)


def loop(times: int = 2, *, dtype: str = "uint8", step: int = 1, draws: bool = False) -> bytes:
    """A convolution, and a second one that a loop runs some times over what came out of the first.

    Args:
        step: what is added to the count of times; with 0 the loop never ends.
        draws: the loop draws random numbers, too.
    """
    main, condition, body = Model(1), Model(2), Model(3)

    def number(model: Model, name: str, value: int | None = None) -> int:
        data = None if value is None else np.array([value])
        return model.tensor(name, (1,), "int32", data=data)

    def features(model: Model) -> int:
        scale, zero = (0.02, 128) if dtype == "uint8" else (0.0, 0)
        return model.tensor("features", (1, 16, 16, 4), dtype, scale=scale, zero_point=zero)

    picture = main.image(1, 16, 16, 3, dtype=dtype)
    made = main.conv(picture)
    start, end, sink = number(main, "start", 0), number(main, "end"), features(main)
    slots = (("int32", 0, 1), ("int32", 1, 2))
    main.operators.append(t.Operator(WHILE, (start, made), (end, sink), 93, slots))
    count, held = number(condition, "count"), features(condition)
    most, less = number(condition, "most", times), condition.tensor("less", (1,), "bool")
    condition.operators.append(t.Operator(LESS, (count, most), (less,), 0))
    now, given = number(body, "now"), features(body)
    one, after = number(body, "one", step), number(body, "after")
    body.operators.append(t.Operator(ADD, (now, one), (after,), 11))
    if draws:
        size, drawn = number(body, "size", 1), body.tensor("drawn", (1,), "float32")
        body.operators.append(t.Operator(RANDOM_UNIFORM, (size,), (drawn,), 0))
    return written(
        [
            Graph(main, [picture], [sink]),
            Graph(condition, [count, held], [less]),
            Graph(body, [now, given], [after, body.conv(given)]),
        ]
    )


def two_signatures() -> bytes:
    """A model that is run, and another one beside it in the file."""
    first, second = Model(1), Model(2)
    large, small = first.image(1, 16, 16, 3), second.image(1, 8, 8, 3)
    return written(
        [Graph(first, [large], [first.conv(large)]), Graph(second, [small], [second.conv(small)])],
        [("infer", 0), ("train", 1)],
    )
