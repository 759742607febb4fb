# SPDX-License-Identifier: MIT
"""The project's own detector-shaped model: it finds red, green and blue squares.

For machines that have no real detector. It has an SSD's shape, so that the whole path runs for real: a
convolutional body in uint8, a head of class scores and a head of boxes over a grid of anchors. Its weights
are written down, not trained: colour differences, blurs, and left-right and top-bottom differences for the
offsets. What it proves is that a runtime or an NPU computes a model with several outputs as the CPU does;
how good detectors are, it does not say.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..validate.onboard.bmp import encode_bmp
from .tflite_file import NO_ACTIVATION, RELU, GraphBuilder, Tensor, conv, reshape, softmax

NAME = "npu-bsp-squares"
LABELS = ("background", "red", "green", "blue")
SIDE_PIXELS = 64
GRID = 8
ANCHOR = 0.25
"""Side of an anchor, as a share of the picture's."""
OFFSET = 0.125
"""What a box output of 1 moves an anchor's centre by, as a share of the picture's side."""
SHIFT = 3.5 / SIDE_PIXELS
"""How far anchors lie to the lower right of their cells' centres: TFLite's SAME padding of an even size
pads only at the end, half a pixel in each of the three layers of stride 2."""
_PICTURE_PIXELS = 192
# Class and centre (y, x) of what is drawn on the sample.
SAMPLE = ((1, 0.28, 0.25), (2, 0.70, 0.40), (3, 0.40, 0.76))


def sample(*, side: int = _PICTURE_PIXELS) -> NDArray[np.uint8]:
    """Return a picture of three squares on grey, uint8, side x side x 3."""
    rng = np.random.default_rng(11)
    picture = rng.normal(70, 6, (side, side, 3))
    half = ANCHOR * side / 2
    for kind, y, x in SAMPLE:
        rows = slice(round(y * side - half), round(y * side + half))
        columns = slice(round(x * side - half), round(x * side + half))
        picture[rows, columns] += 6
        picture[rows, columns, kind - 1] += 120
    return np.asarray(np.clip(np.round(picture), 0, 255), np.uint8)


def sample_bmp() -> bytes:
    """Return the sample as a BMP."""
    return encode_bmp(sample())


def build() -> bytes:
    """Return the .tflite file: the same bytes on every machine."""
    graph = GraphBuilder()
    picture = graph.add(Tensor("input", (1, SIDE_PIXELS, SIDE_PIXELS, 3), "uint8", 1 / 255, 0))
    body = _layer(graph, "colours", picture, _colours(), [-0.04] * 6, out=(0.6 / 255, 0))
    body = _layer(graph, "blurred", body, _blur(), [0.0] * 6, out=(0.5 / 255, 0))
    classes, moves = _heads()
    logits = _layer(
        graph, "class_head", body, classes, [1.3, 0, 0, 0], out=(8 / 255, 60), relu=False
    )
    boxes = _layer(graph, "box_head", body, moves, [0.0] * 4, out=(4 / 255, 128), relu=False)

    anchors = GRID * GRID
    shape = graph.add(Tensor("shape", (3,), "int32", data=np.array([1, anchors, 4])))
    flat = graph.add(Tensor("class_logits", (1, anchors, 4), "uint8", 8 / 255, 60))
    graph.operators.append(reshape(logits, shape, flat))
    scores = graph.add(Tensor("class_scores", (1, anchors, 4), "uint8", 1 / 256, 0))
    graph.operators.append(softmax(flat, scores))
    offsets = graph.add(Tensor("box_offsets", (1, anchors, 4), "uint8", 4 / 255, 128))
    graph.operators.append(reshape(boxes, shape, offsets))
    return graph.write(inputs=[0], outputs=[offsets, scores], description=NAME)


def _layer(
    graph: GraphBuilder,
    name: str,
    source: int,
    weights: NDArray[np.float64],
    bias: list[float],
    *,
    out: tuple[float, int],
    relu: bool = True,
) -> int:
    """Add a convolution of stride 2; return its output, whose scale and zero point are ``out``."""
    before = graph.tensors[source]
    scale = float(f"{np.abs(weights).max() / 127:.4g}")
    stored = np.round(weights / scale).astype(np.int64) + 128
    kernel = graph.add(Tensor(f"{name}_weights", stored.shape, "uint8", scale, 128, stored))
    bias_scale = before.scale * scale
    whole = np.round(np.array(bias) / bias_scale).astype(np.int64)
    offset = graph.add(Tensor(f"{name}_bias", whole.shape, "int32", bias_scale, 0, whole))
    size = -(-before.shape[1] // 2)
    sink = graph.add(Tensor(name, (1, size, size, len(weights)), "uint8", *out))
    activation = RELU if relu else NO_ACTIVATION
    graph.operators.append(conv((source, kernel, offset), sink, stride=2, activation=activation))
    return sink


def _colours() -> NDArray[np.float64]:
    """How much redder, greener, bluer than grey each place is; and the opposite: SSDs have both signs."""
    weights = np.zeros((6, 3, 3, 3))
    for kind in range(3):
        opponent = np.full(3, -0.5)
        opponent[kind] = 1.0
        weights[kind] = opponent / 9
        weights[kind + 3] = -opponent / 9
    return weights


def _blur() -> NDArray[np.float64]:
    weights = np.zeros((6, 3, 3, 6))
    for kind in range(6):
        weights[kind, :, :, kind] = 1 / 9
    return weights


def _heads() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the weights of the class scores and of the boxes."""
    classes = np.zeros((4, 3, 3, 6))
    moves = np.zeros((4, 3, 3, 6))
    for kind in range(3):
        classes[kind + 1, :, :, kind] = 9 / 9
        moves[0, 0, :, kind], moves[0, 2, :, kind] = -1.6, 1.6
        moves[1, :, 0, kind], moves[1, :, 2, kind] = -1.6, 1.6
        # Size: what is bright all around is larger than an anchor.
        moves[2, 1, 1, kind] = moves[3, 1, 1, kind] = 0.4
    return classes, moves
