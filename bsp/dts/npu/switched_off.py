# SPDX-License-Identifier: MIT
"""An NPU that somebody switched off on purpose is not switched on again unasked. Pure.

A bootloader may know that the chip has no NPU: the device tree of the kernel is the same for all parts of a
family, and the fuses of the chip at hand say which part it is.
"""

from __future__ import annotations

from pathlib import Path

from ...base.errors import UserError
from ...profile import Board, Npu
from ..tree import Tree
from .available import Unavailable, unavailable

_ON = "works"
# What a profile states of kernels that have the NPU's node: nothing else says whether the node is on.
_HAVE_NODE = {"works", "enable"}

_AUTHORS = (
    "The kernel's description of the chip has all of it on, so the board's own source switches it off: its "
    "authors may know that this board's chip has no NPU"
)


def on_upstream(board: Board, npu: Npu, series: str | None) -> bool:
    """Whether the kernel's own tree of a board has the NPU switched on.

    The board's profile states it for the kernels that were looked into (``[expect]``); for others the
    chip's profile does. False where a tree with the NPU off may well be the kernel's own.

    Args:
        series: of the kernel that the tree is for; None where that is not known.
    """
    stated = board.expect.get(series) if series else None
    if stated is not None and stated in _HAVE_NODE:
        return stated == _ON
    outcomes = {each for each in board.expect.values() if each in _HAVE_NODE}
    return npu.on_by_default or outcomes == {_ON}


def refuse_switched_off(
    tree: Tree, board: Board, npu: Npu, *, what: str, series: str | None, from_source: bool
) -> None:
    """Refuse to switch on what somebody switched off.

    Args:
        what: what the tree is, for the error.
        series: of the kernel that the tree is for; None where that is not known.
        from_source: the tree was compiled from a kernel's source, so that no bootloader had a hand in it.

    Raises:
        UserError: the tree has the NPU off where the kernel's own has it on, or has something off that
            the NPU needs; says who probably did it, and asks for ``--force-enable``.
    """
    off = unavailable(tree, npu)
    own = [each for each in off if each.role == "NPU"]
    needed = [each for each in off if each.role != "NPU"]
    on = npu.on_by_default and on_upstream(board, npu, series) if from_source else (
        on_upstream(board, npu, series)
    )  # fmt: skip
    if not needed and not (own and on):
        return
    who = _AUTHORS if from_source else who_did(npu, on=on)
    raise UserError(
        f"{_described(what, npu, own, needed)}.\n{who}.",
        hint="whether the chip has an NPU is written on it, and in its order code; if it has: "
        "--force-enable switches on all that is named here. If it has "
        "none: enabled = false under [npu] in the board's profile",
    )


def refuse_switched_off_by(overlays: str, before: Tree, after: Tree, npu: Npu) -> None:
    """Refuse overlays that switch off what the NPU needs: it would be switched on again in silence.

    Args:
        overlays: their names.
        before: the tree without them.
        after: the tree with them.

    Raises:
        UserError: something that was on is off.
    """
    off_before = {each.path for each in unavailable(before, npu)}
    off = [each for each in unavailable(after, npu) if each.path not in off_before]
    if off:
        raise UserError(
            f"{overlays} switches off what the NPU needs: {', '.join(map(str, off))}",
            hint="leave that overlay out; --force-enable switches all of it on again; enabled = false "
            "under [npu] in the board's profile leaves the NPU off",
        )


def refuse_forced_on(running: Tree, sent: Tree, board: Board, npu: Npu, *, host: str) -> None:
    """Refuse a tree with the NPU on for a board whose running tree has it off on purpose.

    Args:
        running: the tree that the board was started with.
        sent: the tree that it is to get.

    Raises:
        UserError: as :func:`refuse_switched_off`.
    """
    if npu.node not in running.nodes or npu.node not in sent.nodes or unavailable(sent, npu):
        return
    refuse_switched_off(
        running, board, npu, what=f"the running device tree of {host}", series=None, from_source=False
    )  # fmt: skip


def refuse_without_build(dtb: Path | None, *, force_enable: bool) -> None:
    """Refuse ``--force-enable`` beside a tree that is taken as it is.

    Raises:
        UserError: both were given.
    """
    if dtb is not None and force_enable:
        raise UserError(
            "--force-enable is for a device tree that is built; --dtb names one that is taken as it is",
            hint="./inv build-dts --base-dtb FILE --force-enable builds from it",
        )


def off_notes(tree: Tree, npu: Npu) -> list[str]:
    """Return what a person should know of a tree that has off what the NPU needs; often nothing."""
    off = unavailable(tree, npu)
    needed = [each for each in off if each.role != "NPU"]
    if not needed and not (off and npu.on_by_default):
        return []
    listed = ", ".join(map(str, off))
    return [f"{listed}. {who_did(npu, on=npu.on_by_default)}; build-dts will ask"]


def _described(what: str, npu: Npu, own: list[Unavailable], needed: list[Unavailable]) -> str:
    listed = ", ".join(map(str, [*own, *needed]))
    if own:
        return f"{what} has the NPU switched off: {listed}"
    return f"{what} has the NPU {npu.node} switched on, but not what it needs: {listed}"


def who_did(npu: Npu, *, on: bool) -> str:
    """Say who probably switched something off in a tree that was not compiled here.

    Args:
        on: the kernel's own tree has the NPU itself on, too.
    """
    upstream = (
        "The kernel's own tree has all of it on"
        if on
        else "The kernel's own tree has what it needs on"
    )
    by = npu.switched_off
    if by is None:
        return f"{upstream}, so somebody switched it off: a bootloader, an overlay, or who made this tree"
    return f"{upstream}, so somebody switched it off. {by.by} probably did: {by.why}"
