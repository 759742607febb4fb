# SPDX-License-Identifier: MIT
"""What each input of a model is given: the picture, in the form that the input has, or generated data.

Shipped to boards beside ``runner.py``, where the values are made; the project's own machine asks the same
functions before anything runs. The standard library, numpy and ``preprocess.py``'s results only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

SEED = 20
"""Of the generated data: numpy's ``RandomState``, whose numbers are the same in every version."""
_CHANNELS = {1: "in grey", 3: "", 4: "with an opaque alpha channel"}
PLAIN = "the picture"
"""What a usual input is given: three channels, once."""
HINT = "give a model that takes a picture"
"""What to do where none of a model's inputs does."""
# One letter an axis: batch, height, width, channels. The first that fits counts.
_LAYOUTS = ("NHWC", "NCHW", "HWC", "CHW", "NHW")
_LEAST_SIDE = 2
_PIXELS = ("uint8", "int8", "float32", "float16", "int16")
_COLOUR_PIXELS = (
    "int32",
    "int64",
)  # as MoveNet takes them; with another count of channels they are not pixels
_SMALL = ("bool", "int16", "int32", "int64", "uint16", "uint32", "uint64")
_BYTES = ("uint8", "int8")
_FLOATS = ("float16", "float32", "float64")
# ITU-R BT.601
_GREY = (0.299, 0.587, 0.114)


class InputError(ValueError):
    """The model takes something that neither a picture nor generated data can be; the message says what."""


@dataclass(frozen=True)
class Input:
    """One input of a model.

    Attributes:
        shape: sizes that the model has now.
        signature: the same, with -1 where any size will do.
        dtype: numpy's name of the type; others by their name in TensorFlow's schema.
        scale: of the quantisation; 0 without.
    """

    name: str
    shape: tuple[int, ...]
    signature: tuple[int, ...]
    dtype: str
    scale: float = 0.0
    zero_point: int = 0

    def text(self) -> str:
        """Shape and type in words: ``1x?x?x3 uint8``, with a ``?`` where any size will do."""
        sizes = ["?" if any_size < 0 else str(size) for size, any_size in self._sizes()]
        return f"{'x'.join(sizes) or 'one'} {self.dtype}"

    def _sizes(self) -> list[tuple[int, int]]:
        has_signature = len(self.signature) == len(self.shape)
        return list(zip(self.shape, self.signature if has_signature else self.shape, strict=True))

    def free(self, axis: int) -> bool:
        """Whether any size will do for an axis."""
        return self._sizes()[axis][1] < 0


@dataclass(frozen=True)
class Filling:
    """What one input is given.

    Attributes:
        layout: the axes of a picture, as in ``NHWC``; "" where the data are generated.
        seed: of generated data.
    """

    input: Input
    layout: str
    seed: int = 0

    def size(self, axis: str) -> int:
        """Return the input's size along an axis of its layout; 1 where it has no such axis."""
        return self.input.shape[self.layout.index(axis)] if axis in self.layout else 1

    def text(self) -> str:
        """Say in words what it is given."""
        if not self.layout:
            return f"generated data, seed {self.seed}"
        words = [PLAIN, _CHANNELS[self.size("C")]]
        if self.layout in ("NCHW", "CHW"):
            words.append("channels first")
        if self.size("N") > 1:
            words.append(f"{self.size('N')} times")
        return ", ".join(filter(None, words))

    def record(self) -> dict[str, Any]:
        """Return it for a document: ``name``, ``shape``, ``dtype``, ``given``."""
        each = self.input
        return {
            "name": each.name,
            "shape": list(each.shape),
            "dtype": each.dtype,
            "given": self.text(),
        }


def inputs_of(interpreter: Any) -> list[Input]:
    """Return the inputs of a TFLite interpreter."""
    inputs = []
    for detail in interpreter.get_input_details():
        shape = tuple(int(size) for size in detail["shape"])
        scale, zero_point = detail["quantization"]
        signature = tuple(int(size) for size in detail.get("shape_signature", shape))
        dtype = np.dtype(detail["dtype"]).name
        inputs.append(
            Input(str(detail["name"]), shape, signature, dtype, float(scale), int(zero_point))
        )
    return inputs


