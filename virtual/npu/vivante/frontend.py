# SPDX-License-Identifier: MIT
"""The front end (FE): command words become state writes.

Word formats: Mesa 25.0.7 src/etnaviv/hw/cmdstream.xml.h; states: src/etnaviv/hw/state.xml.h and
state_3d.xml.h. Linux 6.12 drivers/gpu/drm/etnaviv/etnaviv_buffer.c adds WAIT, LINK and END around a
client's stream; those belong to the device door, which walks guest memory itself.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..faults import FaultError

Words = NDArray[np.uint32]


class Opcode(enum.IntEnum):
    """Bits 31:27 of a command word; ZERO is the padding that Mesa puts between jobs."""

    ZERO = 0
    LOAD_STATE = 1
    END = 2
    NOP = 3
    WAIT = 7
    LINK = 8
    STALL = 9


CLIENT_OPCODES = (Opcode.ZERO, Opcode.LOAD_STATE, Opcode.NOP, Opcode.STALL)
"""What a client's own stream may contain."""

PS_NN_INST_ADDR = 0x10A0
PS_TP_INST_ADDR = 0x10B8

STATES = {
    0x0184: "MMUv2_CONFIGURATION",
    0x01AC: "MMUv2_PTA_CONFIG",
    0x0A28: "PA_SYSTEM_MODE",
    PS_NN_INST_ADDR: "PS_NN_INST_ADDR",
    0x10A4: "PS_UNK10A4",
    PS_TP_INST_ADDR: "PS_TP_INST_ADDR",
    0x1650: "TS_FLUSH_CACHE",
    0x3800: "GL_PIPE_SELECT",
    0x3804: "GL_EVENT",
    0x3808: "GL_SEMAPHORE_TOKEN",
    0x380C: "GL_FLUSH_CACHE",
    0x384C: "GL_API_MODE",
    0x3930: "GL_NN_CONFIG",
    0x393C: "GL_OCB_REMAP_START",
    0x3940: "GL_OCB_REMAP_END",
    0x394C: "GL_TP_CONFIG",
    0x3950: "GL_UNK03950",
    0x3C00: "GL_STALL_TOKEN",
}
"""States that Mesa and the kernel driver write on an NPU; any other is a finding."""

MUST_BE_ZERO = frozenset({0x393C, 0x3940, 0x394C})
"""States that Mesa always sets to 0; another value asks for something that is not emulated."""


@dataclass(frozen=True)
class Command:
    """One command: ``words`` long (even: the FE reads 64 bits at a time).

    Attributes:
        state: first state address of a LOAD_STATE, in bytes.
        count: number of values that follow it.
    """

    opcode: Opcode
    words: int
    state: int = 0
    count: int = 0


def decode(header: int) -> Command:
    """Return the command that begins with ``header``.

    Raises:
        FaultError: the opcode is not one of ``Opcode``, or reserved bits are set.
    """
    try:
        opcode = Opcode(header >> 27)
    except ValueError:
        raise FaultError(
            "FE opcode",
            "LOAD_STATE, NOP, STALL, WAIT, LINK or END",
            f"{header >> 27} ({header:#010x})",
        ) from None
    if opcode is not Opcode.LOAD_STATE:
        if opcode is Opcode.ZERO and header:
            raise FaultError("FE word", "0 (padding) or a command", f"{header:#010x}")
        return Command(opcode, 2)
    if header & 1 << 26:
        raise FaultError("LOAD_STATE FIXP", "0", f"1 ({header:#010x})")
    count = (header >> 16 & 0x3FF) or 1024
    return Command(opcode, (count + 2) & ~1, (header & 0xFFFF) << 2, count)


def state_writes(stream: Words) -> Iterator[tuple[int, int]]:
    """Yield (state address, value) for each write of a client's command stream, in order.

    Raises:
        FaultError: an opcode that a client may not use, or a command cut off at the end.
    """
    words: list[int] = stream.tolist()
    position = 0
    while position < len(words):
        try:
            command = decode(words[position])
            if command.opcode not in CLIENT_OPCODES:
                raise FaultError("FE opcode", "one that a client may use", command.opcode.name)
            if position + 1 + command.count > len(words):
                left = len(words) - position - 1
                raise FaultError("LOAD_STATE", f"{command.count} values", f"{left} words left")
        except FaultError as error:
            error.finding = error.finding.__class__(
                f"{error.finding.field} at word {position}",
                error.finding.expected,
                error.finding.found,
            )
            raise
        for index in range(command.count):
            yield command.state + 4 * index, words[position + 1 + index]
        position += command.words


def check_state(state: int, value: int) -> None:
    """Check one write against what Mesa and the kernel driver are known to write.

    Raises:
        FaultError: the state is unknown, or its value asks for something that is not emulated.
    """
    name = STATES.get(state)
    if name is None:
        raise FaultError("state", "one that Mesa writes on an NPU", f"{state:#06x} = {value:#010x}")
    if state in MUST_BE_ZERO and value:
        raise FaultError(name, "0", f"{value:#010x}")
