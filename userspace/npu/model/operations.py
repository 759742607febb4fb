# SPDX-License-Identifier: MIT
"""A model's operations by name, as a report lists them. Needs no TFLite runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bsp.base.errors import UserError

from .flatbuffer import operators

# enum BuiltinOperator of TensorFlow's schema.fbs, as far as classifiers and detectors use it.
_NAMES = {
    0: "ADD", 1: "AVERAGE_POOL_2D", 2: "CONCATENATION", 3: "CONV_2D", 4: "DEPTHWISE_CONV_2D",
    6: "DEQUANTIZE", 9: "FULLY_CONNECTED", 14: "LOGISTIC", 17: "MAX_POOL_2D", 18: "MUL", 19: "RELU",
    21: "RELU6", 22: "RESHAPE", 23: "RESIZE_BILINEAR", 25: "SOFTMAX", 28: "TANH", 32: "CUSTOM",
    34: "PAD", 36: "GATHER", 39: "TRANSPOSE", 40: "MEAN", 41: "SUB", 43: "SQUEEZE", 45: "STRIDED_SLICE",
    49: "SPLIT", 67: "TRANSPOSE_CONV", 97: "RESIZE_NEAREST_NEIGHBOR", 114: "QUANTIZE",
    117: "HARD_SWISH",
}  # fmt: skip


def described(model: Path) -> list[dict[str, Any]]:
    """Return ``index``, ``name`` and ``output`` (shape of the first) of each operation.

    Empty where the model cannot be read: whoever runs it says why.
    """
    try:
        found = operators(model)
    except UserError:
        return []
    rows = []
    for each in found:
        word, _, code = each.kind.partition(" ")
        name = _NAMES.get(int(code), each.kind) if word == "builtin" else each.kind
        output = next((tensor for tensor in each.outputs if tensor), None)
        rows.append(
            {"index": each.index, "name": name, "output": list(output.shape) if output else []}
        )
    return rows
