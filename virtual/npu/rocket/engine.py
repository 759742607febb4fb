# SPDX-License-Identifier: MIT
"""The engine: the jobs of a submit, one task after another, on a client's memory.

The shim's ``rocket.c`` says what the words of a submit are. All of a client's buffers are in the NPU's
address space; a job may write the ones only that it names as outputs, for the kernel orders jobs by them.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from ..decoded_cache import DecodedCache
from ..faults import FaultError, MemoryFaultError
from ..finding import Finding
from ..jobs import JobRecord, Step, Watch
from ..memory import Access, Bytes, Memory
from . import arithmetic
from .model import Model
from .oddities import oddities
from .registers import fields_of
from .task import Task, parse
from .weights import weights_of

Words = NDArray[np.uint32]
UNIT = "CNA"
"""The unit that reads a task's input; it stands for all that a task starts."""


@dataclass(frozen=True)
class Job:
    """One job of a submit.

    Attributes:
        tasks: address and number of the commands of each.
        inputs: addresses of the buffers that it reads.
        outputs: address and size of those that it writes.
    """

    tasks: Sequence[tuple[int, int]]
    inputs: Sequence[int]
    outputs: Sequence[tuple[int, int]]


def jobs_of(stream: Words) -> list[Job]:
    """Return the jobs of a submit.

    Raises:
        FaultError: the stream ends too soon, or goes on.
    """
    words = iter(stream.tolist())

    def take(count: int) -> list[int]:
        taken = [word for _, word in zip(range(count), words, strict=False)]
        if len(taken) < count:
            raise FaultError("submit", "all jobs that it announces", "its end")
        return taken

    jobs = []
    for _ in range(take(1)[0]):
        tasks, inputs, outputs = take(3)
        jobs.append(Job(_pairs(take(2 * tasks)), take(inputs), _pairs(take(2 * outputs))))
    if next(words, None) is not None:
        raise FaultError("submit", "its end", "more words")
    return jobs


def _pairs(words: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(words[::2], words[1::2], strict=True))


class _JobMemory:
    """A client's memory, of which a job may write only the buffers that it names."""

    def __init__(self, memory: Memory, job: Job) -> None:
        self._memory = memory
        self._outputs = job.outputs

    def view(self, address: int, size_bytes: int, access: Access) -> Bytes:
        """As ``Memory.view``."""
        if Access.WRITE in access and not any(
            start <= address and address + size_bytes <= start + size
            for start, size in self._outputs
        ):
            raise MemoryFaultError(
                "out_bo_handles", "the buffer that is written", "others", address=address
            )
        return self._memory.view(address, size_bytes, access)


@dataclass
class Engine:
    """One client's NPU.

    Attributes:
        memory: the client's memory; a door may replace it between submits.
        on_job: called after each task.
        cache: decoded weights; may be shared with other engines.
        model: what is compared with each task, and computes it as TFLite does in exact mode.
        watch: told of each task's begin and end, also of those that fail.
        findings: what was odd but could be run.
    """

    MAX_FINDINGS = 200

    memory: Memory
    on_job: Callable[[JobRecord], None] | None = None
    cache: DecodedCache = field(default_factory=DecodedCache)
    model: Model | None = None
    watch: Watch | None = None
    findings: list[Finding] = field(default_factory=list)
    jobs: int = 0
    tasks: int = 0

    def submit(self, stream: Words) -> None:
        """Run a submit to its end.

        Raises:
            FaultError: a job is wrong; tasks before it have run.
        """
        for step in self.steps(stream):
            step.run()

    def steps(self, stream: Words) -> Iterator[Step]:
        """Yield the steps of a submit: its tasks.

        Raises:
            FaultError: the words are not a submit.
        """
        for job in jobs_of(stream):
            self.jobs += 1
            for address, count in job.tasks:
                run = functools.partial(self._task, self.jobs, job, address, count)
                yield Step(UNIT, address, run)

    def _task(self, job_number: int, job: Job, address: int, count: int) -> None:
        started = time.perf_counter()
        number = self.tasks
        self.tasks += 1
        if self.watch:
            self.watch.job_begins(UNIT, address)
        try:
            commands = self.memory.view(address, 8 * count, Access.READ).view(np.uint64)
            task = parse(fields_of(commands))
            operation, findings = self._run(job_number, task, _JobMemory(self.memory, job))
            for finding in findings:
                self._note(replace(finding, job=number, unit=UNIT, operation=operation))
        except FaultError as error:
            error.at(job=number, unit=UNIT, address=address)
            if self.watch:
                self.watch.job_ends(None)
            raise
        seconds = time.perf_counter() - started
        record = JobRecord(
            number, UNIT, address, task.describe(), operation, seconds, macs=task.macs,
            coefficient_bytes=task.weight_bytes, read_bytes=task.read_bytes,
            written_bytes=task.written_bytes,
        )  # fmt: skip
        if self.watch:
            self.watch.job_ends(record)
        if self.on_job:
            self.on_job(record)

    def _note(self, finding: Finding) -> None:
        """Keep a finding, unless there are very many or another task had it before."""
        mine = replace(finding, job=None, address=None)
        earlier = [replace(each, job=None, address=None) for each in self.findings]
        if len(earlier) < self.MAX_FINDINGS and mine not in earlier:
            self.findings.append(finding)

    def _run(self, job: int, task: Task, memory: Memory) -> tuple[str, list[Finding]]:
        """Run a task; return the operation of the model that it belongs to, and what is wrong with it."""
        image = arithmetic.as_buffered(task, arithmetic.read_input(task, memory))
        weights = weights_of(task, memory, self.cache)
        sums = arithmetic.accumulate(task, arithmetic.padded(task, image), weights)
        biases = arithmetic.biases(task, memory)
        addends = arithmetic.addends(task, task.addend, memory) if task.addend else None
        maps = arithmetic.Maps(sums, addends)
        values = arithmetic.converted(task, maps, biases)
        findings = list(oddities(task))
        name = ""
        if self.model:
            mine = self.model.belongs(job, task, weights.values)
            name = mine.name if mine else ""
            findings += self.model.audit(task, weights.values, biases, mine)
            values = self.model.output(task, maps, mine, values)
        arithmetic.write_output(task, values, memory)
        return name, findings
