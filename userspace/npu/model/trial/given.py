# SPDX-License-Identifier: MIT
"""What each input of a model is given: a .npy file, a picture, or generated data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bsp.base.errors import UserError

from ...validate.model_check import inputs_in
from ...validate.onboard import model_inputs, preprocess
from ...validate.onboard.model_inputs import Filling, Input, layout_of
from .pictures import open_picture

_TYPES = ("uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "bool",
          "float16", "float32", "float64")  # fmt: skip
_MOST_BYTES = 1 << 30
_ENDINGS = (".npy", ".bmp", ".png", ".jpg", ".jpeg")
MOST_SETS = 200


def input_values(
    model: bytes, files: Sequence[Path] = (), picture: Path | None = None
) -> tuple[tuple[NDArray[Any], ...], tuple[str, ...]]:
    """Return the values of a model's inputs, in their order, and in words what they are.

    Args:
        files: .npy files for the first inputs; the others get the picture, where they take one, or
            generated data.

    Raises:
        UserError: a file does not fit; nothing can be generated for an input.
    """
    inputs = inputs_in(model)
    if len(files) > len(inputs):
        raise UserError(
            f"{len(files)} files are given with --input, the model has {len(inputs)} inputs",
            hint="give at most one for each input, in the model's order",
        )
    values, words = [], []
    used = False
    for number, each in enumerate(inputs):
        layout = layout_of(each)
        if number < len(files):
            value, origin = _from_file(files[number], each), files[number].name
        elif picture and layout:
            filling = Filling(each, layout)
            value, origin, used = _from_picture(picture, filling), picture.name, True
        else:
            value, origin = _generated(each, number)
        values.append(value)
        words.append(origin)
    if picture and not used:
        taken = ", ".join(each.text() for each in inputs) or "nothing"
        raise UserError(
            f"no input is left that takes the picture {picture}: the model takes {taken}",
            hint="leave --image out, or give arrays with --input F.npy",
        )
    return tuple(values), tuple(words)


def sets_in(model: bytes, folder: Path) -> tuple[tuple[NDArray[Any], ...], ...]:
    """Return what a folder has for a model: one set of inputs from each picture, array or folder in it.

    Raises:
        UserError: there is nothing, too much, or something that does not fit.
    """
    if not folder.is_dir():
        raise UserError(
            f"there is no folder {folder}", hint="--inputs names a folder of pictures or arrays"
        )
    places = sorted(
        each
        for each in folder.iterdir()
        if not each.name.startswith(".") and (each.is_dir() or each.suffix.lower() in _ENDINGS)
    )
    if not places or len(places) > MOST_SETS:
        raise UserError(
            f"{folder} has {len(places)} pictures (BMP, PNG, JPEG), arrays (.npy) and folders, expected 1 "
            f"to {MOST_SETS}",
            hint="for a model with several inputs: a folder for each set, with an array for each input",
        )
    return tuple(_set(model, each)[0] for each in places)


def _set(model: bytes, place: Path) -> tuple[tuple[NDArray[Any], ...], tuple[str, ...]]:
    if place.is_dir():
        return input_values(model, sorted(place.glob("*.npy")))
    return (
        input_values(model, [place])
        if place.suffix.lower() == ".npy"
        else input_values(model, (), place)
    )


def _from_picture(path: Path, filling: Filling) -> NDArray[Any]:
    picture = open_picture(path)

    def resize(height: int, width: int) -> NDArray[np.float32]:
        return preprocess.resize_bilinear(picture, height, width, fused=True)

    return model_inputs.values(filling, resize, preprocess.to_input)


def _generated(each: Input, number: int) -> tuple[NDArray[Any], str]:
    if each.dtype not in _TYPES:
        raise UserError(
            f"the model's input {each.name!r} takes {each.text()}: nothing can be generated for that",
            hint="only what the rules say can be reported: --no-run",
        )
    # A size that is not known yet; 0 is one that a model may well have.
    shape = tuple(
        1 if size < 0 or (not size and each.free(axis)) else size
        for axis, size in enumerate(each.shape)
    )
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(each.dtype).itemsize
    if size > _MOST_BYTES:
        raise UserError(f"the model's input {each.name!r} has {size} bytes", hint="--no-run")
    seed = model_inputs.SEED + number
    fixed = Input(each.name, shape, shape, each.dtype, each.scale, each.zero_point)
    filling = Filling(fixed, "", seed)
    # Without a layout neither resizing nor conversion is asked for.
    return model_inputs.values(filling, _no_picture, preprocess.to_input), filling.text()


def _no_picture(_: int, __: int) -> NDArray[np.float32]:
    raise AssertionError("generated data need no picture")


def _from_file(path: Path, each: Input) -> NDArray[Any]:
    try:
        value = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, EOFError) as error:
        raise UserError(
            f"{path} is not an array of NumPy: {error}", hint="numpy.save writes such files"
        ) from error
    if not isinstance(value, np.ndarray):
        raise UserError(f"{path} has several arrays", hint="give one .npy file for each input")
    if value.shape == each.shape[1:] and each.shape[:1] == (1,):
        value = value[None]
    if value.shape != each.shape or value.dtype.name != each.dtype:
        kind = f"{'x'.join(map(str, value.shape)) or 'one'} {value.dtype.name}"
        raise UserError(
            f"{path} has {kind}, the model's input {each.name!r} takes {each.text()}",
            hint="convert it: array.astype(...).reshape(...), then numpy.save",
        )
    return np.array(value)
