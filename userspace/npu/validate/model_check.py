# SPDX-License-Identifier: MIT
"""Looks at a model and a picture before anything runs: can a smoke test be made of them at all?

What is wrong with them is said here, the same for this machine, a host and a virtual NPU. What only the
TFLite runtime knows, ``loading.py`` says.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from bsp.base.errors import UserError

from ..model import foreign
from ..model.graph import Model, Tensor, read_ends, read_model
from . import fixed_size, models
from .onboard import bmp
from .onboard.model_inputs import HINT, Filling, Input, InputError, fillings

# tensorflow/lite/kernels/random_ops.cc, multinomial.cc
_DRAWS = ("RANDOM_UNIFORM", "RANDOM_STANDARD_NORMAL", "MULTINOMIAL")
_BYTES = {"uint8": (0, 255), "int8": (-128, 127)}
_PLAIN_PIXELS = 1 << 16  # that are looked at in one go
_OTHER_MODEL = "give another model, or convert it again"


def checked(inputs: models.Inputs, size: tuple[int, int] | None) -> models.Inputs:
    """Return what a smoke test runs: as it is, or the model with its input fixed at a size.

    Args:
        size: height and width that a model which takes any gets.

    Raises:
        UserError: the model is broken or takes no picture; the picture cannot be read.
    """
    content = foreign.read(inputs.model.path)
    try:
        model = read_model(content, what=inputs.model.name)
        model_inputs = inputs_in(content)
    except UserError as error:
        raise UserError(error.message, hint=_OTHER_MODEL) from error
    if not model.operations:
        raise UserError(f"{inputs.model.name} has no operations", hint=_OTHER_MODEL)
    if not model.outputs:
        raise UserError(f"{inputs.model.name} has no outputs", hint=_OTHER_MODEL)
    if not any(_hangs_on_inputs(output, model) for output in model.outputs):
        raise UserError(
            f"no output of {inputs.model.name} depends on its inputs: whatever comes out proves nothing",
            hint=_OTHER_MODEL,
        )
    run = (*model.operations, *(model.inner if model.calls else ()))
    if draws := next((each for each in run if each.kind in _DRAWS), None):
        raise UserError(
            f"{inputs.model.name} draws random numbers ({draws.name}): no two of its runs can be compared",
            hint=_OTHER_MODEL,
        )
    if odd := _odd_zero_point(model):
        raise UserError(f"{inputs.model.name}: {odd}", hint=_OTHER_MODEL)
    check_picture(inputs.image.path)
    if model.signatures:
        names = ", ".join(model.signatures)
        inputs = replace(
            inputs,
            note="; ".join(
                filter(None, [inputs.note, f"only the model's main graph is run, not its {names}"])
            ),
        )
    fixed = fixed_size.fixed(inputs, model_inputs, size)
    if fixed is not inputs:
        inputs, model_inputs = fixed, inputs_in(fixed.model.path.read_bytes())
    try:
        fillings(model_inputs)
    except InputError as error:
        raise UserError(str(error), hint=HINT) from error
    return inputs


def _odd_zero_point(model: Model) -> str:
    """Say which tensor of bytes has a zero point that is no byte; "" if none has.

    TFLite's own kernels do not agree on what that means: its optimised and its portable ones differ.
    """
    for each in model.operations:
        for tensor in filter(None, (*each.inputs, *each.outputs)):
            least, most = _BYTES.get(tensor.dtype, (-math.inf, math.inf))
            odd = [zero for zero in tensor.zero_points if not least <= zero <= most]
            if odd:
                return (
                    f"{each.name} has a tensor of {tensor.dtype} with the zero point {odd[0]}, which has "
                    f"to be {least} to {most}: TFLite's own kernels differ on it"
                )
    return ""


def _hangs_on_inputs(output: Tensor, model: Model) -> bool:
    """Whether an output is computed from an input, or from what is kept elsewhere (a variable).

    An input that is handed out as it is does not count: nothing was computed.
    """
    makers = {id(tensor): each for each in model.operations for tensor in each.outputs if tensor}
    inputs = {id(tensor) for tensor in model.inputs}
    visited: set[int] = set()
    waiting = [] if id(output) in inputs else [output]
    while waiting:
        tensor = waiting.pop()
        maker = makers.get(id(tensor))
        if id(tensor) in inputs or (maker is not None and not maker.inputs):
            return True
        if maker is not None and maker.index not in visited:
            visited.add(maker.index)
            waiting += [source for source in maker.inputs if source]
    return False


def fillings_of(model: Path) -> list[Filling]:
    """Return what each input of a model that was checked is given."""
    return fillings(inputs_in(model.read_bytes()))


def output_shapes(model: Path) -> list[tuple[int, ...]]:
    """Return the shapes of a model's outputs, as its file has them; () where it does not tell."""
    return [tensor.shape for tensor in read_ends(model.read_bytes())[1]]


def inputs_in(model: bytes) -> list[Input]:
    """Return the inputs of a .tflite file; raises as ``read_graph``."""
    return [_input(tensor) for tensor in read_ends(model)[0]]


def _input(tensor: Tensor) -> Input:
    scale = tensor.scales[0] if len(tensor.scales) == 1 else 0.0
    zero_point = tensor.zero_points[0] if len(tensor.zero_points) == 1 else 0
    return Input(tensor.name, tensor.shape, tensor.signature, tensor.dtype, scale, zero_point)


def check_picture(path: Path) -> None:
    """Raise a UserError for a picture that cannot be read, or that is of one colour.

    There rounding does not average out, as it is the same at each pixel, so that healthy kernels differ
    widely (MoveNet, embeddings); and rows, columns or pixels that are mixed up are not seen.
    """
    try:
        picture = bmp.open_bmp(path)
    except bmp.ImageError as error:
        raise UserError(f"{path}: {error}", hint=f"make a BMP of it: {bmp.CONVERT}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if _is_plain(picture):
        raise UserError(
            f"{path} is of one colour: it shows neither that a machine computes right nor that it does not",
            hint="give a photograph of what the model knows",
        )


def _is_plain(picture: bmp.Picture) -> bool:
    """Whether all pixels are the same; of most pictures one row is enough."""
    first = picture.rows(np.zeros(1, np.intp))[0, 0]
    step = max(1, _PLAIN_PIXELS // picture.width)
    return all(
        np.all(picture.rows(np.arange(top, min(top + step, picture.height))) == first)
        for top in range(0, picture.height, step)
    )
