# SPDX-License-Identifier: MIT
"""Collects tensors and operators of a case's model; scales are chosen so that outputs fill a byte."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from userspace.npu.model.tflite_file import Operator, Tensor

from .cases import PHOTO, RELU6, Case

_RELU6_RANGE = 6.0
WEIGHT_SCALE = 0.004
_STEPS = 255


class Maker:
    """What a model is made of while it is made; the case's random numbers depend on its name alone.

    Zero points are those of unsigned bytes.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        self.rng = np.random.default_rng(zlib.crc32(case.name.encode()))
        self.tensors: list[Tensor] = []
        self.operators: list[Operator] = []
        self.inputs: list[int] = []
        self.outputs: list[int] = []

    def tensor(
        self,
        shape: tuple[int, ...],
        scale: float,
        zero_point: int,
        data: NDArray[Any] | None = None,
    ) -> int:
        """Add a tensor of bytes; return its number."""
        moved = 128 if self.case.dtype == "int8" else 0
        content = None if data is None else (data.astype(np.int16) - moved)
        name = f"tensor_{len(self.tensors)}"
        self.tensors.append(
            Tensor(name, shape, self.case.dtype, scale, zero_point - moved, content)
        )
        return len(self.tensors) - 1

    def numbers(self, values: NDArray[Any], scale: float = 0.0) -> int:
        """Add a constant of int32; return its number."""
        self.tensors.append(
            Tensor(f"tensor_{len(self.tensors)}", values.shape, "int32", scale, 0, values)
        )
        return len(self.tensors) - 1

    def image(self, zero_point: int | None = None, scale: float | None = None) -> int:
        """Add an input of the case's size; return its number."""
        case = self.case
        number = self.tensor(
            (1, case.height, case.width, case.channels),
            case.scales[0] if scale is None else scale,
            case.zero_points[0] if zero_point is None else zero_point,
        )
        self.inputs.append(number)
        return number

    def pixels(self, tensor: Tensor) -> NDArray[Any]:
        """Noise, or what photos are like: smooth areas, edges, and a little noise."""
        shape = tensor.shape
        if tensor.dtype == "float32":
            return self.rng.normal(0, 1, shape).astype(np.float32)
        if self.case.source == PHOTO and len(shape) == 4:
            _, height, width, channels = shape
            y, x = np.mgrid[0:height, 0:width]
            waves = self.rng.uniform(0.02, 0.3, (channels, 2))
            phases = self.rng.uniform(0, 6, channels)
            values = np.stack(
                [
                    np.sin(a * y + b * x + phase)
                    for (a, b), phase in zip(waves, phases, strict=True)
                ],
                axis=-1,
            )
            values = 128 + 90 * values + self.rng.normal(0, 4, values.shape)
            values[y > 0.7 * height] *= 0.4
            pixels_2d: NDArray[Any] = np.clip(values, 0, 255).astype(np.uint8)[None]
        else:
            pixels_2d = self.rng.integers(0, 256, shape).astype(np.uint8)
        if self.case.dtype == "int8":
            pixels_2d = (pixels_2d ^ 0x80).view(np.int8)
        return pixels_2d

    def weights(self, shape: tuple[int, ...], taps: int) -> tuple[int, float, float]:
        """Add weights; return their tensor, the spread of a sum of ``taps`` products, and its mean."""
        zero_point = self.case.zero_points[1]
        reach = max(20, min(zero_point, 255 - zero_point))
        values = np.clip(self.rng.integers(-reach, reach + 1, shape) + zero_point, 0, 255)
        if self.case.sparse:
            values[self.rng.random(shape) < self.case.sparse] = zero_point
        number = self.tensor(shape, WEIGHT_SCALE, zero_point, values)
        offset = values - zero_point
        spread = max(float(np.square(offset).mean()) ** 0.5, 1.0) * 100 * taps**0.5
        mean = float(offset.mean()) * (127.5 - self.case.zero_points[0]) * taps
        return number, spread, mean

    def result(self, shape: tuple[int, ...], spread: float) -> int:
        """Add an output whose scale makes sums of this spread fill a byte."""
        scale = self.case.scales[0] * WEIGHT_SCALE * spread / 45 * self.case.scales[1]
        zero_point = self.case.zero_points[2]
        if self.case.activation == RELU6:
            # Teflon takes RELU6 only where the byte's own range ends at 6 or below.
            zero_point = min(zero_point, 128)
            scale = min(scale, _RELU6_RANGE / (_STEPS - zero_point) * 0.999)
        return self.tensor(shape, scale, zero_point)

    def bias(self, count: int, spread: float, mean: float) -> int:
        """Add biases that bring sums to where the output's zero point lets them be seen."""
        reach = int(spread) + 1
        # What brings sums to where the output's zero point lets them be seen.
        shift = (127.5 - self.case.zero_points[2]) / 45 * spread * self.case.scales[1]
        values = self.rng.integers(-reach, reach, count) + round(shift - mean)
        return self.numbers(values, self.case.scales[0] * WEIGHT_SCALE)

    def operator(
        self,
        code: tuple[int, int],
        inputs: tuple[int, ...],
        outputs: tuple[int, ...],
        slots: Any,
    ) -> None:
        """Add an operator."""
        self.operators.append(Operator(code[0], inputs, outputs, code[1], tuple(slots)))
