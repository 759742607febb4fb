# SPDX-License-Identifier: MIT
"""Overlays that a user gives (``--apply``), applied to the base tree on the host."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from ...base.errors import UserError, nearest
from ...base.process import ToolFailedError
from ...base.progress import say
from ...catalog import plain_string
from ..overlay import merge
from ..tree import Tree, read_tree
from .given import overlay_tree

_SHOWN = 8


def apply_overlays(blob: bytes, overlays: Sequence[Path], *, what: str, work: Path) -> bytes:
    """Return a base DTB with overlays applied, in their order.

    Args:
        what: what the base is, for errors.
        work: folder for files in between.

    Raises:
        UserError: one is not an overlay, or the base has no labels, or not those that it refers to.
    """
    for number, path in enumerate(overlays):
        overlay = overlay_tree(path, flag="--apply")
        base = read_tree(blob, what)
        _check_labels(base, overlay, path, what)
        _say_for_whom(base, overlay, path)
        before, after = work / f"before-{number}.dtb", work / f"after-{number}.dtb"
        before.write_bytes(blob)
        try:
            merge(before, path, after)
        except ToolFailedError as error:
            raise UserError(
                f"{path} cannot be applied to {what}:\n{error.message}",
                hint=f"see what it wants: dtc -q -I dtb -O dts {shlex.quote(str(path))}",
            ) from error
        blob = after.read_bytes()
    return blob


def _say_for_whom(base: Tree, overlay: Tree, path: Path) -> None:
    """Say that an overlay names boards and chips of which the tree is none; it may fit all the same."""
    mine, wanted = (set(map(plain_string, each.compatible)) for each in (base, overlay))
    if wanted and not mine & wanted:
        say(
            f"{path} says that it is for {', '.join(overlay.compatible)}; it is applied to "
            f"{', '.join(base.compatible)}"
        )


def _check_labels(base: Tree, overlay: Tree, path: Path, what: str) -> None:
    wanted = list(overlay.nodes.get("/__fixups__", {}))
    if not wanted:
        return  # it names nodes by their paths only
    labels = base.nodes.get("/__symbols__")
    shown = ", ".join(wanted[:_SHOWN]) + (" ..." if len(wanted) > _SHOWN else "")
    if labels is None:
        raise UserError(
            f"{what} was compiled without symbols (it has no /__symbols__), so {path} cannot be applied: "
            f"it refers to nodes by their labels: {shown}",
            hint="leave --base-dtb out, and the kernel's source is compiled with symbols; or take a DTB "
            "that was compiled with dtc -@ (make DTC_FLAGS=-@ dtbs)",
        )
    lacking = [label for label in wanted if label not in labels]
    if lacking:
        raise UserError(
            f"{path} cannot be applied to {what}, which has no label {', '.join(lacking[:_SHOWN])}"
            f"{nearest(lacking[0], list(labels))}",
            hint="the overlay is for another board, or for another kernel's device tree",
        )
