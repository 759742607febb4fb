# SPDX-License-Identifier: MIT
"""One model on one delegate: prepared, fed with pictures, timed, or profiled job by job.

Shipped to boards beside ``runner.py``, which calls it in a process of its own for each delegate. It needs
numpy and a TFLite runtime.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import time
import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or __package__:
    from . import (
        delegate_library,
        guard_bytes,
        loading,
        model_inputs,
        output_values,
        picked,
        preprocess,
        profiling,
    )
    from .delegate_paths import OPENCL_LIBRARY, parse_delegate
    from .delegation import count_operations, count_tensors, delegated
    from .stage_error import StageError
else:
    import delegate_library
    import guard_bytes
    import loading
    import model_inputs
    import output_values
    import picked
    import preprocess
    import profiling
    from delegate_paths import OPENCL_LIBRARY, parse_delegate
    from delegation import count_operations, count_tensors, delegated
    from stage_error import StageError

# The runs of the reference, at least two in all: nobody asks for its latency.
REFERENCE_RUNS = 3


class PreparedModel:
    """A model that a delegate was applied to, ready to be run.

    Attributes:
        prepare_ms: time for loading the delegate and the model.
        delegated: what the delegate took; see ``delegation.delegated``.
        score_sources: for the reference, by output: the scores that an index was picked from.
        lacks_portable: an operator that the portable kernels lack where they were to run; else empty.

    Raises:
        StageError: the delegate, or the model with it, cannot be loaded.
    """

    def __init__(self, module: Any, job: argparse.Namespace, model: bytes, delegate: str) -> None:
        kind, library, options = parse_delegate(delegate, job.opencl)
        arguments = {"model_content": model, "num_threads": job.threads}
        self.lacks_portable = ""
        if kind == "cpu-reference" or (kind == "external" and job.portable):
            self.lacks_portable = loading.lacks_portable(module, model)
        arguments |= _resolver(
            module, kind, portable=job.portable, lacking=bool(self.lacks_portable)
        )
        start = time.perf_counter()
        if kind == "external":
            loaded = _load_delegate(module, delegate, library, options)
            arguments["experimental_delegates"] = [loaded]
        try:
            self.interpreter = _interpreter(module, arguments)
        except StageError as error:
            if kind == "external" and error.stage == "model":
                raise StageError("prepare", str(error)) from error
            raise
        self.prepare_ms = _milliseconds_since(start)
        self.delegated = delegated(self.interpreter, count_operations(model))
        self.score_sources = picked.sources(self.interpreter) if kind == "cpu-reference" else {}
        if self.score_sources:
            arguments["experimental_preserve_all_tensors"] = True
            self.interpreter = _interpreter(module, arguments)
        self._input_tensors = [each["index"] for each in self.interpreter.get_input_details()]
        self._fillings = model_inputs.fillings(model_inputs.inputs_of(self.interpreter))

    def feed(self, picture: Any) -> list[Any]:
        """Set all inputs, and return what they were set to."""

        def resized(height: int, width: int) -> Any:
            fused = preprocess.fuses_multiply_add()
            return preprocess.resize_bilinear(picture, height, width, fused=fused)

        inputs = [
            model_inputs.values(filling, resized, preprocess.to_input) for filling in self._fillings
        ]
        for tensor, values in zip(self._input_tensors, inputs):  # noqa: B905 # one each
            self.interpreter.set_tensor(tensor, values)
        return inputs

    def changed_inputs(self, inputs: Sequence[Any]) -> list[int]:
        """Return the places of inputs that do not hold any more what they were set to."""
        pairs = zip(self._input_tensors, inputs)  # noqa: B905 # one each
        return [
            place
            for place, (tensor, values) in enumerate(pairs)
            if values.size and self.interpreter.get_tensor(tensor).tobytes() != values.tobytes()
        ]

    def name_of(self, tensor: int) -> str:
        """Return an output's name; the number of another tensor."""
        details = self.interpreter.get_output_details()
        names = {int(each["index"]): str(each["name"]) for each in details}
        return names.get(tensor) or f"tensor {tensor}"

    def invoke_ms(self) -> float:
        """Run once; return how long it took."""
        start = time.perf_counter()
        self.interpreter.invoke()
        return _milliseconds_since(start)

    def output_values(self) -> list[Any]:
        """Return all outputs, as numbers."""
        details = self.interpreter.get_output_details()
        return [output_values.output_value(self.interpreter, detail) for detail in details]

    def output_records(self, outputs: Sequence[Any]) -> list[dict[str, Any]]:
        """Return outputs with their values, and what they mean."""
        details = self.interpreter.get_output_details()
        return [
            _output_record(values, detail) | self._score_record(detail["index"])
            for values, detail in zip(outputs, details)  # noqa: B905 # one each
        ]

    def view_records(self, picture: Any, most: int, budget_s: float) -> dict[str, Any]:
        """Run crops and flips of the picture; return the first output of each."""
        outputs: list[str] = []
        shapes, scores = [], []
        deadline = time.perf_counter() + budget_s
        for view in preprocess.views(picture)[:most]:
            if time.perf_counter() > deadline:
                break
            self.feed(view)
            self.interpreter.invoke()
            detail = self.interpreter.get_output_details()[0]
            values = output_values.output_value(self.interpreter, detail)
            outputs.append(packed(values))
            shapes.append([int(size) for size in values.shape])
            scores.append(self._score_record(detail["index"]))
        scored = scores if self.score_sources else []
        return {"views": outputs, "view_shapes": shapes, "scored_views": scored}

    def _score_record(self, tensor: int) -> dict[str, Any]:
        """Return how good each class was, for an output that only names the best one; else nothing."""
        if tensor not in self.score_sources:
            return {}
        short = picked.shortfall(self.interpreter, self.score_sources[tensor])
        if short is None:
            return {}
        return {"short": {"classes": short.shape[1], "unit": picked.UNIT, "data": packed(short)}}


