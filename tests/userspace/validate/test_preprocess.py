# SPDX-License-Identifier: MIT
"""The resize is compared with an independent scalar one, and with TFLite's own RESIZE_BILINEAR kernel."""

from __future__ import annotations

import hashlib
import struct
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from userspace.npu.model.tflite_file import Tensor, resize_bilinear, write_model
from userspace.npu.validate.onboard import bmp, preprocess
from userspace.npu.validate.onboard.environment import load_runtime

Picture = NDArray[np.uint8]
sizes = st.integers(1, 40)


def f32(value: float) -> float:
    """Round to float32, with nothing of numpy in it."""
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


def nearest_f32(value: Fraction) -> float:
    """Round an exact number once, to the nearest float32, ties to even."""
    near = f32(float(value))
    (bits,) = struct.unpack("<i", struct.pack("<f", near))
    around = [struct.unpack("<f", struct.pack("<i", bits + step))[0] for step in (-1, 0, 1)]
    return min(
        (float(other) for other in around if other >= 0),
        key=lambda other: (abs(Fraction(other) - value), struct.pack("<f", other)[0] & 1),
    )


def scalar_resize(pixels: Picture, height: int, width: int, *, fused: bool) -> NDArray[np.float32]:
    """RESIZE_BILINEAR one value at a time, as the C++ loop has it."""
    rows, columns, channels = pixels.shape
    scale_y, scale_x = f32(rows / height), f32(columns / width)
    out = np.zeros((height, width, channels), np.float32)
    for y in range(height):
        in_y = f32(y * scale_y)
        y0 = int(in_y)
        y1 = min(y0 + 1, rows - 1)
        for x in range(width):
            in_x = f32(x * scale_x)
            x0 = int(in_x)
            x1 = min(x0 + 1, columns - 1)
            part_y, part_x = f32(in_y - y0), f32(in_x - x0)
            rest_y, rest_x = f32(1 - part_y), f32(1 - part_x)
            terms = (
                (y0, x0, f32(rest_y * rest_x)),
                (y0, x1, f32(rest_y * part_x)),
                (y1, x0, f32(part_y * rest_x)),
                (y1, x1, f32(part_y * part_x)),
            )
            for channel in range(channels):
                total = 0.0
                for row, column, weight in terms:
                    value = int(pixels[row, column, channel])
                    if fused:
                        total = nearest_f32(Fraction(total) + value * Fraction(weight))
                    else:
                        total = f32(total + f32(value * weight))
                out[y, x, channel] = total
    return out


def noise(height: int, width: int, seed: int) -> Picture:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("fused", [False, True])
@given(sizes, sizes, st.integers(1, 12), st.integers(1, 12), st.integers(0, 1000))
@example(37, 11, 12, 12, 1)
@settings(max_examples=25, deadline=None)
def test_resize_equals_the_scalar_one(
    fused: bool, height: int, width: int, out_height: int, out_width: int, seed: int
) -> None:
    pixels = noise(height, width, seed)
    ours = preprocess.resize_bilinear(pixels, out_height, out_width, fused=fused)
    assert np.array_equal(ours, scalar_resize(pixels, out_height, out_width, fused=fused))


def tflite_resize(pixels: Picture, height: int, width: int) -> NDArray[np.float32]:
    """The same through TFLite's own kernel: what label_image runs."""
    rows, columns, _ = pixels.shape
    tensors = [
        Tensor("image", (1, rows, columns, 3), "float32"),
        Tensor("size", (2,), "int32", data=np.array([height, width])),
        Tensor("resized", (1, height, width, 3), "float32"),
    ]
    model = write_model(
        tensors, [resize_bilinear(0, 1, 2)], inputs=[0], outputs=[2], description="resize"
    )
    module, _ = load_runtime()
    interpreter = module.Interpreter(
        model_content=model,
        experimental_op_resolver_type=module.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    interpreter.allocate_tensors()
    interpreter.set_tensor(
        interpreter.get_input_details()[0]["index"], pixels[None].astype(np.float32)
    )
    interpreter.invoke()
    out = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    resized: NDArray[np.float32] = out[0]
    return resized


@pytest.mark.parametrize(
    ("height", "width", "out_height", "out_width"),
    [(606, 517, 224, 224), (600, 512, 128, 128), (37, 53, 224, 224), (112, 112, 224, 224),
     (5, 1, 32, 32), (224, 224, 224, 224)],
)  # fmt: skip
def test_resize_equals_tflites_kernel_on_this_machine(
    height: int, width: int, out_height: int, out_width: int
) -> None:
    pixels = noise(height, width, 5)
    fused = preprocess.fuses_multiply_add()
    ours = preprocess.resize_bilinear(pixels, out_height, out_width, fused=fused)
    assert np.array_equal(ours, tflite_resize(pixels, out_height, out_width))


# From scalar_resize above: 29 x 41 pixels of noise (seed 3) to 24 x 24.
@pytest.mark.parametrize(
    ("fused", "digest"),
    [
        (False, "5f34f3c4ec92dddef882c606479859370adf9f10cdcd10db20e724ac1cdec4b6"),
        (True, "97f43899f8947781197083e59ce533625a60f2f8ec717fb4e24d8315777d6085"),
    ],
)
def test_golden_digest(fused: bool, digest: str) -> None:
    ours = preprocess.resize_bilinear(noise(29, 41, 3), 24, 24, fused=fused)
    assert hashlib.sha256(ours.tobytes()).hexdigest() == digest


def test_conversions() -> None:
    resized = np.array([0.0, 0.99, 127.5, 128.2, 255.0], np.float32)
    to_input = preprocess.to_input
    assert to_input(resized, np.dtype(np.uint8)).tolist() == [0, 0, 127, 128, 255]
    assert to_input(resized, np.dtype(np.int8)).tolist() == [-128, -128, -1, 0, 127]
    assert to_input(resized, np.dtype(np.float32))[[0, 2, 4]].tolist() == [-1.0, 0.0, 1.0]
    assert to_input(resized, np.dtype(np.int32)).tolist() == [0, 0, 127, 128, 255]
    halves = to_input(resized, np.dtype(np.float16))
    assert halves.dtype == np.float16
    assert halves[[0, 4]].tolist() == [-1.0, 1.0]
    with pytest.raises(ValueError, match="int16"):
        to_input(resized, np.dtype(np.int16))


def test_a_picture_is_resized_as_its_pixels_are_in_blocks_of_rows() -> None:
    """More output rows than one block has; of a picture only rows that are needed are asked for."""
    pixels = noise(700, 9, 4)
    asked: list[int] = []

    def rows(numbers: NDArray[np.intp]) -> Picture:
        asked.extend(numbers.tolist())
        return pixels[numbers]

    picture = bmp.Picture(700, 9, rows)
    for height in (300, 5):
        asked.clear()
        for fused in (False, True):
            ours = preprocess.resize_bilinear(picture, height, 7, fused=fused)
            assert np.array_equal(ours, preprocess.resize_bilinear(pixels, height, 7, fused=fused))
        assert len(asked) == 4 * height
