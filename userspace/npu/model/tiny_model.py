# SPDX-License-Identifier: MIT
"""The project's own small quantised model: it reads one drawn digit, and is made in a few seconds.

For machines with neither the assets nor the internet. A convolutional network in uint8 with the operators
that NPUs take: convolutions, a depthwise one, average pool, softmax.
As in MobileNet, the last layer is a convolution.

It is trained in closed form, so that the same bytes come out everywhere: the filters of the convolutions
are principal components of image patches (T.-H. Chan et al., "PCANet: A Simple Deep Learning Baseline for
Image Classification?", 2015), each with both signs, since a ReLU follows; the last layer is a ridge
regression. Features are computed in integers, as the runtime does, so that no rounding of a matrix product
can differ between machines.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..validate.onboard.bmp import encode_bmp
from .tflite_file import (
    NO_ACTIVATION,
    VALID,
    GraphBuilder,
    Tensor,
    average_pool,
    conv,
    depthwise_conv,
    reshape,
    softmax,
)

NAME = "npu-bsp-digits"
LABELS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIDE_PIXELS = 32
PICTURE_SIDE_PIXELS = 96
_INPUT_SCALE, _INPUT_ZERO = 1 / 128, 128
_TRAINING_IMAGES = 3000
_PROBE_IMAGES = 500
_BATCH_IMAGES = 200
_RIDGE = 30.0
_SHARPNESS = 6.0

# 5 x 7 dots a digit, one string a row.
_FONT = (
    ".###. #...# #..## #.#.# ##..# #...# .###.",
    "..#.. .##.. ..#.. ..#.. ..#.. ..#.. .###.",
    ".###. #...# ....# ...#. ..#.. .#... #####",
    "##### ...#. ..#.. ...#. ....# #...# .###.",
    "...#. ..##. .#.#. #..#. ##### ...#. ...#.",
    "##### #.... ####. ....# ....# #...# .###.",
    "..##. .#... #.... ####. #...# #...# .###.",
    "##### ....# ...#. ..#.. .#... .#... .#...",
    ".###. #...# #...# .###. #...# #...# .###.",
    ".###. #...# #...# .#### ....# ...#. .##..",
)


def draw(digit: int, rng: np.random.Generator, *, side: int = SIDE_PIXELS) -> NDArray[np.uint8]:
    """Return a picture of ``digit``, uint8, ``side`` x ``side`` x 3: shifted, slanted, tinted, noisy."""
    rows = _FONT[digit].split()
    dots = np.array([[dot == "#" for dot in row] for row in rows], np.float64)
    height = side * rng.uniform(0.62, 0.82)
    width = height * rng.uniform(0.6, 0.8)
    top = rng.uniform(0.04, 0.96 - height / side) * side
    left = rng.uniform(0.06, 0.94 - width / side) * side
    slant = rng.uniform(-0.12, 0.12)
    # 3 x 3 samples a pixel: soft edges.
    places = (np.arange(3 * side) + 0.5) / 3
    y, x = places[:, None], places[None, :]
    row = np.floor((y - top) / height * 7).astype(int) + 0 * x.astype(int)
    column = np.floor((x - left + slant * (y - side / 2)) / width * 5).astype(int)
    inside = (row >= 0) & (row < 7) & (column >= 0) & (column < 5)
    ink = np.where(inside, dots[np.clip(row, 0, 6), np.clip(column, 0, 4)], 0.0)
    ink = ink.reshape(side, 3, side, 3).mean(axis=(1, 3))
    paper_colour = rng.uniform(10, 70, 3)
    ink_colour = rng.uniform(160, 245, 3)
    picture = paper_colour + ink[:, :, None] * (ink_colour - paper_colour)
    picture += rng.normal(0, 8, picture.shape)
    rounded: NDArray[np.uint8] = np.clip(np.round(picture), 0, 255).astype(np.uint8)
    return rounded


def pictures(
    count: int, seed: int, *, side: int = SIDE_PIXELS
) -> tuple[NDArray[np.uint8], NDArray[np.intp]]:
    """Return ``count`` pictures (count x side x side x 3) and the digits on them."""
    rng = np.random.default_rng(seed)
    digits = rng.integers(0, 10, count)
    return np.stack([draw(int(digit), rng, side=side) for digit in digits]), digits


def sample_bmp(digit: int = 7) -> bytes:
    """Return a BMP of a digit, larger than the model's input, so that the resize has work to do."""
    rng = np.random.default_rng(1000 + digit)
    return encode_bmp(draw(digit, rng, side=PICTURE_SIDE_PIXELS))


