# SPDX-License-Identifier: MIT
"""TP jobs with a look-up table: RELU, ABS and LOGISTIC of Mesa 26.

A table has 1024 floats of 21 bits (sign, 5 bits of exponent, 15 of mantissa), one for each value of the
upper 10 bits of such a float; between two entries the unit interpolates. A pixel less its zero point goes
in; what comes out is multiplied, shifted and gets the output's zero point. As pixels are bytes, a job is
a table of 256 bytes.

Sources: src/gallium/drivers/etnaviv/etnaviv_ml_tp.c of Mesa 26: create_pwl_lut_config (fields, scale),
create_relu_lut_bo, create_abs_lut_bo, create_log_lut_bo, fp21 (tables). Not known: how silicon rounds
ties, and what it does with exponents of 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..memory import Access, Bytes, Memory

ENTRIES = 1024
_MANTISSA_BITS, _INDEX_BITS = 15, 4
_STEP_BITS = _MANTISSA_BITS - _INDEX_BITS
_BIAS = 15


@dataclass(frozen=True)
class Lookup:
    """What of a descriptor decides a look-up; real output = table * multiplier / 2**shift + zero point."""

    address: int
    multiplier: int
    shift: int
    in_zero_point: int
    out_zero_point: int


def byte_table(lookup: Lookup, memory: Memory) -> Bytes:
    """Return the output for each of the 256 pixel values, rounded half up.

    Raises:
        MemoryFaultError: the table is not in a buffer that the submit lets be read.
    """
    raw = memory.view(lookup.address, 4 * ENTRIES, Access.READ).view("<u4")
    entries = _from_fp21(raw)
    values = np.arange(256) - lookup.in_zero_point
    fraction, exponent = np.frexp(np.abs(values).astype(np.float64))
    # |value| = (1 + mantissa / 2**15) * 2**(exponent - 1): a whole number below 256 is exact.
    mantissa = np.where(values == 0, 0, (2 * fraction - 1) * (1 << _MANTISSA_BITS)).astype(np.int64)
    stored = np.where(values == 0, 0, exponent - 1 + _BIAS)
    index = (values < 0) * (ENTRIES // 2) + (stored << _INDEX_BITS) + (mantissa >> _STEP_BITS)
    part = (mantissa & (1 << _STEP_BITS) - 1) / (1 << _STEP_BITS)
    following = entries[np.minimum(index + 1, ENTRIES - 1)]
    interpolated = np.where(
        part > 0, entries[index] + (following - entries[index]) * part, entries[index]
    )
    scaled = interpolated * lookup.multiplier * 2.0**-lookup.shift
    rounded = np.floor(scaled + 0.5) + lookup.out_zero_point
    table: Bytes = np.clip(rounded, 0, 255).astype(np.uint8)
    return table


def _from_fp21(words: NDArray[np.uint32]) -> NDArray[np.float64]:
    exponent = (words >> np.uint32(_MANTISSA_BITS) & np.uint32(31)).astype(np.int64)
    mantissa = (words & np.uint32((1 << _MANTISSA_BITS) - 1)) / (1 << _MANTISSA_BITS)
    normal = (1 + mantissa) * 2.0 ** (exponent - _BIAS)
    magnitude = np.where(exponent > 0, normal, mantissa * 2.0 ** (1 - _BIAS))
    values: NDArray[np.float64] = np.where(
        words >> np.uint32(20) & np.uint32(1), -magnitude, magnitude
    )
    return values
