# SPDX-License-Identifier: MIT
"""BMP files of every kind, written here field by field, and those that are refused by name."""

from __future__ import annotations

import contextlib
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bsp.base.project import PROJECT
from userspace.npu.validate.onboard import bmp

Pixels = NDArray[np.uint8]


def noise(height: int, width: int, seed: int = 1) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def file_of(
    rows: list[bytes],
    width_pixels: int,
    bits_a_pixel: int,
    /,
    *,
    header: int = 40,
    compression: int = 0,
    palette: bytes = b"",
    masks: tuple[int, ...] = (),
    used: int = 0,
    top_down: bool = False,
    gap: int = 0,
    **lies: int,
) -> bytes:
    """Return a BMP; ``rows`` from the top, unpadded. ``lies`` replace fields of the headers."""
    height = len(rows)
    padded = [row + bytes(-len(row) % 4) for row in rows]
    body = b"".join(padded if top_down else padded[::-1])
    mask_bytes = b"".join(struct.pack("<I", mask) for mask in masks)
    if header == 12:
        fields = struct.pack("<IHHHH", 12, width_pixels, height, 1, bits_a_pixel)
    else:
        fields = struct.pack(
            "<IiiHHIIiiII", header, width_pixels, -height if top_down else height, 1, bits_a_pixel,
            compression, len(body), 2835, 2835, used, 0,
        )  # fmt: skip
        fields = (fields + mask_bytes).ljust(header, b"\0")[:header]
    if header == 40:
        fields += mask_bytes
    offset = 14 + len(fields) + len(palette) + gap
    content = bytearray(struct.pack("<2sIHHI", b"BM", offset + len(body), 0, 0, offset))
    content += fields + palette + bytes(gap) + body
    places = {
        "file_size": ("<I", 2), "offset": ("<I", 10), "header_size": ("<I", 14), "width": ("<i", 18),
        "height": ("<i", 22), "planes": ("<H", 26), "bits": ("<H", 28), "kind": ("<I", 30),
        "image_size": ("<I", 34), "colours": ("<I", 46),
    }  # fmt: skip
    for name, value in lies.items():
        struct.pack_into(places[name][0], content, places[name][1], value)
    return bytes(content)


def rgb(content: bytes) -> list[list[list[int]]]:
    found: list[list[list[int]]] = bmp.decode_bmp(content).tolist()
    return found


RED, GREEN, BLUE, WHITE = [255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]
PALETTE = b"\0\0\xff\0\0\xff\0\0\xff\0\0\0\xff\xff\xff\0"  # B, G, R, 0
OS2_PALETTE = b"\0\0\xff\0\xff\0\xff\0\0\xff\xff\xff"
EXPECTED = [[RED, GREEN, BLUE], [WHITE, BLUE, RED]]


