# SPDX-License-Identifier: MIT
"""Operations that Mesa's Etnaviv driver takes and is known to compute wrongly, as conditions.

Most are in docs/findings. They come from runs of small models on the virtual NPUs with Mesa 25.0.7, 26.1.6
and 26.2.6; no board has confirmed them here but where the page says so. Other versions are not known. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from ..graph import Operation, Tensor
from ..partitions import Partition
from ..summary import data_of, output_of, weights_of
from . import graph_conditions as around
from . import kernel_conditions as kernels
from . import operand_conditions as operands
from . import rocket_conditions as rocket
from .reused_memory import sums_in_reused_memory

A311D, IMX8MP = "a311d", "imx8mp"
NPUS = (A311D, IMX8MP)
"""NPUs that were swept, as the SoCs are named."""
RK3588 = "rk3588"
KNOWN_NPUS = (*NPUS, RK3588)
"""NPUs of which something is known: of the RK3588's, where its driver crashes or loses a value."""
OURS = "npu-bsp"
"""In the version of a Mesa with patches of ours, which known faults and verdicts are not about."""
_BOTH, _THREE = NPUS, KNOWN_NPUS
_ALL, _SINCE_26 = ("25.0", "26.1", "26.2"), ("26.1", "26.2")
_CORES = 8  # of the A311D's NPU
_CONVOLUTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D")


@dataclass(frozen=True)
class Surroundings:
    """What of an operation's tensors the NPU has from itself, and what goes back to the CPU.

    Attributes:
        from_cpu: ids of tensors that come from the CPU or the application.
        to_cpu: ids of tensors that go there.
        read: ids of tensors that the NPU itself reads.
        operands: how often the NPU adds, subtracts or joins a tensor, by its id.
        laid_out: ids of tensors that operations other than CONCATENATION read.
        fused: what Rockchip's driver makes of the NPU's sums.
        reused: indices of sums whose weights lie in memory that was used before, with Mesa 25.0.
        placed: which operation (CONCATENATION, SPLIT) made a tensor a part of another, by its id.
    """

    from_cpu: Collection[int]
    to_cpu: Collection[int]
    read: Collection[int] = ()
    operands: Mapping[int, int] = field(default_factory=dict)
    placed: Mapping[int, str] = field(default_factory=dict)
    laid_out: Collection[int] = ()
    fused: rocket.Fused = field(default_factory=rocket.Fused)
    reused: Collection[int] = ()


def surroundings_of(partition: Partition, operations: Sequence[Operation]) -> Surroundings:
    """Return what the operations of a partition have around them; ``operations`` are the model's."""
    inside = [operations[index] for index in partition.operations]
    from_cpu = {id(tensor) for tensor in partition.inputs}
    to_cpu = {id(tensor) for tensor in partition.outputs}
    return Surroundings(
        from_cpu,
        to_cpu,
        {id(tensor) for each in inside for tensor in each.inputs if tensor is not None},
        operands.operands_in(inside),
        operands.placed_in(inside),
        operands.laid_out_in(inside),
        rocket.fused_in(inside, from_cpu, to_cpu),
        sums_in_reused_memory(inside),
    )


Condition = Callable[[Operation, Surroundings], bool]


@dataclass(frozen=True)
class Fault:
    """A kind of operation that comes out wrong.

    Attributes:
        what: what happens, in words that follow the operation's name.
        page: in docs/findings, "" where there is none yet.
        npus, series: where.
        way_out: what to change in the model, or to take instead.
    """

    what: str
    page: str
    npus: tuple[str, ...]
    series: tuple[str, ...]
    condition: Condition
    way_out: str


def is_swept(mesa: str, npu: str = A311D) -> bool:
    """Whether faults of this Mesa on an NPU are known."""
    return _series(mesa) in _ALL and npu in NPUS


