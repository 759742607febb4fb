# SPDX-License-Identifier: MIT
"""The operations of a model that an NPU computes, with the numbers that TFLite computes them with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from userspace.npu.model import graph

from ..memory import Bytes
from . import arithmetic
from .arithmetic import AddScales

Inputs = tuple[Bytes, Bytes]
"""What an ADD adds, as the NPU has it: unsigned bytes, (rows, columns, channels) or of another shape."""


@dataclass(frozen=True)
class Operation:
    """An operation that becomes one NN job.

    Attributes:
        index: of the operator in the model's graph.
        real: what accumulators are multiplied with (TFLite's GetQuantizedConvolutionMultipler).
        mesa_real: the same in float32, as Mesa's etnaviv computes it.
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
        UserError: the file is not a model.
    """
    handed_over = []
    for operator in graph.read_file(path):
        if operator.kind in ("ADD", "SUB"):
            operation = _addition(operator)
        elif operator.kind in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
            operation = _convolution(operator)
        elif operator.kind in ("RELU", "ABS", "LOGISTIC"):
            operation = _lookup(operator)
        else:
            operation = None
        if operation:
            handed_over.append(operation)
    return handed_over


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
        table = (
            arithmetic.multiply(values, *arithmetic.quantize_multiplier(real)) + output.zero_point
        )
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
