# SPDX-License-Identifier: MIT
"""Files that are given for a board's device tree and are something else: each is named, with what to do."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import shlex
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from bsp.base.errors import UserError
from bsp.dts.inputs.given import board_tree, overlay_tree
from bsp.dts.inputs.kinds import trees_inside
from bsp.dts.tree import MAX_BYTES

BOARD = """/dts-v1/;
/ { compatible = "khadas,vim3", "amlogic,a311d"; model = "a board"; #address-cells = <1>; };
"""
OTHER = BOARD.replace("khadas,vim3", "test,other")
OVERLAY = """/dts-v1/;
/plugin/;
/ { compatible = "radxa,zero2", "amlogic,a311d"; };
&npu { status = "okay"; };
"""
BY_PATH = """/dts-v1/;
/plugin/;
&{/} { model = "another"; };
"""


def dtc(source: str, *flags: str) -> bytes:
    """Return source as a blob."""
    return subprocess.run(
        ["dtc", "-q", *flags, "-I", "dts", "-O", "dtb"],
        input=source.encode(), capture_output=True, check=True,
    ).stdout  # fmt: skip


def refused(tmp_path: Path, content: bytes, name: str = "given.dtb") -> tuple[str, str]:
    """Return message and hint of the refusal of a file as a board's tree."""
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        board_tree(file, flag="--base-dtb")
    assert caught.value.exit_code == 2
    assert caught.value.hint
    assert str(file) in caught.value.message
    return caught.value.message, caught.value.hint


def test_a_boards_tree_is_taken_whatever_lies_behind_it(tmp_path: Path) -> None:
    blob = dtc(BOARD)
    for content in (blob, blob + bytes(4096), blob + b"\xff" * 512 + b"\xd0\x0d\xfe\xed" * 3):
        (tmp_path / "it.dtb").write_bytes(content)
        found, tree = board_tree(tmp_path / "it.dtb", flag="--base-dtb")
        assert found == blob
        assert tree.compatible == ["khadas,vim3", "amlogic,a311d"]


def test_a_pipe_that_nobody_writes_to_is_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.dtb"
    os.mkfifo(pipe)
    with pytest.raises(UserError, match="is a pipe, not a file"):
        board_tree(pipe, flag="--base-dtb")
    # <(COMMAND) of a shell has a writer.
    end, write = os.pipe()
    os.write(write, dtc(BOARD))
    os.close(write)
    assert board_tree(Path(f"/dev/fd/{end}"), flag="--base-dtb")[1].compatible
    os.close(end)


# --- overlays


@pytest.mark.parametrize("source", [OVERLAY, BY_PATH])
@pytest.mark.parametrize("flags", [(), ("-@",)])
def test_an_overlay_is_named(tmp_path: Path, source: str, flags: tuple[str, ...]) -> None:
    message, hint = refused(tmp_path, dtc(source, *flags), "a.dtbo")
    assert (
        "is a device tree overlay (it has /fragment@0/__overlay__), not a board's tree" in message
    )
    assert f"fdtoverlay -i BOARD.dtb -o NEW.dtb {tmp_path}/a.dtbo" in hint
    assert "--apply" in hint
    assert overlay_tree(tmp_path / "a.dtbo", flag="--apply").nodes


def test_a_boards_tree_is_no_overlay(tmp_path: Path) -> None:
    (tmp_path / "b.dtb").write_bytes(dtc(BOARD, "-@"))
    with pytest.raises(UserError, match=r"is a whole device tree \(khadas,vim3, .*not an overlay"):
        overlay_tree(tmp_path / "b.dtb", flag="--apply")


# --- FIT images

ITS = """/dts-v1/;
/ {
    description = "an image"; #address-cells = <1>;
    images {
        kernel-1 { description = "Linux"; type = "kernel"; data = /incbin/("kernel"); };
        fdt-1 { description = "board one"; type = "flat_dt"; data = /incbin/("one.dtb"); };
        fdt-2 { type = "flat_dt"; compression = "gzip"; data = /incbin/("one.dtb"); };
    };
    configurations { default = "conf-1"; conf-1 { kernel = "kernel-1"; fdt = "fdt-2"; }; };
};
"""


@pytest.fixture(params=[100, 3 << 20], ids=["small", "larger than a device tree can be"])
def fit_image(request: pytest.FixtureRequest, tmp_path: Path) -> bytes:
    (tmp_path / "kernel").write_bytes(bytes(request.param))
    (tmp_path / "one.dtb").write_bytes(dtc(BOARD))
    return subprocess.run(
        ["dtc", "-q", "-I", "dts", "-O", "dtb", "-i", tmp_path],
        input=ITS.encode(), capture_output=True, check=True,
    ).stdout  # fmt: skip


def test_a_fit_image_is_named_with_what_to_take_out(tmp_path: Path, fit_image: bytes) -> None:
    message, hint = refused(tmp_path, fit_image, "image.itb")
    assert "is a FIT image, not a device tree" in message
    assert "-p 1  fdt-1 (board one)" in message
    assert "-p 2  fdt-2, compressed with gzip, of the default configuration" in message
    assert f"dumpimage -T flat_dt -p 2 -o board.dtb.gzip {tmp_path}/image.itb" in hint


def test_a_fit_image_with_its_data_outside(tmp_path: Path) -> None:
    source = ITS.replace('data = /incbin/("one.dtb")', "data-offset = <0>; data-size = <8>")
    source = source.replace('data = /incbin/("kernel")', "data-position = <0>; data-size = <8>")
    message, hint = refused(tmp_path, dtc(source) + bytes(5 << 20))
    assert "FIT image" in message
    assert "dumpimage -T flat_dt" in hint


def test_a_fit_image_without_device_trees(tmp_path: Path) -> None:
    source = """/dts-v1/; / { images { kernel-1 { type = "kernel"; data = "x"; }; }; };"""
    message, _ = refused(tmp_path, dtc(source))
    assert "is a FIT image, not a device tree, and holds none: kernel-1 (kernel)" in message


def test_something_large_in_the_form_of_a_tree(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(MAX_BYTES + 1))
    source = '/dts-v1/; / { compatible = "x"; blob = /incbin/("large"); };'
    blob = subprocess.run(
        ["dtc", "-q", "-I", "dts", "-O", "dtb", "-i", tmp_path],
        input=source.encode(), capture_output=True, check=True,
    ).stdout  # fmt: skip
    message, _ = refused(tmp_path, blob)
    assert "the kernel takes at most" in message


# --- several trees in one file


def test_trees_one_behind_the_other(tmp_path: Path) -> None:
    one, other = dtc(BOARD), dtc(OTHER)
    message, hint = refused(tmp_path, one + bytes(1000) + other)
    assert "holds 2 device trees, one behind the other" in message
    assert f"at byte {len(one) + 1000}, {len(other)} bytes: test,other, amlogic,a311d" in message
    subprocess.run(hint.partition(" takes out")[0], shell=True, cwd=tmp_path, check=True)
    assert (tmp_path / "board.dtb").read_bytes() == one


def android_table(*blobs: bytes) -> bytes:
    """A DTB or DTBO partition's image (AOSP system/libufdt, dt_table.h)."""
    header, entry = 32, 32
    at = header + entry * len(blobs)
    entries, body = b"", b""
    for blob in blobs:
        entries += struct.pack(">8I", len(blob), at + len(body), 0, 0, 0, 0, 0, 0)
        body += blob
    return struct.pack(
        ">8I", 0xD7B7AB1E, at + len(body), header, entry, len(blobs), header, 2048, 0
    ) + (entries + body)


def test_an_android_table(tmp_path: Path) -> None:
    one, overlay = dtc(BOARD), dtc(OVERLAY)
    message, hint = refused(tmp_path, android_table(overlay, one), "dtb.img")
    assert "an Android table of device trees" in message
    assert "an overlay" in message
    assert "khadas,vim3" in message
    subprocess.run(hint.partition(" takes out")[0], shell=True, cwd=tmp_path, check=True)
    assert (tmp_path / "board.dtb").read_bytes() == one  # the board's tree, not the overlay


@pytest.mark.parametrize(
    ("start", "what"),
    [
        (b"AML_" + bytes(60), "an Amlogic table"),
        (b"QCDT" + bytes(60), "a Qualcomm table"),
        (b"RSCE" + bytes(508), "a Rockchip resource image"),
        (b"ANDROID!" + bytes(2040), "an Android boot image"),
        (bytes(56) + b"ARM\x64" + bytes(100_000), "an arm64 kernel"),
        (b"MZ" + bytes(54) + b"ARM\x64" + bytes(1000), "an arm64 kernel"),
        (b"some other container" + b"\xff" * 100, "begins with 736f6d65"),
    ],
)
def test_trees_within_other_files_are_listed(tmp_path: Path, start: bytes, what: str) -> None:
    one = dtc(BOARD)
    message, hint = refused(tmp_path, start + one, "vendor.img")
    assert what in message
    assert "khadas,vim3" in message
    subprocess.run(hint.partition(" takes out")[0], shell=True, cwd=tmp_path, check=True)
    assert (tmp_path / "board.dtb").read_bytes() == one


def test_looking_for_trees_inside_ends() -> None:
    """A file full of what looks like the start of a tree."""
    header = struct.pack(">10I", 0xD00DFEED, 1 << 20, 40, 40, 40, 17, 16, 0, 0, 0)
    assert trees_inside(header * 50_000) == []


# --- everything else


PACKERS: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("gzip", gzip.compress),
    ("xz", lzma.compress),
    ("bzip2", bz2.compress),
    ("lzma", lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE)),
    ("zstd", lambda data: subprocess.run(["zstd", "-qc"], input=data, capture_output=True).stdout),
]


