# SPDX-License-Identifier: MIT
"""Recording at the device's door: each job with the state writes before it is a submission.

The driver's own state writes (page tables, events) are carried out by the front end and are not in the
trace; nor are buffers, which the NPU does not see: the pages that a job touches stand for them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bsp.base.words import counted

from ..faults import FaultError
from ..identity import Identity
from ..traces import recorder
from ..traces.trace import Writer
from ..vivante.engine import Engine
from ..vivante.frontend import PS_NN_INST_ADDR, PS_TP_INST_ADDR
from .frontend import NpuMemory

_MOST_WRITES = 4096


class RecordedJobs:
    """An engine whose jobs are recorded; what the front end hands state writes to."""

    def __init__(self, identity: Identity, memory: NpuMemory, writer: Writer) -> None:
        self._recorder = recorder.Recorder(writer, 0)
        self.engine = Engine(identity, self._recorder.watched(memory), watch=self._recorder)
        self._writes: list[tuple[int, int]] = []

    def write_state(self, state: int, value: int) -> None:
        """As ``Engine.write_state``."""
        if len(self._writes) < _MOST_WRITES:
            self._writes.append((state, value))
        if state not in (PS_NN_INST_ADDR, PS_TP_INST_ADDR):
            self.engine.write_state(state, value)
            return
        self._writes[-1] = (state, value)
        try:
            self.engine.write_state(state, value)
        except FaultError as error:
            self._recorder.one_job(self._writes, error)
            raise
        else:
            self._recorder.one_job(self._writes)
        finally:
            self._writes = []


def begin(path: Path, identity: Identity, log: Callable[[str], None]) -> Writer:
    """Begin a trace.

    Raises:
        UserError: nothing can be written there.
    """
    writer = recorder.begin(path, identity, door="device")
    log(f"recording to {path}")
    return writer


def end(writer: Writer, path: Path, log: Callable[[str], None]) -> None:
    """End a trace.

    Raises:
        InfrastructureError: the disk does not take it.
    """
    writer.close()
    full = ", then the limit was reached" if writer.full else ""
    log(f"recorded {counted(writer.submissions, 'job')} to {path}{full}")
