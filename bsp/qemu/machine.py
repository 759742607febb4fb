# SPDX-License-Identifier: MIT
"""What is typed to QEMU for a board: pure, so that it can be read and tested without starting anything."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bsp.base.errors import UserError
from bsp.catalog import board_names
from bsp.profile import Board, Qemu
from bsp.readable_boards import readable_boards

from . import npu

# Files of a machine, in the folder that QEMU is started in (short names: a socket's path has 107 bytes).
QMP_SOCKET = "qmp.sock"
PID_FILE = "qemu.pid"
CONSOLE_LOG = "console.log"
WRITE_LOG = "writes.log"

_KVM = Path("/dev/kvm")

WATCHDOG = ("-device", "i6300esb", "-action", "watchdog=reset")
"""A hardware watchdog (Intel 6300ESB, on PCI) that resets the machine unless it is fed."""


@dataclass(frozen=True)
class DirectBoot:
    """What QEMU itself loads, where the machine has no bootloader."""

    kernel: Path
    initrd: Path
    dtb: Path | None
    cmdline: str


@dataclass(frozen=True)
class Machine:
    """A virtual machine to start.

    Attributes:
        start: what is loaded first: U-Boot's file, or kernel and DTB.
        disk: qcow2 image; None for a machine without one.
        extra_disk: raw image that the board sees as a second disk (virtio).
        ssh_port: port on 127.0.0.1 that leads to the board's SSH server; None for no network.
        log_writes: write down each write to the disk, in WRITE_LOG (see virtual/crash/writelog.py).
        devices: more of QEMU's options.
        record: file that gets a trace of the virtual NPU's jobs.
        dtb: device tree that the bootloader finds, as a board's own bootloader has one; default: QEMU's.
    """

    board: Board
    start: Path | DirectBoot
    disk: Path | None = None
    extra_disk: Path | None = None
    ssh_port: int | None = None
    log_writes: bool = False
    devices: Sequence[str] = ()
    record: Path | None = None
    dtb: Path | None = None


def qemu_of(board: Board) -> Qemu:
    """Return how QEMU is this board.

    Raises:
        UserError: QEMU has no such machine.
    """
    if board.qemu is None:
        have = [each.name for each in readable_boards() if each.qemu]
        raise UserError(
            f"QEMU has no machine with the SoC of {board.name} ({board.soc})",
            hint=f"boards that QEMU can be: {', '.join(have)}",
        )
    return board.qemu


def start_command(name: str, board: str = "") -> str:
    """Return what is typed to start the virtual board of a name.

    Args:
        board: its profile, where that is known; otherwise a profile of the same name is its own.
    """
    board = board or (name if name in board_names() else "")
    words = ["./inv virtual.up"]
    if board and board != "virtual":
        words.append(f"--board {board}")
    if name != (board or "virtual"):
        words.append(f"--name {name}")
    return " ".join(words)


def machine_arguments(board: Board, *, dtb_randomness: bool = True) -> list[str]:
    """Return the options that make QEMU this board: machine, CPU, cores, memory.

    On an arm64 machine with KVM a board of QEMU's own kind runs on this machine's processor, with the
    interrupt controller that it has.
    """
    qemu = qemu_of(board)
    kvm = uses_kvm(board)
    machine, cpu = qemu.machine, qemu.cpu
    if kvm:
        machine, cpu = re.sub(r"gic-version=\w+", "gic-version=host", machine), "host"
    machine = machine if dtb_randomness else f"{machine},dtb-randomness=off"
    words = ["-machine", machine, "-smp", str(qemu.cores), "-m", str(qemu.memory_mib)]
    if cpu:
        words += ["-cpu", cpu]
    return [*words, "-accel", "kvm"] if kvm else words


def uses_kvm(board: Board) -> bool:
    """Whether this machine's processor runs the board: it is an arm64 one, and we may use /dev/kvm.

    Machines that stand for a SoC keep the emulated processor of that SoC.
    """
    return (
        os.uname().machine == "aarch64"
        and re.match(r"virt\b", qemu_of(board).machine) is not None
        and os.access(_KVM, os.R_OK | os.W_OK)
    )


def arguments(machine: Machine) -> list[str]:
    """Return QEMU's options for a machine that runs in the background, in the current folder."""
    qemu = qemu_of(machine.board)
    words = [*machine_arguments(machine.board), "-nodefaults", "-no-user-config"]
    words[1] += npu.machine_option(machine.board)
    words += npu.device_arguments(machine.board)
    if not uses_kvm(machine.board):
        words += ["-accel", "tcg,thread=multi"]  # on as many threads as there are cores
    if isinstance(machine.start, DirectBoot):
        words += ["-kernel", str(machine.start.kernel), "-initrd", str(machine.start.initrd)]
        if machine.start.dtb:
            words += ["-dtb", str(machine.start.dtb)]
        words += ["-append", machine.start.cmdline]
    else:
        words += ["-bios", str(machine.start)]
        words += ["-dtb", str(machine.dtb)] if machine.dtb else []
    if machine.disk:
        words += ["-drive", f"{_drive(machine)},{qemu.disk}"]
    if machine.extra_disk:
        name = str(machine.extra_disk).replace(",", ",,")
        words += ["-drive", f"file={name},format=raw,cache=writeback,discard=unmap,if=virtio"]
    if machine.ssh_port is not None:
        forward = f"hostfwd=tcp:127.0.0.1:{machine.ssh_port}-:22"
        words += ["-nic", qemu.nic.replace("{hostfwd}", forward)]
    else:
        words += ["-nic", "none"]
    words += ["-chardev", f"file,id=console,path={CONSOLE_LOG},append=on"]
    words += ["-serial", "null"] * qemu.serial_index + ["-serial", "chardev:console"]
    words += ["-display", "none", "-monitor", "none"]
    words += ["-qmp", f"unix:{QMP_SOCKET},server=on,wait=off"]
    words += machine.devices
    return [*words, "-daemonize", "-pidfile", PID_FILE]


def _drive(machine: Machine) -> str:
    """The disk as ``-drive`` takes it. A virtual board's disk need not survive a power cut of the host."""
    if not machine.log_writes:
        return f"file={machine.disk},format=qcow2,cache=unsafe,discard=unmap"
    return (
        "driver=blklogwrites,cache=writeback,log-super-update-interval=1,"
        f"log.driver=file,log.filename={WRITE_LOG},log.cache.no-flush=on,file.driver=qcow2,"
        f"file.file.driver=file,file.file.filename={machine.disk},file.file.cache.no-flush=on"
    )
