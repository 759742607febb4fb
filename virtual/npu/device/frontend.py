# SPDX-License-Identifier: MIT
"""The front end as a thread: walks the command stream in guest memory and runs its jobs.

The kernel driver keeps a ring that ends in WAIT + LINK back to the WAIT, and appends work by
overwriting that WAIT with a LINK (Linux 6.12 drivers/gpu/drm/etnaviv/etnaviv_buffer.c). The ring is
reached through the MMU like everything else, except for the short stream that loads the page tables.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ..faults import FaultError
from ..memory import Access, Bytes
from ..vivante.frontend import PS_NN_INST_ADDR, PS_TP_INST_ADDR, Opcode, check_state, decode
from .guest_memory import BusFaultError, GuestMemory
from .mmu import Mmu, MmuFaultError
from .registers import AXI_BUS_ERROR, Registers

_MMU_PTA_CONFIG = 0x01AC
_GL_EVENT = 0x3804

_EVENT_ID = 0x1F
_PTA_INDEX = 0xFFFF
_COMMAND_BYTES = 8

_WAIT_SHORTEST_S, _WAIT_LONGEST_S = 0.0002, 0.002
_MAX_IDLE_COMMANDS = 4096
"""So many commands in a row without effect, and the front end is running through nonsense."""

JOB_PATIENCE_S = 60.0
"""A job that takes longer no longer counts as progress: the driver's hang check may have it."""


class Jobs(Protocol):
    """What runs the jobs: the engine."""

    def write_state(self, state: int, value: int) -> None:
        """Take one state write; the write of a job's descriptor address runs the job."""


@dataclass
class Counters:
    """What the front end has done since it was made."""

    starts: int = 0
    commands: int = 0
    loads: int = 0
    nn_jobs: int = 0
    tp_jobs: int = 0
    events: int = 0
    page_table_loads: int = 0
    faults: int = 0


class _Abandoned(Exception):  # noqa: N818 - a way out, not a defect
    """There was a reset: what is under way is over."""


class NpuMemory:
    """Memory as the front end and the engine see it: through the MMU once it is on.

    Attributes:
        epoch: the reset that the present work came after; views end with the next reset, so that
            a job that was abandoned cannot write into memory which the guest has taken back.
    """

    def __init__(self, guest: GuestMemory, mmu: Mmu, registers: Registers) -> None:
        self._guest, self._mmu, self._registers = guest, mmu, registers
        self.epoch = registers.epoch

    def view(self, address: int, size_bytes: int, access: Access) -> Bytes:
        """As ``Memory.view``."""
        with self._guest.lock:
            if self.epoch != self._registers.epoch:
                raise _Abandoned
            if self._registers.mmu_enabled:
                return self._mmu.view(address, size_bytes, access)
            return self._guest.view(address, size_bytes, access)

    def abandon(self) -> None:
        """Take all views away that have been handed out, after a reset."""
        self._mmu.discard()


