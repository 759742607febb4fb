# SPDX-License-Identifier: MIT
"""Compares what was submitted with what the model says: weights, biases, scale, geometry, sums.

Everything is recomputed from the .tflite file, on a road of its own: no decoder, no matrix product. Where
values are wrong, three computations say whose fault it is, at some pixels of each job:

- the emulator's accumulators;
- a plain sum over taps after the descriptor and the decoded coefficients;
- a plain sum over taps after the model.

If the first two agree and the third does not, the submission means something else than the model. If the
first two do not agree, the emulator is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from userspace.npu.model import graph

from ...faults import FaultError
from ...finding import Blame, Finding
from ...memory import Bytes
from ...tflite.arithmetic import Accumulators
from ...tflite.operations import Inputs, Operation, operations
from ...write_tracker import Written
from ..coefficients import Coefficients
from ..nn import NnJob
from ..tp import TpJob
from . import add as audit_add
from . import tp as audit_tp
from .exact import ExactMode

Whole = NDArray[np.int64]
_MOST_MACS = 4_000_000
"""Multiplications that the sampled sums of one job may take: bounds the audit's time."""


class ModelAudit:
    """An engine's ``audit`` for one client that runs one model."""

    def __init__(
        self,
        path: Path,
        generation: int,
        *,
        operands: Mapping[int, Inputs] | None = None,
    ) -> None:
        """Read the model.

        Args:
            operands: what the model's ADDs add in the first inference, where that is known (``operands``).

        Raises:
            UserError: the file is not a model.
        """
        self._generation = generation
        self._operators = {each.index: each for each in graph.read_file(path)}
        self._tensors = [
            tensor
            for operator in self._operators.values()
            for tensor in (*operator.inputs, *operator.outputs)
            if tensor is not None and tensor.is_bytes
        ]
        self._written = Written()
        self._operands = audit_add.Operands(operands or {})
        self._match = ExactMode(operations(path), generation)
        self._asked: NnJob | None = None
        self._current: Operation | None = None
        self._mismatch: Finding | None = None
        """Why the job that runs fits no operation, where it does not."""
        self._last = ""
        self._said: set[tuple[str, str]] = set()
        self._layouts: dict[tuple[object, ...], tuple[str, str]] = {}
        self._moved: dict[int, bool] = {}
        """By output address of a TP job: whether the last one there folded pixels."""
        self.jobs = 0

    def operation(self, job: NnJob) -> str:
        """As ``engine.Audit``: the operation that the job fits, or, but for some fields, must be."""
        self._asked, self._current, self._mismatch = job, None, None
        try:
            self._last = self._match.operation(job)
            self._current = self._match.current
            return self._last
        except FaultError as error:
            self._mismatch = error.finding
            named = error.finding.field.partition(" of ")[2]
            return named if named.startswith("operation ") else self.place()

    def place(self) -> str:
        """As ``engine.Audit``: the only operation that there is, or the one that it comes behind."""
        only = self._match.only
        return only or (f"behind {self._last}" if self._last else "")

    def nn(
        self, job: NnJob, image: Bytes, coefficients: Coefficients, accumulators: Accumulators
    ) -> Iterator[Finding]:
        """Return what is wrong with a job."""
        if self._asked is not job:
            self.operation(job)
        self.jobs += 1
        yield from self._unwritten(job, image)
        rows = job.geometry.out_height - 1
        last_plane = job.out_plane * (job.shape.out_channels - 1)
        self._written.add(job.out_address, last_plane + job.out_row * rows + job.geometry.out_width)
        wrong_here = list(_own_sums(job, image, coefficients, accumulators))
        yield from wrong_here
        if wrong_here:
            return  # what else differs says nothing about the submission
        if self._mismatch:
            # Named after an operation: it is that one, but for these fields.
            is_the_models = " of operation " in self._mismatch.field
            yield replace(
                self._mismatch,
                blame=Blame.SUBMISSION if is_the_models else Blame.NOT_UNDERSTOOD,
                evidence="recomputed from the model's quantisation" if is_the_models else "",
            )
        operation = self._current
        if operation is None:
            return
        for finding in self._against(operation, job, image, coefficients, accumulators):
            # Once a model, not once an inference.
            if (operation.name, finding.field) not in self._said:
                self._said.add((operation.name, finding.field))
                yield replace(finding, operation=operation.name)
        yield from self._same_layout(operation, job, coefficients)

    def _unwritten(self, job: NnJob, image: Bytes) -> Iterator[Finding]:
        """What a job reads, of which other jobs have written a part; of the operands of an ADD each."""
        is_add = self._current is not None and self._current.add is not None
        parts = 2 if is_add and len(image) % 2 == 0 else 1
        planes = len(image) // parts
        size = job.in_plane * (planes - 1) + job.in_row * (job.in_height - 1) + job.in_width
        shape = "x".join(map(str, (planes, *image.shape[1:])))
        for part in range(parts):
            yield from self._written.read(
                job.in_address + part * planes * job.in_plane, size, shape
            )

    def tp(self, job: TpJob, image: Bytes, target: Bytes) -> Iterator[Finding]:
        """Return what is wrong with a job."""
        self.jobs += 1
        if not job.bytes_moved:
            return
        planes, rows, columns = image.shape
        size = job.slice_bytes * (planes - 1) + job.stride_bytes * (rows - 1) + columns
        yield from self._written.read(job.address, size, "x".join(map(str, image.shape)))
        self._written.add(job.out_address, target.size)
        yield from audit_tp.moved_bytes(job, image, target)
        yield from audit_tp.rows_apart(job)
        yield from audit_tp.border(job, self._tensors)
        self._moved[job.out_address] = audit_tp.folds(job)
        convolutions = [each for each in self._operators.values() if each.kind.endswith("CONV_2D")]
        yield from audit_tp.folded_at(job, convolutions)

    def _against(
        self,
        operation: Operation,
        job: NnJob,
        image: Bytes,
        coefficients: Coefficients,
        accumulators: Accumulators,
    ) -> Iterator[Finding]:
        operator = self._operators[operation.index]
        if operation.add:
            if operation.add.sign > 0:
                yield from _addition(operation, coefficients)
            yield from self._operands.look(operator, image)
            return
        weights, biases = _constants(operator)
        yield from _weights(coefficients, weights)
        yield from _biases(coefficients, weights, biases, operation.in_zero_point)
        yield from _geometry(operator, job, weights, image)
        yield from self._folded(operator, job)
        if image.shape[1:] == _size(operator.inputs[0]) and _unfolded(coefficients, weights):
            yield from _sums(operator, operation, job, image, weights, biases, accumulators)

    def _folded(self, operator: graph.Operation, job: NnJob) -> Iterator[Finding]:
        """A kernel folded for 4 planes an input channel needs an image that a job has folded."""
        source = operator.inputs[0]
        if source is None:
            raise RuntimeError("the operation has no input")
        channels = source.shape[-1]
        if operator.strides != (2, 2) or job.shape.in_channels != 4 * channels:
            return
        if self._moved.get(job.in_address) is False:
            yield _submission(
                "in_image_address",
                f"an image folded to {job.shape.in_channels} planes, 2x2 pixels to 4",
                f"what a job has written at {job.in_address:#x} that folds no pixels",
                "the kernel is folded, and no job before it folds its image",
            )

    def _same_layout(
        self, operation: Operation, job: NnJob, coefficients: Coefficients
    ) -> Iterator[Finding]:
        """One descriptor must mean one order of coefficients, whatever the operation."""
        shape = job.shape
        key = (
            shape.in_channels, shape.out_channels, shape.height, shape.width, shape.depthwise,
            shape.kernels, job.geometry.step,
        )  # fmt: skip
        layout, where = self._layouts.setdefault(key, (coefficients.layout, operation.name))
        if layout != coefficients.layout:
            yield Finding(
                "coefficient order under one descriptor",
                f"{layout} (as in {where})",
                coefficients.layout,
                operation=operation.name,
                blame=Blame.SUBMISSION,
                evidence="the descriptors' shapes are the same, so one of the two must be wrong",
            )