def faults_of(operation: Operation, where: Surroundings, npu: str, mesa: str) -> list[Fault]:
    """Return what is known to be wrong with an operation that the driver takes."""
    if OURS in mesa:
        return []
    return [
        fault
        for fault in _FAULTS
        if npu in fault.npus and _series(mesa) in fault.series and fault.condition(operation, where)
    ]


def _series(mesa: str) -> str:
    return ".".join(mesa.split(".")[:2])


def _size(tensor: Tensor | None) -> tuple[int, int, int]:
    """Return rows, columns and channels of a picture; 0, 0, 0 of anything else."""
    if tensor is None or len(tensor.shape) != 4:
        return 0, 0, 0
    return tensor.shape[1], tensor.shape[2], tensor.shape[3]


def _kernel(operation: Operation) -> tuple[int, int]:
    rows, columns, _ = _size(weights_of(operation))
    return rows, columns


def _input(operation: Operation) -> tuple[int, int, int]:
    return _size(data_of(operation))


def _is_stride_2(operation: Operation, *kinds: str) -> bool:
    return operation.kind in (kinds or _CONVOLUTIONS) and operation.strides == (2, 2)


def _other_types(operation: Operation, _: Surroundings) -> bool:
    """Its values are not bytes: float, the int32 of indices, or weights of 4 bits."""
    source = operation.inputs[1] if operation.kind == "SPLIT" else data_of(operation)
    tensors = (source, weights_of(operation), output_of(operation))
    return any(tensor and not tensor.is_bytes for tensor in tensors)


def _add_bias(operation: Operation, _: Surroundings) -> bool:
    first = data_of(operation)
    return operation.kind == "ADD" and first is not None and first.is_bytes and first.zero_point > 0


def _add_reused(operation: Operation, where: Surroundings) -> bool:
    return operation.index in where.reused


def _add_int8(operation: Operation, _: Surroundings) -> bool:
    first = data_of(operation)
    return operation.kind == "ADD" and first is not None and first.is_signed


def _add_of_inputs(operation: Operation, where: Surroundings) -> bool:
    sources = operation.inputs[:2]
    return operation.kind == "ADD" and all(id(tensor) in where.from_cpu for tensor in sources)


def _add_of_one_input(operation: Operation, where: Surroundings) -> bool:
    sources = [id(tensor) in where.from_cpu for tensor in operation.inputs[:2]]
    has_orders = _size(output_of(operation))[2] > 1
    return operation.kind == "ADD" and any(sources) and not all(sources) and has_orders


def _add_int8_of_inputs(operation: Operation, where: Surroundings) -> bool:
    return _add_int8(operation, where) and _add_of_inputs(operation, where)


def _pointwise_relu6(operation: Operation, _: Surroundings) -> bool:
    channels, outputs = _input(operation)[2], _size(output_of(operation))[2]
    return (
        operation.kind == "CONV_2D" and operation.activation == "RELU6"
        and _kernel(operation) == (1, 1) and channels > 1 and outputs > _CORES
    )  # fmt: skip


def _height_one(operation: Operation, where: Surroundings) -> bool:
    rows, columns, channels = _size(output_of(operation))
    # An ADD of what comes from the CPU stays in the CPU's order, which is right.
    added = operation.kind == "ADD" and not _add_of_inputs(operation, where)
    return (
        (operation.kind in (*_CONVOLUTIONS, "CONCATENATION") or added)
        and min(rows, columns) == 1 and rows * columns > 1 and channels > 1
        and id(output_of(operation)) in where.to_cpu
    )  # fmt: skip


def _depthwise_odd(operation: Operation, _: Surroundings) -> bool:
    rows, columns, _channels = _input(operation)
    return (
        _is_stride_2(operation, "DEPTHWISE_CONV_2D") and operation.same
        # 3 and 5 columns are right: Mesa's CI passes mobiledet076 and 079 on boards.
        and rows % 2 == 1 and columns % 2 == 1 and columns not in (3, 5)
    )  # fmt: skip


def _depthwise_narrow(operation: Operation, _: Surroundings) -> bool:
    return _is_stride_2(operation, "DEPTHWISE_CONV_2D") and _input(operation)[1] in (6, 7)


