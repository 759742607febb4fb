# SPDX-License-Identifier: MIT
"""Formats that are not disk images, by their signatures, and the tool that makes a disk image of each.

Offsets and values are those of each format's own documentation or header file; ``file(1)`` has nearly all
of them too.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

HEAD_BYTES = 2 << 20
"""How much of the beginning is read: btrfs has its magic at 64 KiB, a GPT its entries at up to 1 MiB."""
TAIL_BYTES = 64 << 10
"""How much of the end is read: RAUC's signature, and the footers of VHD and DMG, are there."""
_FOOTER_BYTES = 512

_IN_PARTITION = "genimage or wic put it into a partition of a disk image; --raw writes it as it is"
_CONVERT = "qemu-img convert -O raw {image} disk.img (package qemu-utils)"
_BOOTLOADER = "./inv build-image --bootloader {image} makes a disk image with it, at its place"
_SECTOR_64 = "it belongs at sector 64 of a disk; take the image of a whole disk"
_UPDATE = "it is installed on the device, {tool}; take the image of the whole disk from who made it"
_SEVERAL = "it holds single partitions: {tool}; or take the image for SD cards from who made it"


@dataclass(frozen=True)
class Format:
    """A file format.

    Attributes:
        name: with its article.
        advice: how to get a disk image; ``{image}`` is replaced by the file.
    """

    name: str
    advice: str


def _archive(name: str, unpack: str) -> Format:
    return Format(f"a {name} archive", f"{unpack}, then flash the image that was in it")


def _compressed(name: str, unpack: str) -> Format:
    return Format(f"compressed with {name}", unpack)


def _file_system(name: str) -> Format:
    article = "an" if name[0] in "eEX" or name in ("F2FS", "NTFS") else "a"
    return Format(f"{article} {name} file system without a partition table", _IN_PARTITION)


def _virtual_disk(name: str) -> Format:
    return Format(f"a virtual machine's disk ({name})", _CONVERT)


_FAT = _file_system("FAT")
_EXT = _file_system("ext2/ext3/ext4")
_SQUASHFS = _file_system("squashfs")
_LZMA = _compressed("lzma", "unlzma -k {image}")
_DMG = Format("an Apple disk image (DMG)", "dmg2img {image} disk.img (package dmg2img)")
# With -f: one of fixed size begins as the disk itself does, for which qemu-img takes it unless told.
_VHD = Format(
    "a virtual machine's disk (VHD)",
    "qemu-img convert -f vpc -O raw {image} disk.img (package qemu-utils)",
)
_CPIO = _archive("cpio", "cpio -idm < {image}")
_TAR = _archive("tar", "tar -xf {image}")
_SWU = Format("an update for SWUpdate", _UPDATE.format(tool="with swupdate -i {image}"))
_RAUC = Format("an update for RAUC", _UPDATE.format(tool="with rauc install {image}"))
_MENDER = Format("an update for Mender", _UPDATE.format(tool="with mender-update install {image}"))
_DTB = Format("a device tree", "./inv deploy --dtb {image} puts it onto a board that runs")
_FIT = Format(
    "a FIT image (kernel, device tree and RAM disk for U-Boot)",
    "dumpimage -l {image} lists what is in it (package u-boot-tools); the disk image of its maker has it "
    "in a partition",
)
_KERNEL = Format(
    "a kernel", "./inv deploy --host H puts kernels onto boards; build-image into disk images"
)
_IMX = Format("an i.MX bootloader alone", _BOOTLOADER)
_LFS = Format(
    "a pointer of Git LFS, without the file itself",
    "git lfs pull, in the repository that it is from",
)
_ISO = Format(
    "an ISO 9660 file system without a partition table",
    "isohybrid {image} gives it a partition table, for BIOS (package syslinux-utils); or take the image "
    "for SD cards or USB sticks from who made it",
)
_HTML = Format(
    "an HTML page",
    "a download has ended in a page of the web site: open it, and download the image again",
)
_BMAP = Format("a block map", "give the image that it belongs to; the map beside it is found")
_ZERO = Format("all zeros at its beginning", "copy it again; --raw writes it as it is")
_EMPTY_TABLE = Format("a disk whose partition table is empty", "--raw writes it as it is")
_UNKNOWN = Format(
    "of a kind that is not known here", "is it the right file? --raw writes it as it is"
)

UNMARKED = (_ZERO, _EMPTY_TABLE, _UNKNOWN)
"""Formats that are accepted as a disk if a description says so."""

