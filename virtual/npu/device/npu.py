# SPDX-License-Identifier: MIT
"""The NPU as a PCI device: configuration space, register window, interrupt, memory, front end.

Real NPUs are not PCI devices; PCI is merely how QEMU lets a device live in another process. The guest's
device tree names the register window by its address, and the driver binds to that node.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping

from ..identity import Identity
from .frontend import FrontEnd, Jobs, NpuMemory
from .guest_memory import GuestMemory
from .interrupts import InterruptLine
from .mmu import Mmu
from .registers import BAR_BYTES, Registers
from .vfio_user import CONFIG_REGION, GuestRegion

BAR0 = 0
_CONFIG_BYTES = 256

# QEMU docs/specs/pci-ids.rst: 1af4:10f0 to 10ff are for experiments.
PCI_VENDOR_ID, PCI_DEVICE_ID = 0x1AF4, 0x10F0
_CLASS_PROCESSING_ACCELERATOR = 0x12000001
_INTERRUPT_PIN_A = 1
# Command (4, 5), cache line size, latency timer, interrupt line: what a guest may write. The BARs are
# QEMU's own business.
_WRITABLE_CONFIG = frozenset({0x04, 0x05, 0x0C, 0x0D, 0x3C})


class VirtualNpu:
    """One NPU; implements what :class:`.vfio_user.Device` asks for."""

    def __init__(
        self,
        identity: Identity,
        make_jobs: Callable[[Identity, NpuMemory], Jobs],
        *,
        log: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.line = InterruptLine()
        self.guest = GuestMemory()
        self.registers = Registers(identity, self.line)
        self.mmu = Mmu(self.guest)
        self.memory = NpuMemory(self.guest, self.mmu, self.registers)
        jobs = make_jobs(identity, self.memory)
        self.front_end = FrontEnd(self.memory, self.mmu, self.registers, jobs, log)
        self.registers.front_end = self.front_end
        self._log = log
        self._config = bytearray(_CONFIG_BYTES)
        struct.pack_into("<HH", self._config, 0x00, PCI_VENDOR_ID, PCI_DEVICE_ID)
        struct.pack_into("<I", self._config, 0x08, _CLASS_PROCESSING_ACCELERATOR)
        struct.pack_into("<HH", self._config, 0x2C, PCI_VENDOR_ID, 0x1100)
        self._config[0x3D] = _INTERRUPT_PIN_A
        self.reads = 0
        self.writes = 0

    def close(self) -> None:
        """Stop the front end and let go of everything."""
        stopped = self.front_end.close()
        self.line.connect(None)
        self.guest.clear()
        if stopped:
            self.mmu.close()

    # --- what the protocol asks for

    @property
    def regions(self) -> Mapping[int, int]:
        """The register window and the configuration space."""
        return {BAR0: BAR_BYTES, CONFIG_REGION: _CONFIG_BYTES}

    def read(self, region: int, offset: int, size: int) -> bytes:
        """Read registers (in words, whatever the size asked for) or configuration."""
        if region == CONFIG_REGION:
            return bytes(self._config[offset : offset + size])
        self.reads += 1
        start, end = offset & ~3, (offset + size + 3) & ~3
        words = b"".join(
            struct.pack("<I", self.registers.read(word)) for word in range(start, end, 4)
        )
        return words[offset - start : offset - start + size]

    def write(self, region: int, offset: int, data: bytes) -> None:
        """Write registers, whole words only as on the real bus, or configuration."""
        if region == CONFIG_REGION:
            for position, value in enumerate(data, offset):
                if position in _WRITABLE_CONFIG:
                    self._config[position] = value
            return
        self.writes += 1
        if offset % 4 or len(data) % 4:
            self._log(f"write of {len(data)} bytes to register {offset:#x} ignored")
            return
        for index, (value,) in enumerate(struct.iter_unpack("<I", data)):
            self.registers.write(offset + 4 * index, value)

    def map_memory(self, region: GuestRegion) -> None:
        """Take over a piece of guest memory."""
        self.guest.add(region)

    def unmap_memory(self, address: int, size: int) -> None:
        """Let go of a piece of guest memory, also under a running job."""
        self.guest.remove(address, size)
        self.mmu.discard()

    def unmap_all(self) -> None:
        """Let go of all guest memory."""
        self.guest.clear()
        self.mmu.discard()

    def connect_interrupt(self, fd: int | None) -> None:
        """Raise the interrupt through this event descriptor from now on."""
        self.line.connect(fd)

    def mask_interrupt(self, masked: bool) -> None:
        """Hold the interrupt back, or let it through again."""
        self.line.mask(masked)

    def trigger_interrupt(self) -> None:
        """Raise the interrupt once."""
        self.line.trigger()

    def reset(self) -> None:
        """As after power-on: registers, page tables and the PCI command word are cleared."""
        self.registers.reset()
        self.registers.write(0, 0)
        self.mmu.forget()
        self._config[0x04:0x06] = b"\0\0"

    # --- for the log

    def summary(self) -> str:
        """What was done, in one line."""
        done = self.front_end.counters
        return (
            f"{self.reads} register reads, {self.writes} writes, {self.line.raised} interrupts, "
            f"{done.starts} starts, {done.nn_jobs} NN jobs, {done.tp_jobs} TP jobs, "
            f"{done.events} events, {done.page_table_loads} page-table loads, {done.faults} faults"
        )