@dataclass(frozen=True)
class _Layer:
    """A convolution in integers: real weights are scale * (weights - 128)."""

    weights: NDArray[np.int64]  # O x H x W x I, 0..255
    bias: NDArray[np.int64]
    weight_scale: float
    in_scale: float
    in_zero: int
    out_scale: float
    stride: int
    depthwise: bool = False

    def run(self, images: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the outputs, 0..255 with zero point 0: a convolution with padding SAME and ReLU."""
        return _requantised(self.accumulate(images), self)

    def accumulate(self, images: NDArray[np.int64]) -> NDArray[np.int64]:
        size = self.weights.shape[1]
        patches = _patches(images - self.in_zero, size, self.stride)
        centred = self.weights - 128
        # Products of integers below 2^53 are exact in float64, in whatever order they are added.
        if self.depthwise:
            total = np.einsum("nhwyxc,yxc->nhwc", patches, centred[0], optimize=False)
        else:
            flat = patches.reshape(*patches.shape[:3], -1).astype(np.float64)
            total = (flat @ centred.reshape(len(centred), -1).T.astype(np.float64)).astype(np.int64)
        return np.asarray(total + self.bias, np.int64)


def _requantised(total: NDArray[np.int64], layer: _Layer) -> NDArray[np.int64]:
    factor = layer.in_scale * layer.weight_scale / layer.out_scale
    rounded: NDArray[np.int64] = np.clip(np.floor(total * factor + 0.5), 0, 255).astype(np.int64)
    return rounded


def _patches(images: NDArray[np.int64], size: int, stride: int) -> NDArray[np.int64]:
    """Return N x H x W x size x size x C windows with padding SAME, filled up with 0."""
    side = images.shape[1]
    out_side = -(-side // stride)
    padding = max((out_side - 1) * stride + size - side, 0)
    before = padding // 2
    padded = np.pad(
        images, ((0, 0), (before, padding - before), (before, padding - before), (0, 0))
    )
    view: Any = np.lib.stride_tricks.sliding_window_view
    windows: NDArray[np.int64] = view(padded, (size, size), axis=(1, 2))
    return windows[:, ::stride, ::stride].transpose(0, 1, 2, 4, 5, 3)


def _components(patches: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """Return the first principal components of patches, count x size x size x channels.

    The mean is not taken away: the first component then is mostly brightness. The sign, which is free, is
    chosen so that the largest weight is positive.
    """
    flat = patches.reshape(-1, int(np.prod(patches.shape[3:]))).astype(np.float64)
    _, vectors = np.linalg.eigh(flat.T @ flat)
    best = vectors[:, ::-1][:, :count].T
    largest = np.take_along_axis(best, np.argmax(np.abs(best), axis=1)[:, None], axis=1)
    return np.asarray((best * np.sign(largest)).reshape(count, *patches.shape[3:]))


def _layer_of(
    filters: NDArray[np.float64],
    images: NDArray[np.int64],
    *,
    in_scale: float,
    in_zero: int,
    stride: int,
    depthwise: bool = False,
) -> _Layer:
    """Quantise filters, and choose the output scale so that hardly any output saturates."""
    weight_scale = float(np.abs(filters).max() / 127)
    weights = np.round(filters / weight_scale).astype(np.int64) + 128
    channels = weights.shape[3] if depthwise else weights.shape[0]
    zero_bias = np.zeros(channels, np.int64)
    probe = _Layer(weights, zero_bias, weight_scale, in_scale, in_zero, 1.0, stride, depthwise)
    largest = np.quantile(probe.accumulate(images), 0.9995) * in_scale * weight_scale
    # Four significant digits: the same on all machines.
    out_scale = float(f"{largest / 255:.4g}")
    return _Layer(weights, zero_bias, weight_scale, in_scale, in_zero, out_scale, stride, depthwise)


def _both_signs(filters: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate([filters, -filters])


def build() -> bytes:
    """Train the model and return the .tflite file: the same bytes on every machine."""
    images, digits = pictures(_TRAINING_IMAGES, seed=1)
    probe = images[:_PROBE_IMAGES].astype(np.int64)

    first_filters = _both_signs(_components(_patches(probe[:300] - _INPUT_ZERO, 5, 2), 6))
    first = _layer_of(first_filters, probe, in_scale=_INPUT_SCALE, in_zero=_INPUT_ZERO, stride=2)
    probe = first.run(probe)
    # A binomial blur, channel by channel.
    blur = np.outer([1, 2, 1], [1, 2, 1]) / 16.0
    blur_filters = np.repeat(blur[None, :, :, None], probe.shape[3], axis=3)
    second = _layer_of(
        blur_filters, probe, in_scale=first.out_scale, in_zero=0, stride=1, depthwise=True
    )
    probe = second.run(probe)
    third_filters = _both_signs(_components(_patches(probe[:300], 3, 2), 12))
    third = _layer_of(third_filters, probe, in_scale=second.out_scale, in_zero=0, stride=2)

    batches = []
    for start in range(0, len(images), _BATCH_IMAGES):  # all at once would take a gigabyte
        batch = images[start : start + _BATCH_IMAGES].astype(np.int64)
        pooled = _pooled(third.run(second.run(first.run(batch))), 2)
        batches.append(pooled.reshape(len(pooled), -1))
    features = np.concatenate(batches).astype(np.float64) * third.out_scale
    weights, bias = _ridge(features, digits)
    return _written((first, second, third), weights, bias, features)


def _pooled(values: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    count, side, _, channels = values.shape
    small = side // size
    sums = values.reshape(count, small, size, small, size, channels).sum(axis=(2, 4))
    area = size * size
    return np.asarray((sums + area // 2) // area, np.int64)


def _ridge(
    features: NDArray[np.float64], digits: NDArray[np.intp]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return weights (10 x features) and bias of the regression on +1 / -1, times ``_SHARPNESS``."""
    mean = features.mean(axis=0)
    centred = features - mean
    target = np.where(digits[:, None] == np.arange(10)[None, :], 1.0, -1.0)
    gram = centred.T @ centred
    gram[np.diag_indices_from(gram)] += _RIDGE * np.trace(gram) / len(gram) / len(features) * 10
    weights = np.linalg.solve(gram, centred.T @ (target - target.mean(axis=0))).T
    bias = target.mean(axis=0) - weights @ mean
    return weights * _SHARPNESS, bias * _SHARPNESS


def _written(
    layers: tuple[_Layer, _Layer, _Layer],
    weights: NDArray[np.float64],
    bias: NDArray[np.float64],
    features: NDArray[np.float64],
) -> bytes:
    side = SIDE_PIXELS
    graph = GraphBuilder()
    picture = Tensor("input", (1, side, side, 3), "uint8", _INPUT_SCALE, _INPUT_ZERO)
    source = graph.add(picture)
    for number, layer in enumerate(layers, start=1):
        source = _add_layer(graph, number, layer, source)
    size = graph.tensors[source].shape[1] // 2
    last = layers[-1]
    pooled = graph.add(
        Tensor("pooled", (1, size, size, len(last.bias)), "uint8", last.out_scale, 0)
    )
    graph.operators.append(average_pool(source, pooled, size=2))
    logit_scale = float(f"{np.abs(features @ weights.T + bias).max() / 127:.4g}")
    answer = _add_classifier(graph, pooled, weights, bias, logit_scale)
    return graph.write(inputs=[0], outputs=[answer], description=NAME)


def _add_layer(graph: GraphBuilder, number: int, layer: _Layer, source: int) -> int:
    """Add a convolution; return its output."""
    shape = layer.weights.shape
    kernel = graph.add(
        Tensor(f"weights_{number}", shape, "uint8", layer.weight_scale, 128, layer.weights)
    )
    bias_scale = layer.in_scale * layer.weight_scale
    offset = graph.add(
        Tensor(f"bias_{number}", layer.bias.shape, "int32", bias_scale, 0, layer.bias)
    )
    side = -(-graph.tensors[source].shape[1] // layer.stride)
    out_shape = (1, side, side, len(layer.bias))
    sink = graph.add(Tensor(f"features_{number}", out_shape, "uint8", layer.out_scale, 0))
    kind = depthwise_conv if layer.depthwise else conv
    graph.operators.append(kind((source, kernel, offset), sink, stride=layer.stride))
    return sink


def _add_classifier(
    graph: GraphBuilder,
    source: int,
    weights: NDArray[np.float64],
    bias: NDArray[np.float64],
    logit_scale: float,
) -> int:
    """Add a convolution over all of ``source``, and softmax; return the scores."""
    features = graph.tensors[source]
    scale = float(f"{np.abs(weights).max() / 127:.4g}")
    quantised = np.clip(np.round(weights / scale), -127, 127).astype(np.int64) + 128
    quantised = quantised.reshape(10, *features.shape[1:])
    kernel = graph.add(Tensor("weights_4", quantised.shape, "uint8", scale, 128, quantised))
    bias_scale = features.scale * scale
    rounded = np.round(bias / bias_scale).astype(np.int64)
    offset = graph.add(Tensor("bias_4", rounded.shape, "int32", bias_scale, 0, rounded))
    logits = graph.add(Tensor("logits", (1, 1, 1, 10), "uint8", logit_scale, 128))
    whole = conv(
        (source, kernel, offset), logits, stride=1, activation=NO_ACTIVATION, padding=VALID
    )
    graph.operators.append(whole)
    shape = graph.add(Tensor("shape", (2,), "int32", data=np.array([1, 10])))
    flat = graph.add(Tensor("logits_flat", (1, 10), "uint8", logit_scale, 128))
    graph.operators.append(reshape(logits, shape, flat))
    answer = graph.add(Tensor("scores", (1, 10), "uint8", 1 / 256, 0))
    graph.operators.append(softmax(flat, answer))
    return answer
