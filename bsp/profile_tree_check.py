# SPDX-License-Identifier: MIT
"""A profile beside its board's device tree: is there such a source, is it this board's, is the NPU in it?

The tree is compiled and read with the functions of ``build-dts``, which writes nothing here.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import msgspec

from .base.errors import InfrastructureError, UserError
from .catalog import load_soc, names_no_board, npu_of
from .dts.build import build_dts
from .dts.compiler.compile import compile_dts, compiled
from .dts.inputs.identity import check_identity
from .dts.inputs.own_tree import own_tree
from .dts.npu.required_changes import plan_changes
from .dts.npu.support import lacking
from .dts.tree import Tree, read_tree
from .kernel.source import KernelTree, kernel_tree
from .profile import Board, Expectation
from .profile_mistakes import Missing

_WITH_NPU: tuple[Expectation, ...] = ("works", "enable")


def tree_mistakes(board: Board, *, rates: bool = True) -> tuple[list[Missing], tuple[str, ...]]:
    """Return (what is wrong with a profile beside its tree, what could not be looked at and why).

    Args:
        rates: compare the profile's rates for the NPU, too; no where they are wrong in themselves.
    """
    if not rates:
        board = _without_rates(board)
    if board.dts is None:
        return _own_file(board), ()
    if board.kernel.startswith(("tarball:", "git:")):
        return [], (f"dts, as {board.kernel} would have to be fetched: ./inv build-dts does that",)
    try:
        linux = kernel_tree(board.kernel)
    except UserError as error:
        return [Missing("kernel", error.message, error.hint or "name another kernel")], ()
    except InfrastructureError as error:
        return [], (f"dts against Linux {board.kernel}: {error.message.splitlines()[0]}",)
    return _in_kernel(board, linux), ()


def _own_file(board: Board) -> list[Missing]:
    """A device tree beside the profile."""
    npu = npu_of(board)
    own = own_tree(board, npu) if npu else None
    if own is None or own.usable:
        return []
    if not own.file.is_file():
        return [Missing("dtb", f"there is no file {own.file}", "put the board's device tree there")]
    if names_no_board(board.compatible[0]):
        return []  # that is listed already, and nothing else is known of the tree
    return [Missing("dtb", own.why, own.hint)]


def _in_kernel(board: Board, linux: KernelTree) -> list[Missing]:
    """A source in the kernel."""
    directory = load_soc(board.soc).dts_directory or "."
    top = linux.path / "arch/arm64/boot/dts"
    source = top / directory / f"{board.dts}.dts"
    if not source.is_file():
        return [_no_source(board, linux, top, directory)]
    with tempfile.TemporaryDirectory(prefix="npu-bsp-check-") as work:
        try:
            if linux.fixed:
                dtb = compiled(linux, directory, str(board.dts))
            else:
                dtb = Path(work) / "board.dtb"
                compile_dts(linux, directory, str(board.dts), dtb)
            tree = read_tree(dtb.read_bytes(), source.name)
        except UserError as error:
            return [Missing("dts", error.message, error.hint)]
    try:
        if not names_no_board(board.compatible[0]):  # else that is listed already
            check_identity(tree, board, source.name)
    except UserError as error:
        return [
            Missing(
                "compatible" if board.compatible[0] not in tree.compatible else "dts",
                f"{board.dts} is another board's source: {error.message}",
                "name the source of this board; where the kernel has none, its own tree: dtb = "
                '"FILE" instead of dts',
            )
        ]
    return _npu_in(board, linux, source.name, tree)


def _no_source(board: Board, linux: KernelTree, top: Path, directory: str) -> Missing:
    """Say where the source is instead, which kernel has it, or which name is like it."""
    elsewhere = sorted(top.glob(f"*/{board.dts}.dts"))
    if elsewhere:
        folder = elsewhere[0].parent.name
        return Missing(
            "dts",
            f"{board.dts}.dts is in {folder}/, and the sources for soc = {board.soc!r} are in "
            f"{directory}/: it is a board with another chip",
            "take the SoC that the board has, or the source of this board",
        )
    try:
        with tempfile.TemporaryDirectory(prefix="npu-bsp-check-") as work:
            build_dts(board, kernel=None, base_dtb=None, target_dir=Path(work), dry_run=True)
    except UserError as error:
        return Missing("dts", error.message, error.hint)
    raise AssertionError("there is no source, and it was compiled")


def _npu_in(board: Board, linux: KernelTree, what: str, tree: Tree) -> list[Missing]:
    """Whether the default kernel does with the NPU what the profile expects, and the rates can be had."""
    npu, without_rates = npu_of(board), npu_of(_without_rates(board))
    if npu is None:
        raise RuntimeError(f"board {board.name} has no NPU")
    if without_rates is None:
        raise RuntimeError(f"board {board.name} has no NPU")
    stated = board.expect.get(linux.series)
    try:
        changes = plan_changes(
            tree, without_rates, what=what, lacks=lacking(linux.path, without_rates)
        )
    except UserError as error:
        expected = stated not in (None, *_WITH_NPU)
        return [] if expected else [Missing("kernel", error.message, error.hint)]
    seen: Expectation = "enable" if changes else "works"
    comparable = (*_WITH_NPU, "no board", "no node", "supply missing")
    if npu.enabled and stated in comparable and stated != seen:
        needs = "changes" if changes else "no change"
        return [
            Missing(
                f"expect.{linux.series}",
                f"it says {stated!r}; the device tree of Linux {linux.release} needs {needs} for the NPU",
                f'write "{linux.series}" = "{seen}"',
            )
        ]
    try:
        plan_changes(tree, npu, what=what)
    except UserError as error:
        return [Missing("npu.rates_hz", error.message, error.hint)]
    return []


def _without_rates(board: Board) -> Board:
    settings = msgspec.structs.replace(board.npu, rates_hz={})
    return msgspec.structs.replace(board, npu=settings)
