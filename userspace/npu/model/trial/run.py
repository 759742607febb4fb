# SPDX-License-Identifier: MIT
"""What became of a model that was run on an NPU: the record, and the place that makes it.

The place is handed down by a command: this floor knows no emulator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

RIGHT, CLOSE, WRONG = "right", "close", "wrong"
CRASHES, HANGS, REFUSED, NOT_RUN = "crashes", "hangs", "refused", "not run"
MOVED, NOT_COMPARED, CPU = "moved", "not compared", "cpu"
GOOD, BAD = (RIGHT, CLOSE), (WRONG, CRASHES, HANGS)
TFLITE_REFUSES = "TFLite itself does not run it"
CLOSE_STEPS = 8
"""Mesa's own tolerance for whole models (src/gallium/targets/teflon/test_teflon.cpp)."""


@dataclass(frozen=True)
class OperationRun:
    """One operation of a run.

    Attributes:
        status: ``right`` (each value is TFLite's), ``wrong``, ``moved`` (bytes are moved or looked up: its
            values are seen in the operations behind it), ``not compared``, or ``cpu``.
        different: values that differ, of ``values``; largest: by how many steps at most.
        jobs, read_bytes, written_bytes, coefficient_bytes: of the jobs that were submitted for it.
        weights_bytes: its weights in the model; coefficient_bytes hold these, coded.
        macs: its multiplications, as the model has them.
    """

    index: int
    operation: str
    status: str
    different: int = 0
    values: int = 0
    largest: int = 0
    jobs: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    coefficient_bytes: int = 0
    weights_bytes: int = 0
    macs: int = 0


@dataclass(frozen=True)
class OutputRun:
    """One output of the model.

    Attributes:
        largest: the largest difference, in the output's own units: steps of bytes, else values.
        scale: what a step is worth; 0 without quantisation.
        looks: what is odd about the right values: ``all zero``, ``constant``, ``saturated``; "" if nothing.
    """

    name: str
    values: int
    different: int
    largest: float
    scale: float = 0.0
    looks: str = ""


@dataclass(frozen=True)
class Agreement:
    """How one output agrees with TFLite's over a set of inputs, computed as silicon is predicted to.

    Attributes:
        sets: how many inputs; values: of all of them; different: of these.
        largest, mean: differences, as in ``OutputRun``.
        top: for how many of ``sets`` the largest value is at the same place; None where the output has no
            more than one value, or is not a list of scores. ties: of these, where another is as large.
    """

    name: str
    sets: int
    values: int
    different: int
    largest: float
    mean: float
    top: int | None = None
    ties: int = 0


@dataclass(frozen=True)
class Run:
    """One run of a model with one Mesa on one NPU; bytes are an inference's.

    Attributes:
        status: ``right`` (no value of any output differs from TFLite's), ``close`` (within
            ``CLOSE_STEPS``, computed as silicon is predicted to), ``wrong``, ``crashes``, ``hangs``,
            ``refused`` (nothing was taken), or ``not run``.
        first_wrong: index of the first operation with wrong values; None where none is known.
        hardware_error: by how many steps predicted silicon differs from TFLite within one operation.
        load_s: CPU time in which the delegate compiled the model, under emulation: to compare Mesas only.
    """

    npu: str
    mesa: str
    status: str
    why: str = ""
    note: str = ""
    different: int = 0
    values: int = 0
    first_wrong: int | None = None
    nn_jobs: int = 0
    tp_jobs: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    coefficient_bytes: int = 0
    weights_bytes: int = 0
    hardware_error: int = 0
    load_s: float = 0.0
    operations: tuple[OperationRun, ...] = ()
    outputs: tuple[OutputRun, ...] = ()
    agreement: tuple[Agreement, ...] = ()
    findings: tuple[str, ...] = field(default=())

    @property
    def jobs(self) -> int:
        """All jobs of an inference."""
        return self.nn_jobs + self.tp_jobs

    @property
    def macs(self) -> int:
        """Multiplications of the operations that the NPU runs, as the model has them."""
        return sum(each.macs for each in self.operations if each.status != CPU)

    @property
    def moved_bytes(self) -> int:
        """All bytes that an inference reads and writes."""
        return self.read_bytes + self.written_bytes

    def share(self, operation: OperationRun) -> float:
        """Return which part of the bytes an operation's jobs read and write."""
        total = self.moved_bytes
        return (operation.read_bytes + operation.written_bytes) / total if total else 0.0

    def document(self) -> dict[str, Any]:
        """The same as plain data."""
        plain_data = asdict(self) | {"jobs": self.jobs, "macs": self.macs}
        for each, plain in zip(self.operations, plain_data["operations"], strict=True):
            plain["bytes_share"] = round(self.share(each), 6)
        return plain_data


@dataclass(frozen=True)
class RunRequest:
    """What to run.

    Attributes:
        model: the file's content, with fixed shapes.
        inputs: what each input is given.
        mesa: version; npus: names, as in ``known_faults.NPUS``.
        sets: more inputs, for ``Run.agreement``.
    """

    model: bytes
    inputs: tuple[NDArray[Any], ...]
    mesa: str
    npus: tuple[str, ...]
    timeout_s: float = 120.0
    sets: tuple[tuple[NDArray[Any], ...], ...] = ()


class RunPlace(Protocol):
    """Where a model is run: a command hands it down."""

    def npus(self) -> Sequence[str]:
        """Return the names of the NPUs that there are."""
        ...

    def run(self, request: RunRequest) -> Sequence[Run]:
        """Run it on each NPU, and return what became of it."""
        ...


def oddity_of(values: NDArray[Any]) -> str:
    """Return what is odd about an output's values; "" if nothing: no test of right or wrong."""
    if values.size < 2 or values.dtype == bool:
        return ""
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        return "not finite"
    low, high = values.min(), values.max()
    if low == high:
        return "all zero" if not low else "constant"
    if values.dtype.kind in "iu" and values.dtype.itemsize == 1:
        ends = np.iinfo(values.dtype)
        if float(((values == ends.min) | (values == ends.max)).mean()) > _SATURATED:
            return "saturated"
    return ""


_SATURATED = 0.99