def _constants(operator: graph.Operation) -> tuple[Whole, Whole]:
    """Return signed weights as (output channels, planes, height, width), and biases."""
    tensor = operator.inputs[1]
    if tensor is None:
        raise RuntimeError("the operation has no weights")
    signed = tensor.signed_values()
    if operator.kind == "FULLY_CONNECTED":
        weights = signed.reshape(signed.shape[0], -1, 1, 1)
    elif operator.kind == "DEPTHWISE_CONV_2D":
        weights = signed.transpose(3, 0, 1, 2)
    else:
        weights = signed.transpose(0, 3, 1, 2)
    bias = operator.inputs[2] if len(operator.inputs) > 2 else None
    if bias is None:
        return weights, np.zeros(len(weights), np.int64)
    return weights, np.frombuffer(bias.data or b"", "<i4").astype(np.int64)


def _unfolded(coefficients: Coefficients, weights: Whole) -> bool:
    return coefficients.weights.shape == weights.shape


def _weights(coefficients: Coefficients, weights: Whole) -> Iterator[Finding]:
    decoded = coefficients.weights
    if weights.shape[2:] == (1, 1) and decoded.size == weights.size:
        decoded = decoded.reshape(
            weights.shape
        )  # a fully connected layer's, in the order of its input
        if not (wrong := int(np.count_nonzero(decoded != weights))):
            return
        kind = "others" if (_moments(decoded) != _moments(weights)).any() else "in another order"
        text = f"{wrong} {kind} (read as {coefficients.layout})"
        yield _submission("weights", f"all {weights.size} as in the model", text)
        return
    if _unfolded(coefficients, weights):
        wrong = int(np.count_nonzero(decoded != weights))
        if not wrong:
            return
        expected = f"all {weights.size} as in the model"
    # A folded kernel (stride 2) has the same weights at other places, and zero points between them.
    by_channel = np.flatnonzero((_moments(decoded) != _moments(weights)).any(axis=1))
    if _unfolded(coefficients, weights):
        kind = "in another order" if not by_channel.size else "others"
        yield _submission("weights", expected, f"{wrong} {kind} (read as {coefficients.layout})")
    elif by_channel.size:
        yield _submission(
            "weights",
            "in each channel those of the model",
            f"others in {by_channel.size} of {len(weights)} channels (read as "
            f"{coefficients.layout})",
        )


