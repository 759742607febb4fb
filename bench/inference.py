# SPDX-License-Identifier: MIT
"""What the runner adds to an inference, and its preprocessing against Pillow's.

.venv/bin/python -m bench.inference [--rounds N] [--json]

Pillow is wanted for the second table alone, so it is not among the project's packages:
``.venv/bin/pip install pillow``. Both resize 517 x 606 to 224 x 224; Pillow's bilinear filter also averages
what it leaves out, and rounds to bytes, while ours gives the float32 of label_image, bit for bit.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from userspace.npu.validate import models
from userspace.npu.validate.onboard import bmp, preprocess
from userspace.npu.validate.onboard.delegate_run import timed_runs
from userspace.npu.validate.onboard.environment import load_runtime

from .measure import Arm, Timing, arguments, measure, report

_RUNS = 20
_SIZE = 224


def inference(rounds: int) -> list[Timing]:
    """Compare a bare loop of invoke() with the runner's, in one process, one interpreter."""
    module, _ = load_runtime()
    inputs = models.choose("mobilenet_v1_0.25_128_quant", None)
    interpreter: Any = module.Interpreter(model_path=str(inputs.model.path), num_threads=1)
    interpreter.allocate_tensors()

    def bare() -> None:
        for _ in range(_RUNS):
            interpreter.invoke()

    arms = [
        Arm(f"{_RUNS} bare invoke()", bare),
        Arm("the same again (A/A)", bare),
        Arm("runner", lambda: timed_runs(interpreter.invoke, _RUNS, 600), target=1.02),
    ]
    return measure(arms, rounds=rounds)


def preprocessing(rounds: int) -> list[Timing]:
    """Compare the resizing of one picture with Pillow's."""
    image: Any = importlib.import_module("PIL.Image")
    path: Path = models.find("grace_hopper.bmp", "image").path
    pixels = bmp.decode_bmp(path.read_bytes())
    picture = image.fromarray(pixels)

    def ours() -> None:
        for _ in range(_RUNS):
            preprocess.resize_bilinear(pixels, _SIZE, _SIZE, fused=preprocess.fuses_multiply_add())

    def theirs() -> None:
        for _ in range(_RUNS):
            picture.resize((_SIZE, _SIZE), image.Resampling.BILINEAR)

    arms = [
        Arm(f"{_RUNS} of Pillow", theirs),
        Arm("the same again (A/A)", theirs),
        Arm("runner", ours, target=1.5),
    ]
    return measure(arms, rounds=rounds)


def main() -> None:
    """Print both tables; the second only where Pillow is."""
    options = arguments("Times inference and preprocessing.", rounds=15)
    results = {"inference": inference(options.rounds)}
    try:
        results["preprocessing"] = preprocessing(options.rounds)
    except ImportError:
        sys.stderr.write("no Pillow: preprocessing left out; .venv/bin/pip install pillow\n")
    report(results, as_json=options.json)


if __name__ == "__main__":
    main()
