# SPDX-License-Identifier: MIT
"""bringup: the whole path on a machine without a board, as rows of one closing table.

Each row calls what the task of the same name calls. The first row that fails ends the run: the rows
behind it are listed as not run, and the exit code is that of the failure.
"""

from __future__ import annotations

import contextlib
import functools
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from bsp.base.errors import (
    BspError,
    UserError,
    ValidationError,
)
from bsp.base.output import table
from bsp.base.progress import step
from bsp.base.result import Result
from bsp.catalog import load_board, npu_of
from bsp.profile import Board
from bsp.readable_boards import readable_boards
from userspace.npu.mesa.build import build_mesa, request_for
from userspace.npu.mesa.manifest import BuiltMesa, named_mesa

from .beside import Beside, beside

INSTANCE = "bringup"
"""Name of the virtual board; apart from the user's own ones."""
PATCHED = "patched"
"""In place of a folder: the Mesa that ``build-mesa`` makes."""
# Not OpenCL, where its delegate happens to be built: on an emulated CPU it takes longer than all the rest.
_DELEGATES = "cpu,cpu-reference,teflon"
# The times of an emulated board say nothing: enough of them to see that the second run is as the first.
_RUNS = 10
# A board boots in half a minute; in QEMU, on a machine that has much else to do, it takes minutes.
_BOOT_S = 600.0
_ROOT = "the virtual board's root file system"
_USERSPACE = "userspace and kernel"


@dataclass
class Row:
    """One row of the closing table.

    Attributes:
        status: pass | fail | skip | not run.
        result: what was seen, in one line.
        detail: the JSON of the task of that name, where it has one.
    """

    name: str
    status: str = "not run"
    result: str = ""
    seconds: float = 0.0
    detail: Any = None


@dataclass
class BringupReport(Result):
    """What bringup did."""

    rows: list[Row] = field(default_factory=list)
    exit_code: int = 0
    error: str = ""
    hint: str = ""
    smoke_text: str = ""

    def document(self) -> dict[str, Any]:
        """The report as JSON."""
        return {
            "steps": [
                {
                    "name": row.name,
                    "status": row.status,
                    "result": row.result,
                    "seconds": round(row.seconds, 1),
                    "detail": row.detail,
                }
                for row in self.rows
            ],
            "verdict": "pass" if self.exit_code == 0 else "fail",
            "exit_code": self.exit_code,
            "error": self.error,
            "hint": self.hint,
        }

    def text(self) -> str:
        """The validation table and, below it, the closing table."""
        rows = [
            (row.name, row.status, f"{row.seconds:.1f}" if row.seconds else "-", row.result)
            for row in self.rows
        ]
        total_s = sum(row.seconds for row in self.rows)
        verdict = "passed" if self.exit_code == 0 else "failed"
        parts = [self.smoke_text] if self.smoke_text else []
        parts.append(table(("step", "status", "s", "result"), rows))
        parts.append(f"bringup {verdict} in {total_s / 60:.1f} minutes")
        return "\n\n".join(parts)

    def complaint(self) -> str:
        """Why it ended early."""
        if not self.exit_code:
            return ""
        return f"error: {self.error}\n" + (f"hint: {self.hint}\n" if self.hint else "")


Work = Callable[[Row], None]


def bringup(
    *, board: str, virtual: str, kernel: str | None, keep: bool, mesa: str = ""
) -> BringupReport:
    """Build a board's device tree, prove one in QEMU, and take a virtual board to a validated model.

    Args:
        board: profile whose device tree is built in the first row.
        virtual: profile of the virtual board that the rest runs on.
        kernel: kernel for the first row; None takes the profile's.
        keep: leave the virtual board running.
        mesa: folder of ``build-mesa`` whose delegate is deployed, or ``patched``: it is built first.

    Raises:
        UserError: there is no such board or folder.
    """
    first, machine = load_board(board), load_board(virtual)
    report = BringupReport()
    built = None if mesa == PATCHED else named_mesa(mesa)
    chosen = functools.cache(lambda: build_mesa(request_for()) if mesa == PATCHED else built)
    path: list[tuple[str, Work]] = [
        (f"build-dts {board}", lambda row: _build_dts(row, first, kernel))
    ]
    path += [
        (f"boot-dts {each.name}", functools.partial(_boot_dts, board=each)) for each in _provable()
    ]
    path += [
        (f"virtual.up {virtual}", lambda row: _virtual_up(row, machine)),
        ("deploy", lambda row: _deploy(row, machine, chosen())),
        ("smoke-test label_image", lambda row: _smoke_test(row, report)),
    ]
    if mesa == PATCHED:
        path.insert(0, ("build-mesa", lambda row: _build_mesa(row, chosen())))
    report.rows = [Row(name) for name, _ in path]
    with beside(_preparations(machine)) as preparing:
        _go(report, path, preparing, keep=keep)
    return report


