# SPDX-License-Identifier: MIT
"""What TFLite's portable kernels make of a model on this machine: in this process, or in one of its own.

    python -m virtual.npu.portable FOLDER

runs ``model.tflite`` with ``inputs.npz`` and writes ``outputs.npz``: a broken or hostile model may end its
process, or ask for any amount of memory.
"""

from __future__ import annotations

import resource
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bsp.base.errors import InfrastructureError
from bsp.base.process import run
from bsp.base.project import PROJECT
from userspace.npu.validate.onboard.child import signal_name
from userspace.npu.validate.onboard.environment import load_runtime
from userspace.npu.validate.onboard.loading import portable_kernels
from userspace.npu.validate.onboard.output_values import output_value
from userspace.npu.validate.onboard.stage_error import StageError

_MODEL, _INPUTS, _OUTPUTS = "model.tflite", "inputs.npz", "outputs.npz"
_MOST_MEMORY_BYTES = 8 << 30
DEADLINE_S = 300.0


def outputs(content: bytes, inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
    """Return a model's outputs, in TFLite's order: for models of our own, as others may end this process.

    Raises:
        ValueError: TFLite does not take the model or the inputs, or there is no runtime.
    """
    try:
        module, _ = load_runtime()
        interpreter = module.Interpreter(
            model_content=content,
            experimental_op_resolver_type=portable_kernels(module, content),
            num_threads=1,
        )
        interpreter.allocate_tensors()
        for details, values in zip(interpreter.get_input_details(), inputs, strict=True):
            interpreter.set_tensor(details["index"], values)
        interpreter.invoke()
    except (StageError, RuntimeError) as error:
        raise ValueError(str(error)) from error
    sinks = interpreter.get_output_details()
    return [np.array(output_value(interpreter, each)) for each in sinks]


def outputs_apart(
    content: bytes, inputs: Sequence[NDArray[Any]], timeout_s: float = DEADLINE_S
) -> list[NDArray[Any]]:
    """Return the same from a process of its own, for models of anybody's.

    Raises:
        ValueError: the same; it crashes, or does not end.
    """
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


def main(name: str) -> int:
    """Run what is in a folder; say on standard output what is wrong with it, and return 1."""
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_MEMORY_BYTES, _MOST_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    folder = Path(name)
    try:
        with np.load(folder / _INPUTS) as file:
            inputs = [file[f"arr_{number}"] for number in range(len(file.files))]
        np.savez(folder / _OUTPUTS, *outputs((folder / _MODEL).read_bytes(), inputs))
    except Exception as error:  # whatever TFLite and NumPy raise on garbage
        (folder / _OUTPUTS).unlink(missing_ok=True)
        sys.stdout.write(" ".join(str(error).split())[:500] or repr(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
