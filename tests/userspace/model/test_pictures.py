# SPDX-License-Identifier: MIT
"""Pictures that are not BMP: opened by the real Pillow, in its environment of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from bsp.base.errors import UserError
from bsp.base.packages.optional_env import extra_python
from bsp.base.process import run
from userspace.npu.model.trial.pictures import open_picture
from userspace.npu.report.html import png_of
from userspace.npu.validate.onboard.bmp import encode_bmp

pytestmark = [pytest.mark.slow, pytest.mark.network]
_SAVE = """
import sys
from PIL import Image
picture = Image.open(sys.argv[1])
picture.convert("RGBA").save(sys.argv[2] + "/alpha.png")
picture.save(sys.argv[2] + "/plain.jpg", quality=95)
turned = picture.getexif()
turned[0x0112] = 6  # the camera was held on its side
red = picture.getchannel(0)
red.convert("F").save(sys.argv[2] + "/real.tiff")
deep = b"".join(bytes((17, value)) for value in red.tobytes())
Image.frombytes("I;16", picture.size, deep).save(sys.argv[2] + "/deep.png")
picture.transpose(Image.Transpose.ROTATE_90).save(sys.argv[2] + "/turned.jpg", quality=95, exif=turned)
"""


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.uint8]:
    """Slow changes, as in a photo, so that JPEG comes near; 40 high, 60 wide."""
    rows, columns = np.mgrid[:40, :60]
    return np.asarray(np.stack([rows * 6, columns * 4, rows + columns], axis=-1), np.uint8)


@pytest.fixture(scope="module")
def folder(pixels: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("pictures")
    bmp = made / "exact.bmp"
    bmp.write_bytes(encode_bmp(pixels))
    png = png_of(bmp)
    assert png
    (made / "own.png").write_bytes(png)
    run([extra_python("pictures", module="PIL"), "-c", _SAVE, bmp, made], timeout_s=60)
    return made


@pytest.mark.parametrize("name", ["exact.bmp", "own.png", "alpha.png"])
def test_without_loss_each_pixel_is_the_same(
    name: str, folder: Path, pixels: NDArray[np.uint8]
) -> None:
    assert np.array_equal(open_picture(folder / name).pixels(), pixels)


def test_grey_of_16_bits_is_not_white(folder: Path, pixels: NDArray[np.uint8]) -> None:
    found = open_picture(folder / "deep.png").pixels()
    assert np.array_equal(found, np.repeat(pixels[:, :, :1], 3, axis=2))
    with pytest.raises(UserError, match="real numbers"):
        open_picture(folder / "real.tiff")


@pytest.mark.parametrize("name", ["plain.jpg", "turned.jpg"])
def test_a_jpeg_comes_near_and_upright(name: str, folder: Path, pixels: NDArray[np.uint8]) -> None:
    found = open_picture(folder / name).pixels()
    assert found.shape == pixels.shape
    assert np.abs(found.astype(int) - pixels).mean() < 3


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\nno more", b"hello"])
def test_what_is_no_picture_is_the_users_matter(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    with pytest.raises(UserError, match="is not a picture that Pillow reads") as caught:
        open_picture(path)
    assert "BMP, PNG or JPEG" in caught.value.hint