def _two_by_two_same(operation: Operation, _: Surroundings) -> bool:
    rows, columns, _channels = _input(operation)
    return (
        _is_stride_2(operation, "CONV_2D") and operation.same and _kernel(operation) == (2, 2)
        and (rows % 2 == 1 or columns % 2 == 1)
    )  # fmt: skip


def _two_by_two_order(operation: Operation, _: Surroundings) -> bool:
    return (
        _is_stride_2(operation, "CONV_2D")
        and _kernel(operation) == (2, 2) and _size(output_of(operation))[2] > _CORES
    )  # fmt: skip


def _one_size_odd(operation: Operation, _: Surroundings) -> bool:
    rows, columns, _channels = _input(operation)
    return (
        _is_stride_2(operation) and operation.same and max(_kernel(operation)) > 1
        and rows % 2 != columns % 2
    )  # fmt: skip


def _few_columns(operation: Operation, _: Surroundings) -> bool:
    return _is_stride_2(operation, "CONV_2D") and _input(operation)[1] in (4, 5)


def _depthwise_few_channels(operation: Operation, _: Surroundings) -> bool:
    return operation.kind == "DEPTHWISE_CONV_2D" and 2 <= _input(operation)[2] <= 5


def _int8_weights(operation: Operation, _: Surroundings) -> bool:
    weights = weights_of(operation)
    return weights is not None and weights.is_signed


def _connected_int8(operation: Operation, _: Surroundings) -> bool:
    data = data_of(operation)
    return operation.kind == "FULLY_CONNECTED" and data is not None and data.is_signed


def _depthwise_two(operation: Operation, _: Surroundings) -> bool:
    return (
        _is_stride_2(operation, "DEPTHWISE_CONV_2D") and operation.same and _input(operation)[1] == 2
    )  # fmt: skip


def _depthwise_four(operation: Operation, _: Surroundings) -> bool:
    return (
        _is_stride_2(operation, "DEPTHWISE_CONV_2D") and operation.same
        and _input(operation)[1] == 4 and _kernel(operation)[0] > 2
    )  # fmt: skip


def _stride_3(operation: Operation, _: Surroundings) -> bool:
    return operation.kind in _CONVOLUTIONS and max(operation.strides) > 2


def _grouped(operation: Operation, _: Surroundings) -> bool:
    own = _size(weights_of(operation))[2]
    return operation.kind == "CONV_2D" and 0 < own < _input(operation)[2]


def _multiplier(operation: Operation, _: Surroundings) -> bool:
    outputs = _size(output_of(operation))[2]
    return operation.kind == "DEPTHWISE_CONV_2D" and outputs > _input(operation)[2] > 0


def _pad_int8(operation: Operation, _: Surroundings) -> bool:
    data = data_of(operation)
    return operation.kind == "PAD" and data is not None and data.is_signed


def _connected_4d(operation: Operation, _: Surroundings) -> bool:
    data = data_of(operation)
    return operation.kind == "FULLY_CONNECTED" and data is not None and len(data.shape) in (3, 4)


def _connected_picture(operation: Operation, where: Surroundings) -> bool:
    rows, columns, _channels = _input(operation)
    return _connected_4d(operation, where) and rows * columns > 1


def _split_alone(operation: Operation, where: Surroundings) -> bool:
    if operation.kind != "SPLIT":
        return False
    ends = (*(id(t) in where.to_cpu for t in operation.outputs),)
    source = operation.inputs[1] if len(operation.inputs) > 1 else None
    return any(ends) or id(source) in where.from_cpu


def _portrait(operation: Operation, _: Surroundings) -> bool:
    rows, columns, _channels = _input(operation)
    laid_anew = max(*_kernel(operation), *operation.strides) > 1
    return operation.kind in _CONVOLUTIONS and laid_anew and rows > columns


