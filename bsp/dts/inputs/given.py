# SPDX-License-Identifier: MIT
"""Files that a user names as a board's device tree, or as an overlay: read, or refused by what they are."""

from __future__ import annotations

import shlex
from pathlib import Path

from ...base.errors import UserError
from ..tree import MAX_BYTES, Tree, is_blob, read_tree, total_bytes
from . import fit
from .kinds import cut_out, inside_text, kind_of, overlay_mark, trees_inside

# How much of a file is searched for device trees in it.
_SEARCHED_BYTES = 64 << 20
_SHORT_BYTES = 40


def board_tree(path: Path, *, flag: str) -> tuple[bytes, Tree]:
    """Return the tree's bytes in a DTB file, and the tree.

    What lies behind the end that its header names (a partition's rest, padding) is no part of it.

    Args:
        flag: what the file was named with, for the hint.

    Raises:
        UserError: it cannot be read, or is something else than one board's device tree; says what.
    """
    blob, tree = _blob_and_tree(path, flag=flag)
    mark = overlay_mark(tree)
    if mark is not None:
        quoted = shlex.quote(str(path))
        raise UserError(
            f"{path} is a device tree overlay (it has {mark}), not a board's tree",
            hint=f"apply it to the board's tree: fdtoverlay -i BOARD.dtb -o NEW.dtb {quoted}; or "
            f"./inv build-dts --board B --base-dtb BOARD.dtb --apply {quoted}",
        )
    return blob[: total_bytes(blob)], tree


def overlay_tree(path: Path, *, flag: str) -> Tree:
    """Return the tree in an overlay (``.dtbo``).

    Raises:
        UserError: it cannot be read, or is something else.
    """
    _, tree = _blob_and_tree(path, flag=flag)
    if overlay_mark(tree) is None:
        root = ", ".join(tree.compatible) or "nothing"
        raise UserError(
            f"{path} is a whole device tree ({root}), not an overlay: it has no /fragment@0/__overlay__",
            hint=f"{flag} takes overlays (.dtbo); a board's tree is given with --base-dtb",
        )
    return tree


def _blob_and_tree(path: Path, *, flag: str) -> tuple[bytes, Tree]:
    blob = _content(path, flag=flag)
    kind = kind_of(blob)
    if kind is not None:
        raise _wrong_kind(path, kind.what, kind.hint, flag=flag)
    if not is_blob(blob) and len(blob) > _SHORT_BYTES:
        what = f"something that begins with {blob[:4].hex()} (expected d00dfeed)"
        raise _wrong_kind(path, what, "", flag=flag)
    if is_blob(blob) and total_bytes(blob) > MAX_BYTES:
        large = fit.read_large(path)
        if large is not None:
            raise fit.refusal(large, path)
    tree = read_tree(blob, str(path))
    if fit.is_fit(tree):
        raise fit.refusal(tree, path)
    if trees_inside(blob, start=total_bytes(blob)):
        trees = trees_inside(_searched(path))
        raise UserError(
            f"{path} holds {len(trees)} device trees, one behind the other:\n{inside_text(trees)}",
            hint=cut_out(trees, str(path)),
        )
    return blob, tree


def _content(path: Path, *, flag: str) -> bytes:
    """A file's content; never more than a device tree can have, and one byte."""
    try:
        if path.is_fifo() and not path.is_relative_to("/dev/fd"):  # nobody may ever write to it
            raise UserError(f"{path} is a pipe, not a file", hint=f"{flag} takes a DTB file")
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except IsADirectoryError as error:
        quoted = shlex.quote(str(path))
        raise UserError(
            f"{path} is a folder, not a DTB file",
            hint=f"dtc -q -I fs -O dtb -o board.dtb {quoted} makes a file of a copy of /proc/device-tree"
            if (path / "compatible").is_file()
            else f"{flag} takes a DTB file",
        ) from error
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror}", hint=f"{flag} takes a DTB file"
        ) from error


def _searched(path: Path) -> bytes:
    """What of a file is searched for device trees."""
    try:
        with path.open("rb") as file:
            return file.read(_SEARCHED_BYTES)
    except OSError:
        return b""


def _wrong_kind(path: Path, what: str, hint: str, *, flag: str) -> UserError:
    message = f"{path} is not a device tree blob: it is {what}"
    if hint:
        return UserError(message, hint=hint.format(file=shlex.quote(str(path))))
    trees = trees_inside(_searched(path))
    if trees:
        return UserError(
            f"{message}. It holds device trees:\n{inside_text(trees)}",
            hint=cut_out(trees, str(path)),
        )
    return UserError(
        message, hint=f"{flag} takes a DTB file; a running board has its own at /sys/firmware/fdt"
    )
