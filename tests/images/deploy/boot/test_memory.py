# SPDX-License-Identifier: MIT
"""Whether a generation fits where the boot script loads it."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from bsp.base.errors import UserError
from bsp.catalog import board_names, load_board, load_soc
from images.deploy.boot.memory import check_fits, image_bytes

MIB = 1 << 20


def image(size_bytes: int) -> bytes:
    """The header of an arm64 Image that takes so much memory."""
    return struct.pack("<IIQQQQQQ4sI", 0, 0, 0, size_bytes, 0xA, 0, 0, 0, b"ARM\x64", 0)


def test_a_kernel_takes_what_its_header_says() -> None:
    assert image_bytes(image(50 * MIB), 38 * MIB) == 50 * MIB
    assert image_bytes(image(0), 38 * MIB) == 38 * MIB, "an old kernel says nothing"
    assert image_bytes(b"MZ" + bytes(62), 38 * MIB) == 38 * MIB, "no Image"


def test_what_does_not_fit_is_refused_with_figures(tmp_path: Path) -> None:
    kernel = tmp_path / "Image"
    kernel.write_bytes(image(40 * MIB))
    evk = load_board("imx8mp-evk")
    check_fits(evk, kernel, bytes(64 << 10))
    kernel.write_bytes(image(129 * MIB))
    with pytest.raises(UserError, match=r"kernel takes 129.0 MiB.* 128.0 MiB for it at 0x48200000"):
        check_fits(evk, kernel, b"")
    kernel.write_bytes(image(MIB))
    with pytest.raises(UserError, match=r"device tree takes 2.0 MiB in memory.* 1.0 MiB for it"):
        check_fits(evk, kernel, bytes(2 * MIB))


@pytest.mark.parametrize("soc", sorted({load_board(name).soc for name in board_names()}))
def test_each_soc_of_a_board_has_room_for_a_large_kernel(soc: str) -> None:
    where = load_soc(soc).addresses
    assert where is not None
    for what, least in (("kernel", 56 * MIB), ("dtb", 480 << 10)):
        room = where.room_bytes(what)
        assert room is None or room >= least
