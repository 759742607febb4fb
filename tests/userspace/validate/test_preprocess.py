# SPDX-License-Identifier: MIT
"""The resize is compared with an independent scalar one, and with TFLite's own RESIZE_BILINEAR kernel."""

from __future__ import annotations

import hashlib
import struct
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from userspace.npu.model.tflite_file import Tensor, resize_bilinear, write_model
from userspace.npu.validate import preprocess
from userspace.npu.validate.runner import load_runtime

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
    with pytest.raises(preprocess.ImageError, match="int16"):
        to_input(resized, np.dtype(np.int16))


@given(st.integers(1, 33), st.integers(1, 33), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_bmp_round_trip(height: int, width: int, seed: int) -> None:
    pixels = noise(height, width, seed)
    assert np.array_equal(preprocess.decode_bmp(preprocess.encode_bmp(pixels)), pixels)


def header(content: bytes, **fields: Any) -> bytes:
    """Return a BMP with header fields replaced."""
    places = {
        "width": ("<i", 18),
        "height": ("<i", 22),
        "bits": ("<H", 28),
        "compression": ("<I", 30),
    }
    changed = bytearray(content)
    for name, value in fields.items():
        struct.pack_into(places[name][0], changed, places[name][1], value)
    return bytes(changed)


def test_a_top_down_bmp_is_read_from_the_top() -> None:
    pixels = noise(4, 5, 1)
    top_down = header(preprocess.encode_bmp(pixels[::-1]), height=-4)
    assert np.array_equal(preprocess.decode_bmp(top_down), pixels)


def test_32_and_8_bits() -> None:
    plain = preprocess.encode_bmp(noise(4, 4, 2))
    four = header(plain[:54] + bytes(range(64)), bits=32)
    assert preprocess.decode_bmp(four)[3, 0].tolist() == [2, 1, 0]  # bottom row first; B, G, R, A
    grey = header(plain[:54] + bytes(range(16)), bits=8)
    assert preprocess.decode_bmp(grey)[3, 1].tolist() == [1, 1, 1]


GOOD = preprocess.encode_bmp(noise(4, 4, 3))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "an empty file"),
        (b"\x89PNG\r\n\x1a\n", "expected a BMP"),
        (GOOD[:20], "cut short: 20 of 54"),
        (GOOD[:-1], "the BMP is cut short"),
        (header(GOOD, width=0), "0 x 4 pixels"),
        (header(GOOD, width=1 << 30), "pixels"),
        (header(GOOD, bits=4), "found 4"),
        (header(GOOD, compression=1), "compression 1"),
    ],
)
def test_what_is_no_bmp_is_refused(content: bytes, said: str) -> None:
    with pytest.raises(preprocess.ImageError, match=said):
        preprocess.decode_bmp(content)
