#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs one image through one model with each delegate, and prints the bare facts as JSON.

This is what runs on a board. It needs only the standard library, numpy, a TFLite runtime, and
the modules that lie beside it in a payload; it judges nothing. By hand, on a board:

    python3 runner.py --model M.tflite --image I.bmp --delegate cpu --delegate teflon

Each delegate runs in a process of its own, forked after the slow imports: one that crashes or hangs
is a result, not the end. In a payload (``bin/runner.py``) the packages are in ``../site`` and the
libraries in ``../lib``; elsewhere Python's own path is used.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or __package__:
    from . import loading
    from .child import in_child
    from .delegate_paths import mesa_version, not_there, parse_delegate
    from .delegation import count_operations
    from .devices import KernelLog, npu_devices
    from .environment import (
        WATCHED,
        ask_for_log,
        load_runtime,
        profile_library,
        set_environment,
        use_payload,
    )
    from .stage_error import StageError
else:
    import loading
    from child import in_child
    from delegate_paths import mesa_version, not_there, parse_delegate
    from delegation import count_operations
    from devices import KernelLog, npu_devices
    from environment import (
        WATCHED,
        ask_for_log,
        load_runtime,
        profile_library,
        set_environment,
        use_payload,
    )
    from stage_error import StageError

FORMAT = 1
REFERENCE = "cpu-reference"
STARTED_S = time.monotonic()

# Loading the model without a delegate, on the slowest machine that is meant: the rows' own deadline is for
# running it.
LOAD_TIMEOUT_S = 60.0


def check_model(module: Any, runtime: str, model: bytes) -> list[dict[str, Any]]:
    """Load the model without any delegate, in a process of its own; return what its inputs are given.

    Raises:
        StageError: no row could run it.
    """
    import model_inputs  # type: ignore[import-not-found]

    def load() -> dict[str, Any]:
        try:
            interpreter = loading.load(module, runtime, model)
            fillings = model_inputs.fillings(model_inputs.inputs_of(interpreter))
        except loading.LoadError as error:
            raise StageError(error.stage, str(error), error.hint) from error
        except model_inputs.InputError as error:
            raise StageError("model", str(error), model_inputs.HINT) from error
        return {"inputs": [each.record() for each in fillings]}

    answer = in_child(load, LOAD_TIMEOUT_S)
    if "error" not in answer:
        inputs: list[dict[str, Any]] = answer["inputs"]
        return inputs
    error = answer["error"]
    if error["stage"] in ("crash", "time"):
        message = f"{runtime} {error['message']} while it loaded this model, without any delegate"
        raise StageError("model", message, "the model is broken or too large: give another one")
    raise StageError(error["stage"], error["message"], error.get("hint", ""))


def refuse_unjudged(row: dict[str, Any], runtime: str) -> None:
    """Raise a StageError where TFLite's own portable kernels end with a model, never end, or refuse it.

    Then there is nothing to compare with, and what other rows do may be the model's fault as well. A kernel
    that the processor lacks instructions for, and one that took too much memory, are the machine's.
    """
    error = row.get("error")
    if error is None or row.get("signal") in (signal.SIGILL, signal.SIGKILL):
        return
    which = f"TFLite's own portable kernels ({runtime}, no delegate)"
    nothing = "there is nothing that a row could be compared with"
    if error["stage"] == "crash":
        message = f"this model {error['message']} on {which}: {nothing}"
        raise StageError("model", message, loading.OTHER_HINT)
    if error["stage"] == "time":
        message = f"this model {error['message']} on {which}: {nothing}"
        hint = "give more time (--timeout SECONDS), or another model: a loop in it may never end"
        raise StageError("model", message, hint)
    # What only shows as it is computed: a type that an operator has not, sizes that do not fit.
    words = re.fullmatch(r"(?:Runtime|Value)Error\(['\"](.*)['\"]\)", error["message"], re.DOTALL)
    if error["stage"] == "run" and words:
        message = f"{which} do not run this model: {words[1]}; {nothing}"
        raise StageError("model", message, loading.OTHER_HINT)


