# SPDX-License-Identifier: MIT
"""What a model's ADDs add, for given inputs: computed by TFLite's portable kernels, on this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bsp.base.errors import UserError
from userspace.npu.model.graph import operation_tensors, with_outputs
from userspace.npu.validate import model_check
from userspace.npu.validate.onboard import model_inputs, preprocess
from userspace.npu.validate.onboard.bmp import ImageError, open_bmp

from .portable import outputs, outputs_apart
from .tflite.operations import Inputs

_BYTES = (np.dtype(np.uint8), np.dtype(np.int8))


def operands_of(
    model: bytes,
    inputs: Sequence[NDArray[Any]],
    run: Callable[[bytes, Sequence[NDArray[Any]]], list[NDArray[Any]]] = outputs,
) -> dict[int, Inputs]:
    """Return the two inputs of each ADD of bytes whose inputs are both computed, by its place.

    Empty where it has none, or this machine cannot run the model.

    Args:
        run: returns a model's outputs, or raises ValueError.
    """
    adds = operation_tensors(model, "ADD")
    if not adds:
        return {}
    tensor_numbers = sorted({number for pair in adds.values() for number in pair})
    try:
        # As outputs they are kept: an ADD may write its result over one of its inputs.
        values = run(with_outputs(model, tensor_numbers), inputs)
    except ValueError:
        return {}
    tensors = dict(zip(tensor_numbers, values, strict=True))
    return {
        index: (unsigned(tensors[pair[0]]), unsigned(tensors[pair[1]]))
        for index, pair in adds.items()
        if tensors[pair[0]].dtype in _BYTES and tensors[pair[1]].dtype in _BYTES
    }


def operands_for_picture(model: Path, picture: Path) -> dict[int, Inputs]:
    """Return the same for a picture, as the runner gives it to the model on an Arm processor.

    In a process of its own: a model of somebody's may crash TFLite.
    """
    try:
        fillings, opened = model_check.fillings_of(model), open_bmp(picture)
    except (UserError, ImageError, OSError):
        return {}

    def resized(height: int, width: int) -> Any:
        return preprocess.resize_bilinear(opened, height, width, fused=True)

    inputs = [model_inputs.values(each, resized, preprocess.to_input) for each in fillings]
    return operands_of(model.read_bytes(), inputs, outputs_apart)


def save(path: Path, operands: Mapping[int, Inputs]) -> None:
    """Write operands to a file that ``load`` reads."""
    np.savez(
        path,
        **{f"{index}_{side}": pair[side] for index, pair in operands.items() for side in (0, 1)},
    )


def load(path: Path) -> dict[int, Inputs]:
    """Read operands from a file."""
    with np.load(path) as file:
        places = sorted({int(name.partition("_")[0]) for name in file.files})
        return {index: (file[f"{index}_0"], file[f"{index}_1"]) for index in places}


def unsigned(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Return a tensor of one picture as the NPU has it: int8 moved by 128."""
    whole = values[0] if values.ndim > 1 and values.shape[0] == 1 else values
    if whole.dtype == np.int8:
        return np.asarray(whole.view(np.uint8) ^ np.uint8(0x80), np.uint8)
    return np.asarray(whole, np.uint8)
