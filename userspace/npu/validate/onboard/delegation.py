# SPDX-License-Identifier: MIT
"""How many operations a model has, and which of them a delegate took.

Shipped to boards beside ``runner.py``: the standard library only.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or __package__:
    from .stage_error import StageError
else:
    from stage_error import StageError


_TENSORS, _OPERATORS = 0, 3


def count_operations(model: bytes) -> int:
    """Return the number of operators in the model's main graph, read from the FlatBuffer itself."""
    return _count(model, _OPERATORS)


def count_tensors(model: bytes) -> int:
    """Return the number of tensors in the model's main graph; runtimes add some behind them."""
    return _count(model, _TENSORS)


def _count(model: bytes, part: int) -> int:
    """Return how many there are of a part of the main graph.

    Slots as in TensorFlow's schema.fbs: Model.subgraphs is 2, SubGraph.tensors is 0, SubGraph.operators 3.
    """

    def follow(table: int, slot: int) -> int:
        (back,) = struct.unpack_from("<i", model, table)
        size, field = 0, 0
        (size,) = struct.unpack_from("<H", model, table - back)
        if 4 + 2 * slot < size:
            (field,) = struct.unpack_from("<H", model, table - back + 4 + 2 * slot)
        if not field:
            raise StageError("model", "the model has no graph, or the graph no operators")
        (away,) = struct.unpack_from("<I", model, table + field)
        return int(table + field + away)

    if model[4:8] != b"TFL3":
        raise StageError("model", f"not a .tflite file: bytes 4-7 are {model[4:8]!r}, not b'TFL3'")
    try:
        graphs = follow(struct.unpack_from("<I", model)[0], 2)
        (away,) = struct.unpack_from("<I", model, graphs + 4)
        (count,) = struct.unpack_from("<I", model, follow(graphs + 4 + away, part))
    except struct.error as error:
        raise StageError(
            "model", f"the model is cut short or broken: its graph is not in its {len(model)} bytes"
        ) from error
    return int(count)


def delegated(interpreter: Any, total_ops: int) -> dict[str, Any]:
    """Return which operators the delegates did not take, and in how many graphs they took the others.

    ``delegated_ops`` is None where this runtime cannot tell.

    The runtime lists the nodes of the model and, behind them, one for each graph that a delegate took. What
    such a node stands for lies between its outputs and its inputs.
    """
    try:
        nodes = interpreter._get_ops_details()
    except AttributeError:
        return {"delegated_ops": None, "delegated_nodes": None, "partitions": None, "on_cpu": []}
    makers = {
        int(tensor): number
        for number, node in enumerate(nodes[:total_ops])
        for tensor in node["outputs"]
    }
    taken: set[int] = set()
    for node in nodes[total_ops:]:
        stop = {int(tensor) for tensor in node["inputs"]}
        open_ends = [int(tensor) for tensor in node["outputs"]]
        while open_ends:
            tensor = open_ends.pop()
            number = makers.get(tensor)
            if tensor in stop or number is None or number in taken:
                continue
            taken.add(number)
            open_ends += [int(source) for source in nodes[number]["inputs"]]
    return {
        "delegated_ops": len(taken),
        "delegated_nodes": sorted(taken),
        "partitions": len(nodes) - total_ops,
        "on_cpu": [
            {"index": number, "op": str(nodes[number]["op_name"])}
            for number in range(total_ops)
            if number not in taken
        ],
    }
