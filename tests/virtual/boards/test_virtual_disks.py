# SPDX-License-Identifier: MIT
"""Disks that users bring for virtual boards."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import msgspec
import pytest

from bsp.base.errors import UserError
from bsp.catalog import load_board
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
    make_disk(image)
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


def make_disk(image: Path) -> None:
    """A disk of 2 MiB with one partition, from 1 MiB on."""
    entry = bytes([0, 0, 2, 0, 0x0C, 0, 0, 0]) + struct.pack("<II", 2048, 2048)
    image.write_bytes((bytes(446) + entry + bytes(48) + b"\x55\xaa").ljust(2 * MIB, b"\0"))


@pytest.mark.parametrize(
    ("content", "what", "hint"),
    [
        (b"", "is empty", "copy it again"),
        (gzip.compress(b"disk" * 999), "compressed with gzip", "zcat"),
        (b"\xfd7zXZ\0" + bytes(99), "compressed with xz", "xzcat"),
        (b"QFI\xfb" + bytes(99), "a virtual machine's disk (qcow2)", "qemu-img convert"),
        (b"<html>not found</html>", "an HTML page", "download the image again"),
        (bytes(MIB), "all zeros at its beginning", "copy it again"),
        (b"\x01\x02\x03\xf4" * 999, "of a kind that is not known here", "is it the right file?"),
    ],
    ids=["empty", "gzip", "xz", "qcow2", "page", "zeros", "unknown"],
)
def test_a_file_that_is_no_disk_is_not_booted_from(
    tmp_path: Path, content: bytes, what: str, hint: str
) -> None:
    image, key = tmp_path / "a.img", tmp_path / "key"
    image.write_bytes(content)
    key.write_bytes(b"")
    with pytest.raises(UserError) as caught:
        own_disk(image, key, VIRTUAL)
    assert what in caught.value.message
    assert hint in (caught.value.hint or "")
    assert "--raw" not in (caught.value.hint or "")


def test_a_truncated_disk_is_not_booted_from(tmp_path: Path) -> None:
    image = tmp_path / "a.img"
    make_disk(image)
    image.write_bytes(image.read_bytes()[: MIB + 512])
    with pytest.raises(UserError, match="truncated"):
        own_disk(image, image, VIRTUAL)


def test_the_host_key_is_read_from_the_console(tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    assert key_on_console(log) is None
    log.write_bytes(b"boot\r\nnpu-bsp: host key ssh-ed25519 AAAAold\r\nreboot\r\n")
    log.write_bytes(
        log.read_bytes() + b"npu-bsp: host key ssh-ed25519 AAAAnew=\r\nnpu-bsp: host key "
    )
    assert key_on_console(log) == "ssh-ed25519 AAAAnew="
