# SPDX-License-Identifier: MIT
"""What a model's output holds, as numbers, whatever its type.

Shipped to boards beside ``runner.py``; the client of the virtual NPUs takes it from here. It needs numpy.
"""

from __future__ import annotations

import hashlib
from typing import Any


def output_value(interpreter: Any, detail: dict[str, Any]) -> Any:
    """Return an output's values as numbers; the runtime itself refuses to give those of an empty one."""
    import numpy

    if 0 in detail["shape"]:
        return numpy.zeros(detail["shape"], detail["dtype"])
    values = interpreter.get_tensor(detail["index"])
    if values.dtype.kind not in "OSU":
        return values
    # Strings: whole numbers that stand for them, so that they are compared as names of something are.
    hashes = [hashlib.sha256(bytes(each)).digest()[:8] for each in values.ravel()]
    return numpy.frombuffer(b"".join(hashes), "<i8").reshape(values.shape)
