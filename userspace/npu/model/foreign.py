# SPDX-License-Identifier: MIT
"""Opens a model's file, and says what another kind of file is, and what makes a .tflite file of it."""

from __future__ import annotations

import zipfile
from pathlib import Path

from bsp.base.errors import UserError

_HEAD_BYTES = 512
_MOST_BYTES = 1 << 31  # FlatBuffers' offsets reach no further
_MOST_NAMES = 20_000
_SAVED_MODEL = (
    "convert it with TensorFlow: tf.lite.TFLiteConverter.from_saved_model(FOLDER), quantised as "
    "docs/model-report.md shows"
)
_KERAS = (
    "convert it with TensorFlow: "
    "tf.lite.TFLiteConverter.from_keras_model(tf.keras.models.load_model(FILE)), "
    "quantised as docs/model-report.md shows"
)
_ONNX = "convert it with onnx2tf: onnx2tf -i FILE -oiqt -iqd uint8 -oqd uint8 -qt per-tensor"
_TORCH = (
    "export it with torch.onnx.export, then convert that with onnx2tf; "
    "litert-torch converts it directly"
)
_ORIGINAL = "take the .tflite file that it was made from"
_UNPACK = "unpack it, and give the .tflite file in it"

_MAGIC = (
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file: a Keras model, or weights alone", _KERAS),
    (b"GGUF", "a GGUF file: a language model for llama.cpp", "a language model belongs on a CPU or GPU"),
    (b"RKNN", "an RKNN file, compiled for Rockchip's NPU driver", _ORIGINAL),
    (b"VPMN", "a network binary of VeriSilicon's driver", _ORIGINAL),
    (b"7767517\n", "an ncnn network", "convert the model that it was made from"),
    (b"\x1f\x8b", "a gzip archive", _UNPACK),
    (b"\xfd7zXZ\0", "an xz archive", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"BZh", "a bzip2 archive", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", _UNPACK),
    (b"\x7fELF", "a program or library", "give the model's .tflite file"),
    (b"version https://git-lfs", "a pointer of Git LFS, not the file", "git lfs pull fetches the file"),
    (b"\x93NUMPY", "a NumPy array", "give the model's .tflite file"),
    (b"\x80\x02", "a pickle: a PyTorch checkpoint, likely", _TORCH),
    (b"\x80\x04", "a pickle", _TORCH),
)  # fmt: skip
_ENDINGS = {
    ".onnx": ("an ONNX model", _ONNX),
    ".pt": ("a PyTorch model", _TORCH),
    ".pth": ("a PyTorch checkpoint", _TORCH),
    ".safetensors": ("weights alone, without the network", _TORCH),
    ".h5": ("a Keras model", _KERAS),
    ".keras": ("a Keras model", _KERAS),
    ".pb": ("a TensorFlow graph", _SAVED_MODEL.replace("FOLDER", "the folder of saved_model.pb")),
}


def read(path: Path) -> bytes:
    """Return a .tflite file's content.

    Raises:
        UserError: there is no file, or it is something else; the error says what, and what converts it.
    """
    try:
        if path.is_dir():
            raise _folder(path)
        if not path.exists():
            raise UserError(f"there is no file {path}", hint="give the path of a .tflite file")
        if not path.is_file():
            raise UserError(
                f"{path} is not an ordinary file", hint="give the path of a .tflite file"
            )
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
            if head[4:8] == b"TFL3":
                if size > _MOST_BYTES:
                    raise UserError(f"{path} has {size} bytes; a .tflite file has 2 GiB at most")
                return head + file.read(_MOST_BYTES)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    format_and_hint = _named(path, head)
    if format_and_hint:
        raise UserError(
            f"{path} is not a .tflite file but {format_and_hint[0]}", hint=format_and_hint[1]
        )
    raise UserError(
        f"{path} is not a .tflite file: bytes 4-7 are {head[4:8]!r}, not b'TFL3'",
        hint="give a model that TensorFlow Lite's converter made",
    )


def _named(path: Path, head: bytes) -> tuple[str, str] | None:
    if not head:
        return "an empty file", "download or convert it again"
    if head[:4] == b"PK\3\4":
        return _zip(path)
    for magic, what, how in _MAGIC:
        if head.startswith(magic):
            return what, how
    if head[257:262] == b"ustar":
        return "a tar archive", _UNPACK
    if head[4:7] == b"TFL":
        return (
            f"of an older format, {head[4:8]!r}",
            "convert the original with a present TensorFlow",
        )
    if head.lstrip()[:1] == b"<":
        return "a web page or XML", "download the file itself; of OpenVINO, convert the original"
    if path.suffix.lower() in _ENDINGS:
        return _ENDINGS[path.suffix.lower()]
    # ONNX's ModelProto begins with field 1 (ir_version), then 2 (producer_name), 7 or 8.
    if head[:1] == b"\x08" and 1 <= head[1] < 32 and head[2:3] in (b"\x12", b"\x3a", b"\x42"):
        is_saved = b"saved_model" in path.name.encode() or head[1] == 1
        return ("a SavedModel's graph", _SAVED_MODEL) if is_saved else ("an ONNX model", _ONNX)
    if head[8:9] == b"{":
        return _ENDINGS[".safetensors"]
    return None


def _zip(path: Path) -> tuple[str, str]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()[:_MOST_NAMES]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return "a broken zip archive", "download it again"
    models = [name for name in names if name.endswith(".tflite")]
    if models:
        return f"a zip archive with {models[0][:200]!r} in it", _UNPACK
    if any(name.endswith(("/data.pkl", "constants.pkl")) for name in names):
        return "a PyTorch model", _TORCH
    if any(name.endswith("model.weights.h5") for name in names):
        return "a Keras model", _KERAS
    if any(name.endswith("saved_model.pb") for name in names):
        return "a zip archive with a SavedModel in it", f"unpack it, and {_SAVED_MODEL}"
    if any(name.endswith(".npy") for name in names):
        return "NumPy arrays", "give the model's .tflite file"
    return "a zip archive without a .tflite file", "give the model's .tflite file"


def _folder(path: Path) -> UserError:
    if (path / "saved_model.pb").exists() or (path / "saved_model.pbtxt").exists():
        return UserError(f"{path} is a SavedModel, not a .tflite file", hint=_SAVED_MODEL)
    if (path / "model.json").exists():
        return UserError(
            f"{path} is a TensorFlow.js model, likely",
            hint="convert the model that it was made from",
        )
    model_file = next(iter(sorted(path.glob("*.tflite"))), None)
    hint = f"./inv model-report {model_file}" if model_file else "give the path of a .tflite file"
    return UserError(f"{path} is a folder, not a .tflite file", hint=hint)
