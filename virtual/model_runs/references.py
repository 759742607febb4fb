# SPDX-License-Identifier: MIT
"""What TFLite's portable kernels compute of a model: its outputs, and each operation's first one.

    python -m virtual.model_runs.references FOLDER

runs ``model.tflite`` with ``inputs.npz`` and writes ``outputs.npz``, in a process of its own: a broken or
hostile model may end it, or ask for any amount of memory.
"""

from __future__ import annotations

import resource
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bsp.base.errors import InfrastructureError
from bsp.base.process import run
from bsp.base.project import PROJECT
from userspace.npu.model.graph import Model, output_numbers, with_outputs
from userspace.npu.validate.onboard.child import signal_name
from userspace.npu.validate.onboard.loading import portable_kernels

from ..gates.model_runner import tflite_runtime
from ..npu.operands import unsigned

Operands = tuple[NDArray[np.uint8], NDArray[np.uint8]]
_BYTES = (np.dtype(np.uint8), np.dtype(np.int8))

_MODEL, _INPUTS, _OUTPUTS = "model.tflite", "inputs.npz", "outputs.npz"
_MOST_MEMORY_BYTES = 8 << 30
_MOST_BYTES = 1 << 30
"""Of all tensors that are kept: above, only the model's outputs are compared."""


@dataclass(frozen=True)
class References:
    """Right values for given inputs.

    Attributes:
        outputs: of the model, in their order.
        by_operation: first outputs of operations, by index, as far as they are kept.
        operands: what ADDs of two computed tensors of bytes add, by index, as the NPU has it.
    """

    outputs: list[NDArray[Any]]
    by_operation: dict[int, NDArray[Any]]
    operands: dict[int, Operands] = field(default_factory=dict)


def references(
    content: bytes,
    model: Model,
    inputs: Sequence[NDArray[Any]],
    *,
    timeout_s: float = 300.0,
    outputs_only: bool = False,
) -> References:
    """Compute them on this machine.

    Args:
        outputs_only: keep no operation's values.

    Raises:
        ValueError: TFLite does not take the model, or these inputs, or does not end.
    """
    ends, firsts = output_numbers(content)
    sizes = sum(
        each.outputs[0].size_bytes for each in model.operations if each.outputs and each.outputs[0]
    )
    kept = firsts if sizes <= _MOST_BYTES and not outputs_only else {}
    # As outputs they are kept: an ADD may write its result over one of its inputs.
    tensors = list(dict.fromkeys([*ends, *kept.values()]))
    computed = _in_own_process(with_outputs(content, tensors), inputs, timeout_s)
    values = dict(zip(tensors, computed, strict=True))
    by_operation = {index: values[number] for index, number in kept.items()}
    return References(
        [values[number] for number in ends],
        by_operation,
        _operands(model, inputs, by_operation),
    )


def _operands(
    model: Model, inputs: Sequence[NDArray[Any]], by_operation: Mapping[int, NDArray[Any]]
) -> dict[int, Operands]:
    values = {id(tensor): value for tensor, value in zip(model.inputs, inputs, strict=False)}
    for each in model.operations:
        if each.index in by_operation:
            values[id(each.outputs[0])] = by_operation[each.index]
    operands = {}
    for each in model.operations:
        pair = [values.get(id(tensor)) for tensor in each.inputs[:2]]
        first, second = (*pair, None, None)[:2]
        if each.kind != "ADD" or first is None or second is None:
            continue
        if {first.dtype, second.dtype} <= set(_BYTES):
            operands[each.index] = (unsigned(first), unsigned(second))
    return operands


def _in_own_process(
    content: bytes, inputs: Sequence[NDArray[Any]], timeout_s: float
) -> list[NDArray[Any]]:
    with tempfile.TemporaryDirectory(prefix="npu-bsp-reference-") as name:
        folder = Path(name)
        (folder / _MODEL).write_bytes(content)
        np.savez(folder / _INPUTS, *inputs)
        command = [sys.executable, "-m", __spec__.name, str(folder)]
        try:
            done = run(command, cwd=PROJECT, timeout_s=timeout_s, check=False)
        except InfrastructureError as error:
            raise ValueError(error.message) from error
        if done.exit_code or not (folder / _OUTPUTS).exists():
            output = done.stdout.decode(errors="replace").strip()
            ended = f"ends with {done.exit_code}"
            if done.exit_code < 0:
                ended = f"crashes with {signal_name(-done.exit_code)}"
            raise ValueError(output or f"its own kernels' process {ended}")
        with np.load(folder / _OUTPUTS, allow_pickle=False) as file:
            return [file[f"arr_{number}"] for number in range(len(file.files))]


def _computed(content: bytes, inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
    module = tflite_runtime()
    interpreter = module.Interpreter(
        model_content=content,
        experimental_op_resolver_type=portable_kernels(module, content),
        num_threads=1,
    )
    interpreter.allocate_tensors()
    for details, given in zip(interpreter.get_input_details(), inputs, strict=True):
        interpreter.set_tensor(details["index"], given)
    interpreter.invoke()
    sinks = interpreter.get_output_details()
    return [np.array(interpreter.get_tensor(each["index"])) for each in sinks]


def main(name: str) -> int:
    """Run what is in a folder; say on standard output what is wrong with it, and return 1."""
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_MEMORY_BYTES, _MOST_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    folder = Path(name)
    try:
        with np.load(folder / _INPUTS) as file:
            inputs = [file[f"arr_{number}"] for number in range(len(file.files))]
        np.savez(folder / _OUTPUTS, *_computed((folder / _MODEL).read_bytes(), inputs))
    except Exception as error:  # whatever TFLite and NumPy raise on garbage
        (folder / _OUTPUTS).unlink(missing_ok=True)
        sys.stdout.write(" ".join(str(error).split())[:500] or repr(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
