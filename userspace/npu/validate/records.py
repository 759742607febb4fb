# SPDX-License-Identifier: MIT
"""The fields of the runner's document and of a smoke test's: plain data, as they are in JSON.

The runner lies alone on boards and imports nothing of this; older ones leave fields out, and so do older
documents of the history. docs/formats.md has the contract of ``--json``.
"""

from __future__ import annotations

from typing import Any, TypedDict

from ..model.operations import OperationRecord


class ShortRecord(TypedDict, total=False):
    """By how much each class is worse than the best one, a byte for each place and class, in ``unit``."""

    classes: int
    unit: float
    data: str


class OutputRecord(TypedDict, total=False):
    """An output of a row; ``data``: its bytes, compressed by zlib, as base64.

    ``short`` is there where a reference's output names the best of several classes.
    """

    name: str
    shape: list[int]
    dtype: str
    scale: float
    zero_point: int
    data: str
    short: ShortRecord


class Trouble(TypedDict, total=False):
    """What went wrong in the runner: the stage, in words, and what helps."""

    stage: str
    message: str
    hint: str


class CoreRecord(TypedDict, total=False):
    """A core behind a device node; ``npu``: whether it is one."""

    pipe: int
    npu: bool
    model: int
    revision: int
    product_id: int
    customer_id: int


class DeviceRecord(TypedDict, total=False):
    """A device node of an accelerator; ``unsafe``: why it is not opened again."""

    node: str
    driver: str
    by_path: str | None
    cores: list[CoreRecord]
    error: str | None
    unsafe: str


class RunnerProfile(TypedDict, total=False):
    """When each inference and each submit of a profile began and ended: see ``profiling.record``."""

    error: Trouble
    runs: list[list[int]]
    events: list[tuple[int, int | None, int, int, int]]
    one_job_a_submit: bool


class NotDelegated(TypedDict):
    """An operation that stayed on the CPU: its index, name, and why, where the rules know it."""

    index: int
    op: str
    why: str


class ComparedOutput(TypedDict):
    """How one output of a row compares with the reference's.

    Attributes:
        kind: what its numbers are (``judge.kinds``).
        compared: whether it has the reference's form, and that has numbers.
        values: how many there are.
        different: how many of these differ; None where the forms do.
        error: relative error, of the reference's spread.
        order: how its values would have to be put in order to be the reference's; mostly "".
        problem: what is wrong, "" if nothing.
    """

    index: int
    name: str
    shape: list[int]
    dtype: str
    kind: str
    compared: bool
    values: int
    different: int | None
    max_abs_diff: float | None
    error: float | None
    order: str
    problem: str


class PublishedRecord(TypedDict):
    """A published median, and by how much the row's is longer."""

    median_ms: float
    source: str
    ratio: float | None


class Agreement(TypedDict):
    """How often a row's answer is the reference's, over crops and flips of the picture.

    Attributes:
        inputs: how many pictures.
        same: on how many of them the answers are the same (of scores: the top class).
        top1: their share.
        clear: on how many they differ by more than the rounding of kernels explains.
        others: on how many of these the scores are what the reference has for another picture.
    """

    inputs: int
    same: int
    top1: float
    clear: int
    others: int


class DetectionRecord(TypedDict):
    """An object that a detector found; ``box``: top, left, bottom, right, as shares of the picture."""

    index: int
    score: float
    box: tuple[float, float, float, float]
    label: str


class InputRecord(TypedDict):
    """An input of the model, and what it was given."""

    name: str
    shape: list[int]
    dtype: str
    given: str


class MachineRecord(TypedDict, total=False):
    """The machine that ran the rows; ``machine``: its architecture."""

    machine: str
    kernel: str
    python: str
    numpy: str
    threads: int


class EmulatedNpuRecord(TypedDict):
    """An emulated NPU, and what it says of the jobs that it got.

    Attributes:
        jobs: how many it got.
        faults: jobs that it could not do, in words.
        findings: what contradicts the model.
        wrong: those of them by which values are wrong.
    """

    name: str
    mode: str
    jobs: int
    peak_memory_bytes: int
    faults: list[str]
    findings: list[str]
    wrong: list[str]


class RunnerRow(TypedDict, total=False):
    """What the runner found of one delegate; times in milliseconds.

    ``error`` is there in place of times and outputs where it did not run to its end. ``views`` are the
    outputs for crops and flips of the picture, as ``OutputRecord.data``, of the shapes ``view_shapes``;
    ``scored_views`` has what ``OutputRecord`` adds, for each view. ``answer`` and ``detections`` are added
    here, to rows of a detector.
    ``first_outputs``: of the first run, where those of the last one are others; ``unlike_first``: how many
    of the later runs gave others. ``lacks_portable``: an operator for which other kernels than the portable
    ones had to run. ``changed_inputs``: places of inputs that held something else after the first run than
    what they were set to; ``changed_model``: the model's bytes are others after all runs; ``overrun``: the
    delegate's outputs behind which it wrote, by name.
    """

    delegate: str
    library: str | None
    environment: dict[str, str]
    mesa: str | None
    kernel_log: list[str] | None
    log: str
    error: Trouble
    signal: str
    delegated_ops: int | None
    delegated_nodes: list[int] | None
    partitions: int | None
    on_cpu: list[Any]
    prepare_ms: float
    first_ms: float
    runs_ms: list[float]
    input: dict[str, Any]
    other_inputs: list[dict[str, Any]]
    output: OutputRecord
    other_outputs: list[OutputRecord]
    first_outputs: list[OutputRecord] | None
    unlike_first: int
    changed_inputs: list[int]
    changed_model: bool
    overrun: list[str]
    lacks_portable: str
    answer: OutputRecord
    views: list[str]
    view_shapes: list[list[int]]
    scored_views: list[OutputRecord]
    profile: RunnerProfile


