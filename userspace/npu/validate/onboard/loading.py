# SPDX-License-Identifier: MIT
"""Loads a model into the TFLite runtime before any delegate does, and says why that cannot be.

A model that the runtime's own kernels cannot run is a fault of the model, or of the runtime, and of no
delegate. Shipped to boards beside ``runner.py``.

Source of the messages: TensorFlow ``tensorflow/compiler/mlir/lite/core/api/op_resolver.cc``,
``tensorflow/lite/core/subgraph.cc``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

# Part of the runtime's message, and what helps.
_HINTS = (
    (r"custom op: edgetpu-custom-op",
     "it was compiled for a Coral Edge TPU: give the .tflite file that edgetpu_compiler was given"),
    (r"unresolved custom op",
     "a custom operator comes with its vendor's runtime; convert the model without it"),
    (r"Select TensorFlow op",
     "convert the model with TFLITE_BUILTINS alone, without SELECT_TF_OPS (Flex)"),
    (r"builtin_code out of range|Didn't find op for builtin opcode",
     "the model needs a newer TFLite runtime, or to be converted with an older TensorFlow"),
    (r"[Qq]uantization",
     "convert the model again: its quantisation is not in the form that TFLite's schema asks for"),
)  # fmt: skip
OTHER_HINT = "give another model, or convert it again"


class LoadError(Exception):
    """The model cannot be run here at all.

    Attributes:
        stage: ``model``, or ``runtime`` where the runtime itself does not work.
        hint: what to do.
    """

    def __init__(self, stage: str, message: str, hint: str) -> None:
        super().__init__(message)
        self.stage = stage
        self.hint = hint


def load(
    module: Any, runtime: str, model: bytes, shapes: Mapping[int, Sequence[int]] | None = None
) -> Any:
    """Return an interpreter that is ready to run a model, with the runtime's own kernels.

    Args:
        module: the runtime's interpreter module.
        runtime: its name and version.
        shapes: other shapes for inputs, by their place among the inputs.

    Raises:
        LoadError: it cannot be loaded.
    """
    plain = module.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    try:
        interpreter = module.Interpreter(model_content=model, experimental_op_resolver_type=plain)
        indices = [detail["index"] for detail in interpreter.get_input_details()]
        for number, shape in (shapes or {}).items():
            interpreter.resize_tensor_input(indices[number], list(shape))
        interpreter.allocate_tensors()
    except Exception as error:  # SystemError, too
        raise _why_not(runtime, error) from error
    return interpreter


def lacks_portable(module: Any, model: bytes) -> str:
    """Return an operator of a model that the portable kernels lack, as the runtime names it; "" if none.

    The two sets of kernels are not equal (tensorflow/lite/kernels/register_ref.cc has no RFFT2D, say).
    """
    try:
        module.Interpreter(
            model_content=model, experimental_op_resolver_type=module.OpResolverType.BUILTIN_REF
        )
    except (ValueError, RuntimeError) as error:
        match = re.search(r"builtin opcode '(\w+)' version '(\d+)'", str(error))
        return f"{match[1]} of version {match[2]}" if match else ""
    return ""


def portable_kernels(module: Any, model: bytes) -> Any:
    """Return the resolver of the portable kernels; of the optimised ones where they lack an operator."""
    types = module.OpResolverType
    lacks = lacks_portable(module, model)
    return types.BUILTIN_WITHOUT_DEFAULT_DELEGATES if lacks else types.BUILTIN_REF


def _why_not(runtime: str, error: Exception) -> LoadError:
    import numpy

    message = _sentences(str(error)) or repr(error)
    old = runtime.startswith("tflite-runtime") and int(numpy.__version__.partition(".")[0]) >= 2
    if old and not isinstance(error, (ValueError, RuntimeError)):
        return LoadError(
            "runtime",
            f"{runtime} was compiled for numpy 1 and does not work with numpy {numpy.__version__}",
            "pip install 'numpy<2', in the Python that runs this",
        )
    hint = next((words for part, words in _HINTS if re.search(part, message)), OTHER_HINT)
    return LoadError("model", f"{runtime} cannot run this model: {message}", hint)


def _sentences(text: str) -> str:
    """Return the runtime's words in one line; its sentences follow each other without a space."""
    text = re.sub(r"See instructions: https?://\S*?(?=Node number|\s|$)", "", text)
    return " ".join(re.sub(r"([a-z0-9)][.?])(?=[A-Z])", r"\1 ", text).split())
