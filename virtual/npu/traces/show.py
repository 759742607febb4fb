# SPDX-License-Identifier: MIT
"""A trace in words and figures: its jobs, shapes, coefficients, sizes, and what they cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bsp.base.errors import UserError
from bsp.base.words import counted

from ..decoded_cache import DecodedCache
from ..faults import FaultError
from ..identity import Identity
from ..memory import Access, Buffers
from ..vivante import frontend, huffman, nn, tp, zero_runs
from ..vivante.audit.exact import ExactMode
from ..vivante.coefficients import Coefficients
from ..vivante.descriptor import Layout
from ..vivante.nn import NnJob
from .replay import Machine, submissions
from .show_rocket import TaskReader
from .trace import End, Header, Job, Submit, TraceError, header_of, read

_UNITS = {
    frontend.PS_NN_INST_ADDR: ("NN", nn.LAYOUT),
    frontend.PS_TP_INST_ADDR: ("TP", tp.LAYOUT),
}


_NOTHING: dict[str, Any] = {
    "kind": "?", "what": "not understood", "operation": "", "macs": 0, "useful_macs": 0, "weights": 0,
    "zero_weights": 0, "stored_bytes": 0, "read_bytes": 0, "written_bytes": 0,
}  # fmt: skip
"""What is said of a job that is not understood."""


@dataclass(frozen=True)
class JobShown:
    """One job of a trace; sizes in bytes.

    Attributes:
        number: in the whole trace, from 0.
        kind: ``conv``, ``depthwise``, ``move`` or ``look up``.
        macs: multiplications that the hardware is asked for; useful_macs: without those with planes
            that a depthwise convolution written as a dense one leaves at the zero point.
        weights: number of weights; stored_bytes: of the coefficient stream that holds them.
        zero_weights: how many stand at the zero point.
        read_bytes: descriptor, coefficients and input, each once; caches are not known.
        fields: the descriptor.
        problem: why the job could not be understood, "" if it could.
    """

    number: int
    unit: str
    address: int
    kind: str
    what: str
    operation: str
    macs: int
    useful_macs: int
    weights: int
    zero_weights: int
    stored_bytes: int
    read_bytes: int
    written_bytes: int
    seconds: float
    fields: dict[str, int]
    problem: str = ""

    @property
    def moved_bytes(self) -> int:
        """Bytes read and written."""
        return self.read_bytes + self.written_bytes


@dataclass
class SubmissionShown:
    """One submission; ``like`` is an earlier one with the very same jobs, or None."""

    number: int
    client: int
    buffers: int
    buffer_bytes: int
    stream_words: int
    jobs: list[JobShown] = field(default_factory=list)
    fault: str = ""
    like: int | None = None

    def totals(self) -> dict[str, int]:
        """Sums over the jobs."""
        names = (
            "macs", "useful_macs", "weights", "zero_weights", "stored_bytes", "read_bytes",
            "written_bytes",
        )  # fmt: skip
        sums = {name: sum(getattr(job, name) for job in self.jobs) for name in names}
        units = [job.unit for job in self.jobs]
        tp_jobs = units.count("TP")
        return {"nn_jobs": len(units) - tp_jobs, "tp_jobs": tp_jobs, **sums}


@dataclass
class Shown:
    """A whole trace."""

    header: Header
    submissions: list[SubmissionShown]

    def document(self) -> dict[str, Any]:
        """Return the document for machines."""
        header = self.header
        return {
            "npu": header.npu.name,
            "title": header.npu.title,
            "mode": header.mode,
            "door": header.door,
            "created": header.created,
            "software": header.software,
            "totals": self.totals(),
            "submissions": [{**asdict(each), "totals": each.totals()} for each in self.submissions],
        }

    def totals(self) -> dict[str, int]:
        """Sums over all submissions."""
        sums: dict[str, int] = {"submissions": len(self.submissions)}
        for each in self.submissions:
            for name, value in each.totals().items():
                sums[name] = sums.get(name, 0) + value
        return sums


def show(path: Path, *, job: int | None = None) -> Shown:
    """Read a trace and say what is in it; nothing is run.

    Args:
        job: only this job.

    Raises:
        TraceError: the file is not a trace or a broken one.
        UserError: there is no such job.
    """
    records = read(path)
    header = header_of(records, path)
    machine = Machine(path)
    npu = header.npu
    reader = _JobReader(npu) if isinstance(npu, Identity) else None
    tasks = TaskReader()
    exact = None
    if header.operations and isinstance(npu, Identity):
        exact = ExactMode(header.operations, npu.nn_generation)
    shown_submissions: list[SubmissionShown] = []
    number = 0
    for submit, parts in submissions(records, path):
        shown = SubmissionShown(
            len(shown_submissions),
            submit.client,
            len(submit.buffers),
            sum(size for _, size, _ in submit.buffers),
            len(submit.stream) // 4,
        )
        if not reader:
            tasks.submission(submit)
        for part in _jobs(submit, parts, machine, shown):
            buffers = machine.buffers(submit)
            if reader:
                shown.jobs.append(reader.read(number, part, buffers, exact))
            else:
                shown.jobs.append(_task(number, part, buffers, tasks))
            machine.put(submit.client, part.after)
            number += 1
        _compare_with(shown_submissions, shown)
        shown_submissions.append(shown)
    if job is not None:
        for each in shown_submissions:
            each.jobs = [one for one in each.jobs if one.number == job]
        shown_submissions = [each for each in shown_submissions if each.jobs]
        if not shown_submissions:
            raise UserError(f"{path} has {counted(number, 'job')}, from 0; there is no job {job}")
    return Shown(header, shown_submissions)


def _jobs(
    submit: Submit, parts: Iterator[Job | End], machine: Machine, shown: SubmissionShown
) -> Iterator[Job]:
    machine.space(submit)
    for part in parts:
        if isinstance(part, End):
            shown.fault = part.fault
        else:
            machine.put(submit.client, part.before)
            yield part


def _compare_with(earlier: list[SubmissionShown], shown: SubmissionShown) -> None:
    own_jobs = [(job.unit, job.fields, job.weights, job.zero_weights) for job in shown.jobs]
    for other in earlier:
        other_jobs = [(job.unit, job.fields, job.weights, job.zero_weights) for job in other.jobs]
        if own_jobs and own_jobs == other_jobs and shown.fault == other.fault:
            shown.like = other.number if other.like is None else other.like
            return


def _shown(
    number: int, job: Job, fields: dict[str, int], figures: dict[str, Any], problem: str
) -> JobShown:
    return JobShown(
        number=number,
        unit=job.unit,
        address=job.address,
        seconds=job.seconds,
        fields=fields,
        problem=problem,
        **figures,
    )


def _task(number: int, job: Job, memory: Buffers, reader: TaskReader) -> JobShown:
    """Return a task of a Rockchip NPU; what is not understood is named in it."""
    fields: dict[str, int] = {}
    shown, problem = dict(_NOTHING), ""
    try:
        fields, figures = reader.read(job, memory)
        shown |= figures
    except FaultError as error:
        error.at(job=number, unit=job.unit, address=job.address)
        problem = str(error)
    return _shown(number, job, fields, shown, problem)


class _JobReader:
    """Reads descriptors and coefficients of one NPU."""

    def __init__(self, npu: Identity) -> None:
        self._npu = npu
        self._cache = DecodedCache()

    def read(self, number: int, job: Job, memory: Buffers, exact: ExactMode | None) -> JobShown:
        """Return a job; what is not understood is named in it."""
        layout = nn.LAYOUT if job.unit == "NN" else tp.LAYOUT
        shown = dict(_NOTHING)
        fields: dict[str, int] = {}
        problem = ""
        try:
            size_bytes = 4 * layout.size_words
            words = memory.view(job.address, size_bytes, Access.READ).view("<u4")
            fields = _fields(layout, words)
            if job.unit == "NN":
                parsed = nn.parse(words, self._npu.nn_generation)
                if exact:
                    shown["operation"] = exact.operation(parsed)
                shown |= self._nn(parsed, memory)
            else:
                moved = tp.parse(words)
                planes, rows, columns = moved.size
                x0, y0, x1, y1 = moved.window
                shown |= {
                    "kind": "look up" if moved.lookup else "move",
                    "what": f"{planes}x{rows}x{columns} -> {planes}x{y1 - y0 + 1}x{x1 - x0 + 1}",
                    "read_bytes": moved.read_bytes,
                    "written_bytes": moved.bytes_moved,
                }
        except FaultError as error:
            error.at(job=number, unit=job.unit, address=job.address)
            problem = str(error)
        return _shown(number, job, fields, shown, problem)

    def _nn(self, job: NnJob, memory: Buffers) -> dict[str, Any]:
        shape, geometry = job.shape, job.geometry
        coefficients = self._coefficients(job, memory)
        pixels = geometry.out_height * geometry.out_width
        depthwise = shape.depthwise or (coefficients.sources is not None and shape.in_channels > 1)
        useful = coefficients.weights.size * pixels
        what = (
            f"{shape.height}x{shape.width} {shape.in_channels}x{job.in_height}x{job.in_width} -> "
            f"{shape.out_channels}x{geometry.out_height}x{geometry.out_width}"
        )
        zeros = coefficients.weights.size - int(np.count_nonzero(coefficients.weights))
        return {
            "kind": "depthwise" if depthwise else "conv",
            "what": what,
            "macs": job.macs,
            "useful_macs": useful,
            "weights": shape.weights,
            "zero_weights": shape.weights - coefficients.weights.size + zeros,
            "stored_bytes": coefficients.stored_bytes,
            "read_bytes": job.read_bytes + coefficients.stored_bytes,
            "written_bytes": job.written_bytes,
        }

    def _coefficients(self, job: NnJob, memory: Buffers) -> Coefficients:
        cores, shape = self._npu.nn_cores, job.shape
        if self._npu.nn_generation == 7:
            data = zero_runs.stream(memory, job.coefficients_address, shape, cores)
            bits = self._npu.max_zrl_bits
            return self._cache.get(
                data, (7, cores, shape), lambda: zero_runs.decode(data, shape, cores, bits)
            )
        data = huffman.stream(memory, job.coefficients_address, shape, cores)
        return self._cache.get(data, (8, cores, shape), lambda: huffman.decode(data, shape, cores))


def _fields(layout: Layout, words: np.ndarray[Any, np.dtype[np.uint32]]) -> dict[str, int]:
    """Return all fields of a descriptor, whatever their values."""
    plain = words.tolist()
    values = {}
    for name in layout.names:
        place, word, shift = layout.place(name)
        values[name] = plain[word] >> shift & (1 << place.bits) - 1
    return values


__all__ = ["JobShown", "Shown", "SubmissionShown", "TraceError", "show"]