def run_delegate(
    module: Any, job: argparse.Namespace, model: bytes, picture: Any, delegate: str
) -> dict[str, Any]:
    """Run the model once, then up to ``job.runs`` times within ``job.budget`` seconds, then the views."""
    model_sha256 = hashlib.sha256(model).hexdigest()
    prepared = PreparedModel(module, job, model, delegate)
    inputs = prepared.feed(picture)
    guards = guard_bytes.GuardBytes(
        prepared.interpreter, count_operations(model), count_tensors(model)
    )
    first_ms = prepared.invoke_ms()
    changed_inputs = prepared.changed_inputs(inputs)
    # Of a model that keeps a state from run to run, only these can be compared.
    first_values = last_values = prepared.output_values()
    unlike_first = 0
    changes = False

    def look() -> None:
        nonlocal last_values, unlike_first, changes
        last_values = prepared.output_values()
        changes = any(
            one.shape != two.shape or one.tobytes() != two.tobytes()
            for one, two in zip(first_values, last_values)  # noqa: B905 # one each
        )
        unlike_first += changes

    most = min(job.runs, REFERENCE_RUNS) if delegate == "cpu-reference" else job.runs
    runs_ms = timed_runs(prepared.interpreter.invoke, most, job.budget, after=look)
    overrun = guards.overrun()
    output, *other_outputs = prepared.output_records(last_values)
    return {
        **prepared.delegated,
        "prepare_ms": prepared.prepare_ms,
        "first_ms": first_ms,
        "runs_ms": runs_ms,
        "input": _input_record(inputs[0]),
        "other_inputs": [_input_record(values) for values in inputs[1:]],
        "output": output,
        "other_outputs": other_outputs,
        "first_outputs": prepared.output_records(first_values) if changes else None,
        "unlike_first": unlike_first,
        "changed_inputs": changed_inputs,
        # The runtime computes with these very bytes.
        "changed_model": hashlib.sha256(model).hexdigest() != model_sha256,
        "overrun": [prepared.name_of(tensor) for tensor in overrun],
        "lacks_portable": prepared.lacks_portable,
        **prepared.view_records(picture, job.views, job.budget),
    }


