# SPDX-License-Identifier: MIT
"""Has the distribution itself keep a device tree: where its own boot files name one, for all its kernels.

``armbian``, ``toradex``: an overlay, named in a line of a text that their boot script imports.
``grub``: a whole tree beside grub.cfg, which a line of custom.cfg has GRUB hand to each kernel.
``u-boot-menu``: a whole tree below /boot, named by ``U_BOOT_FDT`` in a file of its own; extlinux.conf is
written from that (u-boot-update), now and at each update of a kernel.
``flash-kernel``: a whole tree below /etc/flash-kernel/dtbs, which it takes before the one of a kernel.
"""

from __future__ import annotations

import base64
import os

from .board import KEPT_BY
from .boot_partition import replace
from .files import flush, make_way, names_in, read, read_text, write_whole
from .frames import RefusedError

TYPE_CHECKING = False  # see frames.py
if TYPE_CHECKING:
    from .board import Board, Record

_NAME = "npu-bsp"
_BEFORE = "var/lib/npu-bsp/kept-before"
"""The text that names it, as it was before."""
# By way: the folder that overlays lie in, the text, the variable there, our overlay as it is named there.
_OVERLAYS = {
    "armbian": ("overlay-user", "armbianEnv.txt", b"user_overlays", b"npu-bsp"),
    "toradex": ("overlays", "overlays.txt", b"fdt_overlays", b"npu-bsp.dtbo"),
}
# $prefix: GRUB's own folder, on whatever partition.
_GRUB_LINE = (
    b"if [ -f $prefix/npu-bsp.dtb ]; then devicetree $prefix/npu-bsp.dtb; fi"
    b" # ./inv deploy --undo takes it back\n"
)
_MENU_CONF = "etc/u-boot-menu/conf.d/zz-npu-bsp.conf"
_MENU_TREE = "boot/npu-bsp.dtb"
_MENU_PROGRAM = "usr/sbin/u-boot-update"
_FLASH_TREES = "etc/flash-kernel/dtbs"
_FLASH_PROGRAM = "usr/sbin/flash-kernel"
_UPDATE_S = 120


def kept_by(board: Board) -> str:
    """Return which way keeps a tree here; empty: none does."""
    return read_text(board.at(KEPT_BY))


def persist(board: Board, request: Record) -> Record:
    """Keep a device tree from the next boot on.

    Raises:
        RefusedError: the board has not what that way needs; nothing was changed.
    """
    way, content = request["way"], base64.b64decode(request["content"])
    if kept_by(board) not in ("", way):
        raise RefusedError(f"a device tree is kept by {kept_by(board)} already")
    # First, so that what is begun can be taken back.
    write_whole(board.at(KEPT_BY), f"{way}\n".encode())
    try:
        if way in (*_OVERLAYS, "grub"):
            return {"changed": _named_in_text(board, way, content)}
        if way == "u-boot-menu":
            return {"changed": _u_boot_menu(board, content)}
        if way == "flash-kernel":
            return {"changed": _flash_kernel(board, content)}
        raise RefusedError(f"unknown way {way!r} to keep a device tree")
    except BaseException:
        unpersist(board, {})
        raise


def unpersist(board: Board, _: Record) -> Record:
    """Undo ``persist``: from the next boot on the distribution's own tree counts again."""
    way = kept_by(board)
    changed = []
    if way in (*_OVERLAYS, "grub"):
        text, place = _places(board, way)
        before, now = read(board.at(_BEFORE)), read(text)
        wanted = before if now == _with(way, before) else _without(way, now)
        if wanted != now:
            replace(board, text, wanted) if wanted else make_way(text)
            changed.append(text)
        make_way(place)
        make_way(board.at(_BEFORE))
    elif way == "u-boot-menu" and os.path.exists(board.at(_MENU_CONF)):
        make_way(board.at(_MENU_CONF))
        _update(board, _MENU_PROGRAM)
        changed.append(f"{board.fat}/extlinux/extlinux.conf")
        make_way(board.at(_MENU_TREE))
    elif way == "flash-kernel" and os.path.isdir(ours := board.at(f"{_FLASH_TREES}/{_NAME}")):
        for name in names_in(ours):
            make_way(f"{ours}/{name}")
        os.rmdir(ours)
        _update(board, _FLASH_PROGRAM)
        changed.append(f"{board.fat}/dtb")
    board.settle()
    make_way(board.at(KEPT_BY))
    return {"changed": changed}


