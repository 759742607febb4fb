# SPDX-License-Identifier: MIT
"""Which jobs an operation of a model became, what they read and wrote, and whether its values are right."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..npu.finding import Finding
from ..npu.memory import Bytes
from ..npu.tflite.arithmetic import Accumulators, Pixels
from ..npu.tflite.operations import operations
from ..npu.vivante.audit.exact import ExactMode
from ..npu.vivante.audit.jobs import ModelAudit
from ..npu.vivante.coefficients import Coefficients
from ..npu.vivante.nn import NnJob
from ..npu.vivante.requant import hardware
from ..npu.vivante.tp import TpJob


@dataclass
class Entry:
    """One operation's jobs; sizes in bytes, as in ``userspace.npu.model.trial.run.OperationRun``."""

    jobs: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    coefficient_bytes: int = 0
    computed: bool = False
    compared: bool = False
    different: int = 0
    values: int = 0
    largest: int = 0

    def add(self, read_bytes: int, written_bytes: int, coefficient_bytes: int = 0) -> None:
        """Count a job."""
        self.jobs += 1
        self.read_bytes += read_bytes + coefficient_bytes
        self.written_bytes += written_bytes
        self.coefficient_bytes += coefficient_bytes

    def compare(self, written: NDArray[np.uint8], right: NDArray[np.uint8]) -> None:
        """Compare what a job wrote, plane by plane, with the operation's right values."""
        self.compared = True
        self.values = right.size
        if written.size != right.size:
            self.different, self.largest = right.size, 255
            return
        # Jobs of the newest Mesa leave some tensors as TFLite has them, channels last.
        ways = [_channels_first(right).reshape(-1), right.reshape(-1)]
        gaps = [np.abs(written.reshape(-1).astype(np.int16) - way) for way in ways]
        counts = [int(np.count_nonzero(gap)) for gap in gaps]
        best = counts.index(min(counts))
        self.different, self.largest = counts[best], int(gaps[best].max(initial=0))


class Ledger:
    """What one run's jobs were.

    Attributes:
        entries: by an operation's index; None for jobs of no single operation.
        nn_jobs, tp_jobs: how many there were.
        hardware_error: by how many steps predicted silicon differs from TFLite within one job.
    """

    def __init__(self, right: Mapping[int, NDArray[Any]]) -> None:
        """Begin with nothing; ``right`` has the first outputs of operations, by index."""
        self.entries: dict[int | None, Entry] = {}
        self.nn_jobs = 0
        self.tp_jobs = 0
        self.hardware_error = 0
        self._right = right
        self._writers: list[tuple[int, int, int]] = []
        self._waiting: list[tuple[TpJob, int]] = []

    def nn(self, operation: int | None, job: NnJob, coefficients: Coefficients) -> None:
        """Enter an NN job, and the TP jobs that brought what it reads."""
        self.nn_jobs += 1
        self._entry(operation).add(job.read_bytes, job.written_bytes, coefficients.stored_bytes)
        self._entry(operation).computed = True
        size = job.in_plane * job.shape.in_channels
        kept = []
        for waiting, written in self._waiting:
            if (
                waiting.out_address < job.in_address + size
                and job.in_address < waiting.out_address + written
            ):
                self._entry(operation).add(waiting.read_bytes, waiting.bytes_moved)
            else:
                kept.append((waiting, written))
        self._waiting = kept
        if operation is not None:
            planes = job.out_plane * job.shape.out_channels
            self._writers.append((job.out_address, planes, operation))

    def job(self, operation: int | None, job: Mapping[str, Any]) -> None:
        """Enter a job by its record, a ``JobRecord`` as a dictionary."""
        self.nn_jobs += 1
        self._entry(operation).add(
            job["read_bytes"], job["written_bytes"], job["coefficient_bytes"]
        )
        self._entry(operation).computed = True

    def tp(self, job: TpJob, target_bytes: int) -> None:
        """Enter a TP job; whose it is shows later, by who reads what it wrote."""
        self.tp_jobs += 1
        self._waiting.append((job, target_bytes))

    def close(self) -> None:
        """Give the TP jobs that no NN job read from to who wrote what they read."""
        for job, _ in self._waiting:
            writers = (
                each
                for start, size, each in reversed(self._writers)
                if start <= job.address < start + size
            )
            self._entry(next(writers, None)).add(job.read_bytes, job.bytes_moved)
        self._waiting = []

    def output(self, operation: int, pixels: Pixels) -> None:
        """Compare what an NN job computed with what TFLite does."""
        right = self._right.get(operation)
        if (
            right is None
            or right.dtype not in (np.uint8, np.int8)
            or self._entry(operation).different
        ):
            return
        self._entry(operation).compare(np.ascontiguousarray(pixels), unsigned(right))

    def _entry(self, operation: int | None) -> Entry:
        return self.entries.setdefault(operation, Entry())


class LedgerAudit(ModelAudit):
    """As ``ModelAudit``, and keeps a ledger."""

    def __init__(self, path: Path, generation: int, ledger: Ledger, **settings: Any) -> None:
        super().__init__(path, generation, **settings)
        self._ledger = ledger

    def nn(
        self, job: NnJob, image: Bytes, coefficients: Coefficients, accumulators: Accumulators
    ) -> Iterator[Finding]:
        """As ``ModelAudit.nn``."""
        yield from super().nn(job, image, coefficients, accumulators)
        self._ledger.nn(self._current.index if self._current else None, job, coefficients)

    def tp(self, job: TpJob, image: Bytes, target: Bytes) -> Iterator[Finding]:
        """As ``ModelAudit.tp``."""
        yield from super().tp(job, image, target)
        self._ledger.tp(job, target.size)


class LedgerExact(ExactMode):
    """As ``ExactMode``, and compares what each operation's job computes."""

    def __init__(self, path: Path, generation: int, ledger: Ledger) -> None:
        super().__init__(operations(path), generation)
        self._ledger = ledger

    def output(self, job: NnJob, image: Bytes, accumulators: Accumulators) -> Pixels:
        """As ``ExactMode.output``."""
        exact = super().output(job, image, accumulators)
        predicted = hardware(accumulators, job.scale, job.out_zero_point, job.low)
        error = int(np.abs(predicted.astype(np.int16) - exact).max(initial=0))
        self._ledger.hardware_error = max(self._ledger.hardware_error, error)
        if self.current is not None:
            self._ledger.output(self.current.index, exact)
        return exact


def unsigned(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Return bytes as the NPU has them: int8 moved by 128."""
    if values.dtype == np.int8:
        return np.asarray(values.view(np.uint8) ^ np.uint8(0x80), np.uint8)
    return np.asarray(values, np.uint8)


def _channels_first(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(np.moveaxis(values, -1, 1)) if values.ndim == 4 else values