def profile_delegate(
    module: Any, job: argparse.Namespace, model: bytes, picture: Any, delegate: str
) -> dict[str, Any]:
    """Run the model as often; return when each of the NPU's jobs began and ended."""
    _, library, _ = parse_delegate(delegate, job.opencl)
    one_job = profiling.ask_for_one_job_a_submit(library or "")  # before its library is loaded
    prepared = PreparedModel(module, job, model, delegate)
    prepared.feed(picture)
    prepared.interpreter.invoke()
    try:
        record = profiling.record(prepared.interpreter.invoke, job.runs, job.budget)
    except profiling.ProfileError as error:
        raise StageError("profile", str(error)) from error
    return {**record, "one_job_a_submit": one_job}


def timed_runs(
    invoke: Callable[[], Any],
    most: int,
    budget_s: float,
    *,
    after: Callable[[], Any] = lambda: None,
) -> list[float]:
    """Return the milliseconds of each of up to ``most`` calls within a budget; one is always made.

    Args:
        after: called after each of them, outside of what is timed.
    """
    runs_ms: list[float] = []
    deadline = time.perf_counter() + budget_s
    while len(runs_ms) < most and (not runs_ms or time.perf_counter() < deadline):
        start = time.perf_counter()
        invoke()
        runs_ms.append(_milliseconds_since(start))
        after()
    return runs_ms


def packed(values: Any) -> str:
    """Return an array's bytes as text."""
    return base64.b64encode(zlib.compress(values.tobytes())).decode()


def _resolver(module: Any, kind: str, *, portable: bool, lacking: bool) -> dict[str, Any]:
    """Return the interpreter's argument for the kernels that run what no delegate takes.

    Args:
        lacking: the portable kernels lack an operator of the model.
    """
    resolvers = module.OpResolverType
    is_reference = kind == "cpu-reference"
    if (is_reference or (kind == "external" and portable)) and not lacking:
        # The portable kernels: the same numbers on every machine, bit for bit, and slow.
        return {"experimental_op_resolver_type": resolvers.BUILTIN_REF}
    if kind == "external" or is_reference:
        # Without this, XNNPACK takes what the delegate leaves.
        return {"experimental_op_resolver_type": resolvers.BUILTIN_WITHOUT_DEFAULT_DELEGATES}
    return {}


def _load_delegate(module: Any, name: str, library: Any, options: dict[str, str]) -> Any:
    try:
        delegate_library.load(library)
        return module.load_delegate(library, options)
    except (delegate_library.LibraryError, ValueError, OSError, RuntimeError) as error:
        message = str(error).strip() or repr(error)
        if name.partition(":")[0] == "opencl":
            message = delegate_library.of_opened(OPENCL_LIBRARY) or message
        raise StageError("delegate", message) from error


def _interpreter(module: Any, arguments: dict[str, Any]) -> Any:
    try:
        interpreter = module.Interpreter(**arguments)
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise StageError("model", str(error).strip() or repr(error)) from error
    return interpreter


def _input_record(values: Any) -> dict[str, Any]:
    """Describe what an input was set to."""
    return {
        "shape": [int(size) for size in values.shape],
        "dtype": values.dtype.name,
        "sha256": hashlib.sha256(values.tobytes()).hexdigest(),
    }


def _output_record(values: Any, detail: dict[str, Any]) -> dict[str, Any]:
    """Return an output with its values, and what they mean."""
    scale, zero_point = detail["quantization"]
    return {
        "name": str(detail["name"]),
        "shape": [int(size) for size in values.shape],
        "dtype": values.dtype.name,
        "scale": float(scale),
        "zero_point": int(zero_point),
        "data": packed(values),
    }


def _milliseconds_since(start_s: float) -> float:
    return (time.perf_counter() - start_s) * 1000
