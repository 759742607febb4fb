# SPDX-License-Identifier: MIT
"""What a delegate took and does wrongly though each job is right: read from the model's graph. Pure.

Each was seen in outputs of Mesa's driver that were wrong: of float32 tensors it takes the bytes; the
activation behind an ADD is in no job; what its own next operation reads stays channel by channel, for
others too; of a batch it computes the first entry.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from userspace.npu.model.faults import kernel_conditions as kernels
from userspace.npu.model.faults import operand_conditions as conditions
from userspace.npu.model.faults.graph_conditions import ends_anyhow
from userspace.npu.model.faults.known_faults import surroundings_of
from userspace.npu.model.graph import Model, Operation
from userspace.npu.model.partitions import partitions

from .finding import Blame, Finding

_COMPUTING = ("ADD", "SUB", "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
_BYTES = ("uint8", "int8")
_LEFT_OUT = ("ADD", "SUB", "FULLY_CONNECTED")
_NONE = "none: no job that was submitted is for it"


def not_in_the_main_graph(model: Model) -> str:
    """Say what of a model a delegate may take that the virtual NPU cannot know; "" if there is nothing.

    Its audit compares each job with an operation of the main graph. A delegate takes operations of the
    graphs that IF, WHILE and CALL run as well: their jobs would be taken for wrong ones.
    """
    inner = next(
        (each for each in model.inner if each.kind in _COMPUTING and _in_bytes(each)), None
    )
    if not model.calls or inner is None:
        return ""
    callers = ", ".join(each.name for each in model.calls[:2])
    return (
        f"{callers} runs another graph of the model, with {inner.kind}: on a virtual NPU, jobs of such a "
        "graph cannot be told from wrong ones"
    )


def _in_bytes(operation: Operation) -> bool:
    return any(each is not None and each.is_bytes for each in operation.outputs)


def wrongly_taken(model: Model, taken: Collection[int]) -> list[Finding]:
    """Return what may be wrong where a delegate took these operations, by index; for wrong outputs only."""
    return [
        *_floats(model, taken),
        *_activations(model, taken),
        *_shared(model, taken),
        *_reshapes(model, taken),
        *_batches(model, taken),
        *_operands(model, taken),
    ]


def _floats(model: Model, taken: Collection[int]) -> Iterator[Finding]:
    for each in model.operations:
        if each.index not in taken or each.kind not in _COMPUTING:
            continue
        other = next((dtype for dtype in _types(each) if dtype not in _BYTES), "")
        if other:
            yield Finding(
                "tensors", "bytes", other, operation=each.name, blame=Blame.SUBMISSION,
                evidence=f"Mesa took an operation of {other}, whose bytes the NPU takes for pixels",
            )  # fmt: skip


def _types(operation: Operation) -> list[str]:
    """The types of an operation's first input, outputs and weights."""
    weighted = operation.kind not in ("ADD", "SUB")
    tensors = (*operation.inputs[: 1 + weighted], *operation.outputs)
    return [tensor.dtype for tensor in tensors if tensor is not None]


def _activations(model: Model, taken: Collection[int]) -> Iterator[Finding]:
    for each in model.operations:
        if each.index in taken and each.kind in _LEFT_OUT and each.activation != "NONE":
            sink = each.outputs[0]
            if sink is None or ends_anyhow(each.activation, sink):
                continue  # bytes end there anyhow
            yield Finding(
                "fused activation", each.activation, "none", operation=each.name,
                blame=Blame.SUBMISSION, evidence="the driver has no activation for this operation",
            )  # fmt: skip


