# SPDX-License-Identifier: MIT
"""A model's graph up to one of its operations, as a model of its own: to find the one that goes wrong.

More outputs would not do: a driver gives tensors other places then, and what is wrong may come out right.
"""

from __future__ import annotations

import struct

from bsp.base.errors import UserError

from .flatbuffer import Table
from .graph import with_outputs

_OPERATORS, _INPUTS, _OUTPUTS = 3, 1, 2


def sources(model: bytes) -> list[tuple[int, ...]]:
    """Return of each operation what it needs: the operations before it, itself among them, by index.

    Raises:
        UserError: the model is broken, or its operations are not in an order in which they can run.
    """
    operators = _graph(model).tables(_OPERATORS)
    makers: dict[int, int] = {}
    needed_by: list[tuple[int, ...]] = []
    for index, operator in enumerate(operators):
        needed = {index}
        for tensor in operator.vector(_INPUTS, "Int32"):
            if tensor in makers:
                needed.update(needed_by[makers[tensor]])
        needed_by.append(tuple(sorted(needed)))
        for tensor in operator.vector(_OUTPUTS, "Int32"):
            makers[int(tensor)] = index
    return needed_by


def prefix(model: bytes, index: int) -> bytes:
    """Return the model whose graph is what an operation needs, and whose outputs are the operation's.

    The rest stays in the file, and nothing refers to it. The model's inputs stay.

    Raises:
        UserError: the model is broken, or has no such operation.
    """
    kept = sources(model)
    if not 0 <= index < len(kept):
        raise UserError(f"the model has no operation {index}, it has {len(kept)}")
    graph = _graph(model)
    start, _ = graph.span(_OPERATORS)
    content = bytearray(model)
    for place, number in enumerate(kept[index]):
        entry = start + 4 * number
        (away,) = struct.unpack_from("<I", model, entry)
        # An offset counts from where it stands: entries move towards the start of the vector.
        struct.pack_into("<I", content, start + 4 * place, entry + away - (start + 4 * place))
    struct.pack_into("<I", content, start - 4, len(kept[index]))
    outputs = graph.tables(_OPERATORS)[index].vector(_OUTPUTS, "Int32")
    return with_outputs(bytes(content), [int(tensor) for tensor in outputs if tensor >= 0])


def _graph(model: bytes) -> Table:
    try:
        return Table(model, int.from_bytes(model[:4], "little")).tables(2)[0]
    except Exception as error:  # whatever flatbuffers and struct raise on garbage
        raise UserError(f"the model is cut short or broken: {str(error) or repr(error)}") from error