# Offset, bytes, format. The longer and the more special ones come first.
_SIGNATURES: tuple[tuple[int, bytes, Format], ...] = (
    # Compressed files and archives.
    (0, b"PK\3\4", _archive("zip", "unzip {image}")),
    (0, b"PK\5\6", _archive("zip", "unzip {image}")),
    (0, b"PK\7\x08", _archive("zip", "unzip {image}")),
    (0, b"7z\xbc\xaf\x27\x1c", _archive("7-Zip", "7z x {image} (package 7zip, or p7zip-full)")),
    (0, b"Rar!\x1a\x07", _archive("RAR", "unrar x {image}")),
    (0, b"MSCF\0\0\0\0", _archive("cabinet", "cabextract {image}")),
    (0, b"MSWIM\0\0\0", _archive("WIM", "wimextract {image} 1")),
    (0, b"!<arch>\n", Format("an ar archive or a Debian package", "ar x {image} unpacks it")),
    (0, b"\xed\xab\xee\xdb", Format("an RPM package", "rpm2cpio {image} | cpio -idm")),
    (0, b"\x04\x22\x4d\x18", _compressed("lz4", "lz4 -d {image} disk.img")),
    (0, b"\x02\x21\x4c\x18", _compressed("lz4 (legacy)", "lz4 -d {image} disk.img")),
    (0, b"\x89LZO\0\r\n\x1a\n", _compressed("lzop", "lzop -d {image}")),
    (0, b"LZIP\1", _compressed("lzip", "lzip -dk {image}")),
    (0, b"LRZI", _compressed("lrzip", "lrzip -d {image}")),
    (0, b"\x1f\x9d", _compressed("compress", "zcat {image} > disk.img")),
    (0, b"\x1f\x8b\x08", _compressed("gzip", "zcat {image} > disk.img")),
    (0, b"\xfd7zXZ\0", _compressed("xz", "xzcat {image} > disk.img")),
    (0, b"\x28\xb5\x2f\xfd", _compressed("zstd", "zstdcat {image} > disk.img")),
    (0, b"BZh", _compressed("bzip2", "bzcat {image} > disk.img")),
    # Disks of virtual machines, and other programs' copies of disks.
    (0, b"QFI\xfb", _virtual_disk("qcow2")),
    (0, b"QED\0", _virtual_disk("QED")),
    (0, b"KDMV", _virtual_disk("VMDK")),
    (0, b"COWD", _virtual_disk("VMDK")),
    (0, b"# Disk DescriptorFile", _virtual_disk("VMDK descriptor")),
    (64, b"\x7f\x10\xda\xbe", _virtual_disk("VDI")),
    (0, b"vhdxfile", _virtual_disk("VHDX")),
    (0, b"conectix", _VHD),
    (0, b"WithoutFreeSpace", _virtual_disk("Parallels")),
    (0, b"WithouFreSpacExt", _virtual_disk("Parallels")),
    (0, b"EVF\x09\r\n\xff\0", Format("an EnCase image", "ewfexport -f raw {image}")),
    (0, b"partclone-image", Format("a partclone image of one file system", "partclone.restore")),
    # Vendors' containers.
    (
        0,
        b"\x3a\xff\x26\xed",
        Format(
            "an Android sparse image",
            "simg2img {image} disk.img (package android-sdk-libsparse-utils); if it is one partition's, "
            "fastboot writes it",
        ),
    ),
    (
        8,
        b"\x56\x19\xb5\x27",
        Format(
            "an Amlogic burning image",
            _SEVERAL.format(
                tool="Amlogic's USB Burning Tool writes it, aml_image_v2_packer -d {image} FOLDER or "
                "ampack unpack {image} FOLDER unpack it"
            ),
        ),
    ),
    (8, b"AML_RES!", Format("Amlogic's boot pictures", "take the image of the whole disk")),
    (
        0,
        b"RKFW",
        Format(
            "a Rockchip firmware image (RKFW)",
            _SEVERAL.format(
                tool="upgrade_tool uf {image} writes it over USB, rkImageMaker -unpack {image} FOLDER "
                "and afptool -unpack unpack it"
            ),
        ),
    ),
    (
        0,
        b"RKAF",
        Format(
            "a Rockchip update image (RKAF)",
            _SEVERAL.format(
                tool="upgrade_tool di writes its parts over USB, afptool -unpack {image} FOLDER unpacks it"
            ),
        ),
    ),
    (
        0,
        b"IMAGEWTY",
        Format(
            "an Allwinner firmware image (IMAGEWTY)",
            "OpenixCard -d {image} makes a disk image of it; PhoenixSuit writes it over USB",
        ),
    ),
    (0, b"ANDROID!", Format("an Android boot image", "fastboot flash boot {image}")),
    (0, b"VNDRBOOT", Format("an Android vendor boot image", "fastboot flash vendor_boot {image}")),
    (0, b"AVB0", Format("Android's verification data (vbmeta)", "fastboot flash vbmeta {image}")),
    (0, b"CrAU", Format("an Android update (payload.bin)", "payload-dumper-go {image} unpacks it")),
    (4096, b"gDla", Format("Android's dynamic partitions (super)", "fastboot flash super {image}")),
    # What boards boot.
    (0, b"\x27\x05\x19\x56", Format(
        "a U-Boot image (uImage)",
        "dumpimage -l {image} says what is in it (package u-boot-tools); it is a file for a boot partition",
    )),
    (0, b"\xd7\xb7\xab\x1e", Format("a table of overlays (dtbo)", "fastboot flash dtbo {image}")),
    (56, b"ARM\x64", _KERNEL),
    (36, b"\x18\x28\x6f\x01", _KERNEL),
    (514, b"HdrS", _KERNEL),
    (16, b"@AML", Format("an Amlogic bootloader alone", _BOOTLOADER)),
    (4, b"eGON.BT0", Format("an Allwinner bootloader alone", "it belongs at sector 16 of a disk")),
    (0, b"RKNS", Format("a Rockchip bootloader alone", _SECTOR_64)),
    (0, b"\x3b\x8c\xdc\xfc", Format("a Rockchip bootloader alone", _SECTOR_64)),
    (0, b"\xd1\0\x20", _IMX),
    (0, b"TOC0.GLH", Format("an Allwinner bootloader alone", "it belongs at sector 16 of a disk")),
    (0, b"sunxi-package", Format("a part of an Allwinner bootloader", "take the image of a whole disk")),
    (0, b"\x01\x00\x64\xaa\x78\x56\x34\x12", Format("Arm Trusted Firmware (FIP)", _BOOTLOADER)),
    (0, b"BOOT\x66", Format("a Rockchip loader", "rkdeveloptool db {image} starts it over USB")),
    (0, b"LDR \x66", Format("a Rockchip loader", "rkdeveloptool db {image} starts it over USB")),
    (0, b"\x7fELF", Format("a program (ELF)", "take the image of the whole disk")),
    (0, b"MZ", Format("a Windows or EFI program", "take the image of the whole disk")),
    # File systems, volumes.
    (0, b"XFSB", _file_system("XFS")),
    (3, b"NTFS    ", _file_system("NTFS")),
    (3, b"EXFAT   ", _file_system("exFAT")),
    (1024, b"\x10\x20\xf5\xf2", _file_system("F2FS")),
    (1024, b"\xe2\xe1\xf5\xe0", _file_system("EROFS")),
    (65600, b"_BHRfS_M", _file_system("btrfs")),
    (65588, b"ReIsEr", _file_system("ReiserFS")),
    (0, b"\x45\x3d\xcd\x28", _file_system("cramfs")),
    (0, b"-rom1fs-", _file_system("romfs")),
    (0, b"\x85\x19", _file_system("JFFS2")),
    (0, b"UBI#", Format("a UBI volume, for raw NAND flash", "ubiformat /dev/mtdN -f {image}")),
    (0, b"\x31\x18\x10\x06", _file_system("UBIFS")),
    (0, b"LUKS\xba\xbe", Format("a LUKS volume without a partition table", _IN_PARTITION)),
    (512, b"LABELONE", Format("an LVM volume without a partition table", _IN_PARTITION)),
    (4086, b"SWAPSPACE2", Format("swap space", "take the image of the whole disk")),
    (32769, b"CD001", _ISO),
    # Documents.
    (0, b"%PDF-", Format("a PDF document", "take the disk image that it describes")),
)  # fmt: skip


