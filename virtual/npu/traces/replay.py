# SPDX-License-Identifier: MIT
"""Runs the jobs of a trace anew, with neither delegate nor kernel, and compares what they write.

Each job sees the memory that it saw when it was recorded: what one job computes differently now does not
make the next one look wrong.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .. import sparse
from ..decoded_cache import DecodedCache
from ..engines import Engine, Maker, maker_for_trace
from ..faults import FaultError
from ..finding import Blame, Finding
from ..jobs import JobRecord, Step
from ..memory import Access, Buffer, Buffers, Bytes
from .trace import End, Header, Job, Piece, Record, Submit, TraceError, header_of, read

TIMEOUT_S = 600.0
MAX_CLIENTS = 64
MAX_PAGES = (1 << 30) >> sparse.PAGE_BITS
"""Pages that the buffers of a trace may have together: bounds its memory to 1 GiB."""
MAX_WRITTEN_BYTES = 256 << 20


@dataclass(frozen=True)
class ReplayDifference:
    """A job that writes something else than when it was recorded.

    Attributes:
        job: number in the trace, from 0.
        description: the job in words; what stopped it, where it stopped at a fault.
        bytes: how many differ; 0 where a fault differs.
        first_address: of the first that does.
        largest: largest difference of two bytes as numbers.
    """

    job: int
    unit: str
    description: str
    operation: str
    bytes: int = 0
    of_bytes: int = 0
    first_address: int = 0
    expected: str = ""
    found: str = ""
    largest: int = 0


@dataclass
class Replayed:
    """What a replay found."""

    header: Header
    submissions: int = 0
    nn_jobs: int = 0
    tp_jobs: int = 0
    faults: int = 0
    bytes_compared: int = 0
    macs: int = 0
    seconds: float = 0.0
    recorded_seconds: float = 0.0
    differences: list[ReplayDifference] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def blamed(self) -> list[Finding]:
        """Findings that somebody is to blame for."""
        return [each for each in self.findings if each.blame is not Blame.OPEN]

    def document(self) -> dict[str, Any]:
        """Return the document for machines."""
        document = {
            name: getattr(self, name)
            for name in (
                "submissions", "nn_jobs", "tp_jobs", "faults", "bytes_compared", "macs", "seconds",
                "recorded_seconds",
            )
        }  # fmt: skip
        return {
            "npu": self.header.npu.name,
            "mode": self.header.mode,
            "door": self.header.door,
            "created": self.header.created,
            "software": self.header.software,
            **document,
            "findings": [asdict(each) for each in self.findings],
            "differences": [asdict(each) for each in self.differences],
            "verdict": "differs" if self.differences else "blamed" if self.blamed else "equal",
        }


class Machine:
    """The address spaces of a trace's clients, as the trace goes along."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._spaces: dict[int, Bytes] = {}
        self._pages: dict[int, np.ndarray[Any, np.dtype[np.bool_]]] = {}
        self._count = 0

    def space(self, submit: Submit) -> Bytes:
        """Return the space of a submission's client, after a look at its buffers.

        Raises:
            TraceError: too many clients, or buffers that are too large together.
        """
        if submit.client not in self._spaces:
            if len(self._spaces) >= MAX_CLIENTS:
                raise TraceError(f"{self._path}: more than {MAX_CLIENTS} clients")
            self._spaces[submit.client] = sparse.new()
            self._pages[submit.client] = np.zeros(sparse.SIZE_BYTES >> sparse.PAGE_BITS, np.bool_)
        pages = self._pages[submit.client]
        for address, size, _ in submit.buffers:
            if address + size > sparse.SIZE_BYTES:
                raise TraceError(f"{self._path}: a buffer at {address:#x} of {size} bytes")
            span = pages[address >> sparse.PAGE_BITS : -(-(address + size) >> sparse.PAGE_BITS)]
            self._count += span.size - int(np.count_nonzero(span))
            span[...] = True
            if self._count > MAX_PAGES:
                raise TraceError(f"{self._path}: buffers of more than 1 GiB together")
        return self._spaces[submit.client]

    def put(self, client: int, pieces: Iterable[Piece]) -> None:
        """Put recorded contents into a space.

        Raises:
            TraceError: they lie outside its buffers.
        """
        for address, content in pieces:
            end = address + len(content)
            used = self._pages[client][address >> sparse.PAGE_BITS : -(-end >> sparse.PAGE_BITS)]
            if end > sparse.SIZE_BYTES or not used.all():
                raise TraceError(f"{self._path}: contents at {address:#x}, outside the buffers")
            self._spaces[client][address:end] = np.frombuffer(content, np.uint8)

    def buffers(self, submit: Submit) -> Buffers:
        """Return a submission's buffers.

        Raises:
            FaultError: two overlap.
        """
        space = self.space(submit)
        return Buffers(
            [
                Buffer(address, Access(flags), space[address : address + size])
                for address, size, flags in submit.buffers
            ]
        )