class FrontEnd:
    """The front end's thread and its state."""

    def __init__(
        self,
        memory: NpuMemory,
        mmu: Mmu,
        registers: Registers,
        jobs: Jobs,
        log: Callable[[str], None],
        *,
        job_patience_s: float = JOB_PATIENCE_S,
    ) -> None:
        self._memory, self._mmu, self._registers, self._jobs = memory, mmu, registers, jobs
        self._log = log
        self._job_patience_s = job_patience_s
        self._wake = threading.Condition()
        self._start_at: int | None = None
        self._ended = False
        self._running = False
        self._in_job = False
        self._busy_since: float | None = None
        self._progress = 0
        self.position = 0
        self.counters = Counters()
        self._thread = threading.Thread(target=self._main, name="npu-front-end", daemon=True)
        self._thread.start()

    # --- asked by other threads

    @property
    def running(self) -> bool:
        """Whether the front end is not idle."""
        return self._running

    @property
    def progress(self) -> int:
        """A number that changes as long as a job or state is worked on, up to the limit of patience.

        Not only a job takes time: on a busy machine new page tables do, too; and so does the way of an
        interrupt into the guest, in which the front end has nothing left to do.
        """
        began = self._busy_since
        busy = began is not None and time.monotonic() - began < self._job_patience_s
        if busy or self._registers.interrupt_pending:
            self._progress += 1
        return self._progress + self.counters.loads

    def start(self, address: int) -> None:
        """Run the command stream at a GPU address."""
        with self._wake:
            self.position = address
            self._start_at = address
            self._running = True
            self._wake.notify_all()

    def reset(self) -> None:
        """Stop; a job under way runs out without any more effect on registers."""
        with self._wake:
            self._start_at = None
            self._running = False
            self._wake.notify_all()
        if self._in_job:
            self._memory.abandon()

    def close(self, *, timeout_s: float = 5.0) -> bool:
        """End the thread; False if it is still in a job when the time is over."""
        self._registers.reset()
        with self._wake:
            self._ended = True
            self._wake.notify_all()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    # --- the thread

    def _main(self) -> None:
        while True:
            with self._wake:
                while self._start_at is None and not self._ended:
                    self._wake.wait()
                if self._ended:
                    return
                if self._start_at is None:
                    raise RuntimeError("the front end was started without an address")
                address, self._start_at = self._start_at, None
                epoch = self._memory.epoch = self._registers.epoch
            self.counters.starts += 1
            try:
                self._run(address, epoch)
            except _Abandoned:
                continue
            except Exception as error:
                if epoch == self._registers.epoch:
                    self._stop_at_fault(error, epoch)

    def _stop_at_fault(self, error: Exception, epoch: int) -> None:
        """Report a fault as silicon would, and stay stuck until the driver resets the core."""
        self.counters.faults += 1
        self._log(f"fault at {self.position:#010x}: {error or type(error).__name__}")
        if isinstance(error, MmuFaultError):
            self._registers.raise_mmu_exception(error.code, error.address, epoch)
        elif isinstance(error, BusFaultError):
            self._registers.raise_interrupt(AXI_BUS_ERROR, epoch)
        elif not isinstance(error, FaultError):
            import traceback

            self._log("".join(traceback.format_exception(error)).rstrip())

    def _run(self, address: int, epoch: int) -> None:
        idle_commands = 0
        wait_s = _WAIT_SHORTEST_S
        while True:
            self._check(epoch)
            if self._start_at is not None:
                return  # started anew
            word = int(self._memory.view(address, _COMMAND_BYTES, Access.READ).view("<u8")[0])
            command = decode(word & 0xFFFFFFFF)
            self.counters.commands += 1
            idle_commands += 1
            match command.opcode:
                case Opcode.LOAD_STATE:
                    idle_commands, wait_s = 0, _WAIT_SHORTEST_S
                    self.counters.loads += 1
                    size_bytes = 4 * (1 + command.count)
                    words = self._memory.view(address, size_bytes, Access.READ).view("<u4")
                    for index, value in enumerate(words[1:].tolist()):
                        self._busy_since = time.monotonic()
                        try:
                            self._write_state(command.state + 4 * index, value, epoch)
                        finally:
                            # Seen also by a check that comes before this thread runs again.
                            self._progress += 1
                            self._busy_since = None
                case Opcode.WAIT:
                    idle_commands = 0
                    self._pause(wait_s, epoch)
                    wait_s = min(wait_s * 1.5, _WAIT_LONGEST_S)
                case Opcode.LINK:
                    address = word >> 32
                    self._move(address, epoch)
                    continue
                case Opcode.END:
                    with self._wake:
                        self._check(epoch)
                        if self._start_at is None:
                            self._running = False
                    return
                case _ if idle_commands > _MAX_IDLE_COMMANDS:
                    raise FaultError(
                        "FE stream", "states or a WAIT", f"{idle_commands} empty commands"
                    )
            if idle_commands > _MAX_IDLE_COMMANDS:
                self._pause(_WAIT_LONGEST_S, epoch)  # links in a circle: let other threads live
            address += 4 * command.words
            self._move(address, epoch)

    def _move(self, address: int, epoch: int) -> None:
        self._check(epoch)
        self.position = address

    def _pause(self, seconds: float, epoch: int) -> None:
        with self._wake:
            if epoch == self._registers.epoch and not self._ended:
                self._wake.wait(seconds)

    def _check(self, epoch: int) -> None:
        if epoch != self._registers.epoch or self._ended:
            raise _Abandoned

    def _write_state(self, state: int, value: int, epoch: int) -> None:
        self._check(epoch)
        check_state(state, value)
        if state == _MMU_PTA_CONFIG:
            self.counters.page_table_loads += 1
            self._mmu.load(self._registers.page_table_array, value & _PTA_INDEX)
        elif state == _GL_EVENT:
            self.counters.events += 1
            self._registers.raise_interrupt(1 << (value & _EVENT_ID), epoch)
        elif state in (PS_NN_INST_ADDR, PS_TP_INST_ADDR):
            self._run_job(state, value, epoch)
        else:
            self._jobs.write_state(state, value)

    def _run_job(self, state: int, value: int, epoch: int) -> None:
        self._mmu.between_jobs()
        self._in_job = True
        try:
            self._jobs.write_state(state, value)
        finally:
            self._in_job = False
        if state == PS_NN_INST_ADDR:
            self.counters.nn_jobs += 1
        else:
            self.counters.tp_jobs += 1
        self._check(epoch)