def _one_channel(operation: Operation, _: Surroundings) -> bool:
    _rows, columns, channels = _input(operation)
    return (
        operation.kind == "CONV_2D" and channels == 1 and _kernel(operation)[1] > 3
        and 0 < columns <= 64 and operation.strides == (1, 1)
    )  # fmt: skip


def _handed_out(operation: Operation, where: Surroundings) -> bool:
    """Its output is read by another operation of the NPU's, and by the CPU or the application."""
    rows, columns, channels = _size(output_of(operation))
    both = id(output_of(operation)) in where.to_cpu and id(output_of(operation)) in where.read
    return both and operation.kind != "SPLIT" and channels > 1 and rows * columns > 1


def _batch(operation: Operation, _: Surroundings) -> bool:
    tensors = [tensor for tensor in (data_of(operation), output_of(operation)) if tensor]
    if operation.kind == "FULLY_CONNECTED":  # of three dimensions the second counts entries, too
        return any(math.prod(t.shape[:-1]) > 1 for t in tensors if len(t.shape) in (2, 3))
    return any(len(t.shape) == 4 and t.shape[0] > 1 for t in tensors)


_SIZES = "choose an input size for which this layer's input is even"
_UINT8 = "convert the model to uint8 instead of int8, or take an i.MX 8M Plus"
_ADD_MESA = "take Mesa 25.0.7 (Debian trixie), or an i.MX 8M Plus"
_FAULTS = (
    Fault("is taken though its values are not bytes, and comes out as garbage",
          "taken-and-wrong.md", _THREE, _ALL, _other_types,
          "quantise the model; operations on indices: take Mesa 25.0.7, or end the NPU's part before them"),
    Fault("has its bias corrected by stray bytes: all sums are off", "add-bias.md", (A311D,),
          _SINCE_26, _add_bias, _ADD_MESA),
    Fault("stands behind a small depthwise convolution, whose weights' memory it gets: all sums are off",
          "add-bias.md", (A311D,), ("25.0",), _add_reused,
          "put another convolution between, or take an i.MX 8M Plus"),
    Fault("of int8: all sums are off", "older.md", (A311D,), _ALL, _add_int8, _UINT8),
    Fault("adds what the NPU has computed and what the CPU hands over: in two orders, or one is missing",
          "older.md", _BOTH, _ALL, _add_of_one_input, "compute both on the NPU, or both on the CPU"),
    Fault("of two tensors that the CPU hands over: sums or their order are wrong", "older.md", _BOTH,
          ("25.0",), _add_of_inputs, "take Mesa 26.1 or later on an i.MX 8M Plus"),
    Fault("of two int8 tensors that the CPU hands over: operands are mixed up", "older.md",
          (IMX8MP,), _SINCE_26, _add_int8_of_inputs, "convert the model to uint8"),
    Fault("is 1x1 with RELU6, and gets its coefficients in another order", "pointwise-relu6.md",
          (A311D,), _SINCE_26, _pointwise_relu6,
          "take Mesa 25.0.7, or train with RELU in place of RELU6"),
    Fault("has an output of height or width 1 that stays channel by channel", "height-one.md", _BOTH,
          _SINCE_26, _height_one, "take Mesa 25.0.7, or give it a height and width above 1"),
    Fault("is depthwise of stride 2 on odd sizes: no border at top and left", "older.md", _BOTH, _ALL,
          _depthwise_odd, _SIZES),
    Fault("is depthwise of stride 2 on 6 or 7 columns: it reads unfolded pixels", "older.md", (A311D,),
          _ALL, _depthwise_narrow, "choose another input size"),
    Fault("is 2x2 of stride 2 on odd sizes: a border at the wrong side", "older.md", _BOTH,
          ("25.0", "26.1"), _two_by_two_same, f"take Mesa 26.2, or {_SIZES}"),
    Fault("is 2x2 of stride 2: its coefficients and descriptor disagree", "older.md", (A311D,), _ALL,
          _two_by_two_order, "use a 3x3 kernel"),
    Fault("has stride 2, and one of two sizes is odd: paddings are swapped", "older.md", _BOTH,
          _ALL, _one_size_odd, _SIZES),
    Fault("has stride 2 on 4 or 5 columns: shares of the cores are wrong", "older.md", _BOTH, _SINCE_26,
          _few_columns, "choose another input size, or Mesa 25.0.7"),
    Fault("is depthwise of 2 to 5 channels: the delegate crashes", "older.md", (IMX8MP,),
          _ALL, _depthwise_few_channels, "use an ordinary convolution, or more channels"),
    Fault("has int8 weights, which are taken for unsigned ones", "older.md", (A311D,), _ALL,
          _int8_weights, _UINT8),
    Fault("is of int8: its zero points are wrong", "older.md", (IMX8MP,), ("25.0",), _connected_int8,
          "take Mesa 26.1 or later, or convert the model to uint8"),
    Fault("is depthwise of stride 2 on 2 columns: a border at the wrong side", "", _BOTH, ("25.0",),
          _depthwise_two, "choose another input size"),
    Fault("is depthwise of stride 2 on 4 columns: a border at the wrong side", "", (IMX8MP,), _ALL,
          _depthwise_four, "choose another input size"),
    Fault("has a stride above 2", "taken-and-wrong.md", _BOTH, _ALL, _stride_3, "use stride 1 or 2"),
    Fault("has a kernel of 7 or more with padding SAME", "taken-and-wrong.md", _BOTH, ("25.0", "26.1"),
          kernels.large, "use kernels of 3 or 5"),
    Fault("has a kernel of 7 or more with padding SAME", "taken-and-wrong.md", _BOTH, ("26.2",),
          kernels.large_in_26_2, "use kernels of 3 or 5"),
    Fault("has a kernel with another number of rows than of columns", "taken-and-wrong.md", _BOTH, _ALL,
          kernels.unequal_sides, "use square kernels: 3x3 in place of 1x3 and 3x1"),
    Fault("has an even kernel of 4 or more, stride 2 and padding SAME: no border at top and left",
          "taken-and-wrong.md", _BOTH, ("25.0", "26.1"), kernels.even_of_stride_2,
          "take Mesa 26.2, or use kernels of 3 or 5"),
    Fault("is depthwise with an even kernel, stride 2 and padding SAME: no border at top and left",
          "taken-and-wrong.md", _BOTH, ("26.2",), kernels.even_depthwise, "use kernels of 3 or 5"),
    Fault("has an even kernel of 6 or more, stride 2 and padding SAME", "taken-and-wrong.md", (A311D,),
          ("26.2",), kernels.even_from_6, "use kernels of 3 or 5"),
    Fault("is grouped: its weights have fewer channels than its input",
          "taken-and-wrong.md", _THREE, _ALL, _grouped,
          "split it into ordinary convolutions, or train with one group"),
    Fault("is depthwise with a multiplier: more channels come out than go in",
          "taken-and-wrong.md", _BOTH, _ALL,
          _multiplier, "use multiplier 1 and a 1x1 convolution"),
    Fault("of int8 fills the border with another value than zero",
          "taken-and-wrong.md", _BOTH, ("25.0",), _pad_int8,
          "pad inside the convolution, or take Mesa 26.1 or later"),
    Fault("has sizes, an axis or a shape that the model computes or that is no input: the delegate"
          " crashes",
          "taken-and-wrong.md", _THREE, _ALL, operands.computed_parameters,
          "convert the model with a fixed input size, so that these are constants"),
    Fault("has weights or a bias that the model computes (float16 ones, say): the delegate crashes",
          "taken-and-wrong.md", _BOTH, _ALL, operands.computed_weights,
          "quantise the model to uint8, or take Mesa 25.0.7, which leaves float to the CPU"),
    Fault("has weights or a bias that the model computes (float16 ones, say): the delegate crashes",
          "taken-and-wrong.md", (RK3588,), _SINCE_26, operands.computed_weights,
          "quantise the model to uint8"),
    Fault("has an activation behind it, which is left out: values below its lower end stay",
          "", (RK3588,), _SINCE_26, rocket.activation_left_out,
          "give its output a range that begins where the activation does"),
    Fault("is added with scales that the driver has of a few models", "", (RK3588,), ("26.1",),
          rocket.is_sum, "take Mesa 26.2"),
    Fault("adds what no convolution of the NPU's has just made, or what is handed out as well: the delegate"
          " crashes",
          "", (RK3588,), _SINCE_26, rocket.sum_crashes,
          "put a convolution before the ADD's first input, and use that nowhere else"),
    Fault("adds what is computed only after the convolution that made its first input: it gets what lies"
          " there from before", "", (RK3588,), _SINCE_26, rocket.sum_is_early,
          "give it its inputs in the other order, the one that is computed last first"),
    Fault("adds to what another ADD has made or a convolution reads as well: one of them is not computed",
          "", (RK3588,), _SINCE_26, rocket.sum_loses,
          "put a convolution before the ADD's first input, and use that nowhere else"),
    Fault("works on a constant, which nobody hands to the NPU", "taken-and-wrong.md", _THREE, _ALL,
          operands.constant_data, "convert the model again, with constants folded"),
    Fault("is of tensors of different sizes: the smaller one is not repeated", "taken-and-wrong.md", _THREE,
          _ALL, operands.broadcast, "give it two tensors of one size"),
    Fault("is of a tensor and itself", "taken-and-wrong.md", _BOTH, _ALL, operands.added_to_itself,
          "scale the tensor by its quantisation instead"),
    Fault("has an operand that another ADD, SUB or CONCATENATION has as well: a part of it is not written",
          "taken-and-wrong.md", _BOTH, _ALL, operands.operand_twice,
          "compute that operand twice"),
    Fault("joins what a CONCATENATION or SPLIT has made: that has its place in another tensor",
          "taken-and-wrong.md", _BOTH, _ALL, operands.joined_again,
          "join all parts at once; compute a part of a SPLIT by a convolution of its own"),
    Fault("adds what a CONCATENATION or SPLIT has made: that has its place in another tensor",
          "taken-and-wrong.md", _BOTH, ("25.0",), operands.placed_in_sum,
          "take Mesa 26.1 or later for sums of joined tensors, or put a convolution between"),
    Fault("joins what the NPU has computed and what the CPU hands over for this alone: in two orders",
          "taken-and-wrong.md", _BOTH, ("25.0",), operands.joined_from_both,
          "take Mesa 26.1 or later, or compute both on the CPU"),
    Fault("adds a part of a SPLIT and what is no part", "taken-and-wrong.md", _BOTH, _SINCE_26,
          operands.one_part_in_sum, "put a convolution between SPLIT and ADD"),
    Fault("pads fewer than four dimensions: others are padded, by what follows in the file",
          "taken-and-wrong.md", _BOTH, _ALL, operands.padded_few_dimensions, "use four dimensions"),
    Fault("pads to another scale or zero point: its values are moved by the difference",
          "taken-and-wrong.md",
          _BOTH, _ALL, operands.padded_to_other_scale, "quantise its input and output alike"),
    Fault("has another stride along rows than along columns", "taken-and-wrong.md", _BOTH, _ALL,
          operands.unequal_strides, "use one stride for both"),
    Fault("has an activation behind it that ends at -1 and 1, which is left out", "taken-and-wrong.md",
          _BOTH, _SINCE_26, operands.narrow_activation, "use RELU, or take Mesa 25.0.7"),
    Fault("has more than four dimensions, or joins fewer: sizes are mixed up", "taken-and-wrong.md", _BOTH,
          ("25.0",), operands.other_dimensions, "use four dimensions"),
    Fault("has more than four dimensions, of which only the last four are looked at", "taken-and-wrong.md",
          _BOTH, _SINCE_26, operands.left_out_dimensions, "use four dimensions"),
    Fault("joins one row or one column of pixels, which stays channel by channel", "height-one.md", _BOTH,
          _SINCE_26, operands.joined_row, "use four dimensions, with a height and width above 1"),
    Fault("has a scale that is no positive number, or a zero point that no byte has", "taken-and-wrong.md",
          _THREE, _ALL, operands.odd_quantisation, "convert the model again"),
    Fault("has an input of three or four dimensions, which is taken for another one",
          "taken-and-wrong.md", _BOTH, ("25.0",),
          _connected_4d, "put a RESHAPE to two dimensions before it"),
    Fault("has a picture as input, whose values come in another order",
          "taken-and-wrong.md", _BOTH, _SINCE_26,
          _connected_picture, "use a convolution with a kernel of the picture's size instead"),
    Fault("is a SPLIT whose parts or source belong to the CPU: wrong order", "older.md", _BOTH,
          _ALL, _split_alone, "keep SPLIT between two convolutions"),
    Fault("has an output that the NPU reads and hands out as well: outside it is channel by channel",
          "handed-out.md", _BOTH, _ALL, _handed_out,
          "end the model's NPU part there, or compute that output twice"),
    Fault("has several entries in its batch, of which only the first is computed", "handed-out.md", _THREE,
          _ALL, _batch, "use batch 1, and run the model once for each entry"),
    Fault("is a RESHAPE of a picture that the NPU computed: its bytes stand channel by channel",
          "reshape-heads.md", _BOTH, _SINCE_26, around.reshape_of_picture,
          "take Mesa 25.0.7 (Debian trixie): there the CPU does it"),
    Fault("is a RESHAPE to more than four dimensions: a part of it is not copied", "taken-and-wrong.md",
          _BOTH, _SINCE_26, around.reshape_of_many_dimensions, "keep to four dimensions"),
    Fault("has weights quantised per axis, of which one scale is taken for all", "taken-and-wrong.md",
          _BOTH, _SINCE_26, around.connected_per_axis, "quantise the weights per tensor"),
    Fault("has an activation behind it, which is left out", "taken-and-wrong.md", _BOTH, _ALL,
          around.activation_left_out, "make the activation an operation of its own"),
    Fault("has no bias: other bytes are taken for one, or the delegate crashes",
          "taken-and-wrong.md", _THREE,
          _ALL, around.without_bias, "give it a bias of zeros"),
    Fault("has inputs that fit one plane, and gets its weights in another order", "taken-and-wrong.md",
          (A311D,), _ALL, around.connected_of_one_plane, "use a 1x1 convolution in its place"),
    Fault("has a number of inputs that nothing up to 15 divides", "taken-and-wrong.md", (A311D,), _ALL,
          around.connected_without_sides, "choose another number of inputs"),
    Fault("joins more than ten inputs: parts are missing, and of 32 it crashes",
          "taken-and-wrong.md", _BOTH,
          _ALL, around.many_parts, "join fewer at a time"),
    Fault("joins inputs whose scales are not the output's: they keep their own", "taken-and-wrong.md",
          _BOTH, _ALL, around.joined_of_other_scales, "quantise all of them with one scale and zero point"),
    Fault("is a SUB: its weights are those of an ADD", "taken-and-wrong.md", (A311D,), _SINCE_26,
          around.subtraction, _ADD_MESA),
    Fault("is a SUB of what the NPU computed: its output stays channel by channel", "taken-and-wrong.md",
          (IMX8MP,), _SINCE_26, around.subtraction_handed_out,
          "take Mesa 25.0.7 (Debian trixie): there the CPU does it"),
    Fault("works on a portrait image: rows and columns are swapped", "older.md", _BOTH, ("25.0",),
          _portrait, "turn the input by 90 degrees, or take Mesa 26.1 or later"),
    Fault("has a kernel wider than 3 and one channel: taps come in another order", "older.md",
          (A311D,), _ALL, _one_channel, "use a 3x3 kernel, or three equal channels"),
)  # fmt: skip
