# SPDX-License-Identifier: MIT
"""Gives a model that takes pictures of any size one size.

    python -m userspace.npu.validate.fixed_size MODEL.tflite '{"0": [1, 224, 224, 3]}'

prints the shapes of all tensors that the TFLite runtime computes from those of the inputs, in a process of
its own: a broken model may end it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bsp.base.cache import cache_dir, write_atomically
from bsp.base.download import sha256_of
from bsp.base.errors import UserError
from bsp.base.process import run
from bsp.base.progress import say
from bsp.base.project import PROJECT

from ..model.graph import with_shapes
from . import models
from .onboard.environment import load_runtime
from .onboard.loading import OTHER_HINT, LoadError, load
from .onboard.model_inputs import Input, free_sides, layout_of

DEFAULT_SIDE = 224
"""Height and width (pixels) of a picture for a model that takes any, where ``--size`` gives none."""
_MOST_SIDE = 4096
_TIMEOUT_S = 120


def size_of(text: str) -> tuple[int, int] | None:
    """Return height and width for ``--size``: ``HxW``, or one number for both; None where it was left out.

    Raises:
        UserError: it has another form.
    """
    if not text:
        return None
    words = text.lower().split("x")
    if len(words) > 2 or not all(word.isascii() and word.isdigit() for word in words):
        raise UserError(
            f"--size takes HEIGHTxWIDTH or one number for both, in pixels, found {text!r}"
        )
    height, width = (int(words[0]), int(words[-1]))
    if not (2 <= height <= _MOST_SIDE and 2 <= width <= _MOST_SIDE):
        raise UserError(f"--size is {height}x{width}, each may be 2 to {_MOST_SIDE} pixels")
    return height, width


def fixed(
    inputs: models.Inputs, model_inputs: Sequence[Input], size: tuple[int, int] | None
) -> models.Inputs:
    """Return a copy of the model, in the cache, whose input has one size; ``inputs`` if it has one.

    All tensors get the shapes that follow, so that what reads the file (a prediction, the virtual NPU's
    audit) sees what runs.

    Args:
        model_inputs: the model's inputs.
        size: height and width; None: the default.

    Raises:
        UserError: the model cannot take that size, or takes another one only.
    """
    if size is None and not any(free_sides(each, layout_of(each)) for each in model_inputs):
        return inputs
    height, width = size or (DEFAULT_SIDE, DEFAULT_SIDE)
    shapes = {
        number: shape
        for number, each in enumerate(model_inputs)
        if (shape := _shape(each, height, width)) != list(each.shape)
    }
    if not shapes:
        texts = ", ".join(each.text() for each in model_inputs)
        raise UserError(
            f"--size is for a model that takes pictures of any size; {inputs.model.name} takes {texts}",
            hint="leave --size out",
        )
    computed = _computed(inputs.model, shapes, f"{height}x{width}")
    copy = with_shapes(inputs.model.path.read_bytes(), computed)
    path = cache_dir() / "models" / f"{inputs.model.sha256[:16]}-{height}x{width}.tflite"
    if not path.exists() or path.read_bytes() != copy:
        write_atomically(path, copy)
    words = f"the model takes pictures of any size; it gets {height}x{width}"
    say(words if size else f"{words} (--size HEIGHTxWIDTH chooses another)")
    model = models.File(inputs.model.name, path, sha256_of(path), inputs.model.origin)
    note = "; ".join(filter(None, [inputs.note, words]))
    return replace(inputs, model=model, note=note, original=inputs.model)


def _shape(each: Input, height: int, width: int) -> list[int]:
    """Return an input's shape with the size in place of sides of any size."""
    shape = list(each.shape)
    layout = layout_of(each)
    # An input beside the picture is as high and wide, where it is a map that may be so.
    sides = layout or ("NHWC" if len(shape) == 4 else "")
    for axis, length in (("H", height), ("W", width)):
        place = sides.find(axis)
        if place >= 0 and each.free(place):
            shape[place] = length
    return shape


def _computed(model: models.File, shapes: dict[int, list[int]], size: str) -> dict[int, list[int]]:
    command = [sys.executable, "-m", __spec__.name, str(model.path), json.dumps(shapes)]
    done = run(command, cwd=PROJECT, timeout_s=_TIMEOUT_S, check=False)
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        answer = {"error": f"the TFLite runtime ended with {done.exit_code}", "hint": OTHER_HINT}
    if "error" not in answer:
        return {int(number): shape for number, shape in answer.items()}
    if answer["hint"] != OTHER_HINT:  # it runs with no size
        raise UserError(answer["error"], hint=answer["hint"])
    raise UserError(
        f"{model.name} cannot take a picture of {size}: {answer['error']}",
        hint="give another size: --size HEIGHTxWIDTH",
    )


def _main(model: str, shapes: str) -> dict[str, object]:
    module, runtime = load_runtime()
    new_shapes = {int(number): shape for number, shape in json.loads(shapes).items()}
    try:
        interpreter = load(module, runtime, Path(model).read_bytes(), new_shapes)
    except LoadError as error:
        return {"error": str(error), "hint": error.hint}
    details = interpreter.get_tensor_details()
    return {str(detail["index"]): [int(size) for size in detail["shape"]] for detail in details}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_main(*sys.argv[1:])))
