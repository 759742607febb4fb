# SPDX-License-Identifier: MIT
"""Which kernels have a board's device tree: for hints that can be followed."""

from __future__ import annotations

from pathlib import Path

from ...base.errors import UserError
from ...kernel.distribution import all_series, series_key
from ...kernel.source import KernelTree
from ...profile import Board, Npu
from ..npu.required_changes import newer_kernel

_WITH_NPU = ("works", "enable")


def kernels_with(board: Board) -> list[str]:
    """Return the packaged kernel series that have the board, by its profile's ``[expect]``, best first.

    Best are those with which the NPU works, of these the oldest.
    """
    with_board = [name for name in all_series() if board.expect.get(name, "no board") != "no board"]
    return sorted(
        with_board, key=lambda name: (board.expect[name] not in _WITH_NPU, series_key(name))
    )


def newer_tree(board: Board, npu: Npu, dtb: Path) -> str:
    """Return how to get a tree of an upstream kernel in place of a DTB, for the hint.

    Args:
        dtb: the DTB: the profile's own, or one that the user named.
    """
    since = npu.kernel_since
    if since is None:
        return newer_kernel(npu)
    if board.dtb is not None and dtb == Path(board.dtb):
        return (
            f"put this board's device tree of Linux {since} or later in place of {dtb}, or try one with "
            "--base-dtb FILE; if the kernel's source has the board, name it in the profile: dts = "
            '"NAME" instead of dtb'
        )
    fit = [name for name in kernels_with(board) if series_key(name)[:2] >= series_key(since)]
    if board.dts is not None and fit:
        return f"leave --base-dtb out: --kernel {fit[0]} has an upstream device tree of this board"
    return f"--base-dtb takes a device tree of Linux {since} or later for this board"


def refuse_without_board(board: Board, tree: KernelTree, directory: str) -> None:
    """Refuse a kernel that does not have a board, where the profile knows one that does.

    Raises:
        UserError: it has no source for the board.
    """
    source = Path("arch/arm64/boot/dts") / directory / f"{board.dts}.dts"
    with_board = kernels_with(board)
    if tree.series in with_board:  # then the name of the source is wrong
        return
    if (tree.path / source).is_file() or not with_board:
        return
    raise UserError(
        f"Linux {tree.release} ({tree.name}) does not have the board {board.name}: there is no {source}",
        hint=f"{' and '.join(with_board)} {'has' if len(with_board) == 1 else 'have'} it: --kernel "
        f"{with_board[0]}; or give its device tree with --base-dtb",
    )
