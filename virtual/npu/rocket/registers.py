# SPDX-License-Identifier: MIT
"""Rocket's register commands: 64-bit words, each of which writes one register of one unit.

A word is target(63:48), value(47:16), register(15:0). Sources: Rockchip's RK3588 TRM part 1, chapter RKNN;
Mesa 26.1 src/gallium/drivers/rocket/registers.xml and rkt_regcmd.c. The table has the registers that Mesa
writes; another one, a bit outside all fields, or a target that is not its unit's is a fault.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..faults import FaultError

Commands = NDArray[np.uint64]

# Unit -> the target of its commands: rkt_get_target() + 1.
UNITS = {"PC": 0x101, "CNA": 0x201, "CORE": 0x801, "DPU": 0x1001, "RDMA": 0x2001}
_BARRIER = 0x0041
"""A word that must stand before the last one (TRM)."""
_START = 0x0081
"""Target of the word that starts all units of its value's bits."""

_TABLE = Path(__file__).parent / "registers.txt"
# Registers of which only 0 is known: many of one kind.
_ZERO = {
    "CNA": [(0x1140 + 4 * number, f"DCOMP_AMOUNT{number}") for number in range(16)],
    "DPU": [
        *((0x4090 + 4 * number, f"EW_OP_VALUE_{number}") for number in range(8)),
        *((0x4100 + 4 * number, f"LUT_{number}") for number in range(12)),
    ],
}


@dataclass(frozen=True)
class Register:
    """A register: its unit and name, and the fields of its word as name -> (lowest bit, mask)."""

    unit: str
    name: str
    fields: Mapping[str, tuple[int, int]]

    @property
    def known_bits(self) -> int:
        """The bits of all fields."""
        return sum(mask << low for low, mask in self.fields.values())


def _read_table() -> Iterator[tuple[int, Register]]:
    unit = ""
    text = re.sub(r"\n +", " ", _TABLE.read_text(encoding="ascii"))
    for line in text.splitlines():
        words = line.split()
        if line.startswith("#"):
            continue
        if len(words) == 1:
            unit = words[0]
            continue
        fields = {}
        for word in words[2:]:
            name, _, bits = word.partition("=")
            low, _, high = bits.partition(":")
            fields[name] = (int(low), (1 << int(high or low) - int(low) + 1) - 1)
        yield int(words[0], 16), Register(unit, words[1], fields)
    for unit, registers in _ZERO.items():
        for address, name in registers:
            yield address, Register(unit, name, {name: (0, 0xFFFFFFFF)})


REGISTERS: Mapping[int, Register] = dict(_read_table())
ALWAYS_ZERO = tuple(name for registers in _ZERO.values() for _, name in registers)


def fields_of(commands: Commands) -> dict[str, int]:
    """Return all fields that a task's commands set, by name.

    Raises:
        FaultError: a command is not understood, or they do not end by starting the units.
    """
    fields: dict[str, int] = {}
    started = barrier = False
    for word in commands.tolist():
        target, value, address = word >> 48, word >> 16 & 0xFFFFFFFF, word & 0xFFFF
        if started:
            raise FaultError("register command", "nothing behind the one that starts", f"{word:#x}")
        if word == 0:
            continue
        if target == _BARRIER:
            barrier = True
            continue
        if target == _START:
            _check_start(address, value, barrier=barrier)
            started = True
            continue
        fields.update(_fields_of_word(target, address, value))
    if not started:
        raise FaultError("register commands", "a last one that starts the units", "none")
    return fields


def _fields_of_word(target: int, address: int, value: int) -> Iterator[tuple[str, int]]:
    register = REGISTERS.get(address)
    if register is None:
        raise FaultError(
            "register command", "a register that is known", f"{address:#06x} = {value:#x}"
        )
    if target != UNITS[register.unit]:
        raise FaultError(
            f"target of {register.name}",
            f"{UNITS[register.unit]:#x} ({register.unit})",
            f"{target:#x}",
        )
    if unknown := value & ~register.known_bits:
        raise FaultError(register.name, "0 in reserved bits", f"{unknown:#x}")
    for name, (low, mask) in register.fields.items():
        yield name, value >> low & mask


def _check_start(address: int, value: int, *, barrier: bool) -> None:
    if address != 8 or not value & 1:
        raise FaultError(
            "PC_OPERATION_ENABLE", "register 8 with OP_EN", f"{address:#x} = {value:#x}"
        )
    if value != 0x1D:
        raise FaultError("PC_OPERATION_ENABLE", "0x1d: CNA, CORE, DPU and DPU_RDMA", f"{value:#x}")
    if not barrier:
        raise FaultError("register command", "0x0041000000000000 before the start", "none")
