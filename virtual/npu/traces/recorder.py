# SPDX-License-Identifier: MIT
"""Records submissions while they run: what each job reads and writes, to a trace."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .. import sparse
from ..faults import FaultError
from ..identity import AnyIdentity
from ..memory import Access, Buffer, Bytes, Memory
from ..tflite.operations import Operation
from .trace import DEFAULT_LIMIT_BYTES, End, Header, Job, Piece, Submit, Writer, packed

if TYPE_CHECKING:
    from ..jobs import JobRecord


def begin(
    path: Path,
    identity: AnyIdentity,
    *,
    door: str,
    operations: Sequence[Operation] | None = None,
    exact: bool = False,
    software: dict[str, str] | None = None,
    limit_bytes: int = DEFAULT_LIMIT_BYTES,
) -> Writer:
    """Begin a trace.

    Args:
        operations: in exact mode the model's operations; None in hardware mode.
        exact: in exact mode of an NPU that takes no such operations.

    Raises:
        UserError: nothing can be written there.
    """
    header = Header(
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        door=door,
        npu=identity,
        mode="exact" if exact or operations is not None else "hw",
        operations=list(operations or []),
        software={"python": platform.python_version(), "numpy": np.__version__} | (software or {}),
    )
    return Writer(path, header, limit_bytes=limit_bytes)


class Recorder:
    """Records one client; an engine's ``watch``. A job's views are taken before it writes.

    The trace's idea of memory is kept beside the client's own, so that each content is stored once.
    """

    def __init__(self, writer: Writer, client: int) -> None:
        self._writer = writer
        self._client = client
        self._known = sparse.new()
        self._memory: Memory | None = None
        self._records: list[bytes] = []
        self._before: list[Piece] = []
        self._undo: list[Piece] = []
        self._targets: list[tuple[int, Bytes]] = []
        self._touched: dict[int, Access] = {}
        self._current: tuple[str, int] | None = None

    # --- the shim door: whole submissions

    def begin_submit(self, buffers: Sequence[Buffer], stream: NDArray[np.uint32]) -> None:
        """A submission begins."""
        rows = [(each.address, each.data.size, each.access.value) for each in buffers]
        submit = Submit(client=self._client, buffers=rows, stream=stream.tobytes())
        self._records = [packed(submit)]

    def end_submit(self, fault: FaultError | None = None) -> None:
        """The submission is over: write it."""
        finding = fault.finding if fault else None
        end = End(fault=str(finding or ""), fault_field=finding.field if finding else "")
        self._writer.add([*self._records, packed(end)])
        self._records = []

    # --- the device door: single jobs

    def one_job(self, writes: Sequence[tuple[int, int]], fault: FaultError | None = None) -> None:
        """The job that ended last was all of a submission of these (state, value) writes."""
        words = [
            word for state, value in writes for word in (1 << 27 | 1 << 16 | state >> 2, value)
        ]
        rows = [
            (first << sparse.PAGE_BITS, count << sparse.PAGE_BITS, access.value)
            for first, count, access in _runs(self._touched)
        ]
        submit = Submit(client=self._client, buffers=rows, stream=np.array(words, "<u4").tobytes())
        self._records.insert(0, packed(submit))
        self.end_submit(fault)

    # --- what the engine tells

    def watched(self, memory: Memory) -> Memory:
        """Return memory whose views are recorded."""
        return _WatchedMemory(memory, self)

    def job_begins(self, unit: str, address: int) -> None:
        """As ``Watch.job_begins``.

        A job before it that did not end (a reset took it away) leaves nothing in the trace: what it
        has read is forgotten.
        """
        for place, content in reversed(self._undo):
            self._known[place : place + len(content)] = np.frombuffer(content, np.uint8)
        self._current = (unit, address)
        self._before, self._targets, self._touched, self._undo = [], [], {}, []

    def job_ends(self, record: JobRecord | None) -> None:
        """A job has run, or (None) stopped at a fault."""
        if self._current is None or self._writer.full:
            return
        unit, address = self._current
        self._current = None
        after = [piece for place, target in self._targets for piece in self._news(place, target)]
        job = Job(
            unit=unit,
            address=address,
            before=self._before,
            writes=[(place, target.size) for place, target in self._targets],
            after=after,
            ran=record is not None,
            seconds=round(record.seconds, 6) if record else 0.0,
        )
        self._records.append(packed(job))
        self._before, self._targets, self._undo = [], [], []

    def seen(self, address: int, view: Bytes, access: Access) -> None:
        """The job has asked for a view."""
        if self._current is None or self._writer.full:
            return
        self._before += self._news(address, view)
        if Access.WRITE in access:
            self._targets.append((address, view))
        for page in range(
            address >> sparse.PAGE_BITS, (address + view.size - 1 >> sparse.PAGE_BITS) + 1
        ):
            self._touched[page] = self._touched.get(page, access) | access

    def _news(self, address: int, view: Bytes) -> list[Piece]:
        """Return what in memory is new to the trace, and take it over."""
        traced = self._known[address : address + view.size]
        pieces = []
        for start, end in list(sparse.differing(address, view, traced)):
            self._undo.append((address + start, traced[start:end].tobytes()))
            traced[start:end] = view[start:end]
            pieces.append((address + start, traced[start:end].tobytes()))
        return pieces


class _WatchedMemory:
    def __init__(self, memory: Memory, recorder: Recorder) -> None:
        self._memory, self._recorder = memory, recorder

    def view(self, address: int, size_bytes: int, access: Access) -> Bytes:
        """As ``Memory.view``."""
        view = self._memory.view(address, size_bytes, access)
        self._recorder.seen(address, view, access)
        return view


def _runs(touched: dict[int, Access]) -> list[tuple[int, int, Access]]:
    """Return (first page, count, access) of neighbouring pages that were used alike.

    Pages used in one way by one view and in two by another would split that view: so neighbours are
    joined, and may be used in each way that one of them was.
    """
    runs: list[tuple[int, int, Access]] = []
    for page in sorted(touched):
        if runs and runs[-1][0] + runs[-1][1] == page:
            first, count, access = runs[-1]
            runs[-1] = (first, count + 1, access | touched[page])
        else:
            runs.append((page, 1, touched[page]))
    return runs