@pytest.mark.parametrize(("tool", "pack"), PACKERS, ids=[tool for tool, _ in PACKERS])
def test_compressed_ones_come_with_the_command_that_unpacks_them(
    tmp_path: Path, tool: str, pack: Callable[[bytes], bytes]
) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    blob = dtc(BOARD)
    message, hint = refused(tmp_path, pack(blob), f"it.dtb.{tool}")
    assert f"compressed with {tool}" in message
    subprocess.run(hint, shell=True, cwd=tmp_path, check=True)
    assert (tmp_path / "board.dtb").read_bytes() == blob


def test_source_comes_with_the_command_that_compiles_it(tmp_path: Path) -> None:
    message, hint = refused(tmp_path, ("// a comment\n" + BOARD).encode(), "a b.dts")
    assert "device tree source, which has to be compiled" in message
    assert shlex.quote(f"{tmp_path}/a b.dts") in hint
    subprocess.run(hint, shell=True, cwd=tmp_path, check=True)
    assert (tmp_path / "board.dtb").read_bytes() == dtc(BOARD)


@pytest.mark.parametrize(
    ("content", "what", "hint"),
    [
        (b"", "it is empty", "/sys/firmware/fdt"),
        (OVERLAY.encode(), "the source of a device tree overlay", "dtc"),
        (b'#include "soc.dtsi"\n/ { model = "x"; };\n', "device tree source", "--kernel path:DIR"),
        (b"&npu { status = \"okay\"; };\n", "device tree source", "dtc"),
        (b"<!DOCTYPE html><html>404</html>", "a web page", "download"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS", "git lfs"),
        (b'format = 1\nname = "vim3"\n', "it is text", "takes a DTB file"),
        (b"\x7fELF" + bytes(100), "an ELF file", "takes a DTB file"),
        (b"MZ" + bytes(100), "an EFI program", "takes a DTB file"),
        (b"\x27\x05\x19\x56" + bytes(100), "uImage", "dumpimage -l"),
        (b"PK\3\4" + bytes(100), "a zip archive", "unzip"),
        (b"hsqs" + bytes(100), "a squashfs file system", "takes a DTB file"),
        (bytes(510) + b"\x55\xaa" + bytes(512), "a disk image", "takes a DTB file"),
        (bytes(36) + b"\x18\x28\x6f\x01" + bytes(64), "zImage", "takes a DTB file"),
        (b"\xed\xfe\x0d\xd0" + bytes(60), "swapped", "objcopy"),
        (bytes(100), "begins with 00000000", "takes a DTB file"),
    ],
)  # fmt: skip
def test_other_files_are_named(tmp_path: Path, content: bytes, what: str, hint: str) -> None:
    message, said = refused(tmp_path, content)
    assert "is not a device tree blob" in message
    assert what in message
    assert hint in said


@pytest.mark.parametrize("kept", [1, 4, 20, 39, 40, 60, -1])
def test_truncated_ones(tmp_path: Path, kept: int) -> None:
    message, hint = refused(tmp_path, dtc(BOARD)[:kept])
    assert "truncated" in message
    assert "again" in hint


def test_swapped_bytes_are_put_right_by_the_hint(tmp_path: Path) -> None:
    blob = dtc(BOARD)
    blob += bytes(-len(blob) % 4)
    swapped = b"".join(blob[at : at + 4][::-1] for at in range(0, len(blob), 4))
    _, hint = refused(tmp_path, swapped)
    subprocess.run(hint, shell=True, cwd=tmp_path, check=True)
    assert (tmp_path / "board.dtb").read_bytes() == blob


def test_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder"):
        board_tree(tmp_path, flag="--base-dtb")
    (tmp_path / "compatible").write_bytes(b"khadas,vim3\0amlogic,a311d\0")
    with pytest.raises(UserError) as caught:
        board_tree(tmp_path, flag="--base-dtb")
    assert caught.value.hint
    command = caught.value.hint.partition(" makes")[0]
    subprocess.run(command, shell=True, cwd=tmp_path, check=True)
    assert board_tree(tmp_path / "board.dtb", flag="--base-dtb")[1].compatible[0] == "khadas,vim3"
