# SPDX-License-Identifier: MIT
"""Predicts which operations of a model a delegate will take: ``rules.toml``, applied to the model's graph.

Pure, and made on the host before anything is deployed. ``judge/verdict.py`` compares it to what was taken.
"""

from __future__ import annotations

import functools
import math
import re
import struct
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from .graph import Operation, Tensor
from .operation_names import TYPE_BITS
from .summary import reads_computed

_RULES = Path(__file__).parent / "rules.toml"
_RANGE_ENDS = {"uint8": 255, "int8": 127}


class Rules(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one driver takes in a range of Mesa series: operation -> names of conditions."""

    driver: str
    since: str
    before: str
    source: str
    operations: dict[str, tuple[str, ...]]
    compared: tuple[str, ...] = ()
    """Versions of Mesa whose real library decided the same."""
    warning: str = ""
    """What whoever has this driver must know first."""


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    rules: tuple[Rules, ...]


@dataclass(frozen=True)
class Prediction:
    """What a delegate is expected to do with a model.

    Attributes:
        taken: indices of the operations that it takes.
        refused: (index, operation, why) of the others.
        source: where the rules come from.
    """

    taken: tuple[int, ...]
    refused: tuple[tuple[int, str, str], ...]
    source: str

    def why(self, index: int) -> str:
        """Return why an operation is refused; "" where it is not."""
        return next((why for number, _, why in self.refused if number == index), "")


NO_RULE = "no rule"


@dataclass(frozen=True)
class Refusal:
    """Why an operation is not taken: the first condition of ``rules.toml`` that fails, or ``NO_RULE``."""

    condition: str
    why: str


@functools.cache
def all_rules() -> tuple[Rules, ...]:
    """Return what is known, checked."""
    rules = msgspec.convert(tomllib.loads(_RULES.read_text(encoding="utf-8")), _File).rules
    for each in rules:
        for names in each.operations.values():
            for name in names:
                if name not in _CONDITIONS:
                    raise ValueError(f"{_RULES}: unknown condition {name!r}")
    return rules


def rules_for(driver: str, mesa: str) -> Rules | None:
    """Return the rules for a driver in a Mesa version (``25.0.7-2``); None where none are known."""
    version = _series(mesa)
    for each in all_rules():
        if each.driver == driver and _series(each.since) <= version < _series(each.before):
            return each
    return None


def predict(graph: Sequence[Operation], rules: Rules) -> Prediction:
    """Return which operations of a graph are taken under rules, and why the others are not."""
    taken, refused = [], []
    for operation in graph:
        refusal = refusal_of(operation, rules)
        if refusal:
            refused.append((operation.index, operation.kind, refusal.why))
        else:
            taken.append(operation.index)
    return Prediction(tuple(taken), tuple(refused), rules.source)


def _series(version: str) -> tuple[int, ...]:
    match = re.match(r"(\d+)\.(\d+)", version)
    return (int(match.group(1)), int(match.group(2))) if match else (0, 0)


def refusal_of(operation: Operation, rules: Rules) -> Refusal | None:
    """Return what keeps an operation from being taken under rules; None where it is taken."""
    conditions = rules.operations.get(operation.kind)
    if conditions is None:
        return Refusal(NO_RULE, f"the {rules.driver} driver has no {operation.kind}")
    for name in conditions:
        why = _CONDITIONS[name](operation)
        if why:
            return Refusal(name, why)
    return None


def _with_verb(what: str) -> str:
    return f"{what} are" if what.endswith("s") and what != "bias" else f"{what} is"


def _per_tensor(operation: Operation) -> str:
    """Input, weights, bias and output are quantised, each with one scale."""
    for what, tensor in zip(
        ("input", "weights", "bias", "output"),
        (*(*operation.inputs, None, None, None)[:3], operation.outputs[0]),
        strict=True,
    ):
        if tensor is None and what == "bias":
            continue  # read all the same, from behind the list of inputs: see known_faults
        if tensor is None:
            return f"it has no {what}"
        if not tensor.scales:
            return f"its {_with_verb(what)} not quantised ({tensor.dtype})"
        if len(tensor.scales) != 1 or len(tensor.zero_points) != 1:
            return f"its {_with_verb(what)} quantised per axis"
    return ""


def _equal_scales(operation: Operation) -> str:
    """Input, weights, bias and output have one scale each, or several that are all the same."""
    for what, tensor in zip(
        ("input", "weights", "bias", "output"),
        (*(*operation.inputs, None, None, None)[:3], operation.outputs[0]),
        strict=True,
    ):
        if tensor and (len(set(tensor.scales)) > 1 or len(set(tensor.zero_points)) > 1):
            return f"its {_with_verb(what)} quantised per axis"
    return ""


def _activation(operation: Operation) -> str:
    """No fused activation, RELU, or RELU6 where the output cannot be more than 6 anyhow."""
    if operation.activation in ("NONE", "RELU", "RELU6"):
        return _relu6_range(operation)
    return f"its fused activation is {operation.activation}"


def _relu6_range(operation: Operation) -> str:
    """Not RELU6, or the output cannot be more than 6 anyhow."""
    if operation.activation != "RELU6":
        return ""
    output = operation.outputs[0]
    end = _RANGE_ENDS.get(output.dtype) if output else None
    if output is None or end is None:
        return f"its output is {output.dtype if output else 'missing'}, with a fused RELU6"
    # A broken file may have more of the one than of the other.
    for scale, zero_point in zip(output.scales, output.zero_points, strict=False):
        # In float32, as the C code has it.
        highest = _float32(_float32(end - zero_point) * _float32(scale))
        if highest > 6.0:
            return f"its output reaches {highest:.4g}, beyond its fused RELU6"
    return ""


def _float32(value: float) -> float:
    try:
        return float(struct.unpack("<f", struct.pack("<f", value))[0])
    except OverflowError:
        return math.copysign(math.inf, value)


def _no_dilation(operation: Operation) -> str:
    if operation.version >= 2 and operation.dilation != (1, 1):
        return f"it is dilated, {operation.dilation[0]} x {operation.dilation[1]}"
    return ""


def _computed_inputs(operation: Operation) -> str:
    """Neither of two inputs is a constant."""
    for tensor in operation.inputs[:2]:
        if tensor is None or tensor.data is not None:
            return "one of its inputs is a constant"
    return ""


def _last_axis(operation: Operation) -> str:
    axis = operation.axis
    if operation.kind == "SPLIT":
        if reads_computed(operation):
            return ""
        axes = _first_words(operation.inputs[0])  # of an int64 as well
        axis = axes[0] if axes else None
    return "" if axis in (3, -1) else f"it works along axis {axis}, not the last"


def _numbers(tensor: Tensor | None) -> tuple[int, ...]:
    """Return the values of an int32 constant; nothing where it is none."""
    if tensor is None or tensor.data is None or tensor.dtype != "int32":
        return ()
    return struct.unpack(f"<{len(tensor.data) // 4}i", tensor.data[: len(tensor.data) // 4 * 4])


def _first_words(tensor: Tensor | None) -> tuple[int, ...]:
    """Return a constant's bytes as Mesa reads them: as int32, whatever they are."""
    data = tensor.data if tensor and tensor.data else b""
    return struct.unpack(f"<{len(data) // 4}i", data[: len(data) // 4 * 4])


def _equal_channels(operation: Operation) -> str:
    channels = {tensor.shape[-1] for tensor in operation.inputs if tensor and tensor.shape}
    return "" if len(channels) == 1 else "its inputs differ in their number of channels"


def _equal_parts(operation: Operation) -> str:
    channels = {tensor.shape[-1] for tensor in operation.outputs if tensor and tensor.shape}
    return "" if len(channels) == 1 else "its outputs differ in their number of channels"


_PADDINGS_BYTES = 32
_NOT_FOUR = "it pads other than four dimensions by constants"


def _paddings(operation: Operation) -> tuple[int, ...]:
    """Return the first eight: Mesa reads these, of five dimensions as well.

    Of fewer than four dimensions it reads on, into what follows in the file.
    """
    tensor = operation.inputs[1] if len(operation.inputs) == 2 else None
    if not _numbers(tensor) or tensor is None or tensor.data is None:
        return ()
    content = (tensor.data + tensor.behind)[:_PADDINGS_BYTES]
    return struct.unpack("<8i", content) if len(content) == _PADDINGS_BYTES else ()


def _reads_on(operation: Operation) -> bool:
    """Whether Mesa takes what follows a PAD's paddings for paddings as well."""
    tensor = operation.inputs[1]
    return tensor is not None and len(tensor.data or b"") < _PADDINGS_BYTES


def _one_pixel(operation: Operation) -> str:
    """It pads one pixel on each of the four sides, or by what is computed: that is read unseen."""
    if reads_computed(operation):
        return ""
    pads = _paddings(operation)
    if not pads:
        return _NOT_FOUR
    if pads != (0, 0, 1, 1, 1, 1, 0, 0) and _reads_on(operation):
        return _NOT_FOUR
    if pads != (0, 0, 1, 1, 1, 1, 0, 0):
        return f"it pads {pads[2]}, {pads[3]} rows and {pads[4]}, {pads[5]} columns, not 1 each"
    return ""


def _two_pixels(operation: Operation) -> str:
    """It pads rows, columns and channels by two at most, on each side, or by what is computed."""
    if reads_computed(operation):
        return ""
    pads = _paddings(operation)
    if not pads:
        return _NOT_FOUR
    if pads[:2] != (0, 0) or not all(0 <= each <= 2 for each in pads[2:]):
        if _reads_on(operation):
            return _NOT_FOUR
        return f"it pads by {', '.join(map(str, pads))}: more than 2, or along the first dimension"
    return ""


def _bytes(operation: Operation) -> str:
    source = operation.inputs[0]
    dtype = source.dtype if source else "missing"
    return "" if dtype in _RANGE_ENDS else f"its input is {dtype}"


def _below_1280(operation: Operation) -> str:
    source = operation.inputs[0]
    width = source.shape[-1] if source and source.shape else 0
    return "" if width < 1280 else f"its input has {width} values, not less than 1280"


def _channels_moved(operation: Operation) -> str:
    """Channels go from last to first, or from first to last; of a computed order nobody can tell."""
    if reads_computed(operation):
        return ""
    order = _numbers(operation.inputs[1])[:4] if len(operation.inputs) > 1 else ()
    return (
        "" if order in ((0, 3, 1, 2), (0, 2, 3, 1)) else f"its order is {order or 'not constant'}"
    )


def _read_unseen(operation: Operation) -> str:
    """It is not taken, but what it reads is computed: that is read before anything is decided."""
    return "" if reads_computed(operation) else f"the driver has no {operation.kind}"


def _not_of_4_bytes(operation: Operation) -> str:
    """Neither the first input nor the first output has values of 4 bytes: float32, int32."""
    for what, tensors in (("input", operation.inputs), ("output", operation.outputs)):
        tensor = tensors[0] if tensors else None
        if tensor and TYPE_BITS.get(tensor.dtype) == 32:
            return f"its {what} is {tensor.dtype}"
    return ""


def _any_axis(operation: Operation) -> str:
    axis = operation.axis
    return "" if axis is not None and -1 <= axis <= 3 else f"it works along axis {axis}"


def _twice_as_large(operation: Operation) -> str:
    """It makes rows and columns of a picture twice as many."""
    source, output = operation.inputs[0], operation.outputs[0]
    sizes = [tensor.shape[1:3] for tensor in (source, output) if tensor and len(tensor.shape) == 4]
    if len(sizes) == 2 and tuple(2 * size for size in sizes[0]) == sizes[1]:
        return ""
    return "it resizes by other than 2 x 2"


def _strides_to_3(operation: Operation) -> str:
    return (
        "" if max(operation.strides) <= 3 else f"its stride is {max(operation.strides)}, beyond 3"
    )


_CONDITIONS: dict[str, Callable[[Operation], str]] = {
    "per-tensor": _per_tensor,
    "equal-scales": _equal_scales,
    "activation": _activation,
    "relu6-range": _relu6_range,
    "no-dilation": _no_dilation,
    "computed-inputs": _computed_inputs,
    "last-axis": _last_axis,
    "equal-channels": _equal_channels,
    "one-pixel": _one_pixel,
    "two-pixels": _two_pixels,
    "equal-parts": _equal_parts,
    "bytes": _bytes,
    "below-1280": _below_1280,
    "channels-moved": _channels_moved,
    "not-of-4-bytes": _not_of_4_bytes,
    "any-axis": _any_axis,
    "twice-as-large": _twice_as_large,
    "strides-to-3": _strides_to_3,
    "read-unseen": _read_unseen,
}
