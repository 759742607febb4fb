# SPDX-License-Identifier: MIT
"""Adopts a board that boots by extlinux or by a boot script of its own, and undoes that.

What booted it stays on the partition under another name, where boot.cmd falls back on it. The order of the
steps is such that a power cut after any of them leaves a board that boots one way or the other.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re

from .board import RIVALS, TAKEN_OVER, Board, mounted
from .boot_files import Boot
from .boot_partition import move, replace
from .files import SECTOR_BYTES, make_way, names_in, read, read_text, write_sector, write_whole
from .frames import RefusedError
from .kept_modules import KEPT, Keeping

TYPE_CHECKING = False  # see frames.py
if TYPE_CHECKING:
    from .board import Record

_OURS = re.compile(r"(usr/local/lib/npu-bsp|etc/systemd/system(/[a-z-]+\.target\.wants)?)/[a-z.-]+")
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
# Beside each of the kept extlinux.conf: the same, for when boot.cmd has something to tell.
TOLD = {
    other: other.replace("before-npu-bsp", "told-npu-bsp")
    for other in RENAMED.values()
    if other.endswith(".conf")
}
_APPEND = re.compile(rb"^([ \t]*append[ \t][^\r\n]*)", re.IGNORECASE | re.MULTILINE)


def survey(board: Board, _: Record) -> Record:
    """Return the files of the running kernel and RAM disk, and the kind of partition they would go to."""
    mounts = mounted(board.at("proc/mounts"))
    fat_mounts = sorted(where for where, kind in mounts.items() if kind == "vfat")
    boot = Boot(board, fat_mounts)
    answer: Record = {"kernel": None, "initrd": None, "size_bytes": 0, "problems": []}
    for what, look in (("kernel", boot.kernel), ("initrd", boot.ram_disk)):
        try:
            path, content = look()
        except RefusedError as error:
            answer["problems"].append(str(error))
            continue
        answer[what] = boot.shown(path) if path else "none"
        answer["size_bytes"] += len(content)
    return {
        **answer,
        "release": boot.release,
        "kind": board.kind if os.path.ismount(board.fat) or board.on_ext or board.root else "",
        "fat_mounts": fat_mounts,
        "rivals": [name for name in RIVALS if os.path.exists(f"{board.fat}/{name}")],
        "script": b"npu-bsp" not in read(f"{board.fat}/{SCRIPT}")
        and os.path.exists(f"{board.fat}/{SCRIPT}"),
    }


def take_in(board: Board, request: Record) -> Record:
    """Copy the running kernel and RAM disk to where generations keep theirs; return their entries."""
    boot = Boot(board, request["fat_mounts"])
    kernel, ram_disk = boot.kernel()[1], boot.ram_disk()[1]
    entries = []
    with Keeping(board) as modules:
        for path, content in (("boot/kernel", kernel), ("boot/initrd", ram_disk)):
            digest = hashlib.sha256(content).hexdigest()
            place = f"{board.files}/{digest[:32]}"
            if not os.path.exists(place) or os.stat(place).st_size != len(content):
                write_whole(place, content)
            entries.append({"path": path, "sha256": digest, "size_bytes": len(content)})
        modules.kernel_sha256 = str(entries[0]["sha256"])
    return {"entries": entries}


def take_over(board: Board, request: Record) -> Record:
    """Install our boot script; until there is a good generation it boots what the board booted before."""
    our_script = base64.b64decode(request["script"])
    write_whole(
        os.path.join(board.own, TAKEN_OVER), b"npu-bsp boots this board since it was adopted\n"
    )
    script, kept = f"{board.fat}/{SCRIPT}", f"{board.fat}/{OLD_SCRIPT}"
    before = read(script)
    # Also an empty one, or a link to nothing.
    if os.path.lexists(script) and b"npu-bsp" not in before:
        make_way(kept)
        if board.on_ext:
            os.link(script, kept)
        else:
            write_whole(kept, before)
    replace(board, script, our_script)
    renamed = []
    # From here on ours is there: whichever of the two U-Boot finds, it boots.
    for name, other in RENAMED.items():
        if os.path.exists(f"{board.fat}/{name}"):
            move(board, f"{board.fat}/{name}", f"{board.fat}/{other}")
            renamed.append(name)
    for other, told in TOLD.items():
        if kept_conf := read(f"{board.fat}/{other}"):
            # U-Boot puts its variables into these lines, and starts its bootargs anew with them.
            write_whole(f"{board.fat}/{told}", _APPEND.sub(rb"\1${npu_told}", kept_conf))
    board.settle()
    return {"renamed": renamed}


def give_back(board: Board, request: Record | None = None) -> Record:
    """Undo ``take_over``: the board boots as it did before."""
    mark = os.path.join(board.own, TAKEN_OVER)
    if not os.path.exists(mark):
        raise RefusedError("this board was not adopted: there is nothing to undo")
    trial = os.path.join(board.own, "trial.env")
    if os.path.exists(trial):
        write_sector(trial, bytes(SECTOR_BYTES))
    for told in TOLD.values():
        make_way(f"{board.fat}/{told}")
    returned = []
    for name, other in RENAMED.items():
        if os.path.exists(f"{board.fat}/{other}"):
            if os.path.exists(f"{board.fat}/{name}"):  # a newer one, of an update since
                make_way(f"{board.fat}/{other}")
            else:
                move(board, f"{board.fat}/{other}", f"{board.fat}/{name}")
            returned.append(name)
    board.settle()
    script, kept = f"{board.fat}/{SCRIPT}", f"{board.fat}/{OLD_SCRIPT}"
    if b"npu-bsp" in read(script):
        if os.path.lexists(kept):
            replace(board, script, kept if board.on_ext else read(kept))
            returned.append(SCRIPT)
        else:
            make_way(script)
    board.settle()
    make_way(kept)
    board.settle()
    # What booted the board before is first again: nothing of ours is looked at any more.
    _remove_own(board, mark)
    if _running(board) is None:
        _remove_rest(board, (request or {}).get("onboard", ()))
    return {"returned": returned}


def give_up(board: Board, request: Record) -> Record:
    """Remove the files of an adoption that ended before our script was installed.

    A board that has a good generation, or that was taken over, is left alone.
    """
    mark = os.path.join(board.own, TAKEN_OVER)
    begun = os.path.isdir(board.own) and not os.path.exists(mark)
    if not begun or any(name.endswith(".env") for name in names_in(board.own)):
        return {"removed": False}
    if b"npu-bsp" in read(f"{board.fat}/{SCRIPT}"):
        return {"removed": False}
    _remove_own(board, mark)
    _remove_rest(board, request.get("onboard", ()))
    return {"removed": True}


def _running(board: Board) -> str | None:
    words = dict(word.partition("=")[::2] for word in read_text(board.at("proc/cmdline")).split())
    return words.get("npu_bsp.generation")


def _remove_own(board: Board, mark: str) -> None:
    """Remove our folder from the boot partition; the marker of the adoption goes last."""
    import shutil

    for name in names_in(board.own):
        path = f"{board.own}/{name}"
        if path != mark:
            shutil.rmtree(path) if os.path.isdir(path) else make_way(path)
    board.settle()
    make_way(mark)
    os.rmdir(board.own)
    board.settle()


def _remove_rest(board: Board, onboard: list[str]) -> None:
    """Remove our generations, kept modules and services from the root file system; none of them runs."""
    import shutil

    for path in (board.store, board.at(KEPT)):
        shutil.rmtree(path, ignore_errors=True)
    for name in onboard:
        if not _OURS.fullmatch(name):
            raise RefusedError(f"{name!r} is not a file of npu-bsp")
        make_way(board.at(name))
