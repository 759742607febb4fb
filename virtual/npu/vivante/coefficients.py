# SPDX-License-Identifier: MIT
"""Decoded coefficients of a convolution."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..faults import FaultError

MAX_WEIGHTS = 64 << 20
"""Most weights that one job may have here; the largest layer of common models has 4 Mi."""


@dataclass(frozen=True)
class Shape:
    """What of a descriptor decides how its coefficient stream is read.

    Attributes:
        depthwise: v8's native depthwise mode: one kernel plane an output channel.
        kernels: most kernels of one superblock on one core (``kernels_per_core``).
        plane_bytes: size of an output plane: v7 streams name output channels by byte offset.
        whole_input: the kernel is as large as the input: fully connected layers are.
    """

    in_channels: int
    out_channels: int
    height: int
    width: int
    zero_point: int
    depthwise: bool
    kernels: int
    plane_bytes: int
    whole_input: bool = False

    @property
    def planes(self) -> int:
        """Kernel planes an output channel has in the stream."""
        return 1 if self.depthwise else self.in_channels

    @property
    def weights(self) -> int:
        """Number of weights, padding kernels not counted."""
        return self.out_channels * self.planes * self.height * self.width

    def check(self) -> None:
        """Check that sizes are possible and bounded.

        Raises:
            FaultError: a size is 0, or there are more weights than fit in bounded memory.
        """
        for name in ("in_channels", "out_channels", "height", "width", "kernels", "plane_bytes"):
            if not getattr(self, name):
                raise FaultError(f"convolution {name}", "at least 1", "0")
        if self.weights > MAX_WEIGHTS:
            raise FaultError("convolution weights", f"at most {MAX_WEIGHTS}", str(self.weights))
        if self.depthwise and self.in_channels != self.out_channels:
            raise FaultError(
                "depthwise channels", f"{self.in_channels} (as the input)", str(self.out_channels)
            )


@dataclass(frozen=True)
class Coefficients:
    """A convolution's numbers, ready to multiply.

    Attributes:
        weights: float32 of shape (output channels, planes, height, width), zero point taken off;
            every value is a whole number.
        sources: None if each output channel sees all input channels; else, for each output channel,
            the only input channel that it sees, and ``planes`` is 1.
        biases: int64, one an output channel; acc = bias + sum(weight * raw pixel).
        largest_sum: largest sum of absolute weights of a channel: decides which arithmetic is exact.
        stored_bytes: size of the stream in the NPU's memory.
        layout: how the stream was ordered.
        expected_layout: how it should have been ordered after the descriptor.
    """

    weights: NDArray[np.float32]
    sources: NDArray[np.intp] | None
    biases: NDArray[np.int64]
    largest_sum: int
    stored_bytes: int
    layout: str
    expected_layout: str

    @property
    def size_bytes(self) -> int:
        """Memory that this takes in the cache."""
        return self.weights.nbytes + self.biases.nbytes


def prepared(
    weights: NDArray[np.uint8],
    biases: NDArray[np.int64],
    shape: Shape,
    *,
    stored_bytes: int,
    layout: str,
    expected_layout: str,
) -> Coefficients:
    """Return coefficients from raw weights (output channels, planes, height, width) of 8 bits.

    v7 writes a depthwise convolution as a dense one with all other planes at the zero point: found
    again here, because it is a thousandth of the work.
    """
    sources: NDArray[np.intp] | None = None
    if shape.depthwise:
        sources = np.arange(shape.out_channels)
    elif shape.in_channels > 1:
        used = (weights != shape.zero_point).any(axis=(2, 3))
        if (used.sum(axis=1) <= 1).all():
            sources = used.argmax(axis=1)
            weights = np.take_along_axis(weights, sources[:, None, None, None], axis=1)
    signed = weights.astype(np.float32)
    signed -= shape.zero_point
    sums = np.abs(signed).sum(axis=(1, 2, 3), dtype=np.float64)
    return Coefficients(
        signed, sources, biases, int(sums.max()), stored_bytes, layout, expected_layout
    )
