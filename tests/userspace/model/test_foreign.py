# SPDX-License-Identifier: MIT
"""Files that are not .tflite: what they are, and what converts them."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

from bsp.base.errors import UserError
from userspace.npu.model import foreign


def refusal(path: Path) -> tuple[str, str]:
    with pytest.raises(UserError) as caught:
        foreign.read(path)
    return caught.value.message, caught.value.hint


@pytest.mark.parametrize(
    ("name", "content", "what", "how"),
    [
        ("m.onnx", b"\x08\x07\x12\x07pytorch\x1a\x032.0", "an ONNX model", "onnx2tf"),
        ("m.tflite", b"\x08\x08\x12\x07pytorch\x1a\x032.0", "an ONNX model", "onnx2tf"),
        ("saved_model.pb", b"\x08\x01\x12\x07abcdefgh", "a TensorFlow graph", "from_saved_model"),
        ("m.h5", b"\x89HDF\r\n\x1a\n" + bytes(40), "HDF5", "from_keras_model"),
        ("old.pth", b"\x80\x02\x8a\x0al\xfc\x9c", "pickle", "torch.onnx.export"),
        ("m.gguf", b"GGUF\3\0\0\0", "GGUF", "CPU or GPU"),
        ("m.tflite", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS", "git lfs pull"),
        ("m.tflite", b"\n<!DOCTYPE html><html>", "a web page", "download"),
        ("m.tflite", b"", "an empty file", "again"),
        ("m.tflite", b"\x1c\0\0\0TFL2" + bytes(30), "older format", "convert"),
        ("m.tar", bytes(257) + b"ustar" + bytes(300), "a tar archive", "unpack"),
        ("m.rknn", b"RKNN" + bytes(30), "Rockchip", "made from"),
        ("m.bin", b"abcdefgh", "bytes 4-7 are b'efgh'", "converter"),
    ],
)
def test_files(name: str, content: bytes, what: str, how: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    message, hint = refusal(tmp_path / name)
    assert what in message
    assert how in hint


@pytest.mark.parametrize(
    ("member", "what"),
    [
        ("archive/data.pkl", "a PyTorch model"),
        ("model.weights.h5", "a Keras model"),
        ("x/detect.tflite", "a zip archive with 'x/detect.tflite' in it"),
        ("x/saved_model.pb", "a zip archive with a SavedModel in it"),
        ("readme", "a zip archive without a .tflite file"),
    ],
)
def test_zip_archives(member: str, what: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        archive.writestr(member, "x")
    assert what in refusal(tmp_path / "m.zip")[0]
    cut = (tmp_path / "m.zip").read_bytes()[:40]
    (tmp_path / "m.zip").write_bytes(cut)
    assert "a broken zip archive" in refusal(tmp_path / "m.zip")[0]


def test_folders_and_what_is_no_file(tmp_path: Path) -> None:
    assert "is a folder" in refusal(tmp_path)[0]
    (tmp_path / "m.tflite").write_bytes(b"")
    assert str(tmp_path / "m.tflite") in refusal(tmp_path)[1]
    (tmp_path / "saved_model.pb").write_bytes(b"")
    message, hint = refusal(tmp_path)
    assert "is a SavedModel" in message
    assert "from_saved_model" in hint
    assert "there is no file" in refusal(tmp_path / "none")[0]
    os.mkfifo(tmp_path / "pipe")
    assert "not an ordinary file" in refusal(tmp_path / "pipe")[0]
    assert "cannot read" in refusal(tmp_path / ("x" * 300))[0]
