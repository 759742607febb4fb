# SPDX-License-Identifier: MIT
"""What flash is given: images of disks, compressed or not, and what looks like one and is none."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import os
import random
import re
import resource
import shlex
import shutil
import signal
import struct
import tarfile
import uuid
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bsp.base.errors import InfrastructureError, UserError
from bsp.base.process import run
from images.disk import bmap
from images.disk.layout import Layout, make_empty
from images.flash import formats
from images.flash.command import FlashRequest, FlashResult, flash
from images.flash.source import read_source
from images.flash.table import read_table
from tests.support.descriptions import describe

MIB = 1 << 20
_OLD = 0xAA

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own: nothing may be left in it."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("NPU_BSP_CACHE", str(folder))
    return folder


def _disk(path: Path, *, mib: int = 8, kind: str = "dos") -> Path:
    """A disk image: a table, one partition, noise in two places, zeros that a file system needs between."""
    noise = random.Random(7)
    with path.open("wb") as file:
        file.truncate(mib * MIB)
        file.seek(MIB)
        file.write(noise.randbytes(300_000) + bytes(4 * MIB) + noise.randbytes(300_000))
    run(["sfdisk", "--quiet", path], stdin=f"label: {kind}\nstart=2048\n".encode())
    return path


def _flash(image: Path, folder: Path, *, raw: bool = False) -> tuple[FlashResult, bytes]:
    """Flash onto a file that is full of old data; return the result and what the file holds."""
    device = folder / "target.bin"
    device.write_bytes(bytes([_OLD]) * (24 * MIB))
    request = FlashRequest(str(device), image, any_device=True, raw=raw, root=str(folder))
    result = flash(request, yes=True)
    return result, device.read_bytes()


def _refused(image: Path, match: str) -> UserError:
    with pytest.raises(UserError, match=match) as raised:
        read_source(image)
    assert raised.value.exit_code == 2
    assert raised.value.hint
    assert "{" not in raised.value.hint
    return raised.value


def _zstd(data: bytes) -> bytes:
    return run(["zstd", "--quiet", "--stdout"], stdin=data).stdout


PACK: dict[str, Callable[[bytes], bytes]] = {
    "gz": lambda data: gzip.compress(data, 1),
    "bz2": lambda data: bz2.compress(data, 1),
    "xz": lambda data: lzma.compress(data, preset=0),
    "zst": _zstd,
}

# --- holes -----------------------------------------------------------------------------------


def test_holes_of_an_image_without_a_map_are_written_as_zeros(tmp_path: Path) -> None:
    full = _disk(tmp_path / "full.img")
    sparse = tmp_path / "sparse.img"
    run(["cp", "--sparse=always", full, sparse])
    assert sparse.stat().st_blocks * 512 < 2 * MIB
    result, there = _flash(sparse, tmp_path)
    own = full.read_bytes()
    assert there[: len(own)] == own
    assert set(there[len(own) :]) == {_OLD}
    assert result.verified_bytes == result.plan["mapped_bytes"] == len(own)
    assert result.plan["bmap"] is None
    assert result.bytes_sent < 4 * MIB  # zeros travel as one byte


def test_the_whole_image_is_written_also_where_its_end_is_no_block(tmp_path: Path) -> None:
    image = _disk(tmp_path / "a.img")
    with image.open("ab") as file:
        file.truncate(8 * MIB + 512)
    _, there = _flash(image, tmp_path)
    assert there[: 8 * MIB + 512] == image.read_bytes()
    assert there[8 * MIB + 512] == _OLD


# --- block maps ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("packing", "name"),
    [
        ("", "card.img.bmap"),
        ("", "card.bmap"),
        ("xz", "card.img.xz.bmap"),
        ("xz", "card.img.bmap"),
        ("xz", "card.bmap"),
    ],
)
def test_a_map_beside_the_image_is_used_under_each_of_its_names(
    tmp_path: Path, packing: str, name: str
) -> None:
    plain = _disk(tmp_path / "card.img")
    made = bmap.hashed(plain, bmap.stored(plain))
    image = plain
    if packing:
        image = tmp_path / "card.img.xz"
        image.write_bytes(PACK["xz"](plain.read_bytes()))
        plain.unlink()
    bmap.write(tmp_path / name, made)
    result, there = _flash(image, tmp_path)
    assert result.plan["bmap"] == str(tmp_path / name)
    assert result.verified_bytes == made.mapped_bytes < 6 * MIB
    hole = made.ranges[-1].last * bmap.BLOCK_BYTES + bmap.BLOCK_BYTES
    assert there[hole] == _OLD


def test_a_map_of_another_image_is_ignored_and_said_to_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = _disk(tmp_path / "card.img")
    other = tmp_path / "other.img"
    shutil.copyfile(image, other)
    with other.open("r+b") as file:  # of the same size: only the hashes tell
        file.seek(MIB)
        file.write(b"another")
    bmap.write(tmp_path / "card.bmap", bmap.hashed(other, bmap.stored(other)))
    result, there = _flash(image, tmp_path)
    assert there[: 8 * MIB] == image.read_bytes()
    assert list(result.plan["ignored_bmaps"]) == [str(tmp_path / "card.bmap")]
    said = capsys.readouterr().err
    assert "card.bmap is ignored: the image differs" in said
    # No map at all, and one that was cut.
    (tmp_path / "card.bmap").write_text("<bmap>")
    assert "not a block map" in str(read_source(image).ignored_maps)
    # Under the image's own name it has to be right.
    bmap.write(tmp_path / "card.img.bmap", bmap.hashed(other, bmap.stored(other)))
    with pytest.raises(UserError, match="differs from its block map"):
        _flash(image, tmp_path)
    bmap.write(tmp_path / "card.img.bmap", bmap.Map(9 * MIB, (bmap.Range(0, 1, "0" * 64),)))
    _refused(image, r"card.img is truncated, or not the image of card.img.bmap")


@pytest.mark.parametrize("name", ["card.img.bmap", "card.bmap"])
@pytest.mark.parametrize("sparse", [True, False])
def test_data_that_a_map_leaves_out_is_not_lost(
    tmp_path: Path, name: str, sparse: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bootloader put into the gap before the first partition: all checksums of the map are right."""
    image = _disk(tmp_path / "card.img")
    made = bmap.hashed(image, bmap.stored(image))
    assert not any(each.first <= 16 <= each.last for each in made.ranges)
    bmap.write(tmp_path / name, made)
    with image.open("r+b") as file:
        file.seek(16 * bmap.BLOCK_BYTES + 100)
        file.write(b"bootloader")
    if not sparse:
        image.write_bytes(image.read_bytes())
    if name == "card.img.bmap":
        _refused(image, r"has data in blocks 16-\d+, which the map leaves out")
        (tmp_path / name).unlink()
    result, there = _flash(image, tmp_path)
    assert there[: 8 * MIB] == image.read_bytes()
    if name == "card.bmap":
        assert "has data in blocks 16-" in capsys.readouterr().err
        assert list(result.plan["ignored_bmaps"]) == [str(tmp_path / name)]