def _preparations(machine: Board) -> dict[str, str]:
    """What the virtual board will need and no row before it makes: the root takes the longest of all."""
    suite = machine.userspace.distribution
    return {
        _ROOT: f"from images.disk.rootfs import root_tar; root_tar({suite!r})",
        _USERSPACE: "from userspace.payload.payload import build_payload; "
        f"build_payload(distribution={suite!r}); "
        "from bsp.kernel.select import kernel_named; "
        f"kernel_named({machine.kernel!r})",
    }


def _go(
    report: BringupReport, path: list[tuple[str, Work]], preparing: Beside, *, keep: bool
) -> None:
    """Do the rows, one after the other, until one fails."""
    try:
        for row, (_, work) in zip(report.rows, path, strict=True):
            started = time.monotonic()
            if row.name.startswith("virtual.up"):
                preparing.wait(_ROOT)
            try:
                with step(row.name):
                    work(row)
            except BspError as error:
                row.status = "fail"
                row.result = textwrap.shorten(error.message.splitlines()[0], 120, placeholder="...")
                report.exit_code, report.error, report.hint = (
                    error.exit_code,
                    error.message,
                    error.hint,
                )
                break
            finally:
                row.seconds = time.monotonic() - started
    finally:
        if not keep:
            _put_away()


def _provable() -> list[Board]:
    """Boards with an NPU node whose SoC QEMU has: there a device tree can be seen to work."""
    return [
        each
        for each in readable_boards()
        if each.qemu and not each.qemu.bootloader and npu_of(each)
    ]


def _build_mesa(row: Row, built: BuiltMesa | None) -> None:
    if built:
        row.detail, row.result = built.document(), built.title
    row.status = "pass"


def _build_dts(row: Row, board: Board, kernel: str | None) -> None:
    from bsp.dts.build import build_dts, default_target

    built = build_dts(
        board, kernel=kernel, base_dtb=None, target_dir=default_target(board, kernel, None)
    )
    row.detail = built.document()
    row.status = "pass"
    changes = [f"{each.path} {each.property} = {each.after}" for each in built.changes]
    row.result = f"{built.origin}: {'; '.join(changes) or 'nothing had to change'}"


def _boot_dts(row: Row, board: Board) -> None:
    from virtual.boards.boot_dts import boot_dts

    try:
        booted = boot_dts(board)
    except UserError as error:
        row.status, row.result = "skip", error.message.splitlines()[0]
        return
    row.detail = booted.document()
    if booted.problems:
        raise ValidationError(
            "; ".join(booted.problems), hint=f"./inv boot-dts --board {board.name}"
        )
    rates = ", ".join(f"{each.name} {each.rate_hz / 1e6:g} MHz" for each in booted.clocks)
    row.status = "pass"
    row.result = f"{booted.report.driver} bound {booted.report.device}; {rates}"


def _virtual_up(row: Row, board: Board) -> None:
    from virtual.boards import boards

    up = boards.up(board.name, name=INSTANCE, timeout_s=_BOOT_S)
    row.detail = up.document()
    row.status = "pass"
    row.result = f"SSH after {up.seconds:.1f} s, on port {up.board.port}"


def _deploy(row: Row, board: Board, mesa: BuiltMesa | None) -> None:
    from bsp.remote.inventory import resolve
    from images.bundle.assemble import bundle_for
    from images.deploy.deploy import deploy
    from images.deploy.deployment import raise_for
    from images.deploy.session import Target

    done = deploy(Target(resolve(INSTANCE), timeout_s=_BOOT_S), bundle=None, board=board,
                  make_bundle=functools.partial(bundle_for, mesa=mesa))  # fmt: skip
    row.detail = done.document()
    row.result = f"{done.outcome}: generation {done.to}"
    raise_for(done)
    row.status = "pass"
    if done.outcome == "confirmed":
        row.result += f", {done.sent.sent_bytes / 1e6:.1f} of {done.bytes_total / 1e6:.0f} MB sent"


def _smoke_test(row: Row, report: BringupReport) -> None:
    from bsp.remote.inventory import resolve
    from userspace.npu.report.report import text_of
    from userspace.npu.validate import smoke
    from userspace.npu.validate.label_image import SmokeTestRequest

    row.detail = smoke.smoke_test(
        "label_image", SmokeTestRequest(_DELEGATES, runs=_RUNS), host=resolve(INSTANCE)
    )
    report.smoke_text = text_of(row.detail)
    rows = [
        f"{each['delegate']} {each['status']}" + (f" ({each['reason']})" if each["reason"] else "")
        for each in row.detail["results"]
    ]
    row.result = "; ".join(rows)
    if row.detail["verdict"] != "pass":
        raise ValidationError(
            f"the verdict of label_image is {row.detail['verdict']}: {row.result}",
            hint="./inv bringup --keep leaves the board up, for ./inv smoke-test label_image --host "
            + INSTANCE,
        )
    row.status = "pass"


def _put_away() -> None:
    """Take the virtual board down; a board that never came up is no error here."""
    from virtual.boards import boards

    with contextlib.suppress(UserError):
        boards.down(INSTANCE)
