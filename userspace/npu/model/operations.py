# SPDX-License-Identifier: MIT
"""A model's operations by name, as a report lists them. Needs no TFLite runtime."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

from bsp.base.errors import UserError

from .graph import read_file


class OperationRecord(TypedDict):
    """An operation in a smoke test's document; ``output``: the shape of the first."""

    index: int
    name: str
    output: list[int]


def described(model: Path) -> list[OperationRecord]:
    """Return ``index``, ``name`` and ``output`` (shape of the first) of each operation.

    Empty where the model cannot be read: whoever runs it says why.
    """
    try:
        read_operations = read_file(model)
    except UserError:
        return []
    rows: list[OperationRecord] = []
    for each in read_operations:
        output = next((tensor for tensor in each.outputs if tensor), None)
        rows.append(
            {"index": each.index, "name": each.kind, "output": list(output.shape) if output else []}
        )
    return rows
