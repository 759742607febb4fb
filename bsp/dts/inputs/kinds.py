# SPDX-License-Identifier: MIT
"""What a file is that was given for a board's device tree and is none, and what to do with it. Pure."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from ...base.errors import UserError
from ...scan.c_source import without_comments
from ..tree import MAX_BYTES, Tree, is_blob, read_tree, total_bytes

_BLOB_MAGIC = b"\xd0\x0d\xfe\xed"
_HEADER_BYTES = 40
_SHOWN = 6
_TRIED = 64
_TEXT_BYTES = 16384


@dataclass(frozen=True)
class Kind:
    """What a file was found to be.

    Attributes:
        what: as an error names it: "is ..." is put before it.
        hint: what to type next; ``{file}`` stands for the file.
    """

    what: str
    hint: str


@dataclass(frozen=True)
class Inside:
    """A device tree within another file.

    Attributes:
        offset_bytes: where it begins.
        size_bytes: how long it is.
        says: its root's ``compatible``, or that it is an overlay.
    """

    offset_bytes: int
    size_bytes: int
    says: str


_UNPACK = "{tool} {{file}} > board.dtb"

# (offset, first bytes there, what it is, hint). The first that fits counts.
_KNOWN: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"\x1f\x8b", "compressed with gzip", _UNPACK.format(tool="gzip -dc")),
    (0, b"\xfd7zXZ\0", "compressed with xz", _UNPACK.format(tool="xz -dc")),
    (0, b"\x28\xb5\x2f\xfd", "compressed with zstd", _UNPACK.format(tool="zstd -dc")),
    (0, b"BZh", "compressed with bzip2", _UNPACK.format(tool="bzip2 -dc")),
    (0, b"\x04\x22\x4d\x18", "compressed with lz4", _UNPACK.format(tool="lz4 -dc")),
    (0, b"\x02\x21\x4c\x18", "compressed with lz4 (legacy)", _UNPACK.format(tool="lz4 -dc")),
    (0, b"\x5d\0\0", "compressed with lzma", _UNPACK.format(tool="xz --format=lzma -dc")),
    (0, b"PK\3\4", "a zip archive", "unzip {file}"),
    (56, b"ARM\x64", "an arm64 kernel (Image)", ""),
    (36, b"\x18\x28\x6f\x01", "a 32-bit ARM kernel (zImage)", ""),
    (0, b"MZ", "an EFI program, such as a kernel (vmlinuz.efi)", ""),
    (0, b"\x7fELF", "an ELF file, such as vmlinux or a kernel module", ""),
    (0, b"\x27\x05\x19\x56", "a U-Boot image of the old form (uImage)", "dumpimage -l {file}"),
    (0, b"ANDROID!", "an Android boot image", ""),
    (0, b"VNDRBOOT", "an Android vendor boot image", ""),
    (0, b"\xd7\xb7\xab\x1e", "an Android table of device trees (dtb.img, dtbo.img)", ""),
    (0, b"QCDT", "a Qualcomm table of device trees (dt.img)", ""),
    (0, b"DTBH", "a Samsung table of device trees", ""),
    (0, b"AML_", "an Amlogic table of device trees (as in the partition dtb)", ""),
    (0, b"RSCE", "a Rockchip resource image", ""),
    (0, b"RKFW", "a Rockchip firmware image", ""),
    (0, b"RKAF", "a Rockchip firmware image", ""),
    (0, b"hsqs", "a squashfs file system", ""),
    (510, b"\x55\xaa", "a disk image", ""),
)


def kind_of(start: bytes) -> Kind | None:
    """Return what a file that begins so is, where it is known and no device tree blob."""
    if not start:
        return Kind("empty", "copy it again; on the board: cat /sys/firmware/fdt")
    if start.startswith(_BLOB_MAGIC):
        return None
    if start.startswith(_BLOB_MAGIC[::-1]):
        return Kind(
            "a device tree blob whose bytes are swapped in fours",
            "objcopy -I binary -O binary --reverse-bytes=4 {file} board.dtb",
        )
    for offset, magic, what, hint in _KNOWN:
        if start[offset : offset + len(magic)] == magic:
            return Kind(what, hint)
    return _text_kind(start)


def _text_kind(start: bytes) -> Kind | None:
    """What text is; None for what is none."""
    try:
        text = start[:_TEXT_BYTES].decode()
    except UnicodeDecodeError as error:
        if error.start < min(len(start), _TEXT_BYTES) - 4:  # not merely cut in a character
            return None
        text = start[: error.start].decode()
    if not text:
        return None
    if re.search(r"[\0-\x08\x0e-\x1a\x7f]", text):
        return None
    code = without_comments(text)
    if re.search(r"/dts-v1/|/plugin/|^\s*(/|&[\w{/@-]+\}?)\s*\{", code, re.M):
        what, compiles = "device tree source, which has to be compiled", "-o board.dtb {file}"
        if "/plugin/" in code:
            what = "the source of a device tree overlay"
            compiles = "-@ -o overlay.dtbo {file}, then --apply overlay.dtbo"
        if re.search(r"^\s*#\s*include", code, re.M):
            return Kind(what, "build it from the kernel that it belongs to: --kernel path:DIR")
        return Kind(what, f"dtc -I dts -O dtb {compiles}")
    if re.match(r"\s*<(!doctype|html|\?xml)", text, re.I):
        return Kind("a web page or XML", "download the file itself")
    if text.startswith("version https://git-lfs"):
        return Kind("a pointer of Git LFS", "git lfs pull fetches the file itself")
    return Kind("text", "")


def overlay_mark(tree: Tree) -> str | None:
    """Return the node that makes a tree an overlay (``/fragment@0/__overlay__``); None if none does."""
    for path in tree.nodes:
        if path.endswith("/__overlay__") and path.count("/") == 2:
            return path
    return "/__fixups__" if "/__fixups__" in tree.nodes else None


def trees_inside(data: bytes, *, start: int = 0) -> list[Inside]:
    """Return the device trees that lie somewhere in a file's bytes, in order; no more than a few dozen.

    Args:
        start: where to begin to look.
    """
    trees: list[Inside] = []
    at = data.find(_BLOB_MAGIC, start)
    for _ in range(_TRIED):
        if at < 0:
            break
        size = 4
        header = data[at : at + _HEADER_BYTES]
        if is_blob(header) and total_bytes(header) <= min(MAX_BYTES, len(data) - at):
            blob = data[at : at + total_bytes(header)]
            try:
                tree = read_tree(blob, "it")
            except UserError:
                pass  # four bytes that look like one
            else:
                words = ", ".join(tree.compatible) or "nothing"
                trees.append(Inside(at, len(blob), "an overlay" if overlay_mark(tree) else words))
                size = len(blob)
        at = data.find(_BLOB_MAGIC, at + size)
    return trees


def inside_text(trees: list[Inside]) -> str:
    """Return device trees within a file as lines for an error."""
    lines = [
        f"  at byte {each.offset_bytes}, {each.size_bytes} bytes: {each.says}"
        for each in trees[:_SHOWN]
    ]
    if len(trees) > _SHOWN:
        lines.append(f"  and {len(trees) - _SHOWN} more")
    return "\n".join(lines)


def cut_out(trees: list[Inside], file: str) -> str:
    """Return the command that writes the first board's tree of a file to a file of its own."""
    first = next((each for each in trees if each.says != "an overlay"), trees[0])
    quoted = shlex.quote(file)
    return (
        f"tail -c +{first.offset_bytes + 1} {quoted} | head -c {first.size_bytes} > board.dtb "
        f"takes out the one at byte {first.offset_bytes}"
    )