def run_row(
    module: Any, job: argparse.Namespace, model: bytes, picture: Any, delegate: str, unsafe: str
) -> dict[str, Any]:
    """Run one delegate, and return the facts of its row.

    Args:
        unsafe: why the NPU's device node must not be opened again; "" if it may be.
    """
    import delegate_run  # type: ignore[import-not-found]

    kind, library, _ = parse_delegate(delegate, job.opencl)
    is_teflon = delegate.partition(":")[0] == "teflon"
    facts: dict[str, Any] = {
        "delegate": delegate,
        "library": library,
        "environment": {name: os.environ[name] for name in WATCHED if name in os.environ},
        "mesa": mesa_version(library) if is_teflon else None,
    }

    def attempt(work: Callable[..., dict[str, Any]]) -> dict[str, Any]:
        return in_child(lambda: work(module, job, model, picture, delegate), job.timeout)

    kernel_log = KernelLog()
    missing = not_there(delegate, library) if kind == "external" else ""
    if missing:
        facts |= {"error": {"stage": "library", "message": missing}, "log": ""}
    elif is_teflon and unsafe:
        # It would open the node again, which may hang for good by now.
        facts |= {"error": {"stage": "device", "message": unsafe}, "log": ""}
    else:
        facts |= attempt(delegate_run.run_delegate)
        if job.profile and is_teflon and "error" not in facts:
            # In another process: Mesa reads its options once.
            facts["profile"] = attempt(delegate_run.profile_delegate)
            del facts["profile"]["log"]
    facts["kernel_log"] = kernel_log.read()
    return facts


def run(job: argparse.Namespace) -> dict[str, Any]:
    """Run all delegates and return the facts."""
    import bmp  # type: ignore[import-not-found]
    import numpy

    model = Path(job.model).read_bytes()
    try:
        picture = bmp.open_bmp(Path(job.image))
    except bmp.ImageError as error:
        raise StageError("image", f"{job.image}: {error}") from error
    operations = count_operations(model)
    module, runtime = load_runtime()
    inputs = check_model(module, runtime, model)
    devices = npu_devices()
    unsafe = next((f"{each['node']} {each['unsafe']}" for each in devices if "unsafe" in each), "")
    rows = {}
    # The reference first: without it, the others need not be waited for.
    for delegate in sorted(job.delegate, key=lambda each: each != REFERENCE):
        sys.stderr.write(f"running {delegate}\n")
        rows[delegate] = run_row(module, job, model, picture, delegate, unsafe)
        if delegate == REFERENCE:
            refuse_unjudged(rows[delegate], runtime)
    return {
        "format": FORMAT,
        "runtime": runtime,
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "machine": platform.machine(),
        "kernel": platform.release(),
        "threads": job.threads,
        "model_sha256": hashlib.sha256(model).hexdigest(),
        "image_sha256": sha256_of(Path(job.image)),
        "total_ops": operations,
        "inputs": inputs,
        "npu_devices": devices,
        "results": [rows[delegate] for delegate in job.delegate],
        # From this program's start; what the rows took is in them.
        "seconds": time.monotonic() - STARTED_S,
    }


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, which may be larger than the memory that is wanted for it."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def main() -> int:
    """Parse, run, print; 0 when there is a JSON document with results, 1 with only an error."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", required=True, help=".tflite file")
    parser.add_argument("--image", required=True, help="BMP file")
    parser.add_argument("--delegate", action="append", required=True,
                        help="cpu, cpu-reference, teflon, opencl, tim-vx or PATH, with "
                        "[:key=value;...]; repeatable")  # fmt: skip
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE",
                        help="set in the environment of all delegates; repeatable")  # fmt: skip
    parser.add_argument("--opencl", help="folder with lib/libopencl_delegate.so")
    parser.add_argument(
        "--rusticl", help="folder with Mesa's OpenCL driver, where none is installed"
    )
    parser.add_argument(
        "--profile", action="store_true", help="take the times of teflon's jobs, too"
    )
    parser.add_argument("--portable", action="store_true",
                        help="run what a delegate leaves on the portable kernels")  # fmt: skip
    parser.add_argument("--runs", type=int, default=50, help="measured runs at most")
    parser.add_argument("--views", type=int, default=8, help="crops and flips to run, too")
    parser.add_argument("--budget", type=float, default=20, help="seconds of measured runs")
    parser.add_argument("--timeout", type=float, default=300, help="seconds for one delegate")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads")
    job = parser.parse_args()
    if any("=" not in word for word in job.env):
        parser.error("--env takes NAME=VALUE")
    variables = dict(word.split("=", 1) for word in job.env)
    set_environment(variables, job.rusticl, profile_library() if job.profile else None)
    ask_for_log()
    try:
        use_payload()
        document = run(job)
    except StageError as error:
        document = {"format": FORMAT, "error": error.record()}
    except OSError as error:
        document = {"format": FORMAT, "error": {"stage": "files", "message": str(error)}}
    json.dump(document, sys.stdout)
    sys.stdout.write("\n")
    return 1 if "error" in document else 0


if __name__ == "__main__":
    sys.exit(main())
