# SPDX-License-Identifier: MIT
"""The NPU's register window (BAR0), as the kernel driver uses it.

Addresses and bits: Linux 6.12 drivers/gpu/drm/etnaviv/state_hi.xml.h (HI, MMUv2, MC) and state.xml.h
(FE); what the driver expects of them: etnaviv_gpu.c (identification, reset, interrupts),
etnaviv_iommu_v2.c (MMU, secure mode), etnaviv_sched.c (hang check). The driver finds both NPUs in its
hardware database, so it reads no feature register; those read 0 here.
"""

from __future__ import annotations

import threading
from enum import IntEnum
from typing import Protocol

from ..identity import Identity
from .interrupts import InterruptLine

BAR_BYTES = 0x100000
"""Size of the register window: larger than any other BAR, so that PCI enumeration puts it first."""

_WORD = 0xFFFFFFFF


class Register(IntEnum):
    """Byte offsets of the registers that have a meaning here."""

    HI_CLOCK_CONTROL = 0x000
    HI_IDLE_STATE = 0x004
    HI_INTR_ACKNOWLEDGE = 0x010
    HI_INTR_ENBL = 0x014
    HI_CHIP_IDENTITY = 0x018
    HI_CHIP_MODEL = 0x020
    HI_CHIP_REV = 0x024
    HI_CHIP_DATE = 0x028
    HI_CHIP_TIME = 0x02C
    HI_CHIP_CUSTOMER_ID = 0x030
    HI_CHIP_PRODUCT_ID = 0x0A8
    HI_CHIP_ECO_ID = 0x0E8
    MMU_SEC_EXCEPTION_ADDR = 0x380
    MMU_SEC_STATUS = 0x384
    MMU_SEC_CONTROL = 0x388
    MMU_PTA_ADDRESS_LOW = 0x38C
    MMU_PTA_ADDRESS_HIGH = 0x390
    MMU_SEC_COMMAND_CONTROL = 0x3A4
    MMU_AHB_CONTROL = 0x3A8
    MC_PROFILE_FE_READ = 0x450
    FE_COMMAND_ADDRESS = 0x654
    FE_DMA_ADDRESS = 0x664


SOFT_RESET = 1 << 12
IDLE_3D_2D = 0x30000
IDLE_FE = 0x1
IDLE_ALL = 0x7FFFFFFF
MMU_EXCEPTION = 0x40000000
AXI_BUS_ERROR = 0x80000000
AHB_RESET = 0x1
FE_ENABLE = 0x10000
MMU_ENABLE = 0x1

_READ_ONLY = frozenset(
    {
        Register.HI_IDLE_STATE,
        Register.HI_INTR_ACKNOWLEDGE,
        Register.HI_CHIP_IDENTITY,
        Register.HI_CHIP_MODEL,
        Register.HI_CHIP_REV,
        Register.HI_CHIP_DATE,
        Register.HI_CHIP_TIME,
        Register.HI_CHIP_CUSTOMER_ID,
        Register.HI_CHIP_PRODUCT_ID,
        Register.HI_CHIP_ECO_ID,
        Register.MMU_SEC_EXCEPTION_ADDR,
        Register.MMU_SEC_STATUS,
        Register.MC_PROFILE_FE_READ,
        Register.FE_DMA_ADDRESS,
    }
)


class FrontEndControl(Protocol):
    """What the registers start, stop and ask."""

    def start(self, address: int) -> None:
        """Run the command stream at a GPU address."""

    def reset(self) -> None:
        """Stop at once; nothing that was under way has any more effect."""

    @property
    def running(self) -> bool:
        """Whether the front end is not idle (a stuck one is not idle either)."""

    @property
    def position(self) -> int:
        """GPU address of the next command word."""

    @property
    def progress(self) -> int:
        """A number that changes as long as something is being worked on."""


