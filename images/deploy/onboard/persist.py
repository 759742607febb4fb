# SPDX-License-Identifier: MIT
"""Has the distribution itself keep a device tree: where its own boot files name one, for all its kernels.

``armbian``: an overlay in ``overlay-user``, named in ``user_overlays=`` of armbianEnv.txt.
``u-boot-menu``: a whole tree below /boot, named by ``U_BOOT_FDT`` in a file of its own; extlinux.conf is
written from that (u-boot-update), now and at each update of a kernel.
"""

from __future__ import annotations

import base64
import os

from .boot_partition import replace, settle
from .files import flush, make_way, read, read_text, write_whole
from .frames import RefusedError

TYPE_CHECKING = False  # see frames.py
if TYPE_CHECKING:
    from .board import Board, Record

MARK = "var/lib/npu-bsp/kept-by"
"""Which way keeps a tree on this board."""
_NAME = "npu-bsp"
_MENU_CONF = "etc/u-boot-menu/conf.d/zz-npu-bsp.conf"
_MENU_TREE = "boot/npu-bsp.dtb"
_UPDATE_S = 120


def kept_by(board: Board) -> str:
    """Which way keeps a tree here; empty: none does."""
    return read_text(board.at(MARK))


def persist(board: Board, request: Record) -> Record:
    """Keep a device tree from the next boot on.

    Raises:
        RefusedError: the board has not what that way needs; nothing was changed.
    """
    way, content = request["way"], base64.b64decode(request["content"])
    if kept_by(board) not in ("", way):
        raise RefusedError(f"a device tree is kept by {kept_by(board)} already")
    # First, so that what is begun can be taken back.
    write_whole(board.at(MARK), f"{way}\n".encode())
    try:
        if way == "armbian":
            return {"changed": _armbian(board, content)}
        if way == "u-boot-menu":
            return {"changed": _u_boot_menu(board, content)}
        raise RefusedError(f"unknown way {way!r} to keep a device tree")
    except BaseException:
        unpersist(board)
        raise


def unpersist(board: Board) -> Record:
    """Undo ``persist``: from the next boot on the distribution's own tree counts again."""
    way = kept_by(board)
    changed = []
    if way == "armbian":
        env = f"{board.fat}/armbianEnv.txt"
        text = read(env)
        if (without := without_overlay(text)) != text:
            replace(board, env, without)
            changed.append(env)
        make_way(_overlay(board))
    elif way == "u-boot-menu" and os.path.exists(board.at(_MENU_CONF)):
        make_way(board.at(_MENU_CONF))
        _update(board)
        changed.append(f"{board.fat}/extlinux/extlinux.conf")
        make_way(board.at(_MENU_TREE))
    settle(board)
    make_way(board.at(MARK))
    return {"changed": changed}


def with_overlay(text: bytes) -> bytes:
    """Return armbianEnv.txt with our overlay named; the last ``user_overlays=`` is the one that counts."""
    lines = without_overlay(text).split(b"\n")
    named = [number for number, line in enumerate(lines) if line.startswith(b"user_overlays=")]
    if named:
        names = lines[named[-1]].partition(b"=")[2].split()
        lines[named[-1]] = b"user_overlays=" + b" ".join([*names, _NAME.encode()])
        return b"\n".join(lines)
    end = b"" if lines[-1] == b"" else b"\n"
    return b"\n".join(lines) + end + f"user_overlays={_NAME}\n".encode()


def without_overlay(text: bytes) -> bytes:
    """Return armbianEnv.txt without our overlay; a line that named nothing else is left out."""
    lines = []
    for line in text.split(b"\n"):
        key, _, value = line.partition(b"=")
        names = value.split()
        if key == b"user_overlays" and _NAME.encode() in names:
            names.remove(_NAME.encode())
            if names:
                lines.append(key + b"=" + b" ".join(names))
        else:
            lines.append(line)
    return b"\n".join(lines)


def _overlay(board: Board) -> str:
    return f"{board.fat}/overlay-user/{_NAME}.dtbo"


def _armbian(board: Board, overlay: bytes) -> list[str]:
    env = f"{board.fat}/armbianEnv.txt"
    text = read(env)
    if not text:
        raise RefusedError(f"there is no {env}")
    os.makedirs(os.path.dirname(_overlay(board)), exist_ok=True)
    write_whole(_overlay(board), overlay)
    settle(board)
    replace(board, env, with_overlay(text))
    return [_overlay(board), env]


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
    _update(board)
    settle(board)
    return [board.at(_MENU_TREE), board.at(_MENU_CONF), f"{board.fat}/extlinux/extlinux.conf"]


def _update(board: Board) -> None:
    """Have u-boot-menu write extlinux.conf."""
    import subprocess

    done = subprocess.run(
        [board.at("usr/sbin/u-boot-update")], capture_output=True, timeout=_UPDATE_S, check=False
    )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()[-300:]
        raise RefusedError(f"u-boot-update ended with {done.returncode}: {said}")