def _shared(model: Model, taken: Collection[int]) -> Iterator[Finding]:
    """A tensor that operations on both sides read, or one of the delegate's that is an output as well."""
    ends = {id(tensor) for tensor in model.outputs}
    for each in model.operations:
        if each.index not in taken:
            continue
        for tensor in each.outputs:
            if tensor is None or len(tensor.shape) != 4 or not _has_two_orders(tensor.shape):
                continue
            readers = [
                other
                for other in model.operations
                if any(source is tensor for source in other.inputs)
            ]
            inside = [other for other in readers if other.index in taken]
            outside = [other.name for other in readers if other.index not in taken]
            if id(tensor) in ends:
                outside.append("the model's output")
            if inside and outside:
                yield Finding(
                    f"order of what {inside[0].name} and {outside[0]} read",
                    "a job that brings it into TFLite's order for the latter", _NONE,
                    operation=each.name, blame=Blame.SUBMISSION,
                    evidence="a tensor that the delegate's own graph reads stays channel by channel",
                )  # fmt: skip


def _reshapes(model: Model, taken: Collection[int]) -> Iterator[Finding]:
    """A RESHAPE of what the delegate itself has computed: there a picture stands channel by channel."""
    makers = {id(tensor): each for each in model.operations for tensor in each.outputs}
    for each in model.operations:
        source = each.inputs[0] if each.inputs else None
        maker = makers.get(id(source))
        if each.kind != "RESHAPE" or each.index not in taken or source is None or maker is None:
            continue
        if maker.index in taken and len(source.shape) == 4 and _has_two_orders(source.shape):
            yield Finding(
                f"order of the output of {maker.name}",
                "a job that brings it into TFLite's order", _NONE,
                operation=each.name, blame=Blame.SUBMISSION,
                evidence="a RESHAPE copies bytes, and in the NPU's memory they stand channel by channel",
            )  # fmt: skip


def _batches(model: Model, taken: Collection[int]) -> Iterator[Finding]:
    """A tensor of several pictures (or vectors) is one of a single one in Etnaviv."""
    for each in model.operations:
        sizes = [
            tensor.shape[0]
            for tensor in (*each.inputs, *each.outputs)
            if tensor is not None
            and tensor.data is None
            and len(tensor.shape) == (2 if each.kind == "FULLY_CONNECTED" else 4)
        ]
        if each.index in taken and max(sizes, default=1) > 1:
            yield Finding(
                "jobs", f"some for each of the {max(sizes)} entries of its batch",
                "those of the first one alone", operation=each.name, blame=Blame.SUBMISSION,
                evidence="Mesa reads rows, columns and channels of a tensor, not how many there are",
            )  # fmt: skip


def _operands(model: Model, taken: Collection[int]) -> Iterator[Finding]:
    """Operands of another kind than the driver lays out."""
    for partition in partitions(model, taken):
        where = surroundings_of(partition, model.operations)
        for each in (model.operations[index] for index in partition.operations):
            for condition, (what, expected, found) in _ODD_OPERANDS.items():
                if condition(each, where):
                    yield Finding(
                        what, expected, found, operation=each.name, blame=Blame.SUBMISSION,
                        evidence="the driver does not look at that before it takes the operation",
                    )  # fmt: skip


_ODD_OPERANDS = {
    conditions.broadcast: ("operands", "two tensors of one size", "two of different sizes"),
    conditions.added_to_itself: ("operands", "two tensors", "one, twice"),
    conditions.constant_data: ("operands", "what the model computes or is given", "a constant"),
    conditions.operand_twice: ("operands", "each with a place of its own", "one of two operations"),
    conditions.joined_again: (
        "operands",
        "each with a place of its own",
        "a part of another tensor",
    ),
    kernels.unequal_sides: ("kernel", "as many rows as columns", "another number"),
    conditions.unequal_strides: ("strides", "one for rows and columns", "two"),
    conditions.narrow_activation: ("fused activation", "RELU_N1_TO_1", "none"),
    conditions.left_out_dimensions: ("tensors", "at most four dimensions", "more"),
    conditions.odd_quantisation: ("quantisation", "a positive scale and a byte", "another one"),
}


def _has_two_orders(shape: tuple[int, ...]) -> bool:
    return shape[3] > 1 and shape[1] * shape[2] > 1
