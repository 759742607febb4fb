# SPDX-License-Identifier: MIT
"""Compares tasks with the model that they should mean, and computes them as TFLite does (exact mode).

A task belongs to the model's operation with its kernel, channels and weights; where the weights of none are
equal, to the next one in the model's order with its kernel and channels. An addition that follows a
convolution is one task with it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from userspace.npu.model import graph

from ..finding import Blame, Finding
from ..tflite import arithmetic
from ..tflite.operations import Operation, operations
from .arithmetic import Maps
from .task import Conversion, Task

_SCALE_ERROR = 2.0**-12
"""A converter's scale has 15 bits, of which Mesa rounds the last up."""


@dataclass(frozen=True)
class ModelTask:
    """A convolution of the model, with the addition that is computed with it.

    Attributes:
        weights: less their zero point, (kernels, channels, height, width); one kernel if depthwise.
        biases: as the model has them.
        sides: (height, width) of the input.
        convolution, addition: scales and zero points, as TFLite uses them.
        limits: (lowest, highest) output that the activation of the last one allows.
        conv_limits: the same of the convolution where an addition follows.
    """

    name: str
    depthwise: bool
    weights: NDArray[np.int16]
    biases: NDArray[np.int64]
    sides: tuple[int, int]
    convolution: Operation
    scales: tuple[float, float, float]
    limits: tuple[int, int]
    conv_limits: tuple[int, int]
    addition: Operation | None = None

    @functools.cached_property
    def npu_biases(self) -> NDArray[np.int64]:
        """The biases as the NPU needs them, whose pixels and weights are signed."""
        sums = self.weights.astype(np.int64)
        each = sums[0].sum(axis=(1, 2)) if self.depthwise else sums.sum(axis=(1, 2, 3))
        return np.asarray(self.biases - each * (self.convolution.in_zero_point - 128), np.int64)


def tasks_of(model: Path) -> list[ModelTask]:
    """Return what Mesa can submit of a model, in the model's order.

    Raises:
        UserError: the file is not a model.
    """
    operators = graph.read_file(model)
    by_index: Mapping[int, Operation] = {each.index: each for each in operations(model)}
    tasks = []
    for operator in operators:
        if operator.kind not in ("CONV_2D", "DEPTHWISE_CONV_2D") or operator.index not in by_index:
            continue
        task = _task(operator, by_index[operator.index])
        if task:
            tasks.append(_with_addition(task, operator, operators, by_index))
    return tasks


class Model:
    """A model beside the tasks of one client; implements what the engine asks of it."""

    def __init__(self, tasks: Sequence[ModelTask], *, exact: bool) -> None:
        self._known = tasks
        self._exact = exact
        self._next = 0
        self._job: tuple[int, ModelTask | None] = (-1, None)

    def belongs(self, job: int, task: Task, weights: NDArray[np.float32]) -> ModelTask | None:
        """Return the model's operation that a task belongs to; tasks of one job belong to one."""
        if self._job[0] == job:
            return self._job[1]
        count = len(self._known)
        near: int | None = None
        for step in range(count):
            index = (self._next + step) % count
            if not _fits(self._known[index], task):
                continue
            near = index if near is None else near
            if np.array_equal(self._known[index].weights, weights[: task.out_channels]):
                near = index
                break
        if near is not None:
            self._next = (near + 1) % count
        self._job = (job, None if near is None else self._known[near])
        return self._job[1]

    def audit(
        self,
        task: Task,
        weights: NDArray[np.float32],
        biases: NDArray[np.int64],
        mine: ModelTask | None,
    ) -> Iterator[Finding]:
        """Return what of a task contradicts the model."""
        if mine is None:
            yield _wrong("task", "an operation of the model", task.describe(), Blame.NOT_UNDERSTOOD)
            return
        if not np.array_equal(mine.weights, weights[: task.out_channels]):
            wrong = int((mine.weights != weights[: task.out_channels]).sum())
            yield _wrong(
                "weights", f"the model's {mine.weights.size}", f"{wrong} others in their order"
            )
        if mine.sides[0] != mine.sides[1] and task.width != mine.sides[1] and not _pointwise(task):
            yield _wrong(
                "CNA_DATA_SIZE0.DATAIN_WIDTH",
                f"{mine.sides[1]}: the image's width",
                f"{task.width}",
            )
        expected = mine.npu_biases / 2**task.truncate
        if np.abs(expected - biases).max(initial=0) > 1:
            yield _wrong(
                "biases", "the model's", f"off by up to {np.abs(expected - biases).max():.0f}"
            )
        yield from _audit_scales(task, mine)

    def output(
        self, task: Task, maps: Maps, mine: ModelTask | None, predicted: NDArray[np.int8]
    ) -> NDArray[np.int8]:
        """Return a task's output: as TFLite computes it in exact mode, else as predicted."""
        if not self._exact or mine is None:
            return predicted
        sums = maps.sums + mine.npu_biases[:, None, None]
        zero_point = mine.convolution.out_zero_point
        scaled = arithmetic.multiply(sums, *arithmetic.quantize_multiplier(mine.convolution.real))
        values = np.clip(scaled + zero_point, *mine.conv_limits).astype(np.uint8)
        if mine.addition and mine.addition.add and maps.addends is not None:
            other = (maps.addends + 128).astype(np.uint8)
            values = arithmetic.add(values, other, mine.addition.add, mine.limits[0])
            values = np.minimum(values, np.uint8(mine.limits[1]))
        return (values.astype(np.int16) - 128).astype(np.int8)


