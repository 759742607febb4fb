# SPDX-License-Identifier: MIT
"""Conditions of ``known_faults``: what stands around an operation, and layers that are not convolutions."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from ..graph import Operation, Tensor
from ..summary import data_of, output_of

_MOST_PARTS = 10
_MOST_DIMENSIONS = 4
_LONGEST_SIDE = (
    15  # Mesa's etnaviv_ml_nn.c, create_nn_config: sides of a fully connected layer's kernel
)
_LEAST_WIDE = 4
_MOST_OF_BYTE, _SIX = 255, 6.0001


class Around(Protocol):
    """What these conditions ask of ``known_faults.Surroundings``."""

    @property
    def from_cpu(self) -> Collection[int]:
        """Ids of tensors that come from the CPU."""

    @property
    def to_cpu(self) -> Collection[int]:
        """Ids of tensors that go there."""


def reshape_of_picture(operation: Operation, where: Around) -> bool:
    """A RESHAPE of a picture that the NPU itself has computed."""
    source = data_of(operation)
    inside = source is not None and id(source) not in where.from_cpu
    return operation.kind == "RESHAPE" and inside and _has_two_orders(source)


def reshape_of_many_dimensions(operation: Operation, _: Around) -> bool:
    """A RESHAPE to more than four dimensions."""
    sink = output_of(operation)
    return operation.kind == "RESHAPE" and sink is not None and len(sink.shape) > _MOST_DIMENSIONS


def connected_per_axis(operation: Operation, _: Around) -> bool:
    """A fully connected layer whose weights have a scale for each output."""
    weights = operation.inputs[1] if len(operation.inputs) > 1 else None
    return (
        operation.kind == "FULLY_CONNECTED" and weights is not None and len(set(weights.scales)) > 1
    )


def activation_left_out(operation: Operation, _: Around) -> bool:
    """An activation behind an ADD or a fully connected layer that does something."""
    if operation.kind not in ("ADD", "SUB", "FULLY_CONNECTED") or operation.activation == "NONE":
        return False
    sink = output_of(operation)
    return sink is None or not ends_anyhow(operation.activation, sink)


def ends_anyhow(activation: str, sink: Tensor) -> bool:
    """Whether an output's bytes end where a fused activation does."""
    highest = (_MOST_OF_BYTE - sink.zero_point) * (sink.scales[0] if sink.scales else 0.0)
    least = sink.is_bytes and sink.zero_point == 0
    return least and (activation == "RELU" or (activation == "RELU6" and 0 < highest <= _SIX))


def without_bias(operation: Operation, _: Around) -> bool:
    """A fully connected layer or a depthwise convolution that has no bias."""
    return operation.kind in ("DEPTHWISE_CONV_2D", "FULLY_CONNECTED") and (
        len(operation.inputs) < 3 or operation.inputs[2] is None
    )


def connected_of_one_plane(operation: Operation, _: Around) -> bool:
    """A fully connected layer whose inputs Mesa lays into one plane, wider than 3 and higher than 1."""
    width, height, planes = _sides(operation)
    return planes == 1 and width >= _LEAST_WIDE and height > 1


def connected_without_sides(operation: Operation, _: Around) -> bool:
    """A fully connected layer whose number of inputs nothing up to 15 divides."""
    width, height, planes = _sides(operation)
    return (width, height) == (1, 1) and planes > 1


def _sides(operation: Operation) -> tuple[int, int, int]:
    source = data_of(operation)
    if operation.kind != "FULLY_CONNECTED" or source is None or not source.shape:
        return 0, 0, 0
    rest = source.shape[-1]
    sides = []
    for _ in range(2):
        side = next((each for each in range(_LONGEST_SIDE, 1, -1) if rest and rest % each == 0), 1)
        sides.append(side)
        rest //= side
    return sides[0], sides[1], rest


def many_parts(operation: Operation, _: Around) -> bool:
    """A CONCATENATION of more than ten inputs."""
    return operation.kind == "CONCATENATION" and len(operation.inputs) > _MOST_PARTS


def joined_of_other_scales(operation: Operation, _: Around) -> bool:
    """A CONCATENATION of an input whose scale or zero point is not the output's."""
    sink = output_of(operation)
    return operation.kind == "CONCATENATION" and any(
        each and sink and (each.scales, each.zero_points) != (sink.scales, sink.zero_points)
        for each in operation.inputs
    )


def subtraction(operation: Operation, _: Around) -> bool:
    """A SUB."""
    return operation.kind == "SUB"


def subtraction_handed_out(operation: Operation, where: Around) -> bool:
    """A SUB of what the NPU has computed, whose output goes to the CPU."""
    sources = [tensor for tensor in operation.inputs[:2] if tensor is not None]
    sink = output_of(operation)
    inside = any(id(tensor) not in where.from_cpu for tensor in sources)
    return operation.kind == "SUB" and inside and id(sink) in where.to_cpu and _has_two_orders(sink)


def _has_two_orders(tensor: Tensor | None) -> bool:
    if tensor is None or len(tensor.shape) != 4:
        return False
    _, rows, columns, channels = tensor.shape
    return channels > 1 and rows * columns > 1
