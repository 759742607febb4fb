# SPDX-License-Identifier: MIT
"""Exact mode: accumulators from the submission, requantised with the model's own scales as TFLite does.

A descriptor holds a multiplier of 15 (v7) or 23 (v8) bits; TFLite uses 31. Each job is matched with the
model's operation that it must belong to, its multiplier, shift and zero points are checked against the
model's, and the model's full multiplier is used. What then differs from TFLite is an error of the
submission (or of this emulator), not rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from userspace.npu.model import graph

from ...faults import FaultError
from ...memory import Bytes
from .. import requant
from ..nn import NnJob
from ..requant import Accumulators, AddScales, Pixels, Scale
from ..tp import TpJob

MAX_ADD_ERROR = 1
"""An ADD's weights have 8 bits, a look-up interpolates: outputs may be off by this much from TFLite's."""


@dataclass(frozen=True)
class Operation:
    """An operation that becomes one NN job.

    Attributes:
        index: of the operator in the model's graph.
        real: what accumulators are multiplied with (TFLite's GetQuantizedConvolutionMultipler).
        mesa_real: the same in float32, as Mesa computes it.
        add: for an ADD, its scales.
        table: for RELU, ABS and LOGISTIC, TFLite's output for each pixel value; such an operation is no
            NN job.
    """

    index: int
    name: str
    out_channels: int
    in_zero_point: int
    weight_zero_point: int
    out_zero_point: int
    real: float
    mesa_real: float
    add: AddScales | None = None
    table: Bytes | None = None


def operations(path: Path) -> list[Operation]:
    """Return the operations of a model that Teflon can hand to the NPU, in order.

    Those that only move bytes (PAD, SPLIT, CONCATENATION) are left out.

    Raises:
        UserError: the file is no model.
    """
    found = []
    for operator in graph.read_file(path):
        if operator.kind in ("ADD", "SUB"):
            made = _addition(operator)
        elif operator.kind in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
            made = _convolution(operator)
        elif operator.kind in ("RELU", "ABS", "LOGISTIC"):
            made = _lookup(operator)
        else:
            made = None
        if made:
            found.append(made)
    return found


def descriptor_scale(real: float, generation: int) -> Scale:
    """Return the multiplier and shift that Mesa derives from a float32 (create_nn_config)."""
    bits = int(np.float32(real).view(np.uint32))
    exponent = bits >> 23 & 0xFF
    if generation < 8:
        return Scale((1 << 15) + (bits >> 8 & 0x7FFF), 142 - exponent & 0x7F)
    return Scale((1 << 23) + (bits & 0x7FFFFF), (127 - exponent & 0x7F) + 23)


class ExactMode:
    """A ``Requantisation`` for one client that runs one model.

    Attributes:
        current: the operation that the last job was found to belong to.
    """

    def __init__(self, known: list[Operation], generation: int) -> None:
        self._operations = [operation for operation in known if operation.table is None]
        self._lookups = [operation for operation in known if operation.table is not None]
        self._generation = generation
        self._next = 0
        self.current: Operation | None = None

    @property
    def only(self) -> str:
        """Name of the operation that a job must belong to where the model has but one; else ""."""
        return self._operations[0].name if len(self._operations) == 1 else ""

    def operation(self, job: NnJob) -> str:
        """Return the name of the operation that a job belongs to.

        Jobs come in the model's order; operations that were not delegated are passed over.

        Raises:
            FaultError: no operation of the model fits the job's channels, zero points and scale.
        """
        count = len(self._operations)
        near: Operation | None = None
        for step in range(count):
            index = (self._next + step) % count
            candidate = self._operations[index]
            if not self._fits(candidate, job):
                continue
            near = near or candidate
            if descriptor_scale(candidate.mesa_real, self._generation) == job.scale:
                self._next = (index + 1) % count
                self.current = candidate
                return candidate.name
        if near:
            expected = descriptor_scale(near.mesa_real, self._generation)
            raise FaultError(
                f"post_multiplier and post_shift of {near.name}",
                f"{expected.multiplier} >> {expected.shift}",
                f"{job.scale.multiplier} >> {job.scale.shift}",
            )
        for candidate in self._operations:
            if job.shape.out_channels == candidate.out_channels and candidate.add is None:
                raise FaultError(
                    f"zero points of {candidate.name}",
                    f"input {candidate.in_zero_point}, weights {candidate.weight_zero_point}, "
                    f"output {candidate.out_zero_point}",
                    f"input {job.geometry.border}, weights {job.shape.zero_point}, "
                    f"output {job.out_zero_point}",
                )
        raise FaultError(
            "zero points and channels",
            "those of an operation of the model",
            f"input {job.geometry.border}, weights {job.shape.zero_point}, output "
            f"{job.out_zero_point}, {job.describe()}",
        )

    def output(self, job: NnJob, image: Bytes, accumulators: Accumulators) -> Pixels:
        """Return outputs as TFLite computes them.

        Raises:
            FaultError: an ADD's accumulators mean something else than the sum.
        """
        operation = self.current
        if operation is None:
            raise RuntimeError("no operation is being computed")
        if operation.add is None:
            return requant.tflite(accumulators, operation.real, job.out_zero_point, job.low)
        halves = np.ascontiguousarray(image).reshape(2, *accumulators.shape)
        exact = requant.tflite_add(halves[0], halves[1], operation.add, job.low)
        found = requant.hardware(accumulators, job.scale, job.out_zero_point, job.low)
        error = int(np.abs(found.astype(np.int16) - exact).max())
        if error > MAX_ADD_ERROR:
            raise FaultError(
                "sums of the ADD (weights and bias)",
                f"within {MAX_ADD_ERROR} of TFLite's",
                f"off by up to {error}{_constant(accumulators, job.scale, halves, operation.add)}",
            )
        return exact

    def table(self, job: TpJob, predicted: Bytes) -> Bytes:
        """Return TFLite's table for the operation that a look-up job belongs to.

        Raises:
            FaultError: no operation of the model fits, or the job's table means something else.
        """
        best: tuple[int, Operation] | None = None
        for operation in self._lookups:
            fits = (operation.in_zero_point, operation.out_zero_point)
            if fits != (job.in_zero_point, job.out_zero_point):
                continue
            if operation.table is None:
                raise RuntimeError("the operation has no table")
            error = int(np.abs(predicted.astype(np.int16) - operation.table).max())
            if best is None or error < best[0]:
                best = (error, operation)
        if best is None:
            raise FaultError(
                "zero points of a look-up job",
                "those of an operation of the model",
                f"input {job.in_zero_point}, output {job.out_zero_point}",
            )
        error, operation = best
        if operation.table is None:
            raise RuntimeError("the operation has no table")
        if error > MAX_ADD_ERROR:
            wrong = int(np.abs(predicted.astype(np.int16) - operation.table).argmax())
            raise FaultError(
                f"look-up table of {operation.name}",
                f"within {MAX_ADD_ERROR} of TFLite's: {operation.table[wrong]} for pixel {wrong}",
                f"{predicted[wrong]}",
            )
        return operation.table

    def _fits(self, operation: Operation, job: NnJob) -> bool:
        if operation.add:
            # However the convolution is shaped (v7: two planes, one output; v8: 1x1, in Mesa 26 several
            # rows high), it reads both tensors, one after the other, and writes one of that size.
            geometry, shape = job.geometry, job.shape
            read = shape.in_channels * job.in_height * job.in_width
            written = shape.out_channels * geometry.out_height * geometry.out_width
            return read == 2 * written and job.out_zero_point == operation.out_zero_point
        return (
            job.shape.out_channels == operation.out_channels
            and job.geometry.border == operation.in_zero_point
            and job.shape.zero_point == operation.weight_zero_point
            and job.out_zero_point == operation.out_zero_point
        )


def _constant(accumulators: Accumulators, scale: Scale, halves: Bytes, scales: AddScales) -> str:
    """Say so if sums are wrong by one and the same number: then it is the bias."""
    first = (halves[0].astype(np.float64) - scales.first_zero_point) * scales.first
    second = (halves[1].astype(np.float64) - scales.second_zero_point) * scales.second
    apart = accumulators * scale.real - (first + second) / scales.output
    if float(np.ptp(apart)) > 2 * MAX_ADD_ERROR:
        return ""
    steps = float(apart.mean())
    return f", all by {steps:.1f} steps: the bias is off by {round(steps / scale.real)}"


def _convolution(operator: graph.Operation) -> Operation | None:
    tensors = [*operator.inputs[:2], *operator.outputs[:1]]
    source, weights, output = (_per_tensor(tensor) for tensor in (*tensors, None, None, None)[:3])
    if not (source and weights and output):
        return None
    product = np.float32(source.scales[0]) * np.float32(weights.scales[0])
    # TFLite kernel_util.cc: GetQuantizedConvolutionMultipler multiplies the scales in single precision;
    # int8 convolutions take PopulateConvolutionQuantizationParams, which does so in double.
    wide = float(product)
    if weights.is_signed and operator.kind != "FULLY_CONNECTED":
        wide = float(np.float32(source.scales[0])) * float(np.float32(weights.scales[0]))
    return Operation(
        index=operator.index,
        name=operator.name,
        out_channels=output.shape[-1],
        in_zero_point=source.zero_point,
        weight_zero_point=weights.zero_point,
        out_zero_point=output.zero_point,
        real=wide / float(np.float32(output.scales[0])),
        mesa_real=float(np.float32(product / np.float32(output.scales[0]))),
    )


def _addition(operator: graph.Operation) -> Operation | None:
    first, second = (_per_tensor(tensor) for tensor in (*operator.inputs, None, None)[:2])
    output = _per_tensor(operator.outputs[0])
    if not (first and second and output):
        return None
    ratio = np.float32(second.scales[0]) / np.float32(first.scales[0])
    # Mesa 25.0.7 etnaviv_ml_nn.c, compute_weight_scale_add: (float) max(ratio, 1.0) / 255.0
    reach = np.float32(max(float(ratio), 1.0))
    if operator.kind == "SUB":
        reach = np.float32(1.0 + float(ratio))  # Mesa 26: the two weights are 1.0 and -ratio
    weight_scale = np.float32(np.float64(reach) / 255.0)
    product = np.float32(first.scales[0]) * weight_scale
    mesa_real = float(np.float32(product / np.float32(output.scales[0])))
    return Operation(
        index=operator.index,
        name=operator.name,
        out_channels=output.shape[-1],
        in_zero_point=first.zero_point,
        weight_zero_point=0,
        out_zero_point=output.zero_point,
        real=mesa_real,
        mesa_real=mesa_real,
        add=AddScales(
            first.scales[0],
            first.zero_point,
            second.scales[0],
            second.zero_point,
            output.scales[0],
            output.zero_point,
            sign=-1 if operator.kind == "SUB" else 1,
        ),
    )


def _lookup(operator: graph.Operation) -> Operation | None:
    source = _per_tensor(operator.inputs[0])
    output = _per_tensor(operator.outputs[0])
    if not (source and output):
        return None
    values = np.arange(256, dtype=np.int64) - source.zero_point
    if operator.kind == "LOGISTIC":
        reals = values.astype(np.float32) * np.float32(source.scales[0])
        sigmoid = 1.0 / (1.0 + np.exp(-reals.astype(np.float64)))
        table = np.floor(sigmoid / output.scales[0] + 0.5).astype(np.int64) + output.zero_point
        low = 0
    else:
        values = np.abs(values) if operator.kind == "ABS" else np.maximum(values, 0)
        real = float(np.float32(source.scales[0])) / float(np.float32(output.scales[0]))
        table = requant.multiply(values, *requant.quantize_multiplier(real)) + output.zero_point
        low = output.zero_point if operator.kind == "RELU" else 0
    return Operation(
        index=operator.index,
        name=operator.name,
        out_channels=output.shape[-1],
        in_zero_point=source.zero_point,
        weight_zero_point=0,
        out_zero_point=output.zero_point,
        real=0.0,
        mesa_real=0.0,
        table=np.clip(table, low, 255).astype(np.uint8),
    )


def _per_tensor(tensor: graph.Tensor | None) -> graph.Tensor | None:
    """Return the tensor if it is bytes with one scale, as Teflon delegates it; else None.

    Broken models may have a scale that is 0 or no number, and tensors without a shape.
    """
    if not (tensor and tensor.is_bytes and tensor.shape and len(tensor.scales) == 1):
        return None
    usable = np.isfinite(tensor.scales[0]) and np.float32(tensor.scales[0]) > 0
    return tensor if usable else None
