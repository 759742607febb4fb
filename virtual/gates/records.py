# SPDX-License-Identifier: MIT
"""The fields of the gates' documents: plain data, as they are in JSON. docs/formats.md has the contract."""

from __future__ import annotations

from typing import TypedDict


class PackageRecord(TypedDict):
    """The delegate that was judged."""

    version: str
    upstream: str
    origin: str


class OutcomeRecord(TypedDict):
    """What became of one case on one NPU: see ``sweep.Outcome``."""

    npu: str
    name: str
    kind: str
    status: str
    different: int
    values: int
    largest: int
    hardware_error: int
    jobs: int
    seconds: float
    blame: str
    evidence: str
    note: str
    faults: list[str]
    findings: list[str]


class KindRecord(TypedDict):
    """The verdict on a kind of operation on one NPU: the worst of its cases, of which it has the counts."""

    npu: str
    kind: str
    verdict: str
    good: int
    wrong: int
    refused: int
    crashes: int
    hangs: int
    blame: list[str]
    evidence: list[str]
    examples: list[str]
    notes: list[str]
    hardware_error: int


class ChangeRecord(TypedDict):
    """A case that comes out otherwise with another Mesa; ``change``: ``worse``, ``better``..."""

    npu: str
    kind: str
    name: str
    before: str
    after: str
    change: str
    blame: str
    evidence: str


class AgainstRecord(TypedDict):
    """What changed against another Mesa."""

    package: PackageRecord
    kinds: list[KindRecord]
    changes: list[ChangeRecord]
    worse: int
    better: int


class _MesaGate(TypedDict):
    format: int
    package: PackageRecord
    npus: list[str]
    quick: bool
    kinds: list[KindRecord]
    cases: list[OutcomeRecord]
    verdict: str


class MesaGateDocument(_MesaGate, total=False):
    """What ``gate-mesa --json`` prints; ``against`` only where there is another Mesa."""

    against: AgainstRecord


class CommitRecord(TypedDict):
    """A commit of Mesa."""

    commit: str
    subject: str


class BisectDocument(TypedDict):
    """What ``gate-mesa --bisect --json`` prints.

    ``commit`` and what describes it are empty where commits that do not build leave it open; then it is one
    of the ``candidates``.
    """

    format: int
    commit: str
    subject: str
    author: str
    date: str
    candidates: list[CommitRecord]
    good: str
    bad: str
    change: ChangeRecord
    compared_with: str
    first_job_that_changed: str
    tested: int
    skipped: int


class FirstWrong(TypedDict):
    """The first operation up to which a model comes out wrong; ``runs``: of shorter models."""

    index: int
    operation: str
    runs: int


class ModelVerdict(TypedDict):
    """A model's verdict on one NPU."""

    npu: str
    verdict: str
    different: int
    values: int
    largest: int
    blame: str
    evidence: str
    note: str
    first_wrong: FirstWrong | None


class ModelRun(ModelVerdict):
    """The same, with the versions of Mesa that are right where it is wrong."""

    right_with: list[str]


class ModelRecord(TypedDict):
    """A model, and what became of it on each NPU."""

    name: str
    sha256: str
    inputs: list[str]
    runs: list[ModelRun]


class ModelGateDocument(TypedDict):
    """What ``gate-mesa --model --json`` prints."""

    format: int
    package: PackageRecord
    npus: list[str]
    compared_others: bool
    models: list[ModelRecord]
    verdict: str


class KernelRun(TypedDict):
    """Inferences of one model on a board."""

    model: str
    invokes: int
    status: str
    median_ms: float | None


class KernelRow(TypedDict):
    """What became of a kernel on one board."""

    board: str
    kernel: str
    runs: list[KernelRun]
    invokes: int
    problems: list[str]
    complaints: list[str]
    verdict: str


class KernelGateDocument(TypedDict):
    """What ``gate-kernel --json`` prints."""

    format: int
    kernel: str
    boards: list[KernelRow]
    verdict: str