def test_a_map_without_checksums_is_not_believed(tmp_path: Path) -> None:
    image = _disk(tmp_path / "card.img")
    made = bmap.hashed(image, bmap.stored(image))
    path = bmap.map_file(image)
    bmap.write(path, made)
    text = path.read_text()
    own = text.split("<BmapFileChecksum> ")[1][:64]
    text = re.sub(r' chksum="\w+"', "", text).replace(own, "0" * 64)
    path.write_text(text.replace("0" * 64, hashlib.sha256(text.encode()).hexdigest()))
    result, there = _flash(image, tmp_path)
    assert "no checksums" in result.plan["ignored_bmaps"][str(path)]
    assert there[: 8 * MIB] == image.read_bytes()


def test_names_of_maps() -> None:
    def names(image: str) -> list[str]:
        return [path.name for path in bmap.map_files(Path(image))]

    assert names("a/x.wic.xz") == ["x.wic.xz.bmap", "x.wic.bmap", "x.bmap"]
    assert names("debian-12.5.img") == ["debian-12.5.img.bmap", "debian-12.5.bmap"]
    assert names("disk") == ["disk.bmap"]
    assert names(".img") == [".img.bmap"]


# --- compressed ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("packing", PACK)
def test_compressed_images_are_read_through(packing: str, tmp_path: Path, own_cache: Path) -> None:
    plain = _disk(tmp_path / "a.img").read_bytes()
    image = tmp_path / f"b.img.{packing}"
    half = len(plain) // 2 + 77
    # Two streams, as pigz, pbzip2 and cat make them.
    image.write_bytes(PACK[packing](plain[:half]) + PACK[packing](plain[half:]))
    result, there = _flash(image, tmp_path)
    assert there[: len(plain)] == plain
    assert result.plan["packed"] in {"gzip", "bzip2", "xz", "zstd"}
    assert result.plan["image_bytes"] == len(plain)
    assert list(own_cache.iterdir()) == []
    # The name does not matter.
    image.rename(tmp_path / "c.img")
    assert _flash(tmp_path / "c.img", tmp_path)[1][: len(plain)] == plain