def read_through(head: bytes) -> str | None:
    """Return the compression that flash unpacks by itself: gzip, bzip2, xz or zstd; else None."""
    if head[:3] == b"\x1f\x8b\x08":
        return "gzip"
    if re.match(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)", head):
        return "bzip2"
    if head[:6] == b"\xfd7zXZ\0":
        return "xz"
    # A frame, or one to be skipped (RFC 8878, 3.1): pzstd and the seekable format begin with those.
    if head[:4] == b"\x28\xb5\x2f\xfd" or (head[1:4] == b"\x2a\x4d\x18" and 0x50 <= head[0] < 0x60):
        return "zstd"
    return None


def identify(head: bytes, tail: bytes) -> Format:
    """Return the format of a file without a usable partition table.

    Args:
        head: its first ``HEAD_BYTES``, or all of it.
        tail: its last ``TAIL_BYTES``, or all of it.
    """
    return (
        (_RAUC if _is_rauc(tail) else None)
        or by_signature(head)
        or (_DMG if tail[-_FOOTER_BYTES:].startswith(b"koly") else None)
        or container_of_disk(tail)
        or _text(head)
        or (_ZERO if not head.strip(b"\0") else None)
        or (_EMPTY_TABLE if head[446:512] == bytes(64) + b"\x55\xaa" else _UNKNOWN)
    )