class RunnerDocument(TypedDict, total=False):
    """What the runner prints."""

    format: int
    error: Trouble
    runtime: str
    python: str
    numpy: str
    machine: str
    kernel: str
    threads: int
    model_sha256: str
    image_sha256: str
    total_ops: int
    inputs: list[dict[str, Any]]
    npu_devices: list[DeviceRecord]
    results: list[RunnerRow]
    seconds: float


class Class(TypedDict):
    """One of the best classes; the score is 0..1."""

    index: int
    label: str
    score: float


class Latency(TypedDict):
    """Of the ``n`` measured runs, in milliseconds."""

    median: float
    p95: float
    min: float
    max: float
    n: int


class OperationTime(TypedDict):
    """A row of a profile.

    Attributes:
        operations: indices; several where they were submitted as one, none where it cannot be told whose
            the submit is.
        name: of the operation.
        ms: milliseconds on the NPU.
        share: which part of the inference that is.
        submits: how many were for it.
        nn_jobs: NN jobs of these (rocket: tasks; ethosu: jobs).
        tp_jobs: TP jobs of these.
    """

    operations: list[int]
    name: str
    ms: float
    share: float
    submits: int
    nn_jobs: int
    tp_jobs: int


class ProfileRecord(TypedDict, total=False):
    """Time by operation: means over the middle half of the inferences, by time, in milliseconds.

    Attributes:
        error: why there is none; then nothing else is there.
        inference_ms: of a whole inference: the sum of ``npu_ms`` and the three below it.
        npu_ms: while a job ran.
        before_ms: before the first job.
        between_ms: while no job ran, between the first and the last.
        after_ms: behind the last job.
        overhead: by which part an inference is longer than without a profile.
        runs: how many inferences had the same jobs.
        driver: Mesa's driver of the NPU.
        one_job_a_submit: whether each job has a time of its own.
        nn_jobs: NN jobs of an inference.
        tp_jobs: TP jobs of an inference.
        operations: those that the NPU ran.
        on_cpu: indices of those that it left.
    """

    error: str
    inference_ms: float
    npu_ms: float
    before_ms: float
    between_ms: float
    after_ms: float
    overhead: float | None
    runs: int
    driver: str
    one_job_a_submit: bool
    nn_jobs: int
    tp_jobs: int
    operations: list[OperationTime]
    on_cpu: list[int]


class RowResult(TypedDict, total=False):
    """A row as it was judged: an entry of ``results`` in a smoke test's document."""

    delegate: str
    status: str
    reason: str
    top: list[Class]
    latency_ms: Latency | None
    first_ms: float | None
    prepare_ms: float | None
    runs_ms: list[float]
    delegated_ops: int | None
    delegated_nodes: list[int] | None
    total_ops: int
    partitions: int | None
    predicted_ops: int | None
    not_delegated: list[NotDelegated]
    driver: str | None
    library: str | None
    max_abs_diff: float | None
    outputs: list[ComparedOutput]
    ratio_to_cpu: float | None
    published: list[PublishedRecord]
    environment: dict[str, str]
    versions: dict[str, str | None]
    signal: str | None
    kernel_log: list[str] | None
    agreement: Agreement | None
    detections: list[DetectionRecord]
    implied: bool
    profile: ProfileRecord


class Conditions(TypedDict, total=False):
    """Under which conditions a measurement was made: what is known of them.

    Attributes:
        load: of one minute, before the measurement.
        governor: of all CPUs, where they differ with commas between.
        cpu_mhz: of the fastest CPU.
        temperature_c: of the hottest zone.
        npu_clocks_hz: by the name that the NPU's node gives a clock.
        mesa: version of the deployed delegate.
    """

    kernel: str
    load: float
    generation: str
    governor: str
    cpu_mhz: int
    temperature_c: float
    npu_clocks_hz: dict[str, int]
    mesa: str


class SmokeDocument(TypedDict, total=False):
    """A smoke test's document; ``emulated``, ``npu`` and ``conditions`` where they are known."""

    test: str
    board: str | None
    host: str
    model: dict[str, str]
    inputs: list[InputRecord]
    image: dict[str, str]
    note: str
    expected: str | None
    runtime: str
    runner_seconds: float
    machine: MachineRecord
    npu_devices: list[DeviceRecord]
    operations: list[OperationRecord]
    results: list[RowResult]
    verdict: str
    emulated: bool
    npu: EmulatedNpuRecord
    conditions: Conditions
