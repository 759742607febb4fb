# SPDX-License-Identifier: MIT
"""Boots a DTB in QEMU's model of the SoC, and reads from the kernel what became of the NPU.

The machine has no disk and no network: kernel, DTB and an initial RAM disk whose ``/init`` prints a report
on the serial console and switches the machine off (``images/disk/initrd/probe``).
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bsp.base.errors import InfrastructureError, UserError, ValidationError
from bsp.base.process import run
from bsp.catalog import load_soc
from bsp.dts.npu.clocks import ClockRate, parse_clk_summary
from bsp.kernel.packaged import PrebuiltKernel
from bsp.profile import Board
from bsp.qemu.emulator import emulator
from bsp.qemu.machine import machine_arguments, qemu_of
from images.disk.initrd import PROBE_INIT, build_initrd

TIMEOUT_S = 180.0


@dataclass(frozen=True)
class ProbeReport:
    """What the kernel says about the NPU.

    Attributes:
        model: of the board, from the device tree.
        device: name of the NPU's device; None if the kernel made none.
        driver: driver that is bound to it; None if none is.
        render_nodes: in ``/dev/dri``.
        deferred: devices that wait for something that never came.
        dmesg: the kernel's lines about the NPU.
    """

    model: str
    device: str | None
    driver: str | None
    clocks: tuple[ClockRate, ...]
    render_nodes: tuple[str, ...]
    deferred: tuple[str, ...]
    dmesg: tuple[str, ...]


def probe(
    board: Board, kernel: PrebuiltKernel, dtb: Path, *, timeout_s: float = TIMEOUT_S
) -> ProbeReport:
    """Boot ``dtb`` with ``kernel`` and return what the kernel reports.

    Raises:
        UserError: QEMU has no machine with the board's SoC, or the board has no NPU.
        InfrastructureError: QEMU failed.
        ValidationError: the kernel did not come up within ``timeout_s``: the DTB does not describe the SoC.
    """
    qemu = qemu_of(board)
    npu = load_soc(board.soc).npu
    if npu is None:
        raise UserError(f"{board.name} has no NPU ({board.soc})")
    with tempfile.TemporaryDirectory(prefix="npu-bsp-probe-") as name:
        folder = Path(name)
        initrd = build_initrd(
            kernel, qemu.initrd_modules, init=PROBE_INIT, target=folder / "initrd"
        )
        console = next(word for word in qemu.cmdline.split() if word.startswith("console="))
        log = folder / "console.log"
        try:
            run(
                [
                    *emulator().command("qemu-system-aarch64"), "-L", emulator().data,
                    *machine_arguments(board), "-nodefaults", "-nic", "none", "-display", "none",
                    "-no-reboot", "-kernel", kernel.image, "-initrd", initrd, "-dtb", dtb,
                    "-append", f"{console} panic=-1 npu_bsp.node={npu.node}",
                    *["-serial", "null"] * qemu.serial_index, "-serial", f"file:{log}",
                ],
                timeout_s=timeout_s,
            )  # fmt: skip
        except InfrastructureError as error:
            raise _no_answer(board, dtb, log, error.message.splitlines()[0]) from error
        text = log.read_text(errors="replace") if log.exists() else ""
        if "@@npu-bsp end" not in text:
            raise _no_answer(board, dtb, log, "the machine reset or switched itself off")
    return parse_report(text)


def _no_answer(board: Board, dtb: Path, log: Path, why: str) -> ValidationError:
    text = log.read_text(errors="replace") if log.exists() else ""
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    last = "\n".join(f"  | {line[:160]}" for line in lines[-15:]) or "(nothing)"
    return ValidationError(
        f"{dtb.name} did not bring the kernel up on {board.name}: {why[:200]}\n"
        f"the end of its console:\n{last}",
        hint="--timeout SECONDS on a slow or busy machine",
    )


def parse_report(console: str) -> ProbeReport:
    """Read the report out of what the console has printed.

    Raises:
        ValidationError: there is none.
    """
    match = re.search(r"@@npu-bsp begin\r?\n(.*?)@@npu-bsp end", console, re.DOTALL)
    if not match:
        raise ValidationError("the console has no report of the probe", hint="run it again")
    sections: dict[str, list[str]] = {}
    for line in match[1].replace("\r", "").splitlines():
        if line.startswith("@@section "):
            current = sections.setdefault(line.split()[1], [])
        elif line.strip():
            current.append(line)

    def first(name: str) -> str | None:
        return sections.get(name, [None])[0] if sections.get(name) else None

    device = first("device")
    return ProbeReport(
        model=first("model") or "",
        device=device,
        driver=first("driver"),
        clocks=parse_clk_summary("\n".join(sections.get("clk_summary", [])), device),
        render_nodes=tuple(
            name for line in sections.get("nodes", []) for name in line.split() if "render" in name
        ),
        deferred=tuple(line.split()[0] for line in sections.get("deferred", [])),
        dmesg=tuple(sections.get("dmesg", [])),
    )
