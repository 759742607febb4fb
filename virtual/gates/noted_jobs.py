# SPDX-License-Identifier: MIT
"""The jobs that a Mesa makes of a model, as facts to compare: which is the first that changed?"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..npu.finding import Finding
from ..npu.identity import Identity, load_npu
from ..npu.memory import Bytes
from ..npu.tflite.arithmetic import Accumulators
from ..npu.vivante.coefficients import Coefficients
from ..npu.vivante.maker import Maker
from ..npu.vivante.nn import NnJob
from ..npu.vivante.tp import TpJob
from .model_runner import ModelRunner

Fact = dict[str, Any]
"""What is known of a job, by name; addresses, which differ from run to run, are left out."""

_TITLE = "job"


class _Notes:
    """An ``Audit`` that finds nothing, and notes each job."""

    def __init__(self) -> None:
        self.jobs: list[Fact] = []

    def operation(self, job: NnJob) -> str:
        """Nothing: no model is looked at."""
        return ""

    def place(self) -> str:
        """Nothing, likewise."""
        return ""

    def nn(
        self, job: NnJob, image: Bytes, coefficients: Coefficients, accumulators: Accumulators
    ) -> Iterable[Finding]:
        """Note an NN job with its coefficients and what it reads."""
        fact = {_TITLE: f"NN, {job.describe()}", **_flat(asdict(job))}
        fact["weights"] = _digest(coefficients.weights)
        fact["biases"] = _digest(coefficients.biases)
        fact["order of the coefficients"] = coefficients.layout
        fact["input's bytes"] = _digest(image)
        self.jobs.append(fact)
        return ()

    def tp(self, job: TpJob, image: Bytes, target: Bytes) -> Iterable[Finding]:
        """Note a TP job and what it reads."""
        fields = asdict(job)
        fields.pop("lookup", None)
        fact = {_TITLE: f"TP, {job.describe()}", **_flat(fields), "input's bytes": _digest(image)}
        self.jobs.append(fact)
        return ()


def jobs_of(runner: ModelRunner, model: Path, inputs: list[NDArray[Any]], npu: str) -> list[Fact]:
    """Return the jobs that a Mesa makes of a model, up to one that stops the NPU."""
    notes = _Notes()
    identity = load_npu(npu)
    maker = Maker(identity, audit=lambda: notes) if isinstance(identity, Identity) else None
    runner.attempt(model, inputs, npu, maker=maker)
    return notes.jobs


def first_change(before: list[Fact], after: list[Fact]) -> str:
    """Return in words which job is the first that differs, and in what; empty where none does."""
    for number, (old, new) in enumerate(zip(before, after, strict=False)):
        names = [name for name in new if old.get(name) != new[name]]
        if not names:
            continue
        if old[_TITLE] != new[_TITLE]:
            return f"job {number}: {old[_TITLE]} -> {new[_TITLE]}"
        changes = [
            name if isinstance(new[name], str) and len(new[name]) == _DIGITS
            else f"{name} {old.get(name)} -> {new[name]}"
            for name in names
        ]  # fmt: skip
        return f"job {number} ({new[_TITLE]}): {', '.join(changes[:6])}"
    if len(before) == len(after):
        return ""
    if len(after) < len(before):
        return f"job {len(after)} is missing: {before[len(after)][_TITLE]}"
    return f"job {len(before)} is new: {after[len(before)][_TITLE]}"


_DIGITS = 16


def _digest(numbers: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(numbers).tobytes()).hexdigest()[:_DIGITS]


def _flat(record: Mapping[str, Any]) -> Fact:
    """Leave addresses out, and bring records inside of it to the top."""
    return dict(_pairs(record))


def _pairs(record: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from _pairs(value)
        elif "address" not in name:
            yield name, value
