# SPDX-License-Identifier: MIT
"""A board's device tree, from source or from a DTB, with what the NPU lacks added and verified."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bsp.base.project import results_folder

from ..base.cache import write_atomically
from ..base.errors import UserError
from ..base.process import ToolFailedError
from ..base.progress import say
from ..base.result import Result
from ..base.trees import label
from ..catalog import load_soc, npu_of
from ..kernel.distribution import series_named
from ..kernel.source import kernel_tree
from ..profile import Board, Npu
from .compiler.compile import compile_dts, compiled
from .inputs.apply import apply_overlays
from .inputs.given import board_tree
from .inputs.identity import check_identity, own_name
from .inputs.upstream import newer_tree, refuse_without_board
from .npu.owners import refuse_two_owners
from .npu.rate import at_rate
from .npu.required_changes import Change, plan_changes, rates
from .npu.support import lacking, verdict
from .npu.switched_off import refuse_switched_off, refuse_switched_off_by
from .overlay import compiled_overlay, merge, overlay_source
from .tree import Tree, read_tree
from .verify import diff_text, verify


@dataclass(frozen=True)
class NpuReport:
    """The NPU as the built tree describes it.

    Attributes:
        clocks: (name, rate in hertz that the tree asks for, None where it asks for none).
    """

    node: str | None
    status: str | None
    driver: str | None
    clocks: tuple[tuple[str, int | None], ...]
    supported: bool
    why: str


@dataclass(frozen=True)
class DtsResult(Result):
    """A built device tree.

    Attributes:
        kernel: the kernel source as it was named; None for a DTB of unknown kernel.
        origin: what the base tree was made of, exactly.
        dtb: the file; not written in a dry run.
        dry_run: whether this only says what would be built.
        applied: overlays that were applied to the base tree, in order.
        overlay: the ``.dtbo`` beside it, where it was asked for and there is a change.
        sha256: of the DTB.
    """

    board: str
    kernel: str | None
    origin: str
    dtb: Path
    overlay: Path | None
    changes: tuple[Change, ...]
    npu: NpuReport
    sha256: str
    dry_run: bool = False
    applied: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """Return the document that ``--json`` prints."""
        npu = self.npu
        return {
            "board": self.board,
            "kernel": self.kernel,
            "origin": self.origin,
            "dtb": str(self.dtb),
            "overlay": str(self.overlay) if self.overlay else None,
            "changes": [
                {
                    "path": change.path,
                    "property": change.property,
                    "before": change.before,
                    "after": change.after,
                }
                for change in self.changes
            ],
            "npu": {
                "node": npu.node,
                "status": npu.status,
                "driver": npu.driver,
                "clocks": [{"name": name, "rate_hz": rate_hz} for name, rate_hz in npu.clocks],
                "supported": npu.supported,
                "why": npu.why,
            },
            "sha256": self.sha256,
            "dry_run": self.dry_run,
            "applied": list(self.applied),
        }

    def text(self) -> str:
        """Return the result for people: one screen."""
        lines = [self.changes_text()]
        lines.append(f"DTB      {self.dtb}{' (dry run: not written)' if self.dry_run else ''}")
        if self.overlay:
            lines.append(f"overlay  {self.overlay}")
        lines.append(f"sha256   {self.sha256}")
        return "\n".join(lines)

    def changes_text(self) -> str:
        """Return what is changed, and whether the NPU then works; the files may be temporary."""
        npu = self.npu
        lines = [f"{self.board}: device tree from {self.origin}"]
        lines += [f"applied  {file}" for file in self.applied]
        if self.changes:
            lines += [_count(len(self.changes)), diff_text(self.changes)]
        else:
            lines.append("nothing had to change")
        if npu.node:
            clocks = ", ".join(
                f"{name} {rate_hz / 1e6:g} MHz" for name, rate_hz in npu.clocks if rate_hz
            )
            lines.append(f"NPU      {npu.node}, {npu.status}; asks for {clocks or 'no rate'}")
        lines.append(f"works    {'yes' if npu.supported else 'no'}: {npu.why}")
        return "\n".join(lines)


def _count(number: int) -> str:
    return "1 property changed:" if number == 1 else f"{number} properties changed:"


@dataclass(frozen=True)
class _Base:
    """The tree that is built on.

    Attributes:
        what: what it is, for errors.
        origin: what it was made of, exactly.
        series: of the kernel that it is for; None where nothing says so.
        lacks: what the kernel's source was found to lack; None where there is no source.
    """

    blob: bytes
    what: str
    origin: str
    series: str | None
    lacks: tuple[str, ...] | None


def build_dts(
    board: Board,
    *,
    kernel: str | None,
    base_dtb: Path | None,
    target_dir: Path,
    npu_rate_hz: int | None = None,
    keep_overlay: bool = False,
    dry_run: bool = False,
    what: str = "",
    newer: str = "",
    apply: Sequence[Path] = (),
    force_enable: bool = False,
    series: str | None = None,
    derived: bool = False,
) -> DtsResult:
    """Build a board's device tree into ``target_dir``.

    Args:
        board: the board; its ``npu`` settings apply.
        kernel: kernel source as ``--kernel`` takes it; None for the board's default. With a base DTB
            the kernel that it is to run with, or None.
        base_dtb: an existing DTB to start from, in place of the kernel's source.
        npu_rate_hz: what the NPU's clocks are to run at; None leaves what profile and tree say.
        keep_overlay: leave the changes beside the DTB as a ``.dtbo`` too.
        dry_run: say what would be built; write nothing.
        what: what the base DTB is, for errors; empty: its file.
        newer: how to get an upstream tree in place of the base DTB, for hints; empty: as the profile tells.
        apply: overlays (``.dtbo``) that the base tree gets first, in this order.
        force_enable: switch the NPU on also where somebody switched it off on purpose.
        series: of the kernel that the base DTB is from, where ``kernel`` does not say it.
        derived: the base may be of a board that was derived from this one, as it goes back to that board.

    Raises:
        UserError: the tree is not the board's, or lacks more than device tree can add; the NPU was switched
            off on purpose, or another driver would take it too.
        InfrastructureError: a source cannot be fetched, or a tool failed.
    """
    npu = npu_of(board)
    if base_dtb is not None:
        start = _given(base_dtb, kernel, npu, what)
        newer = newer or (newer_tree(board, npu, base_dtb) if npu else "")
    else:
        kernel = kernel or board.kernel
        start = _from_source(board, kernel, npu, symbols=bool(apply))
    start = _with_overlays(start, apply, npu if not force_enable else None)
    base = read_tree(start.blob, start.what)
    check_identity(base, board, start.what, newer=newer, derived=derived)
    changes = _changes(base, board, npu, start, newer)
    if npu is not None and npu.enabled:
        refuse_two_owners(base, npu, start.what)
        if not force_enable:
            refuse_switched_off(
                base,
                board,
                npu,
                what=start.what,
                series=start.series or series,
                from_source=base_dtb is None,
            )
    if npu_rate_hz is not None:
        npu = _at_rate(board, npu, base, npu_rate_hz, start.what)
        changes = _changes(base, board, npu, start, newer)
    blob, after, dtbo = start.blob, base, None
    if changes:
        blob, after, dtbo = _change(start.blob, base, changes, board)
    kept = dtbo if keep_overlay else None
    stem = board.dts or board.name
    dtb, overlay = target_dir / f"{stem}.dtb", target_dir / f"{stem}-npu.dtbo"
    if not dry_run:
        _write_results(dtb, blob, overlay, kept)
    supported, why = verdict(board, npu, series=start.series, lacks=start.lacks)
    return DtsResult(
        board=board.name,
        kernel=kernel,
        origin=start.origin,
        dtb=dtb,
        overlay=overlay if kept is not None else None,
        changes=tuple(changes),
        npu=_report(after, npu, supported, why),
        sha256=hashlib.sha256(blob).hexdigest(),
        dry_run=dry_run,
        applied=tuple(map(str, apply)),
    )


def _with_overlays(start: _Base, overlays: Sequence[Path], npu: Npu | None) -> _Base:
    """Apply overlays to the base tree; errors about it name them from here on.

    Args:
        npu: what no overlay may switch off; None: they may.
    """
    if not overlays:
        return start
    with tempfile.TemporaryDirectory(prefix="npu-bsp-dts-") as folder:
        blob = apply_overlays(start.blob, overlays, what=start.what, work=Path(folder))
    names = ", ".join(file.name for file in overlays)
    if npu is not None and npu.enabled:
        before, after = (read_tree(each, start.what) for each in (start.blob, blob))
        refuse_switched_off_by(names, before, after, npu)
    return replace(start, blob=blob, what=f"{start.what} (with {names} applied)")


def _changes(base: Tree, board: Board, npu: Npu | None, start: _Base, newer: str) -> list[Change]:
    """Return what the base tree lacks: the board's own name, and what the NPU needs."""
    changes = list(own_name(base, board))
    if npu is not None:
        changes += plan_changes(base, npu, what=start.what, lacks=start.lacks or (), newer=newer)
    return changes