def submissions(
    records: Iterator[Record], path: Path
) -> Iterator[tuple[Submit, Iterator[Job | End]]]:
    """Group records into submissions: each with its jobs and its end, to be read to the end.

    Raises:
        TraceError: the records come in another order.
    """
    for record in records:
        if not isinstance(record, Submit):
            raise TraceError(f"{path}: {type(record).__name__} outside a submission")

        def parts() -> Iterator[Job | End]:
            for part in records:
                if not isinstance(part, Job | End):
                    raise TraceError(f"{path}: {type(part).__name__} within a submission")
                yield part
                if isinstance(part, End):
                    return
            raise TraceError(f"{path}: a submission without an end")

        yield record, parts()


def replay(
    path: Path,
    *,
    timeout_s: float = TIMEOUT_S,
    on_job: Callable[[JobRecord], None] | None = None,
    cache: DecodedCache | None = None,
    model: Path | None = None,
) -> Replayed:
    """Replay a trace.

    Args:
        model: the .tflite file that was run: compare each job with it too.

    Raises:
        UserError: the model is none.
        TraceError: the file is not a trace or a broken one, or replaying takes longer than ``timeout_s``.
    """
    records = read(path)
    return _Replay(path, header_of(records, path), timeout_s, on_job, cache, model).run(records)


