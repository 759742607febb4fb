# SPDX-License-Identifier: MIT
"""Has the distribution itself keep a device tree: where its own boot files name one, for all its kernels.

``armbian``, ``dietpi``, ``toradex``: an overlay, named in a line of a text that their boot script imports.
``grub``: a whole tree beside grub.cfg, which a line of custom.cfg has GRUB hand to each kernel.
``u-boot-menu``: a whole tree below /boot, named by ``U_BOOT_FDT`` in a file of its own; extlinux.conf is
written from that (u-boot-update), now and at each update of a kernel. Where that names overlays, U-Boot
applies them to any tree: there an overlay beside them, for a tree that ran has them already.
``flash-kernel``: a whole tree below /etc/flash-kernel/dtbs, which it takes before the one of a kernel.
"""

from __future__ import annotations

import base64
import os
import re

from .adopt import RENAMED
from .board import KEPT_BY, KEPT_OF
from .boot_partition import replace
from .files import make_way, names_in, read, read_text, write_whole
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
    "dietpi": ("overlay-user", "dietpiEnv.txt", b"user_overlays", b"npu-bsp"),
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
# The last in its folder: without a list of names, u-boot-update takes all that are there, in their order.
_MENU_OVERLAY = "zz-npu-bsp.dtbo"
_MENU_PLACE = "var/lib/npu-bsp/kept-place"
"""Holds where that overlay lies."""
_OVERLAY_LINES = re.compile(rb"(?im)^[ \t]*(?:fdtoverlays|devicetree-overlay)[ \t]+(\S.*)$")
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
    if way not in _OVERLAYS and not request.get("overlay"):
        write_whole(board.at(KEPT_OF), f"{board.release()}\n".encode())
    try:
        if way in (*_OVERLAYS, "grub"):
            return {"changed": _named_in_text(board, way, content)}
        if way == "u-boot-menu":
            return {"changed": _u_boot_menu(board, content, overlay=bool(request.get("overlay")))}
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
    elif way == "u-boot-menu":
        if any(os.path.exists(f"{board.fat}/{name}") for name in RENAMED.values()):
            raise RefusedError("npu-bsp boots this board, and falls back on what names this tree")
        make_way(board.at(_MENU_CONF))
        if place := read_text(board.at(_MENU_PLACE)):
            make_way(board.at(place))
        if b"npu-bsp.dtb" in read(conf := f"{board.fat}/extlinux/extlinux.conf"):
            _update(board, _MENU_PROGRAM)
            changed.append(conf)
        make_way(board.at(_MENU_TREE))
        make_way(board.at(_MENU_PLACE))
    elif way == "flash-kernel" and os.path.isdir(ours := board.at(f"{_FLASH_TREES}/{_NAME}")):
        for name in names_in(ours):
            make_way(f"{ours}/{name}")
        os.rmdir(ours)
        _update(board, _FLASH_PROGRAM)
        changed.append(f"{board.fat}/dtb")
    board.settle()
    make_way(board.at(KEPT_OF))
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
        name_before, _, value = line.partition(b"=")
        names = value.split()
        if name_before == key and name in names:
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


def _u_boot_menu(board: Board, content: bytes, *, overlay: bool) -> list[str]:
    if os.path.ismount(board.at("boot")):
        # u-boot-update looks for U_BOOT_FDT by the name that U-Boot knows it by.
        raise RefusedError(
            "/boot is a partition of its own, where u-boot-menu finds no single tree"
        )
    conf = f"{board.fat}/extlinux/extlinux.conf"
    before = read(conf)
    _update(board, _MENU_PROGRAM)
    if read(conf) != before:
        replace(board, conf, before)
        raise RefusedError(
            f"u-boot-update would not write {conf} as it is: it was changed by hand, or its settings were "
            "since. Run u-boot-update, reboot, and try again"
        )
    place = _beside_overlays(board, before) if overlay else f"/{_MENU_TREE}"
    if not overlay and _OVERLAY_LINES.search(before):
        raise RefusedError(f"{conf} names overlays, which a tree that ran would get a second time")
    settings = ["# A device tree that npu-bsp tried; ./inv deploy --undo takes it back."]
    if overlay:
        write_whole(board.at(_MENU_PLACE), f"{place}\n".encode())
        # Without a list, all in the folder are taken.
        settings.append(
            f'U_BOOT_FDT_OVERLAYS="${{U_BOOT_FDT_OVERLAYS:+$U_BOOT_FDT_OVERLAYS {_MENU_OVERLAY}}}"'
        )
    write_whole(board.at(place), content)
    if os.path.exists(board.at(_MENU_TREE)):
        settings.append(f'U_BOOT_FDT="/{_MENU_TREE}"')
    write_whole(board.at(_MENU_CONF), "".join(f"{line}\n" for line in settings).encode())
    _update(board, _MENU_PROGRAM)
    if os.path.basename(place).encode() not in read(conf):
        raise RefusedError(
            f"u-boot-update does not name {place} in {conf}: is it switched off (U_BOOT_UPDATE), or do "
            "other settings come after ours?"
        )
    board.settle()
    return [board.at(place), board.at(_MENU_CONF), conf]


def _beside_overlays(board: Board, conf: bytes) -> str:
    """Return where an overlay of ours goes: into the one folder that all others lie in.

    Raises:
        RefusedError: they lie in several, or in one that the next kernel does not have.
    """
    names = {name for line in _OVERLAY_LINES.findall(conf) for name in line.decode().split()}
    folders = sorted({os.path.normpath(os.path.dirname(name)) for name in names})
    if len(folders) != 1 or not os.path.isdir(board.at(folders[0])):
        raise RefusedError(
            f"u-boot-menu's overlays are not in one folder: {', '.join(folders) or 'there are none'}"
        )
    if (release := board.release()) and release in folders[0]:
        raise RefusedError(
            f"u-boot-menu's overlays lie in {folders[0]}, a folder of this kernel alone: the next kernel "
            "would not have ours"
        )
    return f"{folders[0]}/{_MENU_OVERLAY}"


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

    try:
        done = subprocess.run(
            [board.at(program)], capture_output=True, timeout=_UPDATE_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RefusedError(f"/{program} cannot be run: {error}") from error
    if done.returncode:
        message = done.stderr.decode(errors="replace").strip()[-300:]
        raise RefusedError(f"{os.path.basename(program)} ended with {done.returncode}: {message}")
