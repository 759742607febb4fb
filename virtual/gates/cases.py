# SPDX-License-Identifier: MIT
"""What a sweep runs: one-operation models by kind, as records from which ``build`` makes files."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

PLAIN, RELU, RELU6 = "none", "relu", "relu6"
PADDED, VALID = "same", "valid"
NOISE, PHOTO = "noise", "photo"

_GRAPH_KINDS = {
    "head": "reshape of a convolution",
    "flat": "reshape of a convolution to a row",
    "heads": "heads of a detector",
    "branch": "tensor for NPU and CPU",
    "handed-out": "tensor read and handed out",
    "readers": "tensor of several readers",
    "joined": "concatenation of convolutions",
    "parted": "split between convolutions",
    "grouped": "convolution in groups",
    "multiplied": "depthwise with a multiplier",
    "connected-4d": "fully-connected of four dimensions",
    "connected-relu": "fully-connected with relu",
    "connected-without-bias": "fully-connected without bias",
    "sub": "sub",
    "difference": "sub of convolutions",
    "sum-relu": "add of convolutions with relu",
    "float-add": "add of float32",
    "float-connected": "fully-connected of float32",
}
_KINDS = {"conv": "convolution", "residual": "add of convolutions", **_GRAPH_KINDS}
_WIDE_KERNEL, _WIDE_LAYER, _MANY_PARTS = 7, 512, 10


@dataclass(frozen=True)
class Case:
    """One generated model; sizes in pixels and channels.

    Attributes:
        operation: ``conv``, ``depthwise``, ``add``, ``residual`` (two convolutions and their ADD),
            ``fully-connected``, ``concatenation``, ``split``, ``pad``, ``relu``, ``abs``, ``logistic``, or
            one of ``graphs.GRAPHS``.
        channels: of the input; outputs: of a convolution (a fully connected layer's neurons).
        parts: tensors that are joined, or that a SPLIT makes.
        pads: before and after: rows, columns, channels.
        zero_points: of input, weights, output, 0 to 255; the file of an int8 model has 128 less.
        sparse: part of the weights that are at their zero point, 0 to 1.
        scales: input, and what the output's scale is multiplied with.
    """

    operation: str
    height: int = 8
    width: int = 8
    channels: int = 8
    outputs: int = 8
    kernel: int = 1
    stride: int = 1
    padding: str = PADDED
    activation: str = PLAIN
    dtype: str = "uint8"
    parts: int = 2
    pads: tuple[int, int, int, int, int, int] = (1, 1, 1, 1, 0, 0)
    zero_points: tuple[int, int, int] = (120, 128, 110)
    sparse: float = 0.0
    scales: tuple[float, float] = (0.02, 1.0)
    source: str = NOISE

    @property
    def kind(self) -> str:
        """Name of the kind that a verdict is given for."""
        name = _KINDS.get(self.operation, self.operation)
        if self.operation in ("conv", "depthwise"):
            size = f"{self.kernel}x{self.kernel}" if self.kernel in (1, _WIDE_KERNEL) else "kxk"
            name += f" {size}"
            name += f" stride {self.stride}" if self.stride > 1 else ""
            if self.kernel == 1 and self.activation == RELU6:
                name += " relu6"  # other coefficients in some versions
            if self.kernel > 1 and self.height > self.width:
                name += " portrait"
        if self.operation == "fully-connected" and self.channels > _WIDE_LAYER:
            name += f" above {_WIDE_LAYER} inputs"
        if self.operation in ("concatenation", "joined") and self.parts > _MANY_PARTS:
            name += f" above {_MANY_PARTS}"
        return name + (" int8" if self.dtype == "int8" else "")

    @property
    def name(self) -> str:
        """A unique short name: a report's key, and a file's name."""
        size = f"{self.height}x{self.width}x{self.channels}"
        words = [self.operation, size]
        graph = self.operation in _GRAPH_KINDS
        if graph or self.operation in ("conv", "depthwise", "fully-connected", "residual"):
            words[-1] += f"-{self.outputs}"
        if self.operation in ("conv", "depthwise") or (graph and self.kernel > 1):
            words += [f"k{self.kernel}s{self.stride}", self.padding]
        if self.activation != PLAIN:
            words.append(self.activation)
        if self.operation in ("concatenation", "split", "joined", "parted", "readers"):
            words.append(f"{self.parts}")
        if self.operation == "pad":
            words.append(".".join(str(each) for each in self.pads))
        words.append(".".join(str(each) for each in self.zero_points))
        if self.sparse:
            words.append(f"sparse{self.sparse:g}")
        if self.scales != (0.02, 1.0):
            words.append("scale" + ".".join(f"{each:g}" for each in self.scales))
        return "_".join([*words, self.dtype, self.source])


def sweep(*, quick: bool) -> list[Case]:
    """Return the cases of a sweep, the same ones each time; ``quick``: about 115 in place of hundreds."""
    cases = dict.fromkeys((*_chosen(), *_of_real_models()))
    if not quick:
        cases.update(dict.fromkeys(_random(random.Random(20260101), 320)))  # noqa: S311
    return list(cases)


_CONV = Case("conv", 16, 24, 16, 16)
_KERNEL = replace(_CONV, kernel=3, height=15, width=19)
_DEPTHWISE = Case("depthwise", 16, 16, 16, 16, kernel=3)
_ADD = Case("add", 8, 8, 16, zero_points=(110, 90, 100))
_CONNECTED = Case("fully-connected", 1, 1, 64, 10)


def _chosen() -> Iterator[Case]:
    """Cases that each stand for something: known faults, borders of formats, and plain ones."""
    yield from _pointwise()
    yield from _with_kernels()
    yield from _depthwise()
    yield from _additions()
    yield from _connected()
    yield from _without_weights()
    for case in (_CONV, _KERNEL, _DEPTHWISE, _ADD, _CONNECTED, Case("relu")):
        yield replace(case, dtype="int8")


def _pointwise() -> Iterator[Case]:
    for channels, outputs in ((16, 16), (7, 8), (3, 20), (96, 24), (1, 8)):
        yield replace(_CONV, channels=channels, outputs=outputs)
    for channels, outputs in ((16, 16), (7, 8), (24, 33)):
        yield replace(_CONV, channels=channels, outputs=outputs, activation=RELU6)
    yield replace(_CONV, activation=RELU, source=PHOTO)
    yield replace(_CONV, stride=2)


def _with_kernels() -> Iterator[Case]:
    yield _KERNEL
    yield replace(_KERNEL, source=PHOTO, channels=3)
    yield replace(_KERNEL, padding=VALID, activation=RELU6)
    yield replace(_KERNEL, kernel=5, channels=4, sparse=0.8)
    yield replace(_KERNEL, kernel=2, padding=VALID)
    yield replace(_KERNEL, zero_points=(0, 255, 0))
    yield replace(_KERNEL, zero_points=(255, 0, 255))
    yield replace(_KERNEL, channels=1, outputs=1)
    yield replace(_KERNEL, height=1, width=7, padding=PADDED)
    yield from (
        replace(_KERNEL, stride=2, height=16, width=16, channels=3),
        replace(_KERNEL, stride=2, padding=VALID),
        replace(_KERNEL, stride=2, kernel=5, height=24, width=40, channels=3),
        replace(_KERNEL, stride=2, kernel=2, height=8, width=8, padding=VALID),
        replace(_KERNEL, stride=2, source=PHOTO, channels=3, activation=RELU6),
    )
    yield replace(_KERNEL, height=20, width=12)
    yield replace(_KERNEL, height=20, width=12, stride=2)


def _depthwise() -> Iterator[Case]:
    yield _DEPTHWISE
    yield replace(_DEPTHWISE, activation=RELU6, source=PHOTO)
    yield replace(_DEPTHWISE, channels=3, outputs=3)
    yield replace(_DEPTHWISE, channels=40, outputs=40, kernel=5)
    yield replace(_DEPTHWISE, height=20, width=12)
    yield replace(_DEPTHWISE, stride=2)
    yield replace(_DEPTHWISE, stride=2, height=17, width=17)
    yield replace(_DEPTHWISE, stride=2, height=7, width=7, channels=24, outputs=24)


def _additions() -> Iterator[Case]:
    for operation in ("add", "residual"):
        yield replace(_ADD, operation=operation)
        yield replace(_ADD, operation=operation, zero_points=(110, 110, 100), scales=(0.05, 1.0))
        yield replace(_ADD, operation=operation, height=5, width=7, channels=9)
        yield replace(_ADD, operation=operation, channels=64, zero_points=(0, 255, 128))


def _connected() -> Iterator[Case]:
    yield _CONNECTED
    yield replace(_CONNECTED, channels=384, outputs=40, sparse=0.5)
    yield replace(_CONNECTED, channels=15, outputs=8)


def _without_weights() -> Iterator[Case]:
    """What moves values, or looks them up."""
    for parts in (2, 3):
        yield Case("concatenation", 8, 8, 8, parts=parts)
        yield Case("split", 8, 8, 24, parts=parts)
    yield Case("pad", 8, 8, 8)
    yield Case("pad", 8, 8, 8, pads=(0, 1, 0, 1, 0, 0))
    yield Case("pad", 6, 10, 4, pads=(2, 3, 1, 4, 0, 0))
    yield Case("pad", 6, 10, 8, pads=(0, 0, 0, 0, 1, 1))
    for operation in ("relu", "abs", "logistic"):
        dtype = "int8" if operation == "abs" else "uint8"
        yield Case(operation, 8, 8, 8, dtype=dtype)
        yield Case(operation, 20, 70, 3, dtype=dtype, zero_points=(100, 0, 30), source=PHOTO)
        if operation == "logistic":
            yield Case(operation, 16, 16, 16, dtype=dtype, scales=(0.09, 1.0))


def _of_real_models() -> Iterator[Case]:
    """What real models have and one operation of usual size does not."""
    square = Case("head", 10, 10, 16, 12)
    for operation in ("head", "flat", "heads", "branch", "handed-out", "readers", "difference"):
        yield replace(square, operation=operation)
    yield replace(square, kernel=3, channels=3, height=8, width=12)
    yield replace(square, operation="readers", parts=3, kernel=3)
    yield replace(square, operation="sum-relu", zero_points=(120, 128, 60))
    yield Case("sub", 8, 8, 16, zero_points=(110, 90, 100))
    for parts in (2, 3, 10, 11, 32):
        yield Case("joined", 8, 8, 3, 4, parts=parts)
    yield Case("parted", 8, 8, 16, 24)
    conv = Case("conv", 16, 24, 3, 8, kernel=7)
    yield conv
    yield replace(conv, padding=VALID)
    yield replace(conv, height=24, stride=2)
    for kernel in (1, 3):
        yield replace(conv, kernel=kernel, stride=3, height=24)
    yield Case("depthwise", 15, 15, 8, 8, kernel=3, stride=3)
    yield Case("grouped", 12, 12, 8, 8, kernel=3)
    yield Case("multiplied", 12, 12, 8, 16, kernel=3)
    yield Case("connected-4d", 1, 1, 384, 40)
    yield Case("connected-4d", 4, 4, 8, 10)
    for width in (1024, 1279, 1280):
        yield Case("fully-connected", 1, 1, width, 16)
    yield Case("connected-relu", 1, 1, 384, 40, zero_points=(120, 128, 90))
    yield Case("connected-without-bias", 1, 1, 384, 40)
    yield Case("float-add", dtype="float32")
    yield Case("float-connected", 1, 1, 64, 10, dtype="float32")
    for case in (
        square,
        replace(square, operation="branch"),
        replace(square, operation="readers"),
        Case("sub", 8, 8, 16, zero_points=(110, 90, 100)),
        Case("residual", 8, 8, 16, zero_points=(110, 90, 100)),
        Case("joined", 8, 8, 3, 4, parts=3),
        Case("parted", 8, 8, 16, 24),
        Case("depthwise", 16, 16, 16, 16, kernel=3, stride=2),
        Case("conv", 16, 16, 3, 16, kernel=3, stride=2),
        Case("concatenation", 8, 8, 8),
        Case("split", 8, 8, 24),
        Case("pad"),
        Case("pad", zero_points=(0, 128, 0)),
        Case("logistic"),
        Case("connected-4d", 1, 1, 384, 40),
    ):
        yield replace(case, dtype="int8")


def _random(rng: random.Random, count: int) -> Iterator[Case]:
    """Cases over the ranges that Teflon states it takes, from a fixed seed."""
    for _ in range(count):
        operation = rng.choices(
            ["conv", "depthwise", "add", "residual", "fully-connected"], [50, 22, 8, 8, 6]
        )[0]
        kernel = rng.choice([1, 1, 2, 3, 3, 3, 4, 5]) if operation == "conv" else rng.choice([3, 5])
        low = kernel + 1
        width = rng.choice([low, rng.randint(low, 24), rng.randint(low, 80)])
        height = rng.choice([width, width, rng.randint(low, 40)])
        channels = rng.choice([1, 2, 3, rng.randint(4, 40), rng.randint(4, 300)])
        while height * width * channels > 60_000:
            channels = max(1, channels // 2)
        outputs = rng.choice([1, rng.randint(2, 24), rng.randint(2, 300)])
        if operation == "depthwise":
            outputs = channels
        if operation == "fully-connected":
            height = width = 1
        stride = rng.choice([1, 1, 2]) if operation in ("conv", "depthwise") else 1
        extreme = rng.random() < 0.2
        zero_points = [
            rng.choice([0, 1, 254, 255]) if extreme else rng.randint(20, 235) for _ in range(3)
        ]
        activation = rng.choice([PLAIN, RELU, RELU6])
        dtype = rng.choice(["uint8", "uint8", "int8"])
        # TFLite's int8 kernels take only weights around 0.
        weight_zero_point = 128 if dtype == "int8" else zero_points[1]
        out_zero_point = zero_points[2] if activation == PLAIN else zero_points[2] // 3
        yield Case(
            operation,
            height,
            width,
            channels,
            outputs,
            kernel=kernel if operation in ("conv", "depthwise") else 1,
            stride=stride,
            padding=rng.choice([PADDED, VALID]),
            activation=activation if operation in ("conv", "depthwise") else PLAIN,
            dtype=dtype,
            zero_points=(zero_points[0], weight_zero_point, out_zero_point),
            sparse=rng.choice([0.0, 0.0, 0.6, 0.97]),
            scales=(
                0.0005 if activation == RELU6 else rng.choice([0.0005, 0.02, 0.9]),
                rng.choice([0.7, 1.0, 1.6]),
            ),
            source=rng.choice([NOISE, PHOTO]),
        )