def fillings(inputs: Sequence[Input]) -> list[Filling]:
    """Return what each input is given.

    Raises:
        InputError: no input takes a picture, one takes it in any size and has none yet, or nothing can be
            generated for one.
    """
    layouts = [layout_of(each) for each in inputs]
    if not any(layouts):
        raise InputError(
            f"the model takes {_listed(inputs)}: no picture. A picture is at least 2 x 2 pixels with 1, 3 "
            f"or 4 channels, of {', '.join(_PIXELS[:-1])} or {_PIXELS[-1]}"
        )
    chosen = []
    for number, (each, layout) in enumerate(zip(inputs, layouts, strict=True)):
        if free_sides(each, layout):
            raise InputError(
                f"the model takes a picture of any size, {each.text()}: it has to be given one"
            )
        if not layout and each.dtype not in (*_SMALL, *_BYTES, *_FLOATS):
            raise InputError(
                f"the model's input {each.name!r} takes {each.text()}, beside a picture: no data can be "
                "generated for that"
            )
        if layout and each.dtype == "int16" and not each.scale:
            raise InputError(f"the model takes {each.text()} without a scale: no pixels")
        chosen.append(Filling(each, layout, 0 if layout else SEED + number))
    return chosen


def layout_of(each: Input) -> str:
    """Return the axes of an input that takes a picture; "" if it takes none."""
    for layout in _LAYOUTS:
        if len(layout) == len(each.shape) and _fits(each, layout):
            return layout
    return ""


def _fits(each: Input, layout: str) -> bool:
    sizes = dict(zip(layout, each.shape, strict=True))
    channels = sizes.get("C", 1)
    if channels not in _CHANNELS or ("C" in sizes and each.free(layout.index("C"))):
        return False
    if each.dtype not in _PIXELS and not (each.dtype in _COLOUR_PIXELS and channels == 3):
        return False
    # A size of 1 where any will do is only how converters write it.
    if any(sizes[axis] < _LEAST_SIDE and not each.free(layout.index(axis)) for axis in "HW"):
        return False
    if layout == "CHW":
        return channels > 1
    if layout == "NHW":  # other such tensors are sequences
        return sizes["N"] == 1 and sizes["H"] == sizes["W"] and each.dtype in _PIXELS
    return True


def free_sides(each: Input, layout: str) -> list[int]:
    """Return the axes of a picture's sides for which any size will do, and that have none yet."""
    places = [layout.index(axis) for axis in "HW" if axis in layout]
    return [place for place in places if each.free(place) and each.shape[place] < _LEAST_SIDE]


def values(
    filling: Filling,
    resize: Callable[[int, int], NDArray[np.float32]],
    convert: Callable[[NDArray[np.float32], np.dtype[Any]], NDArray[Any]],
) -> NDArray[Any]:
    """Return what an input is given, in its shape and type.

    Args:
        resize: from height and width to the picture's pixels: float32, 0..255, height x width x 3.
        convert: ``preprocess.to_input``.
    """
    each = filling.input
    if not filling.layout:
        return _generated(each, filling.seed)
    pixels = resize(filling.size("H"), filling.size("W"))
    channels = filling.size("C")
    if channels == 1:
        grey = pixels @ np.array(_GREY, np.float32)
        pixels = np.minimum(grey, np.float32(255))[:, :, None]
    elif channels == 4:
        alpha = np.full((*pixels.shape[:2], 1), 255, np.float32)
        pixels = np.concatenate([pixels, alpha], axis=2)
    if each.dtype == "int16":
        real = convert(pixels, np.dtype(np.float32)) / np.float32(each.scale) + each.zero_point
        stored: NDArray[Any] = np.clip(np.round(real), -32768, 32767).astype(np.int16)
    else:
        stored = convert(pixels, np.dtype(each.dtype))
    axes = [axis for axis in filling.layout if axis != "N"]
    ordered = stored if "C" in axes else stored[:, :, 0]
    ordered = ordered.transpose(["HWC".index(axis) for axis in axes])
    return np.ascontiguousarray(np.broadcast_to(ordered, each.shape))


def _generated(each: Input, seed: int) -> NDArray[Any]:
    """Bytes of any value, real numbers in 0..1, and 0 or 1 for integers that may be indices or lengths."""
    random = np.random.RandomState(seed)
    if each.dtype in _BYTES:
        count = int(np.prod(each.shape, dtype=np.int64))
        return np.frombuffer(random.bytes(count), each.dtype).reshape(each.shape)
    if each.dtype in _FLOATS:
        return np.asarray(random.random_sample(each.shape)).astype(each.dtype)
    return np.asarray(random.randint(0, 2, each.shape)).astype(each.dtype)


def _listed(inputs: Sequence[Input]) -> str:
    texts = [f"{each.text()} ({each.name})" if each.name else each.text() for each in inputs]
    return ", and ".join(texts) or "no input"
