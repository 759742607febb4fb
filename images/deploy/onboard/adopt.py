# SPDX-License-Identifier: MIT
"""Takes a board over that boots by extlinux or by a boot script of its own, and gives it back.

What booted it stays on the partition under another name, where boot.cmd falls back on it. The order of the
steps is such that a power cut after any of them leaves a board that boots one way or the other.
"""

from __future__ import annotations

import base64
import hashlib
import os
import zlib

from .board import RIVALS, TAKEN_OVER, Board
from .files import (
    SECTOR_BYTES,
    flush,
    flush_filesystem,
    make_way,
    read,
    read_text,
    write_sector,
    write_whole,
)
from .frames import RefusedError

TYPE_CHECKING = False  # see frames.py
if TYPE_CHECKING:
    from .board import Record

SCRIPT = "boot.scr"
OLD_SCRIPT = "boot-before-npu-bsp.scr"
# What they are called while we boot the board; boot.cmd knows these names.
RENAMED = dict(
    zip(
        RIVALS,
        (
            "extlinux/before-npu-bsp.conf",
            "boot/extlinux/before-npu-bsp.conf",
            "boot-before-npu-bsp.scr.uimg",
        ),
        strict=True,
    )
)


def survey(board: Board) -> Record:
    """Where the running kernel and its RAM disk lie, and what kind of partition they would go to."""
    release = board.release()
    folders = [board.at("boot"), board.fat]
    kernel = _first(folders, ("vmlinuz-", "Image-", "vmlinux-"), release)
    ram_disk = _first(folders, ("initrd.img-", "initramfs-", "initrd-"), release)
    kinds = {}
    for line in read_text(board.at("proc/mounts")).split("\n"):
        words = line.split()
        if len(words) > 2:
            kinds[words[1]] = words[2]
    place = board.fat[len(board.root) :]
    return {
        "release": release,
        "kernel": kernel,
        "initrd": ram_disk,
        "kind": kinds.get(place, ""),
        "fat_mounts": sorted(where for where, kind in kinds.items() if kind == "vfat"),
        "rivals": [name for name in RIVALS if os.path.exists(f"{board.fat}/{name}")],
        "script": b"npu-bsp" not in read(f"{board.fat}/{SCRIPT}")
        and os.path.exists(f"{board.fat}/{SCRIPT}"),
        "size_bytes": sum(os.stat(path).st_size for path in (kernel, ram_disk) if path),
    }


def _first(folders: list[str], stems: tuple[str, ...], release: str) -> str | None:
    for folder in folders:
        for stem in stems:
            path = f"{folder}/{stem}{release}"
            if os.path.isfile(path):
                return path
    return None


def take_in(board: Board) -> Record:
    """Copy the running kernel and RAM disk to where generations keep theirs; return their entries."""
    found = survey(board)
    if not found["kernel"] or not found["initrd"]:
        raise RefusedError(f"the kernel {found['release']} or its RAM disk is not in /boot")
    kernel = plain_image(read(found["kernel"]))
    if b"Linux version " + found["release"].encode() + b" " not in kernel:
        raise RefusedError(f"{found['kernel']} is not the kernel that runs ({found['release']})")
    entries = []
    for path, content in (("boot/kernel", kernel), ("boot/initrd", read(found["initrd"]))):
        digest = hashlib.sha256(content).hexdigest()
        place = f"{board.files}/{digest[:32]}"
        if not os.path.exists(place) or os.stat(place).st_size != len(content):
            write_whole(place, content)
        entries.append({"path": path, "sha256": digest, "size_bytes": len(content)})
    return {"entries": entries}


def plain_image(data: bytes) -> bytes:
    """A kernel as booti takes it: neither gzipped nor an EFI zboot image (zboot-header.S)."""
    if data[:2] == b"MZ" and data[4:8] == b"zimg":
        if data[24:28] != b"gzip":
            raise RefusedError("the kernel is compressed in a way that this Python cannot undo")
        start, size = (int.from_bytes(data[at : at + 4], "little") for at in (8, 12))
        data = data[start : start + size]
    if data[:2] == b"\x1f\x8b":
        data = zlib.decompressobj(31).decompress(data)
    if data[56:60] != b"ARM\x64":
        raise RefusedError("the kernel is no arm64 Image")
    return data


def take_over(board: Board, request: Record) -> Record:
    """Make our script the one that boots; until it has a good generation it falls back on the old way."""
    ours = base64.b64decode(request["script"])
    write_whole(
        os.path.join(board.own, TAKEN_OVER), b"npu-bsp boots this board since it was adopted\n"
    )
    before = read(f"{board.fat}/{SCRIPT}")
    if before and b"npu-bsp" not in before:
        write_whole(f"{board.fat}/{OLD_SCRIPT}", before)
    write_whole(f"{board.fat}/{SCRIPT}", ours)
    flush_filesystem(board.fat)
    renamed = []
    # From here on ours is there: whichever of the two U-Boot finds, it boots.
    for name, other in RENAMED.items():
        if os.path.exists(f"{board.fat}/{name}"):
            os.rename(f"{board.fat}/{name}", f"{board.fat}/{other}")
            renamed.append(name)
    _settle(board)
    return {"renamed": renamed}


def give_back(board: Board) -> Record:
    """Undo ``take_over``: what booted the board before does so again."""
    mark = os.path.join(board.own, TAKEN_OVER)
    if not os.path.exists(mark):
        raise RefusedError("this board was not taken over: there is nothing to give back")
    trial = os.path.join(board.own, "trial.env")
    if os.path.exists(trial):
        write_sector(trial, bytes(SECTOR_BYTES))
    returned = []
    for name, other in RENAMED.items():
        if os.path.exists(f"{board.fat}/{other}"):
            if os.path.exists(f"{board.fat}/{name}"):  # a newer one, of an update since
                make_way(f"{board.fat}/{other}")
            else:
                os.rename(f"{board.fat}/{other}", f"{board.fat}/{name}")
            returned.append(name)
    _settle(board)
    old = read(f"{board.fat}/{OLD_SCRIPT}")
    if b"npu-bsp" in read(f"{board.fat}/{SCRIPT}"):
        if old:
            write_whole(f"{board.fat}/{SCRIPT}", old)
            returned.append(SCRIPT)
        else:
            make_way(f"{board.fat}/{SCRIPT}")
    flush_filesystem(board.fat)
    make_way(f"{board.fat}/{OLD_SCRIPT}")
    make_way(mark)
    _settle(board)
    return {"returned": returned}


def _settle(board: Board) -> None:
    flush(board.fat)
    flush_filesystem(board.fat)