def _at_rate(board: Board, npu: Npu | None, base: Tree, rate_hz: int, what: str) -> Npu:
    if npu is None or not npu.enabled:
        raise UserError(
            f"board {board.name} has no NPU that could run at a rate",
            hint="leave out --npu-rate",
        )
    return at_rate(npu, base, rate_hz, what)


def _given(base_dtb: Path, kernel: str | None, npu: Npu | None, what: str) -> _Base:
    blob, _ = board_tree(base_dtb, flag="--base-dtb")
    behind_bytes = base_dtb.stat().st_size - len(blob)
    if behind_bytes > 0:
        say(f"{base_dtb} has {behind_bytes} bytes behind the device tree's end: they are left out")
    series, lacks = _kernel_to_run(kernel, npu)
    return _Base(blob, what or str(base_dtb), str(base_dtb), series, lacks)


def _from_source(board: Board, kernel: str, npu: Npu | None, *, symbols: bool) -> _Base:
    if board.dts is None:
        raise UserError(
            f"board {board.name} has no device tree source in the kernel",
            hint="give its device tree: --base-dtb FILE",
        )
    tree = kernel_tree(kernel)
    directory = load_soc(board.soc).dts_directory or "."
    refuse_without_board(board, tree, directory)
    if tree.fixed:
        blob = compiled(tree, directory, board.dts, symbols=symbols).read_bytes()
    else:
        with tempfile.TemporaryDirectory(prefix="npu-bsp-dts-") as work:
            target = Path(work) / "base.dtb"
            compile_dts(tree, directory, board.dts, target, symbols=symbols)
            blob = target.read_bytes()
    return _Base(
        blob,
        f"the device tree of Linux {tree.release}",
        f"Linux {tree.release} ({tree.origin})",
        tree.series,
        lacking(tree.path, npu) if npu is not None else None,
    )