class _Replay:
    def __init__(
        self,
        path: Path,
        header: Header,
        timeout_s: float,
        on_job: Callable[[JobRecord], None] | None,
        cache: DecodedCache | None,
        model: Path | None,
    ) -> None:
        self._model = model
        self._path = path
        self._result = Replayed(header)
        self._machine = Machine(path)
        self._cache = cache or DecodedCache()
        self._engines: dict[int, Engine] = {}
        self._on_job = on_job
        self._last: JobRecord | None = None
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s

    def run(self, records: Iterator[Record]) -> Replayed:
        result = self._result
        for submit, parts in submissions(records, self._path):
            result.submissions += 1
            self._submission(submit, parts)
        for engine in self._engines.values():
            result.findings += engine.findings
        return result

    @functools.cached_property
    def _maker(self) -> Maker:
        header = self._result.header
        return maker_for_trace(
            header.npu, header.operations, exact=header.mode == "exact", audit_for=self._model
        )

    def _engine(self, client: int) -> Engine:
        if client not in self._engines:
            self._engines[client] = self._maker.engine(self._cache, on_job=self._keep)
        return self._engines[client]

    def _keep(self, record: JobRecord) -> None:
        self._last = record
        if self._on_job:
            self._on_job(record)

    def _submission(self, submit: Submit, parts: Iterator[Job | End]) -> None:
        self._in_time()
        fault: FaultError | None = None
        engine = self._engine(submit.client)
        part: Job | End | None = None
        try:
            engine.memory = self._machine.buffers(submit)
            stream = np.frombuffer(submit.stream[: len(submit.stream) & ~3], "<u4")
            for taken in engine.steps(stream):
                if not taken.unit:
                    self._guarded(taken)
                    continue
                part = next(parts, None)
                if not isinstance(part, Job) or (part.unit, part.address) != (
                    taken.unit,
                    taken.address,
                ):
                    raise TraceError(f"{self._path}: the stream's jobs are not the recorded ones")
                self._machine.put(submit.client, part.before)
                self._job(engine, submit.client, taken, part)
        except FaultError as error:
            fault = error
        rest = list(parts) if not isinstance(part, End) else []
        end = rest[-1] if rest else part
        if not isinstance(end, End):
            raise TraceError(f"{self._path}: a submission without an end")
        if fault is None and len(rest) > 1:
            raise TraceError(f"{self._path}: more jobs recorded than the stream has")
        self._compare_fault(fault, end)

    def _job(self, engine: Engine, client: int, taken: Step, job: Job) -> None:
        result = self._result
        self._in_time()
        if sum(size for _, size in job.writes) > MAX_WRITTEN_BYTES:
            raise TraceError(f"{self._path}: a job that writes more than it can")
        number = result.nn_jobs + result.tp_jobs
        if job.unit == "TP":
            result.tp_jobs += 1
        else:
            result.nn_jobs += 1
        expected = self._expected(engine, job)
        started = time.perf_counter()
        self._last = None
        try:
            self._guarded(taken)
        finally:
            result.seconds += time.perf_counter() - started
            result.recorded_seconds += job.seconds
            if expected is not None and self._last is not None:
                result.macs += self._last.macs
                self._compare(engine, number, job, expected)
            self._machine.put(client, job.after)

    def _in_time(self) -> None:
        if time.monotonic() > self._deadline:
            raise TraceError(
                f"{self._path}: not done after {self._timeout_s:g} s", hint="--timeout SECONDS"
            )

    def _guarded(self, taken: Step) -> None:
        """Take a step; what is not a fault but an error of the emulator is told as one, by name."""
        try:
            taken.run()
        except (FaultError, TraceError):
            raise
        except Exception as error:
            raise FaultError("emulator", "a result or a fault", repr(error)) from error

    def _expected(self, engine: Engine, job: Job) -> list[Bytes] | None:
        """What the job's targets hold afterwards, as recorded; None where they cannot be had."""
        expected = []
        try:
            for address, size in job.writes:
                content = engine.memory.view(address, size, Access.WRITE).copy()
                for start, piece in job.after:
                    if address <= start and start + len(piece) <= address + size:
                        content[start - address : start - address + len(piece)] = np.frombuffer(
                            piece, np.uint8
                        )
                expected.append(content)
        except FaultError:
            return None
        return expected

    def _compare(self, engine: Engine, number: int, job: Job, expected: list[Bytes]) -> None:
        if self._last is None:
            raise RuntimeError("no submission came before the job")
        for (address, size), right in zip(job.writes, expected, strict=True):
            written = engine.memory.view(address, size, Access.WRITE)
            self._result.bytes_compared += size
            places = np.flatnonzero(written != right)
            if not places.size:
                continue
            first = int(places[0])
            off = np.abs(written[places].astype(np.int16) - right[places].astype(np.int16))
            self._result.differences.append(
                ReplayDifference(
                    number, job.unit, self._last.description, self._last.operation,
                    int(places.size), size, address + first, str(right[first]), str(written[first]),
                    int(off.max()),
                )
            )  # fmt: skip

    def _compare_fault(self, fault: FaultError | None, end: End) -> None:
        finding = fault.finding if fault else None
        if finding or end.fault:
            self._result.faults += 1
        if (finding.field if finding else "") == end.fault_field:
            return
        number = self._result.nn_jobs + self._result.tp_jobs - 1
        self._result.differences.append(
            ReplayDifference(
                max(number, 0), finding.unit if finding else "", "stopped at a fault",
                finding.operation if finding else "",
                expected=end.fault or "no fault", found=str(finding) if finding else "no fault",
            )
        )  # fmt: skip
