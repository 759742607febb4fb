# SPDX-License-Identifier: MIT
"""How good each class was where an output of a model is nothing but the best one's number (ARG_MAX).

Where two classes are nearly equally good, kernels that round differently pick different ones, and both are
right. Only the numbers that were compared tell that from damage. Shipped to boards beside ``runner.py``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

UNIT = 0.02
"""Of what is sent: a share of the standard deviation of all scores; 255 of it are five deviations."""
_MOST_SCORES = 16 << 20
_PICKS = {"ARG_MAX": 1.0, "ARG_MIN": -1.0}
_PASSES_ON = ("RESHAPE", "SQUEEZE", "EXPAND_DIMS", "CAST")

Source = tuple[int, int, float]
"""Tensor of the scores, axis of the classes, and 1 where the largest one is picked, -1 the smallest."""


def sources(interpreter: Any) -> dict[int, Source]:
    """Return what was picked from, by the tensor of the output; empty where this runtime cannot tell."""
    try:
        nodes = interpreter._get_ops_details()
    except AttributeError:
        return {}
    makers = {int(tensor): node for node in nodes for tensor in node["outputs"]}
    score_sources = {}
    for detail in interpreter.get_output_details():
        node = makers.get(int(detail["index"]))
        while node and node["op_name"] in _PASSES_ON:
            node = makers.get(int(node["inputs"][0]))
        if node and node["op_name"] in _PICKS:
            scores, axis = (int(tensor) for tensor in node["inputs"][:2])
            place = int(np.ravel(interpreter.get_tensor(axis))[0])
            score_sources[int(detail["index"])] = (scores, place, _PICKS[node["op_name"]])
    return score_sources


def shortfall(interpreter: Any, source: Source) -> NDArray[np.uint8] | None:
    """Return by how much each class is worse than the best one, at each place of the output.

    The interpreter has to keep all tensors (``experimental_preserve_all_tensors``).

    Returns:
        places x classes, in ``UNIT``, rounded up; None where all scores are the same, or too many.
    """
    tensor, axis, sign = source
    scores = interpreter.get_tensor(tensor)
    if not 0 < scores.size <= _MOST_SCORES:
        return None
    real = np.moveaxis(scores, axis, -1).astype(np.float32) * sign
    spread = float(real.std())
    if not np.isfinite(spread) or spread == 0:
        return None
    short = (real.max(axis=-1, keepdims=True) - real) / (spread * UNIT)
    units: NDArray[np.uint8] = np.minimum(np.ceil(short), 255).astype(np.uint8)
    return units.reshape(-1, real.shape[-1])