def _kernel_to_run(
    kernel: str | None, npu: Npu | None
) -> tuple[str | None, tuple[str, ...] | None]:
    """Return (series, what its source lacks for the NPU) of the kernel that a DTB is to run with.

    A series of the distribution is known by its number; what else ``--kernel`` takes is looked into.
    """
    if kernel is None or ":" not in kernel:
        if kernel is not None:
            series_named(kernel)
        return kernel, None
    tree = kernel_tree(kernel)
    return tree.series, lacking(tree.path, npu) if npu else None


def default_target(board: Board, kernel: str | None, base_dtb: Path | None) -> Path:
    """Return ``build/<board>/<kernel>`` in the project: where results go if nothing else is said."""
    name = "base-dtb" if base_dtb is not None else label(kernel or board.kernel)
    return results_folder() / board.name / name


def _change(
    base_blob: bytes, base: Tree, changes: list[Change], board: Board
) -> tuple[bytes, Tree, bytes]:
    """Return the merged DTB, what it reads as, and the overlay."""
    overlay = compiled_overlay(overlay_source(changes, board.compatible[0]))
    with tempfile.TemporaryDirectory(prefix="npu-bsp-dts-") as folder:
        unchanged, merged = Path(folder) / "base.dtb", Path(folder) / "merged.dtb"
        unchanged.write_bytes(base_blob)
        try:
            merge(unchanged, overlay, merged)
        except ToolFailedError as error:
            raise UserError(
                f"the base device tree cannot take the changes:\n{error.message}",
                hint="check the DTB with: dtc -I dtb -O dts FILE",
            ) from error
        blob = merged.read_bytes()
    after = read_tree(blob, "the merged device tree")
    verify(base, after, changes)
    return blob, after, overlay.read_bytes()


def _report(tree: Tree, npu: Npu | None, supported: bool, why: str) -> NpuReport:
    if npu is None:
        return NpuReport(None, None, None, (), supported, why)
    return NpuReport(
        npu.node, tree.status(npu.node), npu.driver, tuple(rates(tree, npu)), supported, why
    )


def _write_results(dtb: Path, blob: bytes, overlay: Path, dtbo: bytes | None) -> None:
    _write(dtb, blob)
    if dtbo is not None:
        _write(overlay, dtbo)
    else:
        overlay.unlink(missing_ok=True)  # of an earlier run; it would not fit this DTB


def _write(path: Path, content: bytes) -> None:
    try:
        if not path.is_file() or path.read_bytes() != content:
            write_atomically(path, content)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}", hint="--output takes another folder"
        ) from error