def _moments(weights: NDArray[np.float32] | Whole) -> Whole:
    """Count and sums of powers of each channel's weights other than 0: the same in any order.

    In whole numbers: NumPy's power of floating-point numbers is not exact, and depends on their places.
    """
    flat = weights.reshape(len(weights), -1).astype(np.int64)
    powers = [flat != 0, flat, flat * flat, flat * flat * flat]
    return np.stack([each.sum(axis=1) for each in powers], axis=1)


def _biases(
    coefficients: Coefficients, weights: Whole, biases: Whole, in_zero_point: int
) -> Iterator[Finding]:
    expected = biases - in_zero_point * weights.sum(axis=(1, 2, 3))
    if expected.shape != coefficients.biases.shape:
        return
    wrong = np.flatnonzero(expected != coefficients.biases)
    if wrong.size:
        first = int(wrong[0])
        yield _submission(
            "bias",
            f"{expected[first]} in channel {first}",
            f"{coefficients.biases[first]}, and {wrong.size} of {expected.size} wrong in all",
        )


def _addition(operation: Operation, coefficients: Coefficients) -> Iterator[Finding]:
    """An ADD is a kernel with one weight an input; its bias takes both zero points off.

    Mesa computes the bias before it rounds the weights to 8 bits, so half a step of each weight is right.
    """
    scales = operation.add
    if scales is None:
        raise RuntimeError("the operation is not an ADD")
    flat = coefficients.weights.reshape(len(coefficients.weights), -1)
    used = [np.flatnonzero(row) for row in flat]
    if any(places.size != 2 for places in used):
        count = max(places.size for places in used)
        yield _submission("weights of the ADD", "2 an output channel", f"up to {count}")
        return
    pairs = np.array([row[places] for row, places in zip(flat, used, strict=True)], np.int64)
    zero_points = np.array([scales.first_zero_point, scales.second_zero_point])
    expected = -(pairs @ zero_points)
    tolerance = int(zero_points.sum()) // 2 + 1
    wrong = np.flatnonzero(np.abs(expected - coefficients.biases) > tolerance)
    if wrong.size:
        first = int(wrong[0])
        yield _submission(
            "bias of the ADD",
            f"{expected[first]} (weights times zero points) to within {tolerance}",
            f"{coefficients.biases[first]} in {wrong.size} of {expected.size} channels",
        )


def _geometry(
    operator: graph.Operation, job: NnJob, weights: Whole, image: Bytes
) -> Iterator[Finding]:
    source, target = _size(operator.inputs[0]), _size(operator.outputs[0])
    geometry = job.geometry
    if (geometry.out_height, geometry.out_width) != target and (
        geometry.out_height * geometry.out_width != target[0] * target[1]
    ):
        found = f"{geometry.out_height} x {geometry.out_width}"
        yield _submission("out_image size", f"{target[0]} x {target[1]}", found)
    kernel = (job.shape.height, job.shape.width)
    if kernel == (1, 1):
        return  # then a plane is as good as a row
    if image.shape[1:] != source:
        if image.shape[1:] == source[::-1] and kernel == weights.shape[2:]:
            yield _submission(
                "in_image_x_size, in_image_y_size",
                f"{source[1]}, {source[0]} (with rows of as many bytes)",
                f"{source[0]}, {source[1]}",
            )
        return
    if image.shape[0] > 1 and (job.in_row, job.in_plane) != (source[1], source[0] * source[1]):
        yield _submission(
            "in_image_x_stride, in_image_y_stride",
            f"rows of {source[1]} bytes, planes of {source[0] * source[1]}",
            f"rows of {job.in_row}, planes of {job.in_plane}",
        )
    if geometry.step != operator.strides[0]:
        return
    for axis, number, found_pad in (("y", 0, geometry.pad_y), ("x", 1, geometry.pad_x)):
        pad = audit_tp.padding(operator, number)
        if found_pad != pad:
            yield _submission(f"in_image_{axis}_offset", str(-pad), str(-found_pad))


