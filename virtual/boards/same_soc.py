# SPDX-License-Identifier: MIT
"""A board that QEMU does not have, on the machine of another board with the same SoC.

What belongs to the board itself (regulators, PHYs) is then absent; what is in the SoC is there. The console
comes out of the UART that the board's device tree names, at the place where the machine has that UART.
"""

from __future__ import annotations

import re

import msgspec

from bsp.dts.tree import Tree
from bsp.profile import Board, Qemu
from bsp.qemu.machine import qemu_of
from bsp.readable_boards import readable_boards


def qemu_of_soc(board: Board) -> Qemu:
    """Return the board's own QEMU machine, or that of a board with the same SoC.

    Raises:
        UserError: QEMU has no machine with this SoC.
    """
    if board.qemu is not None:
        return board.qemu
    for other in readable_boards():
        if other.soc == board.soc and other.qemu is not None and other.qemu.uarts:
            return other.qemu
    return qemu_of(board)


def on_machine(board: Board, qemu: Qemu, tree: Tree) -> Board:
    """Return the board with a machine that prints where the board's device tree says.

    Args:
        board: the board; its own machine stays as it is.
        qemu: what :func:`qemu_of_soc` returned.
        tree: the board's device tree.
    """
    if board.qemu is not None:
        return board
    place, name = _console(qemu, tree)
    words = [word for word in qemu.cmdline.split() if not word.startswith("console=")]
    cmdline = " ".join([f"console={name}", *words])
    return msgspec.structs.replace(
        board, qemu=msgspec.structs.replace(qemu, serial_index=place, cmdline=cmdline)
    )


def _console(qemu: Qemu, tree: Tree) -> tuple[int, str]:
    """Return (the machine's place of the console's UART, the kernel's name for it)."""
    own = next(word for word in qemu.cmdline.split() if word.startswith("console="))
    own_name = own.removeprefix("console=").partition(",")[0]
    stdout = (tree.strings("/chosen", "stdout-path") or [""])[0].partition(":")[0]
    path = stdout if stdout.startswith("/") else (tree.strings("/aliases", stdout) or [""])[0]
    node = path.rpartition("/")[2]
    numbers = [
        name.removeprefix("serial")
        for name in tree.nodes.get("/aliases", {})
        if re.fullmatch(r"serial\d+", name) and tree.strings("/aliases", name) == [path]
    ]
    if node not in qemu.uarts or not numbers:
        return qemu.serial_index, own_name
    return qemu.uarts.index(node), own_name.rstrip("0123456789") + numbers[0]
