# SPDX-License-Identifier: MIT
"""What TFLite's portable kernels compute of a model: its outputs, and each operation's first one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from userspace.npu.model.graph import Model, output_numbers, with_outputs

from ..gates.model_runner import tflite_runtime

_MOST_BYTES = 1 << 30
"""Of all tensors that are kept: above, only the model's outputs are compared."""


@dataclass(frozen=True)
class References:
    """Right values for given inputs.

    Attributes:
        outputs: of the model, in their order.
        by_operation: first outputs of operations, by index, as far as they are kept.
    """

    outputs: list[NDArray[Any]]
    by_operation: dict[int, NDArray[Any]]


def references(content: bytes, model: Model, inputs: Sequence[NDArray[Any]]) -> References:
    """Compute them on this machine.

    Raises:
        ValueError: TFLite does not take the model, or these inputs.
        InfrastructureError: there is no TFLite runtime.
    """
    ends, firsts = output_numbers(content)
    sizes = sum(
        each.outputs[0].size_bytes for each in model.operations if each.outputs and each.outputs[0]
    )
    kept = firsts if sizes <= _MOST_BYTES else {}
    # As outputs they are kept: an ADD may write its result over one of its inputs.
    wanted = list(dict.fromkeys([*ends, *kept.values()]))
    values = dict(zip(wanted, _computed(with_outputs(content, wanted), inputs), strict=True))
    return References(
        [values[number] for number in ends],
        {index: values[number] for index, number in kept.items()},
    )


def _computed(content: bytes, inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
    module = tflite_runtime()
    try:
        interpreter = module.Interpreter(
            model_content=content,
            experimental_op_resolver_type=module.OpResolverType.BUILTIN_REF,
            num_threads=1,
        )
        interpreter.allocate_tensors()
        for details, given in zip(interpreter.get_input_details(), inputs, strict=True):
            interpreter.set_tensor(details["index"], given)
        interpreter.invoke()
        sinks = interpreter.get_output_details()
        return [np.array(interpreter.get_tensor(each["index"])) for each in sinks]
    except RuntimeError as error:
        raise ValueError(str(error)) from error