def by_signature(head: bytes) -> Format | None:
    """Return the format whose signature the file begins with."""
    return _special(head) or next(
        (file_format for at, mark, file_format in _SIGNATURES if head[at : at + len(mark)] == mark),
        None,
    )


def container_of_disk(tail: bytes) -> Format | None:
    """Return the format that holds the bytes of a disk, followed by a footer."""
    return _VHD if tail[-_FOOTER_BYTES:].startswith(b"conectix") else None


def _special(head: bytes) -> Format | None:
    """Return a format that is recognized by more than one place."""
    if head[:4] == b"\xd0\x0d\xfe\xed":
        # A node of that name (Devicetree Specification, 5.4): no device tree of a board has one.
        return _FIT if b"\0\0\0\1images\0" in head else _DTB
    if head[:4] in (b"hsqs", b"sqsh"):
        return _SQUASHFS
    if head[:6] in (b"070701", b"070702", b"070707") or head[:2] in (b"\xc7\x71", b"\x71\xc7"):
        return _SWU if b"sw-description\0" in head[:256] else _CPIO
    if _is_tar(head):
        return _MENDER if head[:8] == b"version\0" else _TAR
    # A container header of i.MX 8ULP and 9: version, length, tag (U-Boot include/imx8image.h).
    if (
        head[:1] == b"\0"
        and head[3:4] == b"\x87"
        and 0 < int.from_bytes(head[1:3], "little") <= 0x2000
    ):
        return _IMX
    # LZMA alone has no magic: the usual properties, and a dictionary of 2^n or 3 * 2^n bytes, the only
    # sizes that xz accepts (lzma-file-format.txt of xz).
    dictionary = int.from_bytes(head[1:5], "little")
    if head[:1] == b"\x5d" and len(head) >= 13 and 0 < dictionary.bit_count() <= 2:
        return _LZMA
    if _is_fat(head):
        return _FAT
    if head[1080:1082] == b"\x53\xef" and head[1048] < 7 and head[1100:1104] in _EXT_REVISIONS:
        return _EXT
    return None


def _is_rauc(tail: bytes) -> bool:
    """Return whether it ends with a CMS structure and its size in 64 bits, as RAUC's manual defines."""
    size = int.from_bytes(tail[-8:], "big")
    return 0 < size <= len(tail) - 8 and tail[-8 - size] == 0x30


_EXT_REVISIONS = (bytes(4), b"\1\0\0\0")


def _is_tar(head: bytes) -> bool:
    """Return whether the checksum of the first header is right: old archives have no other signature."""
    header = head[:512]
    field = header[148:156].strip(b"\0 ")
    if len(header) < 512 or not re.fullmatch(rb"[0-7]{1,7}", field) or not header[0]:
        return False
    return sum(header[:148]) + sum(header[156:]) + 8 * ord(" ") == int(field, 8)


def _is_fat(head: bytes) -> bool:
    """Return whether there is a BIOS parameter block: a disk ends its first sector by 55 AA, too."""
    if len(head) < 512 or head[0] not in (0xEB, 0xE9):
        return False
    sector_bytes, cluster, reserved, tables = struct.unpack_from("<HBHB", head, 11)
    return (
        sector_bytes in (512, 1024, 2048, 4096)
        and cluster != 0
        and cluster & (cluster - 1) == 0
        and reserved != 0
        and tables in (1, 2)
        and b"FAT" in (head[54:57], head[82:85])
    )


def _text(head: bytes) -> Format | None:
    """Return the format of a text: a web page in place of a download, a block map, a checksum, a script."""
    start = head[:4096]
    if not start.strip(b"\xef\xbb\xbf \t\r\n\f\v") or re.search(rb"[\0-\x08\x0e-\x1a\x7f]", start):
        return None
    text = start.decode("utf-8-sig", errors="replace").strip()
    if not text:  # of control characters that are white space to Python
        return None
    if text.count("\ufffd") > len(text) // 10:  # erased flash (0xff) is none
        return None
    if text.startswith("version https://git-lfs.github.com/spec/"):
        return _LFS
    if "<bmap " in text:
        return _BMAP
    if re.match(
        r"\s*(<\?xml[^>]*>|<!--.*?-->|\s)*<(!doctype html|html|head|body)\b", text, re.I | re.S
    ):
        return _HTML
    first = text.splitlines()[0][:60]
    return Format(
        f"a text that begins with {first!r}", "download the image again; is it the right file?"
    )