def _fits(candidate: ModelTask, task: Task) -> bool:
    shape = candidate.weights.shape
    return (
        candidate.depthwise == task.depthwise
        and shape[1] == task.channels
        and candidate.biases.size == task.out_channels
        and (shape[2] * shape[3]) == task.kernel_height * task.kernel_width
        and (candidate.addition is not None) == (task.addend is not None)
    )


def _pointwise(task: Task) -> bool:
    """Whether the order of the sides makes no difference."""
    return task.kernel_height == task.kernel_width == task.stride_x == task.stride_y == 1


def _wrong(name: str, expected: str, found: str, blame: Blame = Blame.SUBMISSION) -> Finding:
    return Finding(name, expected, found, blame=blame, evidence="compared with the model")


def _audit_scales(task: Task, mine: ModelTask) -> Iterator[Finding]:
    last = mine.addition or mine.convolution
    source, weight, _ = mine.scales
    out_scale = mine.addition.add.output if mine.addition and mine.addition.add else mine.scales[2]
    yield from _audit_conversion(
        "DPU_OUT_CVT", task.output, source * weight / out_scale * 2**task.truncate,
        last.out_zero_point - 128,
    )  # fmt: skip
    if task.addend and mine.addition and mine.addition.add:
        add = mine.addition.add
        yield from _audit_conversion(
            "DPU_EW_CVT", task.addend.conversion, add.second / (source * weight) / 2**task.truncate,
            128 - add.second_zero_point,
        )  # fmt: skip
    low, high = mine.limits
    if (low, high) != (0, 255):
        yield _wrong(
            "DPU_BS_RELUX_CMP_VALUE", f"outputs of {low} to {high} (activation)", "0 to 255"
        )


def _audit_conversion(
    name: str, conversion: Conversion, expected: float, offset: int
) -> Iterator[Finding]:
    real = conversion.scale / 2.0**conversion.shift
    if abs(real / expected - 1) > _SCALE_ERROR:
        yield _wrong(f"{name}_SCALE and _SHIFT", f"{expected:.6g}", f"{real:.6g}")
    if conversion.offset != offset:
        yield _wrong(f"{name}_OFFSET", str(offset), str(conversion.offset))


def _task(operator: graph.Operation, operation: Operation) -> ModelTask | None:
    source, weights, bias = (*operator.inputs, None, None, None)[:3]
    output = operator.outputs[0]
    if source is None or weights is None or output is None or len(source.shape) != 4:
        return None
    if not weights.is_bytes or len(weights.data or b"") != weights.elements:
        return None  # computed, or of no bytes: Mesa has nothing to submit of it
    depthwise = operator.kind == "DEPTHWISE_CONV_2D" and source.shape[3] > 1
    values = weights.signed_values()
    if operator.kind == "DEPTHWISE_CONV_2D" and not depthwise:
        values = values.transpose(3, 1, 2, 0)
    biases = np.zeros(output.shape[3], np.int64)
    if bias is not None and bias.data:
        biases = np.frombuffer(bias.data, np.int32).astype(np.int64)
    limits = _limits(operator.activation, output)
    return ModelTask(
        name=operator.name, depthwise=depthwise,
        weights=values.transpose(0, 3, 1, 2).astype(np.int16), biases=biases,
        sides=(source.shape[1], source.shape[2]), convolution=operation,
        scales=(source.scales[0], weights.scales[0], output.scales[0]), limits=limits,
        conv_limits=limits,
    )  # fmt: skip


def _with_addition(
    task: ModelTask,
    operator: graph.Operation,
    operators: Sequence[graph.Operation],
    by_index: Mapping[int, Operation],
) -> ModelTask:
    """Return the convolution with the addition that takes its output as first input, if there is one."""
    for other in operators:
        if (
            other.kind != "ADD"
            or other.index not in by_index
            or other.inputs[0] is not operator.outputs[0]
        ):
            continue
        add, output = by_index[other.index], other.outputs[0]
        if add.add and output:
            return ModelTask(
                name=f"{task.name} and {other.name}", depthwise=task.depthwise, weights=task.weights,
                biases=task.biases, sides=task.sides, convolution=task.convolution, scales=task.scales,
                limits=_limits(other.activation, output), conv_limits=task.conv_limits, addition=add,
            )  # fmt: skip
    return task


def _limits(activation: str, output: graph.Tensor) -> tuple[int, int]:
    scale = float(np.float32(output.scales[0]))
    return arithmetic.activation_limits(activation, output.zero_point, scale)
