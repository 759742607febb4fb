# SPDX-License-Identifier: MIT
"""From accumulators to 8-bit outputs: as silicon is predicted to do it, or exactly as TFLite does."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Accumulators = NDArray[np.int64]
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Scale:
    """A descriptor's multiplier and shift: real value = multiplier / 2**shift.

    Mesa 25.0.7 etnaviv_ml_nn.c, create_nn_config: v7 keeps 15 bits of the float's mantissa, v8 all 23;
    the leading one is implied.
    """

    multiplier: int
    shift: int

    @property
    def real(self) -> float:
        """The factor as a number."""
        return self.multiplier / 2.0**self.shift


def hardware(accumulators: Accumulators, scale: Scale, zero_point: int, low: int) -> Pixels:
    """Return outputs as silicon is predicted to round them: half up, then clamp to ``low``..255.

    Rounding of negative ties on silicon is not known; this is one of the two likely ways.
    """
    product = accumulators * scale.multiplier
    if scale.shift:
        product += 1 << scale.shift - 1
        product >>= scale.shift
    product += zero_point
    return np.clip(product, low, 255, out=product).astype(np.uint8)


def quantize_multiplier(real: float) -> tuple[int, int]:
    """Return (mantissa of 31 bits, exponent) as TFLite's QuantizeMultiplier does."""
    if real == 0:
        return 0, 0
    fraction, exponent = math.frexp(real)
    mantissa = round_half_away(fraction * (1 << 31))
    if mantissa == 1 << 31:
        mantissa //= 2
        exponent += 1
    if exponent < -31:
        return 0, 0
    return mantissa, exponent


def round_half_away(value: float) -> int:
    """Round to nearest, ties away from zero (C's round; Python rounds ties to even)."""
    return math.floor(value + 0.5) if value >= 0 else math.ceil(value - 0.5)


def multiply(values: Accumulators, mantissa: int, exponent: int) -> Accumulators:
    """Multiply by mantissa * 2**(exponent - 31) as TFLite's MultiplyByQuantizedMultiplier.

    That is gemmlowp's SaturatingRoundingDoublingHighMul, then RoundingDivideByPOT: it rounds twice.
    """
    product = (values << max(exponent, 0)) * mantissa
    nudged = product + np.where(product >= 0, 1 << 30, 1 - (1 << 30))
    # C's division by 2**31 truncates toward zero; an arithmetic shift rounds down.
    high = np.where(nudged >= 0, nudged >> 31, -(-nudged >> 31))
    right = max(-exponent, 0)
    if not right:
        return high
    mask = (1 << right) - 1
    threshold = (mask >> 1) + (high < 0)
    return (high >> right) + ((high & mask) > threshold)


def tflite(accumulators: Accumulators, real: float, zero_point: int, low: int) -> Pixels:
    """Return outputs bit for bit as TFLite's quantised kernels compute them (double rounding)."""
    mantissa, exponent = quantize_multiplier(real)
    scaled = multiply(accumulators, mantissa, exponent) + zero_point
    return np.clip(scaled, low, 255, out=scaled).astype(np.uint8)


@dataclass(frozen=True)
class AddScales:
    """Scales and zero points (0..255) of an ADD's two inputs and its output; ``sign`` is -1 for a SUB."""

    first: float
    first_zero_point: int
    second: float
    second_zero_point: int
    output: float
    output_zero_point: int
    sign: int = 1


def tflite_add(first: Pixels, second: Pixels, scales: AddScales, low: int) -> Pixels:
    """Return the sum of two quantised tensors bit for bit as TFLite's ADD (left shift of 20), or SUB."""
    twice_max = 2 * max(scales.first, scales.second)
    total = np.zeros(first.shape, np.int64)
    for pixels, zero_point, scale, sign in (
        (first, scales.first_zero_point, scales.first, 1),
        (second, scales.second_zero_point, scales.second, scales.sign),
    ):
        shifted = (pixels.astype(np.int64) - zero_point) << 20
        mantissa, exponent = quantize_multiplier(scale / twice_max)
        total += multiply(shifted, sign * mantissa, exponent)  # sub.cc negates the multiplier
    real = twice_max / ((1 << 20) * scales.output)
    result = multiply(total, *quantize_multiplier(real)) + scales.output_zero_point
    return np.clip(result, low, 255, out=result).astype(np.uint8)
