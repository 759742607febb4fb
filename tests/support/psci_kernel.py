# SPDX-License-Identifier: MIT
"""A "kernel" that makes one call to the firmware: U-Boot itself is then all that runs, for some seconds."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

LIVES, PANICS = 0x84000008, 0x84000009  # PSCI SYSTEM_OFF and SYSTEM_RESET (Arm DEN0022)


# Writes the tree that it was handed (x0) to the serial port of QEMU's virt (PL011), byte by byte.
_TELLS_TREE = struct.pack(
    "<12I",
    0xB9400401,  # ldr  w1, [x0, #4]        totalsize, big-endian
    0x5AC00821,  # rev  w1, w1
    0x8B010001,  # add  x1, x0, x1
    0xD2A12002,  # movz x2, #0x900, lsl #16
    0xB9401844,  # ldr  w4, [x2, #0x18]     UARTFR
    0x372FFFE4,  # tbnz w4, #5, .-4         its FIFO is full
    0x38401403,  # ldrb w3, [x0], #1
    0xB9000043,  # str  w3, [x2]
    0xEB01001F,  # cmp  x0, x1
    0x54FFFF61,  # b.ne .-20
    0xB9401844,  # ldr  w4, [x2, #0x18]
    0x371FFFE4,  # tbnz w4, #3, .-4         it is sending
)


def kernel(psci: int, *, tells_tree: bool = False) -> bytes:
    """An arm64 Image (the kernel's Documentation/arch/arm64/booting.rst) that makes one PSCI call."""
    movz = 0xD2800000 | (psci & 0xFFFF) << 5
    movk = 0xF2A00000 | (psci >> 16) << 5
    code = _TELLS_TREE if tells_tree else b""
    code += struct.pack("<4I", movz, movk, 0xD4000002, 0x14000000)  # x0 = psci; hvc #0; b .
    branch = 0x14000000 | 64 // 4
    header = struct.pack("<IIQQQQQQ4sI", branch, 0, 0, 0x10000, 0xA, 0, 0, 0, b"ARM\x64", 0)
    return (header + code).ljust(4096, b"\0")


def told_tree(folder: Path) -> bytes:
    """The tree that the kernel of the last ``run_u_boot`` was handed; nothing where none has run."""
    console = (folder / "console.log").read_bytes()
    at = console.find(b"\xd0\x0d\xfe\xed")
    size = int.from_bytes(console[at + 4 : at + 8], "big")
    return console[at : at + size] if at >= 0 else b""


def run_u_boot(
    firmware: Path, image: Path, folder: Path, *, memory_mib: int = 256, timeout_s: float = 60
) -> str:
    """Have a U-Boot boot a disk in QEMU until the machine switches itself off; return its console."""
    from bsp.qemu.emulator import emulator

    qemu = emulator()
    command = [
        *qemu.command("qemu-system-aarch64"), "-L", str(qemu.data), "-M", "virt,gic-version=2",
        "-cpu", "cortex-a53", "-m", str(memory_mib), "-nodefaults", "-display", "none", "-nic", "none",
        "-bios", str(firmware), "-drive", f"file={image},format=raw,if=virtio,cache=unsafe",
        "-serial", f"file:{folder}/console.log",
    ]  # fmt: skip
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        try:
            process.wait(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
    return (folder / "console.log").read_text(errors="replace")
