# SPDX-License-Identifier: MIT
"""Exact mode that also says why a generated model comes out wrong: what of the submission contradicts it.

Asked at each NN job of a single convolution: are the pixels that the job reads the model's input, is the
border where TFLite has it, and do the sums follow from the model's own weights and biases?
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..npu.memory import Bytes
from ..npu.tflite.arithmetic import Accumulators, Pixels
from ..npu.tflite.operations import Operation
from ..npu.vivante.audit.exact import ExactMode
from ..npu.vivante.coefficients import Coefficients
from ..npu.vivante.convolution import accumulate
from ..npu.vivante.nn import NnJob
from ..npu.vivante.requant import hardware
from .build import BuiltModel
from .cases import PADDED

ROW_BY_ROW = (
    "Mesa lays the taps of such kernels over one channel row by row, silicon reads rows in pairs"
)
"""Boards say so: Conv2D tests of this kind fail on the A311D; depthwise ones, whose taps are laid in pairs
under the same descriptor, pass (Mesa's src/etnaviv/ci)."""

_THREE = 3


class Witness(ExactMode):
    """A ``Requantisation`` for one client that runs one case.

    Attributes:
        contradictions: how the submission contradicts the model, in words.
        hardware_error: largest difference between predicted silicon and TFLite, in steps of the output.
    """

    def __init__(
        self, operations: list[Operation], generation: int, built: BuiltModel | None
    ) -> None:
        super().__init__(operations, generation)
        self._built = built
        self.contradictions: list[str] = []
        self.hardware_error = 0

    def output(self, job: NnJob, image: Bytes, accumulators: Accumulators) -> Pixels:
        """As ``ExactMode``, and look at the job."""
        if self._built and self._built.case.operation == "add":
            self._operands(self._built, image)
        elif self._built and self._built.case.operation in ("conv", "depthwise"):
            self._look(self._built, job, image, accumulators)
        exact = super().output(job, image, accumulators)
        predicted = hardware(accumulators, job.scale, job.out_zero_point, job.low)
        error = int(np.abs(predicted.astype(np.int16) - exact).max())
        self.hardware_error = max(self.hardware_error, error)
        return exact

    def _look(
        self, built: BuiltModel, job: NnJob, image: Bytes, accumulators: Accumulators
    ) -> None:
        case = built.case
        if (job.shape.height, job.shape.width) != (case.kernel, case.kernel):
            return  # a strided or 1x1 kernel that was folded or padded: not comparable like this
        right_pixels = np.moveaxis(unsigned(built.inputs[0])[0], -1, 0)
        if job.in_row < job.in_width or job.in_plane < job.in_row * (job.in_height - 1):
            self._say(f"rows of {job.in_width} pixels stand {job.in_row} bytes apart")
        if image.shape != right_pixels.shape:
            self._say(
                f"the job's input is {'x'.join(map(str, image.shape))} (channels x height x width), "
                f"the model's {'x'.join(map(str, right_pixels.shape))}"
            )
            return  # borders and sums of another image say no more
        if (image != right_pixels).any():
            self._say(
                "the job does not read the model's input: rows are "
                f"{job.in_row} bytes apart and planes {job.in_plane}; "
                f"{int((image != right_pixels).sum())} of {right_pixels.size} pixels differ"
            )
        geometry = job.geometry
        for axis, size, out, pad in (
            ("y", case.height, geometry.out_height, geometry.pad_y),
            ("x", case.width, geometry.out_width, geometry.pad_x),
        ):
            expected = 0
            if case.padding == PADDED:
                expected = max((out - 1) * case.stride + case.kernel - size, 0) // 2
            if pad != expected:
                self._say(
                    f"in_image_{axis}_offset asks for {pad} pixels of border before the image, "
                    f"TFLite pads {expected}"
                )
        sums = accumulate(image, model_coefficients(built), geometry)
        if sums.shape == accumulators.shape and (sums != accumulators).any():
            wrong = (sums != accumulators).any(axis=(1, 2))
            text = (
                f"the coefficients are not the model's: {int(wrong.sum())} of {wrong.size} "
                "output channels have other sums on the job's own input"
            )
            if self._generation < 8 and case.channels == 1 and case.kernel > _THREE:
                text += f"; {ROW_BY_ROW}"
            elif case.dtype == "int8":
                unmoved = accumulate(image, model_coefficients(built, moved=False), geometry)
                if (unmoved == accumulators).all():
                    text += "; they are its int8 bytes, without the 128 that the zero point has got"
            self._say(text)

    def _operands(self, built: BuiltModel, image: Bytes) -> None:
        """Look whether an ADD's job reads the graph's two inputs, each once, in one order of channels."""
        operands = [np.sort(unsigned(pixels), axis=None) for pixels in built.inputs]
        halves = np.ascontiguousarray(image).reshape(2, -1)
        if (halves[0] == halves[1]).all() and not np.array_equal(operands[0], operands[1]):
            self._say(
                "both operands of the ADD's job are the same pixels, the graph's inputs are not"
            )
        for number, half in enumerate(halves):
            values_read = np.sort(half)
            if not any(np.array_equal(values_read, operand) for operand in operands):
                values, counts = np.unique(half, return_counts=True)
                often = int(counts.argmax())
                self._say(
                    f"operand {number} of the ADD's job holds neither of the graph's inputs: "
                    f"{int(counts[often])} of {half.size} bytes are {int(values[often]):#04x}"
                )
        orders = {_order(half, [unsigned(each) for each in built.inputs]) for half in halves}
        if len(orders - {""}) > 1:
            both = " and ".join(sorted(orders))
            self._say(f"the operands of the ADD's job stand in two orders: {both}")

    def _say(self, text: str) -> None:
        if text not in self.contradictions:
            self.contradictions.append(text)


def unsigned(values: NDArray[np.generic]) -> Bytes:
    """Return bytes as the NPU sees them: int8 moved by 128."""
    return (
        values.view(np.uint8) ^ np.uint8(0x80)
        if values.dtype == np.int8
        else values.astype(np.uint8)
    )


def _order(half: Bytes, inputs: list[Bytes]) -> str:
    """Return in what order a graph's input stands in an operand, "" if in none of the two."""
    for pixels in inputs:
        if np.array_equal(half, pixels.reshape(-1)):
            return "channels last"
        if np.array_equal(half, np.moveaxis(pixels[0], -1, 0).reshape(-1)):
            return "channels first"
    return ""


def model_coefficients(built: BuiltModel, *, moved: bool = True) -> Coefficients:
    """Return what a convolution's coefficients must be for raw pixels, from the model alone.

    ``moved`` False: as they come out if the weights' int8 bytes are taken for unsigned ones.
    """
    source, weights, bias = built.tensors[:3]
    if weights.data is None:
        raise RuntimeError("weights and bias are not constant")
    if bias.data is None:
        raise RuntimeError("weights and bias are not constant")
    raw = weights.data.astype(np.int64)
    signed = (
        raw - weights.zero_point if moved else (raw & 0xFF) - weights.zero_point - 128
    ).astype(np.float32)
    if built.case.operation == "depthwise":
        signed = np.moveaxis(signed, -1, 0).transpose(0, 1, 2, 3)
        sources: NDArray[np.intp] | None = np.arange(signed.shape[0])
    else:
        signed = np.moveaxis(signed, -1, 1)
        sources = None
    zero_point = source.zero_point + (128 if built.case.dtype == "int8" else 0)
    sums = signed.sum(axis=(1, 2, 3), dtype=np.float64).astype(np.int64)
    biases = bias.data.astype(np.int64) - zero_point * sums
    largest = int(np.abs(signed).sum(axis=(1, 2, 3), dtype=np.float64).max())
    return Coefficients(np.ascontiguousarray(signed), sources, biases, largest, 0, "", "")