def _sums(
    operator: graph.Operation,
    operation: Operation,
    job: NnJob,
    image: Bytes,
    weights: Whole,
    biases: Whole,
    accumulators: Accumulators,
) -> Iterator[Finding]:
    """Compare some accumulators with the model's own sums."""
    target = _size(operator.outputs[0])
    if accumulators.shape[1:] != target or len(weights) != len(accumulators):
        return
    pads = [audit_tp.padding(operator, axis) for axis in (0, 1)]
    # The hardware's zero point off each pixel, 0 outside the image; depthwise: one plane a channel.
    depthwise = operator.kind == "DEPTHWISE_CONV_2D"
    if depthwise and len(weights) != len(image):
        return
    for y, x in _places(target, weights[0].size * len(weights)):
        top, left = y * operator.strides[0] - pads[0], x * operator.strides[1] - pads[1]
        window = _window(image, top, left, weights.shape[2:], operation.in_zero_point)
        centred = window - operation.in_zero_point
        planes = centred[:, None] if depthwise else centred[None]
        expected = (weights * planes).sum(axis=(1, 2, 3)) + biases
        wrong = np.flatnonzero(expected != accumulators[:, y, x])
        if wrong.size:
            channel = int(wrong[0])
            yield _submission(
                f"sum of channel {channel}, row {y}, column {x}",
                f"{expected[channel]} after the model",
                f"{accumulators[channel, y, x]}",
                "descriptor and coefficients give the same sum as the emulator",
            )
            return


def _own_sums(
    job: NnJob, image: Bytes, coefficients: Coefficients, accumulators: Accumulators
) -> Iterator[Finding]:
    """Compare some of the emulator's accumulators with plain sums after the same descriptor."""
    geometry = job.geometry
    chosen = _channels(coefficients.weights.shape)
    weights = coefficients.weights[chosen].astype(np.int64)
    biases = coefficients.biases[chosen]
    for y, x in _places((geometry.out_height, geometry.out_width), weights.size):
        top, left = y * geometry.step - geometry.pad_y, x * geometry.step - geometry.pad_x
        window = _window(image, top, left, weights.shape[2:], geometry.border)
        sources = coefficients.sources
        planes = window[sources[chosen]][:, None] if sources is not None else window[None]
        expected = (weights * planes).sum(axis=(1, 2, 3)) + biases
        wrong = np.flatnonzero(expected != accumulators[chosen, y, x])
        if wrong.size:
            place = int(wrong[0])
            channel = int(chosen[place])
            yield Finding(
                f"sum of channel {channel}, row {y}, column {x}",
                f"{expected[place]} after descriptor and coefficients",
                f"{accumulators[channel, y, x]}",
                blame=Blame.EMULATOR,
                evidence="a plain sum over the same numbers gives another result",
            )
            return


def _window(image: Bytes, top: int, left: int, size: tuple[int, ...], border: int) -> Whole:
    height, width = size
    window = np.full((image.shape[0], height, width), border, np.int64)
    y0, y1 = max(top, 0), min(top + height, image.shape[1])
    x0, x1 = max(left, 0), min(left + width, image.shape[2])
    if y0 < y1 and x0 < x1:
        window[:, y0 - top : y1 - top, x0 - left : x1 - left] = image[:, y0:y1, x0:x1]
    return window


def _channels(shape: tuple[int, ...]) -> NDArray[np.intp]:
    """Return the output channels to look at: all, or of a huge kernel as many as the time allows."""
    total = math.prod(shape)
    return np.arange(0, shape[0], max(1, -(-total // _MOST_MACS)))


def _places(size: tuple[int, int], macs: int) -> list[tuple[int, int]]:
    """Corners, middle and two more of a plane, as many as the time allows (always one)."""
    height, width = size
    places = [
        (0, 0), (height - 1, width - 1), (height // 2, width // 2), (0, width - 1), (height - 1, 0),
        (height // 3, width * 2 // 3), (min(1, height - 1), min(1, width - 1)),
    ]  # fmt: skip
    return list(dict.fromkeys(places))[: max(1, _MOST_MACS // max(macs, 1))]


def _size(tensor: graph.Tensor | None) -> tuple[int, int]:
    """Rows and columns of a tensor (1, rows, columns, channels); 1 x 1 of others."""
    if tensor is None or len(tensor.shape) != 4:
        return 1, 1
    return tensor.shape[1], tensor.shape[2]


def _submission(
    field: str, expected: str, found: str, evidence: str = "recomputed from the model"
) -> Finding:
    return Finding(field, expected, found, blame=Blame.SUBMISSION, evidence=evidence)
