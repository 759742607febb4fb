# SPDX-License-Identifier: MIT
"""Exact mode: accumulators from the submission, requantised with the model's own scales as TFLite does.

A descriptor holds a multiplier of 15 (v7) or 23 (v8) bits; TFLite uses 31. Each job is matched with the
model's operation that it must belong to, its multiplier, shift and zero points are checked against the
model's, and the model's full multiplier is used. What then differs from TFLite is an error of the
submission (or of this emulator), not rounding.
"""

from __future__ import annotations

import numpy as np

from ...faults import FaultError
from ...memory import Bytes
from ...tflite import arithmetic
from ...tflite.arithmetic import Accumulators, AddScales, Pixels
from ...tflite.operations import Operation
from .. import requant
from ..nn import NnJob
from ..requant import Scale
from ..tp import TpJob

MAX_ADD_ERROR = 1
"""An ADD's weights have 8 bits, a look-up interpolates: outputs may be off by this much from TFLite's."""


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

    def __init__(self, operations: list[Operation], generation: int) -> None:
        self._operations = [operation for operation in operations if operation.table is None]
        self._lookups = [operation for operation in operations if operation.table is not None]
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
            return arithmetic.requantised(accumulators, operation.real, job.out_zero_point, job.low)
        halves = np.ascontiguousarray(image).reshape(2, *accumulators.shape)
        exact = arithmetic.add(halves[0], halves[1], operation.add, job.low)
        predicted = requant.hardware(accumulators, job.scale, job.out_zero_point, job.low)
        error = int(np.abs(predicted.astype(np.int16) - exact).max())
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
