# SPDX-License-Identifier: MIT
"""The engine: state writes become jobs, jobs run on a client's memory.

A door (the QEMU device, the shim, a trace) makes one ``Engine`` for each client, gives it that client's
memory, and either hands over whole command streams (``submit``) or, where it walks the stream itself,
single state writes (``write_state``).
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from ..decoded_cache import DecodedCache
from ..faults import FaultError, Finding
from ..identity import Identity
from ..jobs import JobRecord, Step, Watch
from ..memory import Access, Bytes, Memory
from ..tflite.arithmetic import Accumulators, Pixels
from . import frontend, huffman, lookup, nn, requant, tp, zero_runs
from .coefficients import Coefficients
from .convolution import accumulate
from .frontend import Words
from .nn import NnJob
from .tp import TpJob

ADDRESS_MASK = ~0x1F
"""Low 5 bits of PS_NN_INST_ADDR and PS_TP_INST_ADDR are a sequence number, not part of the address."""
_UNITS = {frontend.PS_NN_INST_ADDR: "NN", frontend.PS_TP_INST_ADDR: "TP"}


class Requantisation(Protocol):
    """How accumulators become outputs; see ``HardwareMode`` and ``exact.ExactMode``."""

    def operation(self, job: NnJob) -> str:
        """Return the name of the model's operation that ``job`` belongs to, "" if not known.

        Called once for each job, before anything else.
        """
        ...

    def output(self, job: NnJob, image: Bytes, accumulators: Accumulators) -> Pixels:
        """Return the output of the job that ``operation`` was just called with.

        Args:
            image: the job's input, (channels, height, width).
            accumulators: (channels, height, width).
        """
        ...

    def table(self, job: TpJob, predicted: Bytes) -> Bytes:
        """Return the output for each of the 256 pixel values of a TP job with a look-up table.

        Args:
            predicted: what the job's own table, multiplier and shift make of them.
        """
        ...


class HardwareMode:
    """Outputs as silicon is predicted to compute them, from the descriptor alone."""

    def operation(self, job: NnJob) -> str:
        """Return "": the descriptor does not know the model."""
        return ""

    def output(self, job: NnJob, image: Bytes, accumulators: Accumulators) -> Pixels:
        """Return rounded, clamped outputs."""
        return requant.hardware(accumulators, job.scale, job.out_zero_point, job.low)

    def table(self, job: TpJob, predicted: Bytes) -> Bytes:
        """Return the table as it is."""
        return predicted


class Audit(Protocol):
    """Looks at a job's numbers beside the model's own; see ``audit.ModelAudit``."""

    def operation(self, job: NnJob) -> str:
        """Return the name of the model's operation that ``job`` belongs to, "" if it cannot be known.

        Called once for each NN job, before anything else of it is read.
        """
        ...

    def place(self) -> str:
        """Return where in the model a job stands that cannot even be read: behind which operation."""
        ...

    def nn(
        self, job: NnJob, image: Bytes, coefficients: Coefficients, accumulators: Accumulators
    ) -> Iterable[Finding]:
        """Return what is wrong with a job; its number and address are added by the engine."""
        ...

    def tp(self, job: TpJob, image: Bytes, target: Bytes) -> Iterable[Finding]:
        """As ``nn``.

        Args:
            image: the input before the job ran, (planes, rows, columns).
            target: the output, from its base address on.
        """
        ...


@dataclass
class Engine:
    """One client's NPU.

    Attributes:
        memory: the client's memory; a door may replace it between submits.
        requantisation: hardware mode unless given.
        cache: decoded coefficients; may be shared by the engines of several clients.
        own_states: states that the door itself carries out (MMU, events), by address; any state in it
            is also a known state.
        on_job: called after each job.
        watch: told of each job's begin and end, also of those that fail.
        audit: compares each job with the model; what it finds is noted, and stops nothing.
        findings: what was odd but could be run; at most ``MAX_FINDINGS``.
    """

    MAX_FINDINGS = 200

    identity: Identity
    memory: Memory
    requantisation: Requantisation = field(default_factory=HardwareMode)
    cache: DecodedCache = field(default_factory=DecodedCache)
    own_states: Mapping[int, Callable[[int], None]] = field(default_factory=dict)
    on_job: Callable[[JobRecord], None] | None = None
    watch: Watch | None = None
    audit: Audit | None = None
    findings: list[Finding] = field(default_factory=list)
    jobs: int = 0

    def submit(self, stream: Words) -> None:
        """Run a client's command stream to its end.

        Raises:
            FaultError: a word, state or job is wrong; jobs before it have run.
        """
        for step in self.steps(stream):
            step.run()

    def steps(self, stream: Words) -> Iterator[Step]:
        """Yield the steps of a client's command stream: its state writes.

        Raises:
            FaultError: a word is wrong; the steps before it have been yielded.
        """
        for state, value in frontend.state_writes(stream):
            unit = _UNITS.get(state, "")
            address = value & ADDRESS_MASK if unit else 0
            yield Step(unit, address, functools.partial(self.write_state, state, value))

    def write_state(self, state: int, value: int) -> None:
        """Carry out one state write; a write of a job address runs the job before it returns.

        Raises:
            FaultError: the state is unknown, or its job is wrong.
        """
        own = self.own_states.get(state)
        if own is not None:
            own(value)
            return
        frontend.check_state(state, value)
        if state == frontend.PS_NN_INST_ADDR:
            self._job("NN", value & ADDRESS_MASK, self._run_nn)
        elif state == frontend.PS_TP_INST_ADDR:
            self._job("TP", value & ADDRESS_MASK, self._run_tp)

    def note(self, finding: Finding) -> None:
        """Keep a finding, unless there are very many or the same job had it before."""
        if len(self.findings) >= self.MAX_FINDINGS:
            return
        mine = replace(finding, job=None)
        if not any(replace(each, job=None) == mine for each in self.findings):
            self.findings.append(finding)

    def _job(self, unit: str, address: int, run: Callable[[int, int], JobRecord]) -> None:
        number = self.jobs
        self.jobs += 1
        if self.watch:
            self.watch.job_begins(unit, address)
        try:
            record = run(number, address)
        except FaultError as error:
            error.at(job=number, unit=unit, address=address)
            if self.watch:
                self.watch.job_ends(None)
            raise
        if self.watch:
            self.watch.job_ends(record)
        if self.on_job:
            self.on_job(record)

    def _run_nn(self, number: int, address: int) -> JobRecord:
        started = time.perf_counter()
        operation = self.audit.place() if self.audit else ""
        try:
            job = nn.parse(self._words(address, nn.LAYOUT.size_words), self.identity.nn_generation)
            # The audit is asked first: where the job fits no operation, the requantisation stops here.
            operation = self.audit.operation(job) if self.audit else ""
            operation = self.requantisation.operation(job) or operation
            coefficients = self._coefficients(job)
            if coefficients.layout != coefficients.expected_layout:
                self.note(
                    Finding(
                        "coefficient order",
                        coefficients.expected_layout,
                        coefficients.layout,
                        job=number,
                        unit="NN",
                        address=job.coefficients_address,
                        operation=operation,
                    )
                )
            image = nn.read_image(job, self.memory)
            target = nn.output_image(job, self.memory)
            accumulators = accumulate(image, coefficients, job.geometry)
            if self.audit:
                for finding in self.audit.nn(job, image, coefficients, accumulators):
                    named = finding.operation or operation
                    self.note(
                        replace(finding, job=number, unit="NN", address=address, operation=named)
                    )
            target[...] = self.requantisation.output(job, image, accumulators)
        except FaultError as error:
            error.at(job=number, unit="NN", address=address, operation=operation)
            raise
        return JobRecord(
            number,
            "NN",
            address,
            job.describe(),
            operation,
            time.perf_counter() - started,
            macs=job.macs,
            coefficient_bytes=coefficients.stored_bytes,
        )

    def _run_tp(self, number: int, address: int) -> JobRecord:
        started = time.perf_counter()
        job = tp.parse(self._words(address, tp.LAYOUT.size_words))
        if not job.bytes_moved:
            expected = "at least 1 (nothing is moved; what silicon does is not known)"
            self.note(
                Finding("in_image_z_size", expected, "0", job=number, unit="TP", address=address)
            )
        table = None
        if job.lookup:
            table = self.requantisation.table(job, lookup.byte_table(job.lookup, self.memory))
        # Before it runs: a job may write where it has read.
        image = tp.read_image(job, self.memory).copy() if self.audit else None
        target = tp.run(job, self.memory, table=table)
        if self.audit and image is not None:
            for finding in self.audit.tp(job, image, target):
                self.note(replace(finding, job=number, unit="TP", address=address))
        return JobRecord(number, "TP", address, job.describe(), "", time.perf_counter() - started)

    def _coefficients(self, job: NnJob) -> Coefficients:
        cores, generation = self.identity.nn_cores, self.identity.nn_generation
        address, shape = job.coefficients_address, job.shape
        if generation == 7:
            run_bits = self.identity.max_zrl_bits
            data = zero_runs.stream(self.memory, address, shape, cores)
            return self.cache.get(
                data, (7, cores, shape), lambda: zero_runs.decode(data, shape, cores, run_bits)
            )
        data = huffman.stream(self.memory, address, shape, cores)
        return self.cache.get(data, (8, cores, shape), lambda: huffman.decode(data, shape, cores))

    def _words(self, address: int, count: int) -> Words:
        return self.memory.view(address, 4 * count, Access.READ).view(np.uint32)
