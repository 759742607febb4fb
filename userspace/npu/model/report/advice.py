# SPDX-License-Identifier: MIT
"""What to change in a model so that an NPU takes more of it: advice that can be followed, by operation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..graph import Model, Operation
from ..prediction import NO_RULE, Refusal
from ..summary import Numbers, data_of, output_of, weights_of
from .shown import shown

PER_TENSOR = "converter._experimental_disable_per_channel = True"
QUANTISE = (
    "quantise it after training: converter.optimizations = [tf.lite.Optimize.DEFAULT], "
    "converter.representative_dataset = (some hundred real inputs), "
    "converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8], "
    "converter.inference_input_type = converter.inference_output_type = tf.uint8, and "
    f"{PER_TENSOR} (an A311D needs uint8 weights, too: docs/model-report.md)"
)
_RECURRENT = {
    "LSTM", "RNN", "UNIDIRECTIONAL_SEQUENCE_LSTM", "UNIDIRECTIONAL_SEQUENCE_RNN",
    "BIDIRECTIONAL_SEQUENCE_LSTM", "BIDIRECTIONAL_SEQUENCE_RNN", "SVDF",
}  # fmt: skip
_COMPILED = {
    "edgetpu-custom-op": "Coral's Edge TPU",
    "ethos-u": "Arm's Ethos-U (by Vela)",
    "vsi-npu": "VeriSilicon's own driver",
}
_LEAST_ATTENTION = 2
_POST_PROCESSING = "TFLite_Detection_PostProcess"  # in each runtime
_NO_FLOAT = ("float", "float16", "dynamic range")

_BY_CONDITION = {
    "per-tensor": f"quantise weights per tensor: {PER_TENSOR}",
    "equal-scales": f"quantise weights per tensor: {PER_TENSOR}",
    "activation": "train with RELU as this layer's activation",
    "relu6-range": "let the output's range end at 6: train with quantisation, or use RELU",
    "no-dilation": "train without dilation: a larger kernel, or stride 2 and resizing later",
    "computed-inputs": "fold the constant into the bias of the layer before",
    "last-axis": "let it work along the channels, the last of four dimensions",
    "equal-channels": "give all inputs the same number of channels, or take Mesa 26.1 or later",
    "equal-parts": "split into equal parts",
    "one-pixel": "pad inside the convolution (padding SAME), or take Mesa 26.1 or later",
    "two-pixels": "pad inside the convolution (padding SAME)",
    "bytes": "quantise its input",
    "below-1280": "split the layer: fewer than 1280 inputs each",
    "not-of-4-bytes": "quantise it to 8 bits",
    "any-axis": "let it work along one of the last four dimensions",
    "twice-as-large": "resize by 2 x 2, several times where need be",
    "strides-to-3": "use a stride of 2 or 3",
    "channels-moved": "keep the order rows, columns, channels from end to end",
}
_BY_KIND = {
    "MAX_POOL_2D": "use a convolution of stride 2 in its place",
    "AVERAGE_POOL_2D": "use a convolution of stride 2 in its place",
    "RELU": "fuse it into the convolution before, as the converter does by itself",
    "RELU6": "fuse it into the convolution before, as the converter does by itself",
    "HARD_SWISH": "train with RELU or RELU6 in its place",
    "LOGISTIC": "train with RELU inside the network, or take Mesa 26.1 or later",
    "TANH": "train with RELU in its place",
    "GELU": "train with RELU in its place",
    "LEAKY_RELU": "train with RELU in its place",
    "PRELU": "train with RELU in its place",
    "ELU": "train with RELU in its place",
    "TRANSPOSE_CONV": "use RESIZE_NEAREST_NEIGHBOR on the CPU and a convolution after it",
    "SPACE_TO_BATCH_ND": "belongs to a dilated convolution: train without dilation",
    "BATCH_TO_SPACE_ND": "belongs to a dilated convolution: train without dilation",
    "QUANTIZE": "convert with inference_input_type = tf.uint8: the application gives bytes",
    "DEQUANTIZE": "convert with inference_output_type = tf.uint8: the application gets bytes",
    "MUL": "fold multiplications by constants into the convolution before",
}


@dataclass(frozen=True)
class Advice:
    """One thing to do.

    Attributes:
        what: what is the matter.
        how: what to do about it.
        operations: indices of those that it is about; empty for the whole model.
    """

    what: str
    how: str
    operations: tuple[int, ...] = ()


def other_hardware(model: Model) -> str:
    """Return why a model belongs on other hardware than an NPU for convolutions; "" where it does not."""
    for each in model.operations:
        for name, chip in _COMPILED.items():
            if each.custom.startswith(name):
                return f"it was compiled for {chip}; take the .tflite file that it was made from"
    kinds = [each.kind for each in model.operations]
    products = kinds.count("BATCH_MATMUL")
    if products >= _LEAST_ATTENTION and "SOFTMAX" in kinds:
        return f"it is a transformer ({products} BATCH_MATMUL): a CPU or GPU does those"
    if "EMBEDDING_LOOKUP" in kinds:
        return "it works on words or ids (EMBEDDING_LOOKUP): a CPU does that"
    recurrent = sorted(_RECURRENT & set(kinds))
    if recurrent and "CONV_2D" not in kinds:
        return f"it is recurrent ({', '.join(recurrent)}): a CPU does that"
    return ""


def whole_model(model: Model, numbers: Numbers) -> list[Advice]:
    """Return what is to be said of a model as a whole."""
    advice = []
    if numbers.kind == "dynamic range":
        advice.append(
            Advice("only its weights are integers; it computes in float (dynamic range)", QUANTISE)
        )
    elif numbers.kind in _NO_FLOAT:
        what = "it computes in float; the NPU computes with 8-bit integers"
        advice.append(Advice(what, QUANTISE))
    elif numbers.kind == "int16":
        advice.append(Advice("its activations have 16 bits; the NPU takes 8", QUANTISE))
    elif numbers.kind == "mixed":
        advice.append(Advice("part of it computes in float or 16 bits", QUANTISE))
    per_axis = tuple(
        each.index for each in model.operations
        if (weights := weights_of(each)) and len(set(weights.scales)) > 1
    )  # fmt: skip
    if per_axis:
        advice.append(
            Advice("weights are quantised per axis", _BY_CONDITION["per-tensor"], per_axis)
        )
    if any(-1 in tensor.signature for tensor in model.inputs):
        advice.append(
            Advice(
                "its inputs have no fixed size; figures are those of the sizes in the file",
                "fix the sizes before conversion; smoke-test --size HEIGHTxWIDTH tries one",
            )
        )
    if model.calls:
        what = f"it has {model.graphs} graphs; only the main one is looked into"
        advice.append(Advice(what, "convert it without IF, WHILE and variables"))
    if model.signatures:
        names = ", ".join(model.signatures)
        what = f"only the main graph is looked into, not its {names}"
        advice.append(Advice(what, "convert it alone"))
    return advice


def lacking(model: Model) -> list[Advice]:
    """Return what a TFLite runtime without additions does not have: the model does not run at all."""
    advice = []
    names = sorted({each.custom for each in model.operations if each.kind == "CUSTOM"})
    flex = [name for name in names if name.startswith("Flex")]
    if flex:
        where = tuple(each.index for each in model.operations if each.custom in flex)
        what = "TensorFlow's own operations (Flex) are in it, which TFLite's runtime lacks"
        advice.append(
            Advice(what, "convert with TFLITE_BUILTINS alone, without SELECT_TF_OPS", where)
        )
    others = [name for name in names if name not in flex and name != _POST_PROCESSING]
    if others:
        where = tuple(each.index for each in model.operations if each.custom in others)
        what = f"custom operations ({shown(', '.join(others), 60)}) need a runtime that has them"
        advice.append(Advice(what, "convert without them, or build a runtime with them", where))
    unknown = tuple(each.index for each in model.operations if each.kind.startswith("builtin "))
    if unknown:
        what = "operations that are newer than this program, perhaps than your runtime"
        advice.append(Advice(what, "try it with the runtime, or convert for an older one", unknown))
    return advice


def for_operation(operation: Operation, refusals: Iterable[Refusal | None]) -> str:
    """Return what to do so that an operation is taken; "" where it is, or nothing helps."""
    for refusal in refusals:
        if refusal is None:
            continue
        if refusal.condition == NO_RULE:
            output = output_of(operation)
            if output is not None and output.shape[1:3] == (1, 1):
                return ""  # at the end of a classifier: nothing that is worth a change
            return _BY_KIND.get(operation.kind, "")
        data = data_of(operation)
        if data is not None and not data.scales and refusal.condition in ("per-tensor", "bytes"):
            return "quantise the model"
        is_range = refusal.condition == "activation" and operation.activation == "RELU6"
        return _BY_CONDITION.get("relu6-range" if is_range else refusal.condition, "")
    return ""


def grouped(advice: Mapping[int, str], operations: Iterable[Operation]) -> list[Advice]:
    """Return advice for operations with the same words as one."""
    by_words: dict[tuple[str, str], list[int]] = {}
    for each in operations:
        how = advice.get(each.index, "")
        if how and how not in (_BY_CONDITION["per-tensor"], "quantise the model"):
            by_words.setdefault((each.kind, how), []).append(each.index)
    return [
        Advice(f"{kind} is left to the CPU", how, tuple(indices))
        for (kind, how), indices in by_words.items()
    ]
