# SPDX-License-Identifier: MIT
"""Build on what a board runs: its own device tree, its kernel, and the least that the NPU lacks."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bsp.base.project import PROJECT

from ..base.errors import UserError
from ..base.progress import step
from ..base.result import Result
from ..catalog import npu_of
from ..dts.build import DtsResult, build_dts
from ..dts.running import without_boot
from ..dts.tree import Tree, read_tree
from ..identify import identify, machine_of, vendor_words
from ..profile import Board, Npu
from .facts import KernelFacts, read_fdt, read_kernel
from .ssh import Connection


@dataclass(frozen=True)
class InPlace(Result):
    """A device tree made for one running board.

    Attributes:
        board: the profile that it turned out to have.
        kernel: what its kernel has for the NPU; None for a board without one.
    """

    host: str
    board: Board
    built: DtsResult
    kernel: KernelFacts | None

    def document(self) -> dict[str, Any]:
        """Return the document of ``build-dts``, with what the board said."""
        facts = self.kernel.document() if self.kernel else None
        return {**self.built.document(), "host": self.host, "kernel_facts": facts}

    def text(self) -> str:
        """Return the result for people."""
        lines = [self.built.text()]
        if not self.built.dry_run:
            lines.append(f"try it   ./inv deploy --host {self.host} --dtb-only")
        return "\n".join(lines)


def build_in_place(
    connection: Connection,
    *,
    board: Board | None = None,
    target_dir: Path | None = None,
    npu_rate_hz: int | None = None,
    keep_overlay: bool = False,
    dry_run: bool = False,
    root: str = "",
    apply: Sequence[Path] = (),
    force_enable: bool = False,
) -> InPlace:
    """Build the device tree of the board at the other end from the one that it runs.

    Args:
        board: its profile; None: the one whose ``compatible`` its tree has.
        target_dir: folder for the DTB; None: ``build/BOARD/running-HOST`` in the project.
        npu_rate_hz: as for ``build_dts``.
        root: prefix of all paths on the board; for the tests.
        apply: as for ``build_dts``.
        force_enable: as for ``build_dts``.

    Raises:
        UserError: no profile is for it, its tree cannot be read, or lacks more than properties; or the NPU
            was switched off on purpose.
    """
    host = connection.host.name
    what = f"the running device tree of {host}"
    with step(f"Asking {host} for its device tree and kernel"):
        blob = without_boot(read_fdt(connection, root=root), what)
        if board is None:
            board = _identified(read_tree(blob, what), host)
        npu = npu_of(board)
        kernel = read_kernel(connection, npu, root=root) if npu else None
    if target_dir is None:
        target_dir = PROJECT / "build" / board.name / f"running-{host}"
    with tempfile.TemporaryDirectory(prefix="npu-bsp-running-") as work:
        base = Path(work) / what
        base.write_bytes(blob)
        built = build_dts(
            board,
            kernel=None,
            base_dtb=base,
            target_dir=target_dir,
            npu_rate_hz=npu_rate_hz,
            keep_overlay=keep_overlay,
            dry_run=dry_run,
            what=what,
            newer=_newer_kernel(host, npu),
            apply=apply,
            force_enable=force_enable,
            series=kernel.series if kernel else None,
            derived=True,
        )
    built = _by_running_kernel(replace(built, origin=what), npu, kernel, host)
    return InPlace(host, board, built, kernel)


def _by_running_kernel(
    built: DtsResult, npu: Npu | None, kernel: KernelFacts | None, host: str
) -> DtsResult:
    """The result with what the kernel that runs there says of the NPU."""
    if kernel is None:
        return replace(built, kernel=None)
    report = built.npu
    if npu is not None and npu.enabled:
        supported, why = kernel.verdict(npu, host=host)
        report = replace(report, supported=supported, why=why)
    return replace(built, kernel=kernel.release, npu=report)


def _newer_kernel(host: str, npu: Npu | None) -> str:
    """How to get a tree that has the NPU, for the hint of an error."""
    since = f" {npu.kernel_since} or later" if npu and npu.kernel_since else ""
    return (
        f"its kernel's own tree has to have it: boot {host} with an upstream kernel{since} first "
        f"(./inv deploy --host {host} brings one along)"
    )


def _identified(tree: Tree, host: str) -> Board:
    try:
        return identify(machine_of(tree), what=host)
    except UserError as error:
        vendor = vendor_words(tree)
        if not vendor:
            raise
        raise UserError(
            f"{host} runs a vendor's kernel: {vendor}, which the free driver cannot share the NPU with. "
            f"{error.message}",
            hint="boot it with a kernel of the distribution first; a device tree alone does not help here",
        ) from error


def build_from_host(
    name: str,
    *,
    board: str = "",
    output: str = "",
    npu_rate_hz: int | None = None,
    keep_overlay: bool = False,
    accept_new_key: bool = False,
    dry_run: bool = False,
    apply: Sequence[Path] = (),
    force_enable: bool = False,
) -> InPlace:
    """As :func:`build_in_place`, for the host of that name; empty strings are flags not given."""
    from ..catalog import load_board
    from .inventory import resolve
    from .ssh import connect

    host = resolve(name)
    chosen = board or host.board
    with connect(host, accept_new_key=accept_new_key) as connection:
        return build_in_place(
            connection,
            board=load_board(chosen) if chosen else None,
            target_dir=Path(output) if output else None,
            npu_rate_hz=npu_rate_hz,
            keep_overlay=keep_overlay,
            dry_run=dry_run,
            apply=apply,
            force_enable=force_enable,
        )