class Registers:
    """The registers' state; safe to use from the socket's and the front end's thread."""

    def __init__(self, identity: Identity, line: InterruptLine) -> None:
        self._line = line
        self._lock = threading.RLock()
        self._pending = 0
        self._values: dict[int, int] = {}
        self._fixed = {
            Register.HI_CHIP_IDENTITY: 0,
            Register.HI_CHIP_MODEL: identity.model,
            Register.HI_CHIP_REV: identity.revision,
            Register.HI_CHIP_DATE: identity.chip_date,
            Register.HI_CHIP_TIME: 0,
            Register.HI_CHIP_CUSTOMER_ID: identity.customer_id,
            Register.HI_CHIP_PRODUCT_ID: identity.product_id,
            Register.HI_CHIP_ECO_ID: identity.eco_id,
        }
        self.front_end: FrontEndControl | None = None
        """Set once, when the device is put together."""
        self.epoch = 0
        """Counts resets: what was caused before one has no effect after it."""

    @property
    def mmu_enabled(self) -> bool:
        """Whether the front end's addresses go through the MMU."""
        return bool(self._values.get(Register.MMU_SEC_CONTROL, 0) & MMU_ENABLE)

    @property
    def interrupt_pending(self) -> bool:
        """Whether the guest has not yet acknowledged an interrupt."""
        return self._pending != 0

    @property
    def page_table_array(self) -> int:
        """Guest-physical address of the page table array."""
        low = self._values.get(Register.MMU_PTA_ADDRESS_LOW, 0)
        return low | self._values.get(Register.MMU_PTA_ADDRESS_HIGH, 0) << 32

    def read(self, offset: int) -> int:
        """Return a register's value; reading the pending interrupts clears them."""
        if self.front_end is None:
            raise RuntimeError("the registers have no front end")
        fixed = self._fixed.get(Register(offset)) if offset in _KNOWN else None
        if fixed is not None:
            return fixed
        match offset:
            case Register.HI_CLOCK_CONTROL:
                return self._values.get(offset, 0) & ~IDLE_3D_2D | IDLE_3D_2D
            case Register.HI_IDLE_STATE:
                return IDLE_ALL & ~(IDLE_FE if self.front_end.running else 0)
            case Register.HI_INTR_ACKNOWLEDGE:
                with self._lock:
                    pending, self._pending = self._pending, 0
                    self._update_line()
                    return pending
            case Register.FE_DMA_ADDRESS:
                return self.front_end.position & _WORD
            case Register.MC_PROFILE_FE_READ:
                # etnaviv_sched.c takes a change here for work being done in a long draw.
                return self.front_end.progress & _WORD
        return self._values.get(offset, 0)

    def write(self, offset: int, value: int) -> None:
        """Write a register; a write to one that can only be read has no effect."""
        if self.front_end is None:
            raise RuntimeError("the registers have no front end")
        if offset in _READ_ONLY:
            return
        with self._lock:
            self._values[offset] = value & _WORD
            match offset:
                case Register.HI_CLOCK_CONTROL if value & SOFT_RESET:
                    self.reset()
                case Register.MMU_AHB_CONTROL if value & AHB_RESET:
                    self.reset()
                    self._values[offset] = value & ~AHB_RESET
                case Register.MMU_SEC_COMMAND_CONTROL if value & FE_ENABLE:
                    self.front_end.start(self._values.get(Register.FE_COMMAND_ADDRESS, 0))
                case Register.HI_INTR_ENBL:
                    self._update_line()

    def reset(self) -> None:
        """As a reset of the core: the front end stops, no interrupt is pending, the MMU is off."""
        if self.front_end is None:
            raise RuntimeError("the registers have no front end")
        with self._lock:
            self.epoch += 1
            self._pending = 0
            clock = self._values.get(Register.HI_CLOCK_CONTROL, 0)
            self._values.clear()
            self._values[Register.HI_CLOCK_CONTROL] = clock
            self._update_line()
            self.front_end.reset()

    def raise_interrupt(self, bits: int, epoch: int) -> None:
        """Make interrupts pending, unless there was a reset since ``epoch``."""
        with self._lock:
            if epoch == self.epoch:
                self._pending |= bits
                self._update_line()

    def raise_mmu_exception(self, code: int, address: int, epoch: int) -> None:
        """Report an access that the MMU stopped, unless there was a reset since ``epoch``."""
        with self._lock:
            if epoch == self.epoch:
                self._values[Register.MMU_SEC_STATUS] = code
                self._values[Register.MMU_SEC_EXCEPTION_ADDR] = address & _WORD
                self.raise_interrupt(MMU_EXCEPTION, epoch)

    def _update_line(self) -> None:
        self._line.set(bool(self._pending & self._values.get(Register.HI_INTR_ENBL, 0)))


_KNOWN = frozenset(int(register) for register in Register)
