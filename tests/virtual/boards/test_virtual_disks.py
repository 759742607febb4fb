# SPDX-License-Identifier: MIT
"""Disks that users bring for virtual boards."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from bsp.base.errors import UserError
from bsp.profile import load_board
from images.disk.image import description_file
from virtual.boards.disks import key_on_console, own_disk, prepare_extra

MIB = 1 << 20
VIRTUAL = load_board("virtual")


def test_a_second_disk_is_made_once(tmp_path: Path) -> None:
    path = tmp_path / "second.img"
    with pytest.raises(UserError, match="no disk") as raised:
        prepare_extra(str(path))
    assert f"{path}:4G" in raised.value.hint
    assert prepare_extra(f"{path}:1100M") == path
    assert path.stat().st_size == 1100 * MIB
    with path.open("r+b") as file:
        file.truncate(4 * MIB)
    assert prepare_extra(str(path)) == path
    with pytest.raises(UserError, match=f"has {4 * MIB} bytes, expected {1100 * MIB}"):
        prepare_extra(f"{path}:1100M")


def test_a_disk_needs_a_key_and_has_to_be_of_this_board(tmp_path: Path) -> None:
    image, key = tmp_path / "a.img", tmp_path / "key"
    with pytest.raises(UserError, match="no disk image"):
        own_disk(image, None, VIRTUAL)
    image.write_bytes(b"")
    with pytest.raises(UserError, match="none is known"):
        own_disk(image, None, VIRTUAL)
    key.write_bytes(b"")
    disk, release = own_disk(image, key, VIRTUAL)
    assert (disk.identity_file, disk.host_key, release) == (key, "", "of its disk")
    with pytest.raises(UserError, match="no bootloader"):
        own_disk(image, key, load_board("imx8mp-evk"))
    description_file(image).write_bytes(msgspec.json.encode({"board": "vim3"}))
    with pytest.raises(UserError, match="does not describe an image"):
        own_disk(image, key, VIRTUAL)


def test_the_host_key_is_read_from_the_console(tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    assert key_on_console(log) is None
    log.write_bytes(b"boot\r\nnpu-bsp: host key ssh-ed25519 AAAAold\r\nreboot\r\n")
    log.write_bytes(
        log.read_bytes() + b"npu-bsp: host key ssh-ed25519 AAAAnew=\r\nnpu-bsp: host key "
    )
    assert key_on_console(log) == "ssh-ed25519 AAAAnew="