@given(st.integers(1, 33), st.integers(1, 33), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_round_trip(height: int, width: int, seed: int) -> None:
    pixels = noise(height, width, seed)
    assert np.array_equal(bmp.decode_bmp(bmp.encode_bmp(pixels)), pixels)


@pytest.mark.parametrize("header", [12, 16, 40, 52, 56, 64, 108, 124])
@pytest.mark.parametrize("top_down", [False, True])
def test_palettes(header: int, top_down: bool) -> None:
    if header == 12 and top_down:
        pytest.skip("the smallest header has no sign")
    colours = OS2_PALETTE if header == 12 else PALETTE
    rows = {
        8: [bytes([0, 1, 2]), bytes([3, 2, 0])],
        4: [bytes([0x01, 0x20]), bytes([0x32, 0x00])],
        2: [bytes([0b00011000]), bytes([0b11100000])],
    }
    for bits, content in rows.items():
        palette = colours.ljust((1 << bits) * (len(colours) // 4), b"\x80")
        found = rgb(file_of(content, 3, bits, header=header, palette=palette, top_down=top_down))
        assert found == EXPECTED, bits


def test_one_bit_and_the_palettes_order() -> None:
    rows = [bytes([0b10100000, 0b01000000]), bytes([0b01000000, 0b10000000])]
    found = rgb(file_of(rows, 10, 1, palette=PALETTE[:8]))
    assert found[0] == [GREEN, RED, GREEN, RED, RED, RED, RED, RED, RED, GREEN]
    assert found[1] == [RED, GREEN, RED, RED, RED, RED, RED, RED, GREEN, RED]


def test_a_palette_with_fewer_colours_than_values() -> None:
    """``biClrUsed`` says how many there are; a value without a colour is black."""
    found = rgb(file_of([bytes([1, 0, 9])], 3, 8, palette=PALETTE[:8], used=2))
    assert found == [[GREEN, RED, [0, 0, 0]]]
    too_many = file_of([bytes([0, 1, 2])], 3, 2 * 4, palette=PALETTE.ljust(1024, b"\0"), used=70000)
    assert rgb(too_many) == [[RED, GREEN, BLUE]]
    # Without a palette at all, 8 bits are grey, as label_image reads them.
    assert rgb(file_of([bytes([7, 8, 255])], 3, 8)) == [[[7] * 3, [8] * 3, [255] * 3]]


def test_16_bits() -> None:
    def row(*values: int) -> bytes:
        return struct.pack(f"<{len(values)}H", *values)

    five = [row(0x7C00, 0x03E0, 0x001F), row(0x7FFF, 0x801F, 0x7C00)]
    assert rgb(file_of(five, 3, 16)) == EXPECTED
    six = [row(0xF800, 0x07E0, 0x001F), row(0xFFFF, 0x001F, 0xF800)]
    for header in (40, 52, 108, 124):
        masks = (0xF800, 0x07E0, 0x001F)
        assert rgb(file_of(six, 3, 16, header=header, compression=3, masks=masks)) == EXPECTED
    assert rgb(file_of([row(0x0200)], 1, 16)) == [[[0, 132, 0]]]  # 16 of 31


def test_32_bits_with_and_without_masks() -> None:
    plain = [bytes([1, 2, 3, 0, 4, 5, 6, 255]), bytes([7, 8, 9, 10, 11, 12, 13, 14])]
    expected = [[[3, 2, 1], [6, 5, 4]], [[9, 8, 7], [13, 12, 11]]]
    assert rgb(file_of(plain, 2, 32)) == expected
    masks = (0xFF0000, 0xFF00, 0xFF)
    for header in (40, 52, 56, 108, 124):
        assert rgb(file_of(plain, 2, 32, header=header, compression=3, masks=masks)) == expected
    alpha = (*masks, 0xFF000000)
    assert rgb(file_of(plain, 2, 32, compression=6, masks=alpha)) == expected
    # R, G, B, A, and ten bits a channel.
    turned = file_of(plain, 2, 32, compression=3, masks=(0xFF, 0xFF00, 0xFF0000))
    assert rgb(turned)[0] == [[1, 2, 3], [4, 5, 6]]
    ten = [struct.pack("<I", 1023 << 20 | 512 << 10)]
    wide = file_of(ten, 1, 32, compression=3, masks=(1023 << 20, 1023 << 10, 1023))
    assert rgb(wide) == [[[255, 128, 0]]]


def test_what_does_not_count_may_be_wrong() -> None:
    pixels = noise(3, 5)
    plain = bmp.encode_bmp(pixels)
    rows = [row.tobytes() for row in pixels[:, :, ::-1]]
    for content in (
        file_of(rows, 5, 24, file_size=5),
        file_of(rows, 5, 24, image_size=1 << 30),
        file_of(rows, 5, 24, planes=7),
    ):
        assert np.array_equal(bmp.decode_bmp(content), pixels)
    assert np.array_equal(bmp.decode_bmp(file_of(rows, 5, 24, gap=77)), pixels)
    assert np.array_equal(bmp.decode_bmp(plain + b"more"), pixels)


ROW = [bytes(12)]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "an empty file"),
        (b"\x89PNG\r\n\x1a\n", "found a PNG picture"),
        (b"\xff\xd8\xff\xe0....JFIF", "found a JPEG picture"),
        (b"GIF89a", "found a GIF picture"),
        (b"BA" + bytes(40), "an OS/2 bitmap array"),
        (b"hello, world" * 9, "starts with b'hell'"),
        (file_of(ROW, 4, 24)[:20], "cut short: 20 of at least 26"),
        (file_of(ROW, 4, 24)[:40], "cut short: 40 of 54"),
        (file_of(ROW, 4, 24)[:-1], "the BMP is cut short: 4 x 1 pixels need 66 bytes"),
        (file_of(ROW, 4, 24, width=0), "0 x 1 pixels"),
        (file_of(ROW, 4, 24, width=-4), "-4 x 1 pixels"),
        (file_of(ROW, 4, 24, height=0), "4 x 0 pixels"),
        (file_of(ROW, 4, 24, height=-(1 << 31)), "pixels"),
        (file_of(ROW, 4, 24, width=30000, height=30000), "cut short: 30000 x 30000 pixels need"),
        (file_of(ROW, 4, 24, header_size=66), "header has 66 bytes"),
        (file_of(ROW, 4, 24, header_size=1 << 31), "header has 2147483648 bytes"),
        (file_of(ROW, 4, 24, offset=0), "pixels begin at byte 0, and its header ends at 54"),
        (file_of(ROW, 4, 24, offset=1 << 31), "the BMP is cut short"),
        (file_of(ROW, 4, 24, bits=0), "found 0"),
        (file_of(ROW, 4, 24, bits=5), "1, 2, 4, 8, 16, 24 or 32 bits a pixel, found 5"),
        (file_of(ROW, 4, 4), "4 bits a pixel, and no palette"),
        (file_of([b"\4\0\0\1"], 4, 8, compression=1), r"run-length encoded \(RLE8\)"),
        (file_of([b"\4\0\0\1"], 4, 4, compression=2), r"run-length encoded \(RLE4\)"),
        (file_of(ROW, 4, 24, compression=4), "a JPEG in a BMP"),
        (file_of(ROW, 4, 24, compression=5), "a PNG in a BMP"),
        (file_of(ROW, 4, 24, header=64, compression=4), "RLE24"),
        (file_of(ROW, 4, 24, compression=3), "compression 3 with 24 bits"),
        (file_of(ROW, 4, 24, compression=77), "compression 77"),
        (file_of(ROW, 3, 32, compression=3, masks=(0, 0, 0)), "colour masks 0x0, 0x0, 0x0"),
        (file_of(ROW, 3, 32, compression=3, masks=(5, 2, 8)), "colour masks 0x5"),
        (file_of(ROW, 6, 16, compression=3, masks=(0xF0000, 2, 8)), "none of 16 bits"),
    ],
)
def test_what_is_refused_is_named(content: bytes, said: str) -> None:
    with pytest.raises(bmp.ImageError, match=said):
        bmp.decode_bmp(content)


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_garbage_is_refused_and_nothing_else(tail: bytes) -> None:
    with contextlib.suppress(bmp.ImageError):
        bmp.decode_bmp(b"BM" + tail)


