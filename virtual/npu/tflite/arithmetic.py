# SPDX-License-Identifier: MIT
"""The arithmetic of TFLite's quantised kernels, bit for bit."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Accumulators = NDArray[np.int64]
Pixels = NDArray[np.uint8]


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


def requantised(accumulators: Accumulators, real: float, zero_point: int, low: int) -> Pixels:
    """Return outputs as convolutions and fully connected layers have them (double rounding)."""
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


def add(first: Pixels, second: Pixels, scales: AddScales, low: int) -> Pixels:
    """Return the sum of two quantised tensors as ADD (left shift of 20) has it, or SUB."""
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


def activation_limits(activation: str, zero_point: int, scale: float) -> tuple[int, int]:
    """Return the (lowest, highest) output, as unsigned bytes (CalculateActivationRangeQuantized)."""

    def step(real: float) -> int:
        return zero_point + round_half_away(real / scale)

    low = {"RELU": 0.0, "RELU6": 0.0, "RELU_N1_TO_1": -1.0}.get(activation)
    high = {"RELU6": 6.0, "RELU_N1_TO_1": 1.0}.get(activation)
    lowest = max(0, step(low)) if low is not None else 0
    return lowest, min(255, step(high)) if high is not None else 255
