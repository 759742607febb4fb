# SPDX-License-Identifier: MIT
"""Small models whose inputs and operators are not those of a usual image classifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from userspace.npu.model import tflite_file as t

RESHAPE, TRANSPOSE, ADD, CAST, FULLY_CONNECTED, MUL, FLOOR_MOD = 22, 39, 0, 53, 9, 18, 95
ARG_MAX, GATHER, DEQUANTIZE, GREATER, WHERE = 56, 36, 6, 61, 109
VAR_HANDLE, READ_VARIABLE, ASSIGN_VARIABLE = 142, 143, 144


class Model:
    """Collects tensors and operators."""

    def __init__(self, seed: int = 7) -> None:
        self.tensors: list[t.Tensor] = []
        self.operators: list[t.Operator] = []
        self.random = np.random.default_rng(seed)

    def tensor(self, name: str, shape: Sequence[int], dtype: str = "uint8", *, scale: float = 0.0,
               zero_point: int = 0, data: object = None,
               signature: Sequence[int] = ()) -> int:  # fmt: skip
        array = None if data is None else np.asarray(data)
        self.tensors.append(
            t.Tensor(name, tuple(shape), dtype, scale, zero_point, array, tuple(signature))
        )
        return len(self.tensors) - 1

    def image(self, *shape: int, dtype: str = "uint8", signature: Sequence[int] = ()) -> int:
        scale, zero_point = {"uint8": (1 / 255, 0), "int8": (1 / 255, -128)}.get(dtype, (0.0, 0))
        return self.tensor(
            "image", shape, dtype, scale=scale, zero_point=zero_point, signature=signature
        )

    def conv(self, source: int, channels: int = 4, *, stride: int = 1) -> int:
        """A convolution with a window of 3 x 3 and random weights, in the type of its input."""
        before = self.tensors[source]
        batch, height, width, depth = before.shape
        shape = (channels, 3, 3, depth)
        out = (batch, -(-height // stride), -(-width // stride), channels)
        if before.dtype == "float32":
            weights = self.tensor("w", shape, "float32", data=self.random.normal(0, 0.2, shape))
            bias = self.tensor("b", (channels,), "float32", data=np.zeros(channels))
            sink = self.tensor("features", out, "float32")
        else:
            zero = 128 if before.dtype == "uint8" else 0
            stored = self.random.integers(-60, 60, shape) + zero
            weights = self.tensor(
                "w", shape, before.dtype, scale=0.01, zero_point=zero, data=stored
            )
            bias = self.tensor(
                "b", (channels,), "int32", scale=0.01 * before.scale, data=np.zeros(channels)
            )
            sink = self.tensor("features", out, before.dtype, scale=0.02, zero_point=zero)
        if before.signature:
            signature = (*before.signature[:3], channels)
            self.tensors[sink] = replace(self.tensors[sink], signature=signature)
        version = 3 if before.dtype == "int8" else 1
        operator = t.conv((source, weights, bias), sink, stride=stride, activation=t.NO_ACTIVATION)
        self.operators.append(replace(operator, version=version))
        return sink

    def reshape(self, source: int, *shape: int) -> int:
        before = self.tensors[source]
        sizes = self.tensor("shape", (len(shape),), "int32", data=np.array(shape))
        sink = self.tensor("reshaped", shape, before.dtype, scale=before.scale,
                           zero_point=before.zero_point)  # fmt: skip
        self.operators.append(t.reshape(source, sizes, sink))
        return sink

    def written(self, inputs: Sequence[int], outputs: Sequence[int]) -> bytes:
        return t.write_model(
            self.tensors,
            self.operators,
            inputs=inputs,
            outputs=outputs,
            description="made for a test",
        )


def one_conv(*shape: int, dtype: str = "uint8", signature: Sequence[int] = ()) -> bytes:
    """A model with one input, N x H x W x C, and one convolution."""
    model = Model()
    image = model.image(*shape, dtype=dtype, signature=signature)
    return model.written([image], [model.conv(image)])


def channels_first(*shape: int, signature: Sequence[int] = ()) -> bytes:
    """An input N x C x H x W, which the model itself transposes."""
    model = Model()
    image = model.image(*shape, signature=signature)
    order = model.tensor("order", (4,), "int32", data=np.array([0, 2, 3, 1]))
    batch, depth, height, width = shape
    turned = model.tensor("turned", (batch, height, width, depth), scale=1 / 255)
    model.operators.append(t.Operator(TRANSPOSE, (image, order), (turned,), 26))
    return model.written([image], [model.conv(turned)])


def two_inputs(dtype: str = "uint8", second: tuple[int, ...] = (1, 16, 16, 5)) -> bytes:
    """A picture, and what is added to the convolution of it."""
    model = Model()
    image = model.image(1, 16, 16, 3)
    features = model.conv(image, 5)
    if dtype == "uint8":
        other = model.tensor("mask", second, scale=0.02, zero_point=128)
        added = model.tensor("sum", (1, 16, 16, 5), scale=0.04, zero_point=128)
        model.operators.append(t.Operator(ADD, (features, other), (added,), 11))
        return model.written([image, other], [added])
    other = model.tensor("lengths", second, dtype)
    real = model.tensor("real", second, "float32")
    model.operators.append(t.Operator(CAST, (other,), (real,), 37))
    return model.written([image, other], [features, real])


def crash() -> bytes:
    """An ADD of two convolutions, then the rest of the smallest whole number by -1: SIGFPE on x86."""
    model = Model()
    image = model.image(1, 16, 16, 3)
    last = model.tensor("sum", (1, 16, 16, 4), scale=0.04, zero_point=128)
    branches = (model.conv(image), model.conv(image))
    model.operators.append(t.Operator(ADD, branches, (last,), 11))
    for code, options, value in (
        (CAST, 37, None),
        (MUL, 21, 0),
        (ADD, 11, -(2**31)),
        (FLOOR_MOD, 0, -1),
    ):
        others = []
        if value is not None:
            others.append(model.tensor("number", (1,), "int32", data=np.array([value])))
        sink = model.tensor(f"made_{code}", (1, 16, 16, 4), "int32")
        model.operators.append(t.Operator(code, (last, *others), (sink,), options))
        last = sink
    return model.written([image], [last])


def vector(*shape: int, dtype: str = "float32") -> bytes:
    """No picture: a vector that is reshaped."""
    model = Model()
    source = model.tensor("features", shape, dtype)
    flat = int(np.prod(shape))
    return model.written([source], [model.reshape(source, flat)])


def with_operator(
    code: int, *, version: int = 1, custom: str = "", any_size: bool = False
) -> bytes:
    """A convolution, and an operator that the runtime may not have."""
    model = Model()
    side = 1 if any_size else 16
    signature = (1, -1, -1, 3) if any_size else ()
    image = model.image(1, side, side, 3, signature=signature)
    features = model.conv(image)
    sink = model.tensor("y", (1, side, side, 4), scale=0.02, zero_point=128)
    model.operators.append(
        t.Operator(code, (features,), (sink,), 0, version=version, custom=custom)
    )
    return model.written([image], [sink])


def detector(
    order: Sequence[str], names: Sequence[str] = (), objects: int = 10, *, finds: bool = True
) -> bytes:
    """A model with a detector's four outputs in some order; boxes and scores hang on the picture.

    Args:
        finds: False: all scores are 0.5, whatever the picture.
    """
    model = Model()
    image = model.image(1, 16, 16, 3, dtype="float32")

    def dense(width: int, *, weight: float, bias: object) -> int:
        weights = model.random.normal(0, 1, (width, 16, 16, 3)) * weight
        kernel = model.tensor("w", (width, 16, 16, 3), "float32", data=weights)
        offset = model.tensor("b", (width,), "float32", data=bias)
        sink = model.tensor("made", (1, 1, 1, width), "float32")
        operator = t.conv((image, kernel, offset), sink, stride=16, activation=t.NO_ACTIVATION,
                          padding=t.VALID)  # fmt: skip
        model.operators.append(operator)
        return sink

    sure = np.linspace(0.95, 0.2, objects) if finds else np.full(objects, 0.5)
    corners = [[0.1 * number, 0.1, 0.1 * number + 0.2, 0.5] for number in range(objects)]
    made = {
        "boxes": (dense(4 * objects, weight=1e-4, bias=np.ravel(corners)), (1, objects, 4)),
        "scores": (
            dense(objects, weight=1e-4 * finds, bias=sure),
            (1, objects),
        ),
        "classes": (dense(objects, weight=0.0, bias=np.arange(objects) % 3), (1, objects)),
        "count": (dense(1, weight=0.0, bias=np.array([objects])), (1,)),
    }  # fmt: skip
    outputs = []
    for position, kind in enumerate(order):
        source, shape = made[kind]
        sink = model.reshape(source, *shape)
        name = names[position] if names else f"StatefulPartitionedCall:{position}"
        model.tensors[sink] = replace(model.tensors[sink], name=name)
        outputs.append(sink)
    return model.written([image], outputs)


def string_bytes(words: Sequence[bytes]) -> object:
    """The bytes of a tensor of strings: how many, where each begins and the last ends, the strings."""
    ends = np.cumsum([4 + 4 * (len(words) + 1), *map(len, words)])
    header = np.array([len(words), *ends], np.int32).tobytes()
    return np.frombuffer(header + b"".join(words), np.uint8)


def names_and_places(limit: float) -> bytes:
    """A convolution; the name of its best channel for each pixel; the places of what is above a limit."""
    model = Model()
    image = model.image(1, 16, 16, 3)
    features = model.conv(image)
    names = model.tensor(
        "names", (4,), "string", data=string_bytes([b"cat", b"dog", b"hen", b"fish"])
    )
    axis = model.tensor("axis", (1,), "int32", data=np.array([3]))
    best = model.tensor("best", (1, 16, 16), "int64")
    named = model.tensor("named", (1, 16, 16), "string")
    real = model.tensor("real", (1, 16, 16, 4), "float32")
    number = model.tensor("limit", (1,), "float32", data=np.array([limit]))
    above = model.tensor("above", (1, 16, 16, 4), "bool")
    places = model.tensor("places", (0, 4), "int64")
    model.operators += [
        t.Operator(ARG_MAX, (features, axis), (best,), 40, (("int8", 0, 4),)),
        t.Operator(GATHER, (names, best), (named,), 23),
        t.Operator(DEQUANTIZE, (features,), (real,), 38),
        t.Operator(GREATER, (real, number), (above,), 0),
        t.Operator(WHERE, (above,), (places,), 0),
    ]
    return model.written([image], [features, named, places])


def variable() -> bytes:
    """A convolution whose output is kept in a variable, and read from it again."""
    model = Model()
    image = model.image(1, 16, 16, 3)
    features = model.conv(image)
    handle = model.tensor("handle", (), "resource")
    kept = model.tensor("kept", model.tensors[features].shape, scale=0.02, zero_point=128)
    model.operators += [
        t.Operator(VAR_HANDLE, (), (handle,), 111),
        t.Operator(ASSIGN_VARIABLE, (handle, features), (), 113),
        t.Operator(READ_VARIABLE, (handle,), (kept,), 112),
    ]
    return model.written([image], [kept])