@pytest.mark.slow
@pytest.mark.parametrize("packing", PACK)
def test_a_compressed_image_that_ends_early_or_is_damaged_is_refused(
    packing: str, tmp_path: Path, own_cache: Path
) -> None:
    plain = _disk(tmp_path / "a.img").read_bytes()
    packed = PACK[packing](plain[: 4 * MIB]) + PACK[packing](plain[4 * MIB :])
    first = len(PACK[packing](plain[: 4 * MIB]))
    image = tmp_path / f"b.img.{packing}"
    for end in (40, first // 2, first + 10, len(packed) - 1):
        image.write_bytes(packed[:end])
        _refused(image, "is truncated or damaged")
    # The second stream, its head and its content; something behind it.
    for at in (first + 1, first + 3000):
        changed = bytearray(packed)
        changed[at] ^= 0x55
        image.write_bytes(changed)
        _refused(image, "is truncated or damaged")
    image.write_bytes(packed + b"<html>an error page</html>")
    _refused(image, "is truncated or damaged")
    assert list(own_cache.iterdir()) == []


def test_padding_between_and_behind_streams(tmp_path: Path) -> None:
    plain = _disk(tmp_path / "a.img").read_bytes()
    head, rest = plain[: 3 * MIB], plain[3 * MIB :]
    image = tmp_path / "b.img"
    padded = {
        "xz": lzma.compress(head) + bytes(8) + lzma.compress(rest) + bytes(4),
        "gz": gzip.compress(head) + bytes(3) + gzip.compress(rest) + bytes(1000),
        "bz2": bz2.compress(head) + bz2.compress(rest) + bytes(512),
        # A frame to be skipped comes first, as in pzstd's files.
        "zst": struct.pack("<II", 0x184D2A50, 4) + b"abcd" + _zstd(head) + _zstd(rest),
    }
    for content in padded.values():
        image.write_bytes(content)
        assert read_source(image).content.read() == plain


def test_no_room_to_unpack_is_one_error(tmp_path: Path, own_cache: Path) -> None:
    image = tmp_path / "a.img.gz"
    image.write_bytes(gzip.compress(_disk(tmp_path / "a.img").read_bytes(), 1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 * MIB, hard))
    try:
        with pytest.raises(InfrastructureError, match=r"cannot unpack .* after") as raised:
            read_source(image)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)
    assert "NPU_BSP_CACHE" in raised.value.hint
    assert list(own_cache.iterdir()) == []


def test_the_device_is_looked_at_before_an_image_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_late(*_: object, **__: object) -> None:
        raise AssertionError("unpacked already")

    monkeypatch.setattr("images.flash.source.unpack", too_late)
    image = tmp_path / "a.img.gz"
    image.write_bytes(gzip.compress(_disk(tmp_path / "a.img").read_bytes(), 1))
    device = tmp_path / "device"
    with pytest.raises(UserError, match="there is no device"):
        flash(FlashRequest(str(device), image), yes=True)
    device.touch()
    with pytest.raises(UserError, match="not a block device"):
        flash(FlashRequest(str(device), image), yes=True)
    with pytest.raises(UserError, match="no terminal to ask on"):
        flash(FlashRequest(str(device), image, any_device=True))
    with pytest.raises(AssertionError, match="unpacked already"):
        flash(FlashRequest(str(device), image, any_device=True), dry_run=True)


@pytest.mark.slow
def test_what_is_inside_is_looked_at_too(tmp_path: Path) -> None:
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("disk.img"))
    image = tmp_path / "root.tar.xz"
    image.write_bytes(lzma.compress(tar.getvalue()))
    error = _refused(image, "compressed with xz, and what is inside is a tar archive")
    assert error.hint.startswith(f"xzcat {image} > {tmp_path}/root.tar, then: tar -xf")
    image = tmp_path / "root.ext4.gz"
    image.write_bytes(gzip.compress(_ext4(tmp_path / "fs").read_bytes()))
    _refused(image, "compressed with gzip, and what is inside is an ext2/ext3/ext4 file system")
    image = tmp_path / "twice.img.zst"
    image.write_bytes(_zstd(lzma.compress(_disk(tmp_path / "a.img").read_bytes())))
    _refused(image, "compressed with zstd, and what is inside is compressed with xz")
    image = tmp_path / "short.img.bz2"
    image.write_bytes(bz2.compress(_disk(tmp_path / "a.img").read_bytes()[: 4 * MIB]))
    _refused(image, "truncated: its partition table needs")
    image = tmp_path / "nothing.img.gz"
    image.write_bytes(gzip.compress(b""))
    _refused(image, "has no content")


