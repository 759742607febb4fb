# SPDX-License-Identifier: MIT
"""Small quantised networks of random weights, with outputs where a test wants them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from userspace.npu.model.tflite_file import (
    NO_ACTIVATION,
    RELU,
    Operator,
    Tensor,
    average_pool,
    conv,
    depthwise_conv,
    reshape,
    softmax,
    write_model,
)


class Net:
    """A network that grows operation by operation; each method returns the number of its output tensor."""

    def __init__(self, side: int, channels: int = 3, dtype: str = "uint8", seed: int = 7) -> None:
        self._rng = np.random.default_rng(seed)
        self._zero_point = 128 if dtype == "uint8" else 0
        self._dtype = dtype
        low = 0 if dtype == "uint8" else -128
        self.tensors = [Tensor("picture", (1, side, side, channels), dtype, 1 / 255, low)]
        self.operators: list[Operator] = []

    def conv(
        self,
        source: int,
        channels: int,
        *,
        kernel: int = 3,
        stride: int = 1,
        scale: float = 0.05,
        zero_point: int | None = None,
        relu: bool = False,
    ) -> int:
        """A convolution with padding SAME."""
        shape = (channels, kernel, kernel, self.tensors[source].shape[3])
        inputs, sink = self._weighted(source, shape, channels, stride, scale, zero_point)
        activation = RELU if relu else NO_ACTIVATION
        self.operators.append(conv(inputs, sink, stride=stride, activation=activation))
        return sink

    def depthwise(
        self, source: int, *, stride: int = 1, scale: float = 0.05, zero_point: int | None = None
    ) -> int:
        """A depthwise convolution of 3x3 with padding SAME."""
        channels = self.tensors[source].shape[3]
        shape = (1, 3, 3, channels)
        inputs, sink = self._weighted(source, shape, channels, stride, scale, zero_point)
        self.operators.append(depthwise_conv(inputs, sink, stride=stride, activation=NO_ACTIVATION))
        return sink

    def add(self, first: int, second: int, *, scale: float = 0.08) -> int:
        """The sum of two tensors of one shape."""
        shape = self.tensors[first].shape
        sink = self._add(
            Tensor(f"sum_{len(self.tensors)}", shape, self._dtype, scale, self._zero_point)
        )
        self.operators.append(Operator(0, (first, second), (sink,), 11))
        return sink

    def split(self, source: int, parts: int) -> list[int]:
        """Equal parts of a tensor's channels; returns their numbers."""
        like = self.tensors[source]
        axis = self._add(Tensor(f"axis_{len(self.tensors)}", (), "int32", data=np.array(3)))
        shape = (*like.shape[:3], like.shape[3] // parts)
        made = [
            self._add(
                Tensor(f"part_{axis}_{number}", shape, like.dtype, like.scale, like.zero_point)
            )
            for number in range(parts)
        ]
        options = (("int32", 0, parts),)
        self.operators.append(Operator(49, (axis, source), tuple(made), 35, options))
        return made

    def tanh(self, source: int) -> int:
        """The hyperbolic tangent of an int8 tensor: nothing that Etnaviv takes."""
        shape = self.tensors[source].shape
        sink = self._add(Tensor(f"tanh_{len(self.tensors)}", shape, self._dtype, 1 / 128, 0))
        self.operators.append(Operator(28, (source,), (sink,), 0))
        return sink

    def best(self, source: int) -> int:
        """The number of the largest channel of each pixel."""
        axis = self._add(Tensor(f"axis_{len(self.tensors)}", (), "int32", data=np.array(3)))
        sink = self._add(Tensor(f"best_{axis}", self.tensors[source].shape[:3], "int32"))
        self.operators.append(Operator(56, (source, axis), (sink,), 40, (("int8", 0, 2),)))
        return sink

    def pool(self, source: int, size: int) -> int:
        """An average over squares."""
        _, height, width, channels = self.tensors[source].shape
        like = self.tensors[source]
        sink = self._add(
            Tensor(
                f"pool_{len(self.tensors)}",
                (1, height // size, width // size, channels),
                like.dtype,
                like.scale,
                like.zero_point,
            )
        )
        self.operators.append(average_pool(source, sink, size=size))
        return sink

    def scores(self, source: int) -> int:
        """Softmax over a tensor of one pixel."""
        like = self.tensors[source]
        count = like.shape[3]
        shape = self._add(Tensor("shape", (2,), "int32", data=np.array([1, count])))
        flat = self._add(Tensor("flat", (1, count), like.dtype, like.scale, like.zero_point))
        self.operators.append(reshape(source, shape, flat))
        low = 0 if self._dtype == "uint8" else -128
        sink = self._add(Tensor("scores", (1, count), self._dtype, 1 / 256, low))
        self.operators.append(softmax(flat, sink))
        return sink

    def model(self, outputs: Sequence[int]) -> bytes:
        """The .tflite file."""
        return write_model(
            self.tensors, self.operators, inputs=[0], outputs=outputs, description="small net"
        )

    def _weighted(
        self,
        source: int,
        shape: tuple[int, ...],
        channels: int,
        stride: int,
        scale: float,
        zero_point: int | None,
    ) -> tuple[tuple[int, int, int], int]:
        given = self.tensors[source]
        weight_scale = 0.01
        low, high = (40, 216) if self._dtype == "uint8" else (-88, 88)
        weights = self._rng.integers(low, high, shape)
        biases = self._rng.integers(-400, 400, channels)
        zero = self._zero_point
        kernel = self._add(
            Tensor(f"weights_{source}", shape, self._dtype, weight_scale, zero, weights)
        )
        offset = self._add(
            Tensor(f"bias_{source}", (channels,), "int32", given.scale * weight_scale, 0, biases)
        )
        height, width = (-(-size // stride) for size in given.shape[1:3])
        sink = self._add(
            Tensor(
                f"features_{len(self.tensors)}",
                (1, height, width, channels),
                self._dtype,
                scale,
                zero if zero_point is None else zero_point,
            )
        )
        return (source, kernel, offset), sink

    def _add(self, tensor: Tensor) -> int:
        self.tensors.append(tensor)
        return len(self.tensors) - 1