def with_overlay(text: bytes, key: bytes, name: bytes) -> bytes:
    """Return a text of ``key=value`` lines with an overlay named; the last line of a key counts."""
    lines = without_overlay(text, key, name).split(b"\n")
    named = [number for number, line in enumerate(lines) if line.startswith(key + b"=")]
    if named:
        names = lines[named[-1]].partition(b"=")[2].split()
        lines[named[-1]] = key + b"=" + b" ".join([*names, name])
        return b"\n".join(lines)
    end = b"" if lines[-1] == b"" else b"\n"
    return b"\n".join(lines) + end + key + b"=" + name + b"\n"


def without_overlay(text: bytes, key: bytes, name: bytes) -> bytes:
    """Return the text without an overlay; a line that named nothing else is left out."""
    lines = []
    for line in text.split(b"\n"):
        found, _, value = line.partition(b"=")
        names = value.split()
        if found == key and name in names:
            names.remove(name)
            if names:
                lines.append(key + b"=" + b" ".join(names))
        else:
            lines.append(line)
    return b"\n".join(lines)


def _with(way: str, text: bytes) -> bytes:
    if way in _OVERLAYS:
        return with_overlay(text, *_OVERLAYS[way][2:])
    before = _without(way, text)
    return before + (b"" if not before or before.endswith(b"\n") else b"\n") + _GRUB_LINE


def _without(way: str, text: bytes) -> bytes:
    if way in _OVERLAYS:
        return without_overlay(text, *_OVERLAYS[way][2:])
    lines = text.splitlines(keepends=True)
    return b"".join(line for line in lines if b"$prefix/npu-bsp.dtb" not in line)


def _places(board: Board, way: str) -> tuple[str, str]:
    """The text that names it, and where the overlay or the tree lies."""
    if way in _OVERLAYS:
        folder, name, *_ = _OVERLAYS[way]
        return f"{board.fat}/{name}", f"{board.fat}/{folder}/{_NAME}.dtbo"
    # What of grub.cfg's is the administrator's: 41_custom has it sourced.
    folder = board.at("boot/grub")
    return f"{folder}/custom.cfg", f"{folder}/{_NAME}.dtb"


def _named_in_text(board: Board, way: str, content: bytes) -> list[str]:
    text, place = _places(board, way)
    if way in _OVERLAYS and not os.path.exists(text):
        raise RefusedError(f"there is no {text}")
    if way == "grub" and b"custom.cfg" not in read(f"{os.path.dirname(text)}/grub.cfg"):
        raise RefusedError("GRUB's grub.cfg does not source custom.cfg (41_custom of /etc/grub.d)")
    now, before = read(text), read(board.at(_BEFORE))
    if now != _with(way, before):  # else it is named already
        before = _without(way, now)
        write_whole(board.at(_BEFORE), before)
    os.makedirs(os.path.dirname(place), exist_ok=True)
    write_whole(place, content)
    board.settle()
    replace(board, text, _with(way, before))
    return [place, text]


def _u_boot_menu(board: Board, tree: bytes) -> list[str]:
    if os.path.ismount(board.at("boot")):
        # u-boot-update looks for U_BOOT_FDT by the name that U-Boot knows it by.
        raise RefusedError(
            "/boot is a partition of its own, where u-boot-menu finds no single tree"
        )
    write_whole(board.at(_MENU_TREE), tree)
    flush(board.at("boot"))
    about = "# A device tree that npu-bsp tried; ./inv deploy --undo takes it back."
    write_whole(board.at(_MENU_CONF), f'{about}\nU_BOOT_FDT="/{_MENU_TREE}"\n'.encode())
    _update(board, _MENU_PROGRAM)
    board.settle()
    return [board.at(_MENU_TREE), board.at(_MENU_CONF), f"{board.fat}/extlinux/extlinux.conf"]


def _flash_kernel(board: Board, tree: bytes) -> list[str]:
    link, trees = board.at("boot/dtb"), board.at(_FLASH_TREES)
    where = os.readlink(link) if os.path.islink(link) else ""
    if not where.startswith("dtbs/"):
        raise RefusedError("flash-kernel has put no device tree at /boot/dtb")
    name = os.path.basename(where)
    others = [folder for folder, _, names in os.walk(trees) if name in names]
    if set(others) - {f"{trees}/{_NAME}"}:
        raise RefusedError(f"/{_FLASH_TREES} has a {name} already, which flash-kernel takes")
    os.makedirs(f"{trees}/{_NAME}", exist_ok=True)
    write_whole(f"{trees}/{_NAME}/{name}", tree)
    _update(board, _FLASH_PROGRAM)
    board.settle()
    return [f"{trees}/{_NAME}/{name}", link]


def _update(board: Board, program: str) -> None:
    """Have the distribution write what U-Boot reads."""
    import subprocess

    done = subprocess.run([board.at(program)], capture_output=True, timeout=_UPDATE_S, check=False)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()[-300:]
        raise RefusedError(f"{os.path.basename(program)} ended with {done.returncode}: {said}")