# --- no images of disks ----------------------------------------------------------------------


def _ext4(path: Path) -> Path:
    with path.open("wb") as file:
        file.truncate(4 * MIB)
    run(["mke2fs", "-q", "-t", "ext4", "-F", path])
    return path


def _fat(path: Path, *flags: str) -> Path:
    with path.open("wb") as file:
        file.truncate(64 * MIB)
    run(["mformat", "-i", path, *flags, "::"])
    return path


def _zip(path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("disk.img", bytes(MIB))
    return path


def _tar(path: Path, first: str = "disk.img", kind: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=kind) as archive:
        info = tarfile.TarInfo(first)
        info.size = 4096
        archive.addfile(info, io.BytesIO(bytes(4096)))
    return path


def _cpio(path: Path, name: str, *, kind: str = "newc") -> Path:
    (path.parent / name).write_bytes(b"content")
    made = run(["cpio", "-o", "-H", kind], cwd=path.parent, stdin=f"{name}\n".encode())
    path.write_bytes(made.stdout)
    return path


def _dtb(
    path: Path, source: str = '/dts-v1/; / { compatible = "a,b"; soc { images = <1>; }; };'
) -> Path:
    run(["dtc", "-q", "-I", "dts", "-O", "dtb", "-o", path], stdin=source.encode())
    return path


def _fit(path: Path) -> Path:
    return _dtb(
        path,
        '/dts-v1/; / { description = "x"; images { kernel { data = "k"; type = "kernel"; }; };'
        ' configurations { default = "a"; a { kernel = "kernel"; }; }; };',
    )


def _uimage(path: Path) -> Path:
    content = path.with_name("kernel")
    content.write_bytes(os.urandom(4096))
    run(["mkimage", "-A", "arm64", "-T", "kernel", "-C", "none", "-d", content, path])
    return path


def _headed(head: bytes, at: int = 0, *, size: int = MIB) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        noise = bytearray(random.Random(3).randbytes(size))
        noise[at : at + len(head)] = head
        path.write_bytes(noise)
        return path

    return make


def _behind(tail: bytes, *, disk: bool) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        if disk:
            _disk(path)
        else:
            path.write_bytes(random.Random(4).randbytes(MIB))
        with path.open("ab") as file:
            file.write(tail.ljust(512, b"\0"))
        return path

    return make


def _empty_table(path: Path) -> Path:
    path.write_bytes(b"\x90" * 446 + bytes(64) + b"\x55\xaa" + b"\x11" * MIB)
    return path


def _text(text: str) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        path.write_text(text)
        return path

    return make


_LZMA_STREAM = lzma.compress(b"x" * 5000, format=lzma.FORMAT_ALONE)
_SPARSE = struct.pack("<IHHHHIIII", 0xED26FF3A, 1, 0, 28, 12, 4096, 2048, 4, 0)
_NO_DISKS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "zip": (_zip, "is a zip archive"),
    "7z": (_headed(b"7z\xbc\xaf\x27\x1c\0\4"), "is a 7-Zip archive"),
    "rar": (_headed(b"Rar!\x1a\x07\1\0"), "is a RAR archive"),
    "lz4": (_headed(b"\x04\x22\x4d\x18"), "is compressed with lz4"),
    "legacy-lz4": (_headed(b"\x02\x21\x4c\x18"), "is compressed with lz4"),
    "lzo": (_headed(b"\x89LZO\0\r\n\x1a\n"), "is compressed with lzop"),
    "lzma": (_headed(_LZMA_STREAM), "is compressed with lzma"),
    "lzma-head": (_headed(b"\x5d\0\0\x80\0"), "is compressed with lzma"),
    "lzip": (_headed(b"LZIP\1\x0c"), "is compressed with lzip"),
    "tar": (_tar, "is a tar archive"),
    "old-tar": (lambda path: _tar(path, kind=tarfile.GNU_FORMAT), "is a tar archive"),
    "mender": (lambda path: _tar(path, "version"), "is an update for Mender"),
    "cpio": (lambda path: _cpio(path, "init"), "is a cpio archive"),
    "old-cpio": (lambda path: _cpio(path, "init", kind="bin"), "is a cpio archive"),
    "swu": (lambda path: _cpio(path, "sw-description"), "is an update for SWUpdate"),
    "swu-crc": (lambda path: _cpio(path, "sw-description", kind="crc"), "update for SWUpdate"),
    "deb": (_headed(b"!<arch>\ndebian-binary"), "Debian package"),
    "rpm": (_headed(b"\xed\xab\xee\xdb\3\0"), "an RPM package"),
    "sparse": (_headed(_SPARSE), "is an Android sparse image"),
    "boot": (_headed(b"ANDROID!"), "is an Android boot image"),
    "payload": (_headed(b"CrAU\0\0\0\0"), "is an Android update"),
    "amlogic": (_headed(struct.pack("<III", 0x12345678, 2, 0x27B51956)), "Amlogic burning image"),
    "rkfw": (_headed(b"RKFW\x66\0"), "RKFW"),
    "rkaf": (_headed(b"RKAF"), "RKAF"),
    "allwinner": (_headed(b"IMAGEWTY\0\3\0\0"), "is an Allwinner firmware image"),
    "rockchip-boot": (_headed(b"RKNS"), "Rockchip bootloader"),
    "imx": (_headed(b"\xd1\0\x20\x41"), "i.MX bootloader"),
    "imx-9": (_headed(b"\0\x20\x02\x87"), "i.MX bootloader"),
    "allwinner-secure": (_headed(b"TOC0.GLH"), "Allwinner bootloader"),
    "allwinner-package": (_headed(b"sunxi-package"), "part of an Allwinner bootloader"),
    "fip": (_headed(b"\x01\x00\x64\xaa\x78\x56\x34\x12"), "Trusted Firmware"),
    "rockchip-loader": (_headed(b"BOOT\x66"), "Rockchip loader"),
    "amlogic-boot": (_headed(b"@AML", 16), "Amlogic bootloader"),
    "qcow2": (_headed(b"QFI\xfb\0\0\0\3"), r"virtual machine's disk \(qcow2\)"),
    "vmdk": (_headed(b"KDMV\1\0\0\0"), "VMDK"),
    "vmdk-text": (_text("# Disk DescriptorFile\nversion=1\n"), "VMDK"),
    "vdi": (_headed(b"\x7f\x10\xda\xbe", 64), "VDI"),
    "vhdx": (_headed(b"vhdxfile"), "VHDX"),
    "vhd": (_headed(b"conectix"), r"\(VHD\)"),
    "vhd-of-a-fixed-size": (_behind(b"conectix", disk=True), r"\(VHD\)"),
    "dmg": (_behind(b"koly", disk=False), "Apple disk image"),
    "uimage": (_uimage, "is a U-Boot image"),
    "fit": (_fit, "is a FIT image"),
    "dtb": (_dtb, "is a device tree"),
    "kernel": (_headed(b"ARM\x64", 56), "is a kernel"),
    "elf": (_headed(b"\x7fELF\2\1\1"), "program"),
    "ext4": (_ext4, "is an ext2/ext3/ext4 file system without a partition table"),
    "fat": (_fat, "is a FAT file system without a partition table"),
    "fat32": (lambda path: _fat(path, "-F"), "is a FAT file system without a partition table"),
    "ntfs": (_headed(b"\xeb\x52\x90NTFS    "), "is an NTFS file system"),
    "btrfs": (_headed(b"_BHRfS_M", 65600), "is a btrfs file system"),
    "xfs": (_headed(b"XFSB"), "is an XFS file system"),
    "f2fs": (_headed(b"\x10\x20\xf5\xf2", 1024), "is an F2FS file system"),
    "squashfs": (_headed(b"hsqs"), "is a squashfs file system"),
    "luks": (_headed(b"LUKS\xba\xbe"), "is a LUKS volume"),
    "iso": (_headed(b"\1CD001\1", 32768), "ISO 9660"),
    "html": (_text("\n<!DOCTYPE html>\n<html><head><title>404</title>"), "is an HTML page"),
    "xhtml": (_text('<?xml version="1.0"?>\n<!-- a -->\n<html xmlns="x">'), "is an HTML page"),
    "bmap": (_text('<?xml version="1.0" ?>\n<bmap version="2.0">\n'), "is a block map"),
    "checksums": (_text("d41d8cd9  disk.img\n"), "a text that begins with 'd41d8cd9"),
    "lfs": (_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "a pointer of Git LFS"),
    "zeros": (lambda path: _headed(bytes(4 * MIB), size=4 * MIB)(path), "all zeros"),
    "erased": (lambda path: _headed(b"\xff" * 4 * MIB, size=4 * MIB)(path), "of a kind that is not known"),
    "noise": (_headed(b""), "of a kind that is not known here"),
    "empty-table": (_empty_table, "a disk whose partition table is empty"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", _NO_DISKS)
def test_what_is_no_disk_is_refused_by_name(name: str, tmp_path: Path) -> None:
    make, match = _NO_DISKS[name]
    image = make(tmp_path / "disk.img")
    error = _refused(image, match)
    assert "expected the image of a whole disk" in error.message
    # And behind a compression.
    packed = tmp_path / "disk.img.gz"
    packed.write_bytes(gzip.compress(image.read_bytes(), 1))
    _refused(packed, f"compressed with gzip, and what is inside .*{match.removeprefix('is ')}")


@pytest.mark.skipif(not shutil.which("qemu-img"), reason="not installed: qemu-utils")
@pytest.mark.parametrize("options", ["subformat=fixed,force_size", "subformat=dynamic,force_size"])
def test_the_hint_makes_a_disk_of_a_vhd(tmp_path: Path, options: str) -> None:
    """A VHD of fixed size begins as the disk does: left to guess, qemu-img copies the footer as well."""
    disk, vhd = tmp_path / "disk.raw", tmp_path / "disk.vhd"
    with disk.open("wb") as file:
        file.write(random.Random(3).randbytes(4 * MIB))
    run(["sfdisk", "--quiet", disk], stdin=b"label: dos\nstart=2048, type=83\n")
    run(["qemu-img", "convert", "-O", "vpc", "-o", options, disk, vhd])
    words = shlex.split(_refused(vhd, r"\(VHD\)").hint.partition(" (package")[0])
    assert words[-1] == "disk.img"
    run([*words[:-1], tmp_path / words[-1]])
    assert (tmp_path / "disk.img").read_bytes() == disk.read_bytes()


@pytest.mark.skipif(
    not all(map(shutil.which, ("rauc", "mksquashfs"))), reason="not installed: rauc, squashfs-tools"
)
def test_a_rauc_bundle_is_no_bare_squashfs(tmp_path: Path) -> None:
    from images.bundle.rauc import development_certificate

    cert, key = tmp_path / "c.pem", tmp_path / "k.pem"
    development_certificate(cert, key)
    content = tmp_path / "content"
    content.mkdir()
    (content / "root.ext4").write_bytes(random.Random(5).randbytes(MIB))
    bundle, squashfs = tmp_path / "a.raucb", tmp_path / "a.squashfs"
    run(["mksquashfs", content, squashfs, "-quiet"])
    _refused(squashfs, "is a squashfs file system")
    for kind in ("plain", "verity"):
        (content / "manifest.raucm").write_text(
            f"[update]\ncompatible=a\nversion=1\n[bundle]\nformat={kind}\n"
            "[image.rootfs]\nfilename=root.ext4\n"
        )
        bundle.unlink(missing_ok=True)
        run(["rauc", "bundle", f"--cert={cert}", f"--key={key}", content, bundle])
        _refused(bundle, "is an update for RAUC")


def test_raw_writes_what_is_no_disk(tmp_path: Path) -> None:
    image = _ext4(tmp_path / "root.ext4")
    with pytest.raises(UserError, match="without a partition table"):
        _flash(image, tmp_path)
    assert set((tmp_path / "target.bin").read_bytes()) == {_OLD}
    result, there = _flash(image, tmp_path, raw=True)
    assert there[: 4 * MIB] == image.read_bytes()
    assert result.plan["table"] is None
    packed = tmp_path / "root.ext4.xz"
    packed.write_bytes(lzma.compress(image.read_bytes()))
    assert _flash(packed, tmp_path, raw=True)[1][: 4 * MIB] == image.read_bytes()


def test_what_is_no_file(tmp_path: Path) -> None:
    _refused(tmp_path / "none.img", "there is no image")
    _refused(tmp_path, "is not a file")
    (tmp_path / "empty.img").touch()
    _refused(tmp_path / "empty.img", "is empty")


# --- partition tables ------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gpt", "dos"])
def test_tables_are_read_and_an_image_that_is_shorter_is_refused(tmp_path: Path, kind: str) -> None:
    image = _disk(tmp_path / "a.img", kind=kind)
    assert read_source(image).table == kind
    with image.open("r+b") as file:
        file.truncate(7 * MIB)
    _refused(image, f"is truncated: its partition table needs {8 * MIB} bytes, found {7 * MIB}")
    # As our own images: room behind the partitions, and the second GPT at the end.
    own = tmp_path / "own.img"
    layout = Layout(64 * MIB, MIB, 8 * MIB, seed=uuid.uuid4(), table=kind)  # type: ignore[arg-type]
    make_empty(own, layout)
    assert read_source(own).table == kind
    with own.open("r+b") as file:
        file.truncate(64 * MIB - 512 if kind == "gpt" else 40 * MIB)
    _refused(own, "is truncated")


def test_a_gpt_that_no_kernel_would_take_is_refused(tmp_path: Path) -> None:
    image = _disk(tmp_path / "a.img", kind="gpt")
    good = image.read_bytes()
    for at, match in ((512 + 40, "header"), (1024 + 33, "partitions")):
        changed = bytearray(good)
        changed[at] ^= 1
        image.write_bytes(changed)
        _refused(image, f"GPT is damaged: the checksum of the {match} is wrong")
    image.write_bytes(good[:512] + bytes(512) + good[1024:])
    _refused(image, "refers to a GPT, which is missing")
    run(["sfdisk", "--quiet", image], stdin=b"label: gpt\n")
    _refused(image, "has no partitions")


def test_a_gpt_whose_entries_are_moved_away_for_a_bootloader(tmp_path: Path) -> None:
    """Allwinner's and Rockchip's boot ROMs read their code where the entries are otherwise."""
    image = tmp_path / "a.img"
    with image.open("wb") as file:
        file.truncate(8 * MIB)
    script = b"label: gpt\ntable-length: 56\nstart=4096, size=4096\n"
    run(["sfdisk", "--quiet", image], stdin=script)
    assert read_source(image).table == "gpt"


def test_an_iso_image_that_boots_from_usb_sticks_is_a_disk(tmp_path: Path) -> None:
    """As Debian's: an entry of type 0 from sector 0 on, and the EFI partition in the middle of it."""
    image = _headed(b"\1CD001\1", 32768)(tmp_path / "a.iso")
    with image.open("r+b") as file:
        file.seek(446)
        file.write(struct.pack("<B3xB3xII", 0x80, 0, 0, 2048))
        file.write(struct.pack("<B3xB3xII", 0, 0xEF, 100, 500) + bytes(32) + b"\x55\xaa")
    assert read_source(image).table == "dos"
    with image.open("r+b") as file:  # the older isohybrid
        file.seek(446)
        file.write(struct.pack("<B3xB3xII", 0x80, 0x17, 0, 2048) + bytes(48))
    assert read_source(image).table == "dos"


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=700), st.sampled_from([0, 446, 510, 512, 1024, 4096]))
@example(b"\x1c", 0)
def test_any_bytes_are_read_without_a_fault(data: bytes, at: int) -> None:
    head = bytes(at) + data
    read_table(head)
    read_table(head[:512].ljust(512, b"\0") + b"EFI PART" + data)
    formats.identify(head, head)
    formats.read_through(head)


def test_the_description_stands_for_a_table(tmp_path: Path) -> None:
    image = _headed(b"")(tmp_path / "own.img")
    describe(image)
    source = read_source(image)
    assert source.table is None
    assert source.description
    image.write_bytes(image.read_bytes()[:-4096])
    _refused(image, "is truncated: its description says")
    # What is known to be something else is that.
    image = _zip(tmp_path / "other.img")
    describe(image)
    _refused(image, "zip archive")


def test_a_compressed_image_has_the_description_of_the_image(tmp_path: Path) -> None:
    image = _disk(tmp_path / "a.img")
    describe(image)
    packed = tmp_path / "a.img.gz"
    packed.write_bytes(gzip.compress(image.read_bytes()))
    assert read_source(packed).description
    request = FlashRequest(str(tmp_path / "none"), packed)
    assert replace(request, raw=True).raw
