# SPDX-License-Identifier: MIT
"""Boot a device tree on QEMU's model of the SoC, and compare the result with what the tree promises.

The device tree promises that the NPU is enabled (or not), and the rates of its clocks. The kernel shows
which driver is bound to the NPU's device, and the real rates of its clocks.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from bsp.base.errors import UserError
from bsp.base.output import table
from bsp.base.progress import step
from bsp.base.result import FAILED_VALIDATION, Result
from bsp.catalog import npu_of
from bsp.dts.build import build_dts
from bsp.dts.inputs.given import board_tree
from bsp.dts.inputs.identity import check_identity
from bsp.dts.npu.available import unavailable
from bsp.dts.npu.clocks import ClockResult, compare_clocks, same_rate
from bsp.dts.npu.switched_off import refuse_without_build
from bsp.kernel.distribution import all_series
from bsp.kernel.packaged import prebuilt_kernel
from bsp.profile import Board, Npu
from bsp.qemu.base_dtb import base_dtb

from .probe import TIMEOUT_S, ProbeReport, probe
from .same_soc import on_machine, qemu_of_soc


@dataclass(frozen=True)
class BootResult(Result):
    """The result of booting a device tree.

    Attributes:
        kernel: ``uname -r`` of the kernel that was booted.
        promised: whether the device tree describes an enabled NPU.
        problems: differences from the promise; empty if there are none.
        seconds: time that QEMU ran.
    """

    board: str
    kernel: str
    machine: str
    dtb: str
    promised: bool
    clocks: tuple[ClockResult, ...]
    report: ProbeReport
    problems: tuple[str, ...]
    seconds: float

    @property
    def exit_code(self) -> int:
        """4 where the NPU differs from the promise."""
        return FAILED_VALIDATION if self.problems else 0

    def document(self) -> dict[str, Any]:
        """Return the document that ``--json`` prints."""
        return {
            "board": self.board,
            "kernel": self.kernel,
            "machine": self.machine,
            "dtb": self.dtb,
            "model": self.report.model,
            "promised": self.promised,
            "bound": self.report.driver is not None,
            "device": self.report.device,
            "driver": self.report.driver,
            "render_nodes": list(self.report.render_nodes),
            "clocks": [
                {
                    "name": clock.name,
                    "clock": clock.clock,
                    "asked_hz": clock.asked_hz,
                    "rate_hz": clock.rate_hz,
                    "rounded": clock.rounded,
                }
                for clock in self.clocks
            ],
            "dmesg": list(self.report.dmesg),
            "problems": list(self.problems),
            "seconds": round(self.seconds, 1),
        }

    def text(self) -> str:
        """Return the result for people: one screen."""
        report = self.report
        if report.driver:
            bound = f"bound: {report.device} by {report.driver}"
        else:
            bound = "not bound" if report.device else "no device: the node is disabled or absent"
        lines = [
            f"{self.board}: {report.model}, Linux {self.kernel}, QEMU {self.machine}, "
            f"{self.seconds:.0f} s",
            f"NPU      {bound}",
        ]
        if self.clocks:
            rows = [
                (
                    clock.name,
                    clock.clock,
                    _mhz(clock.asked_hz),
                    _mhz(clock.rate_hz),
                    "no parent reaches the requested rate" if clock.rounded else "",
                )
                for clock in self.clocks
            ]
            lines += ["", table(("clock", "in the kernel", "asked", "runs at", ""), rows), ""]
        lines += [f"dmesg    {line}" for line in report.dmesg]
        lines += [f"WRONG    {problem}" for problem in self.problems]
        if not self.problems:
            nearest = any(clock.rounded for clock in self.clocks)
            lines.append(
                "the kernel follows the device tree, with the nearest rates that parents reach"
                if nearest
                else "the kernel follows the device tree"
            )
        return "\n".join(lines)


def boot_dts(
    board: Board,
    *,
    kernel: str | None = None,
    dtb: Path | None = None,
    npu_disabled: bool = False,
    npu_rate_hz: int | None = None,
    force_enable: bool = False,
    timeout_s: float = TIMEOUT_S,
) -> BootResult:
    """Build the board's device tree (or take ``dtb``), boot it, and compare.

    Args:
        kernel: source of the device tree, as build-dts takes it. The kernel that boots is the
            distribution's of that series, or of the profile's where the source is not a series.
        npu_disabled: build the device tree with the NPU switched off.
        npu_rate_hz: build it with the NPU's clocks at this rate.
        force_enable: as for ``build_dts``.

    Raises:
        UserError: QEMU has no such SoC, the board has no NPU, or the device tree is another board's.
        ValidationError: the kernel did not come up with it.
    """
    qemu = qemu_of_soc(board)
    if npu_disabled:
        settings = msgspec.structs.replace(board.npu, enabled=False)
        board = msgspec.structs.replace(board, npu=settings)
    npu = _check_request(board, dtb, npu_rate_hz, force_enable=force_enable)
    source = kernel or board.kernel
    series = source if source in all_series() else board.kernel
    with tempfile.TemporaryDirectory(prefix="npu-bsp-boot-dts-") as name:
        file = dtb or _build(board, kernel, Path(name), npu_rate_hz, force_enable=force_enable)
        _, tree = board_tree(file, flag="--dtb")
        if dtb is not None:
            check_identity(tree, board, str(dtb))
        prebuilt = prebuilt_kernel(series)
        with step(f"Booting it on QEMU's {qemu.machine}") as progress:
            progress.note(f"Linux {prebuilt.release}")
            started = time.monotonic()
            report = probe(on_machine(board, qemu, tree), prebuilt, file, timeout_s=timeout_s)
            seconds = time.monotonic() - started
    promised = npu.node in tree.nodes and not unavailable(tree, npu)
    clocks = compare_clocks(tree, npu, report.clocks)
    return BootResult(
        board=board.name,
        kernel=prebuilt.release,
        machine=qemu.machine,
        dtb=str(dtb) if dtb else f"built from {source}",
        promised=promised,
        clocks=clocks,
        report=report,
        problems=find_problems(npu, report, clocks, promised=promised),
        seconds=seconds,
    )


def _check_request(
    board: Board, dtb: Path | None, npu_rate_hz: int | None, *, force_enable: bool
) -> Npu:
    npu = npu_of(board)
    if npu is None:
        raise UserError(
            f"{board.name} has no NPU ({board.soc}): its device tree promises nothing to check"
        )
    if dtb is not None and npu_rate_hz is not None:
        raise UserError(
            "--npu-rate changes a device tree that is built, but --dtb names a finished one",
            hint="./inv build-dts --base-dtb FILE --npu-rate RATE builds from it",
        )
    refuse_without_build(dtb, force_enable=force_enable)
    return npu


def _build(
    board: Board, kernel: str | None, folder: Path, npu_rate_hz: int | None, *, force_enable: bool
) -> Path:
    with step(f"Building the device tree of {board.name}"):
        result = build_dts(
            board,
            kernel=kernel,
            base_dtb=base_dtb(board) if board.dts is None else None,
            target_dir=folder,
            npu_rate_hz=npu_rate_hz,
            force_enable=force_enable,
        )
    return result.dtb


def find_problems(
    npu: Npu, report: ProbeReport, clocks: tuple[ClockResult, ...], *, promised: bool
) -> tuple[str, ...]:
    """Return the differences from what the device tree promises, a sentence each."""
    bound = report.driver is not None
    if promised and not bound:
        is_deferred = report.device in report.deferred
        return (
            f"{npu.node} is enabled, but no driver is bound to it"
            + (
                ", because its probe is deferred: a dependency never appeared"
                if is_deferred
                else ""
            )
            + f" (expected {npu.driver})",
        )
    if not promised:
        return (f"{npu.node} is not enabled, but {report.driver} is bound to it",) if bound else ()
    return tuple(
        f"clock {clock.name} ({clock.clock}) runs at {clock.rate_hz} Hz, the device tree requests "
        f"{clock.asked_hz} Hz"
        for clock in clocks
        if clock.asked_hz is not None
        and not clock.rounded
        and not same_rate(clock.asked_hz, clock.rate_hz)
    )


def _mhz(rate_hz: int | None) -> str:
    return "-" if rate_hz is None else f"{rate_hz / 1e6:.6g} MHz"