def test_an_empty_file_and_one_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "empty.bmp").write_bytes(b"")
    with pytest.raises(bmp.ImageError, match="an empty file"):
        bmp.open_bmp(tmp_path / "empty.bmp")
    with pytest.raises(FileNotFoundError):
        bmp.open_bmp(tmp_path / "none.bmp")


_LARGE = r"""
import re, sys
from pathlib import Path
from userspace.npu.validate.onboard import bmp, preprocess
picture = bmp.open_bmp(Path(sys.argv[1]))
for view in [picture, *preprocess.views(picture)]:
    preprocess.resize_bilinear(view, 224, 224, fused=True)
# Not ru_maxrss: that begins with what the process had that this one was forked from.
print(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.slow
@pytest.mark.parametrize("bits", [1, 8, 24])
def test_a_large_picture_takes_little_memory(tmp_path: Path, bits: int) -> None:
    """12,000 x 12,000 pixels: 432 MB of pixels, of which few rows are needed."""
    side = 12000
    file = tmp_path / "large.bmp"
    row_bytes = side * bits // 8
    palette = b"".join(
        bytes([value, value, value, 0]) for value in range(1 << bits if bits < 9 else 0)
    )
    head = file_of([], side, bits, palette=palette, height=side)
    with file.open("wb") as large:  # sparse: a hole is black
        large.write(head)
        large.truncate(len(head) + row_bytes * side)
    command: list[Any] = [sys.executable, "-c", _LARGE, file]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, check=True)
    used_bytes = int(done.stdout) * 1024
    assert used_bytes < 300e6
