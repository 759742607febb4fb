# SPDX-License-Identifier: MIT
"""Inputs that are not one RGB picture: run where that is honest, refused in words before anything runs."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bsp.base.errors import UserError
from bsp.base.output import json_text
from tests.support.models import inputs as m
from userspace.npu.model.tflite_file import CUSTOM, conv
from userspace.npu.report import files as report_files
from userspace.npu.report.report import text_of
from userspace.npu.validate import label_image
from userspace.npu.validate.fixed_size import size_of
from userspace.npu.validate.label_image import SmokeTestRequest, choose
from userspace.npu.validate.machine import RUNNER, ThisMachine
from userspace.npu.validate.onboard import bmp, model_inputs, preprocess
from userspace.npu.validate.onboard.model_inputs import Input, InputError, fillings
from userspace.npu.validate.smoke import smoke_test

pytestmark = pytest.mark.usefixtures("own_state")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.bmp"
    pixels = np.random.default_rng(3).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    path.write_bytes(bmp.encode_bmp(pixels))
    return path


def run_model(model: bytes, picture: Path, **more: Any) -> Any:
    path = picture.with_name("model.tflite")
    path.write_bytes(model)
    asked = {"delegate": "cpu", "runs": 1, "views": 1, **more}
    request = SmokeTestRequest(model=str(path), image=str(picture), **asked)
    return smoke_test("label_image", request)


def facts_of(model: bytes, picture: Path, *more: str) -> Any:
    """What the runner itself finds, by hand."""
    path = picture.with_name("model.tflite")
    path.write_bytes(model)
    command = [sys.executable, str(RUNNER), "--model", str(path), "--image", str(picture)]
    command += ["--delegate", "cpu-reference", "--runs", "1", "--views", "0", *more]
    done = subprocess.run(command, capture_output=True, check=False)
    found: Any = json.loads(done.stdout)
    return found


def output(row: Any) -> Any:
    packed = row["output"]
    raw = zlib.decompress(base64.b64decode(packed["data"]))
    return np.frombuffer(raw, packed["dtype"]).reshape(packed["shape"])


# --- what runs -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "given"),
    [
        (m.one_conv(1, 16, 16, 3), "the picture"),
        (m.one_conv(1, 16, 16, 3, dtype="int8"), "the picture"),
        (m.one_conv(1, 16, 16, 3, dtype="float32"), "the picture"),
        (m.one_conv(1, 16, 16, 1), "the picture, in grey"),
        (m.one_conv(1, 16, 16, 4), "the picture, with an opaque alpha channel"),
        (m.one_conv(3, 16, 16, 3), "the picture, 3 times"),
        (m.one_conv(1, 16, 16, 3, signature=(-1, 16, 16, 3)), "the picture"),
        (m.channels_first(1, 3, 16, 12), "the picture, channels first"),
        (m.channels_first(2, 1, 16, 12), "the picture, in grey, channels first, 2 times"),
    ],
)
def test_a_picture_in_another_form_runs(model: bytes, given: str, picture: Path) -> None:
    document = run_model(model, picture)
    assert document["verdict"] == "pass", document["results"]
    assert [each["given"] for each in document["inputs"]] == [given]
    lines = " ".join(text_of(document).split())
    assert (f"gets {given}" in lines) == (given != "the picture")
    page = picture.with_name("report.html")
    report_files.write("this machine", page, smoke=document, findings=None)
    assert (f"gets {given}</p>" in page.read_text()) == (given != "the picture")


@pytest.mark.slow
def test_all_inputs_are_set_and_alike_in_all_rows(picture: Path) -> None:
    document = run_model(m.two_inputs(), picture)
    assert document["verdict"] == "pass", document["results"]
    assert document["inputs"] == [
        {"name": "image", "shape": [1, 16, 16, 3], "dtype": "uint8", "given": "the picture"},
        {
            "name": "mask",
            "shape": [1, 16, 16, 5],
            "dtype": "uint8",
            "given": "generated data, seed 21",
        },
    ]
    assert "input mask, 1x16x16x5 uint8, gets generated data, seed 21" in " ".join(
        text_of(document).split()
    )
    rows = facts_of(m.two_inputs(), picture, "--delegate", "cpu")["results"]
    assert rows[0]["input"] == rows[1]["input"]
    assert rows[0]["other_inputs"] == rows[1]["other_inputs"]
    (other,) = rows[0]["other_inputs"]
    assert (other["shape"], other["dtype"]) == ([1, 16, 16, 5], "uint8")


@pytest.mark.slow
def test_integers_beside_a_picture_are_small(picture: Path) -> None:
    """They may be indices or lengths: a large one ends a runtime."""
    model = m.two_inputs("int32", (1, 5))
    assert run_model(model, picture)["verdict"] == "pass"
    (row,) = facts_of(model, picture)["results"]
    other = row["other_outputs"][0]
    values = np.frombuffer(zlib.decompress(base64.b64decode(other["data"])), other["dtype"])
    assert set(values.tolist()) <= {0.0, 1.0}


@pytest.mark.slow
def test_channels_first_is_the_same_picture_transposed(picture: Path) -> None:
    (plain,) = facts_of(m.one_conv(1, 16, 12, 3), picture)["results"]
    (turned,) = facts_of(m.channels_first(1, 3, 16, 12), picture)["results"]
    assert np.array_equal(output(plain), output(turned))


def test_a_batch_is_the_same_picture_several_times(picture: Path) -> None:
    (row,) = facts_of(m.one_conv(3, 16, 16, 3), picture)["results"]
    values = output(row)
    assert values.shape[0] == 3
    assert np.array_equal(values[0], values[1])
    assert np.array_equal(values[0], values[2])


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        m.one_conv(1, 1, 1, 3, signature=(1, -1, -1, 3)),
        m.one_conv(1, 1, 1, 1, signature=(-1, -1, -1, 1)),
        m.channels_first(1, 3, 1, 1, signature=(1, 3, -1, -1)),
        m.one_conv(1, 16, 1, 3, signature=(1, 16, -1, 3)),
    ],
)
def test_a_model_for_any_size_gets_one(model: bytes, picture: Path) -> None:
    document = run_model(model, picture)
    assert document["verdict"] == "pass", document["results"]
    (given,) = document["inputs"]
    assert {16, 224} & set(given["shape"])
    assert 1 not in given["shape"][1:] or "grey" in given["given"]
    assert "it gets 224x224" in document["note"]
    assert document["results"][0]["outputs"][0]["compared"]


def test_the_size_can_be_chosen(picture: Path) -> None:
    model = m.one_conv(1, 1, 1, 3, signature=(1, -1, -1, 3))
    document = run_model(model, picture, size=size_of("24x40"))
    assert document["inputs"][0]["shape"] == [1, 24, 40, 3]
    assert document["model"]["name"] == "model.tflite"
    # All that reads the file sees what runs, and the document has the user's own file.
    assert document["operations"][0]["output"] == [1, 24, 40, 4]
    import hashlib

    assert document["model"]["sha256"] == hashlib.sha256(model).hexdigest()
    with pytest.raises(UserError, match="takes 1x16x16x3 uint8"):
        run_model(m.one_conv(1, 16, 16, 3), picture, size=(32, 32))
    assert size_of("") is None
    assert size_of("96") == (96, 96)
    for text in ("0", "1x2x3", "a", "-5", "10x", "99999"):
        with pytest.raises(UserError, match="--size"):
            size_of(text)


@pytest.mark.slow
def test_a_size_that_the_model_cannot_take(picture: Path) -> None:
    """Behind the convolution is a RESHAPE to 24 x 24."""
    model = m.Model()
    image = model.image(1, 1, 1, 3, signature=(1, -1, -1, 3))
    features = model.conv(image)
    flat = model.reshape(features, 1, 24 * 24 * 4)
    content = model.written([image], [flat])
    with pytest.raises(UserError, match="cannot take a picture of 32x32") as caught:
        run_model(content, picture, size=(32, 32))
    assert "--size" in caught.value.hint
    custom = m.with_operator(CUSTOM, custom="vendor-op", any_size=True)
    with pytest.raises(UserError, match="custom op: vendor-op") as caught:
        run_model(custom, picture)
    assert "vendor's runtime" in caught.value.hint
    assert run_model(content, picture, size=(24, 24))["verdict"] == "pass"


def test_outputs_that_are_no_numbers_are_null_in_every_file(picture: Path) -> None:
    model = m.Model()
    image = model.image(1, 4, 4, 3, dtype="float32")
    weights = model.tensor("w", (3, 3, 3, 3), "float32", data=np.ones((3, 3, 3, 3)))
    bias = model.tensor("b", (3,), "float32", data=np.array([np.nan, np.inf, 1.0]))
    sink = model.tensor("y", (1, 4, 4, 3), "float32")
    model.operators.append(conv((image, weights, bias), sink, stride=1))
    page = picture.with_name("report.html")
    document = run_model(model.written([image], [sink]), picture)
    assert document["verdict"] == "pass"
    assert "not finite" in document["results"][0]["reason"]
    report_files.write("this machine", page, smoke=document, findings=None)
    for content in (json_text(document), page.with_suffix(".json").read_text()):
        json.loads(content, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    kept = report_files.newest("this machine")
    assert kept
    assert kept["results"] == document["results"]
    report_files.write("this machine", page, smoke=kept, findings=None)


# --- what is refused -------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "said"),
    [
        (m.vector(1, 640), "takes 1x640 float32 (features): no picture"),
        (m.vector(1, 640, dtype="int8"), "takes 1x640 int8"),
        (m.vector(1, 16, dtype="int32"), "takes 1x16 int32"),
        (m.vector(1, 1, 1, 64), "takes 1x1x1x64 float32"),
        (m.vector(1, 16, 16, 8), "takes 1x16x16x8 float32"),
        (m.vector(1, 16, 224, 224, 3), "takes 1x16x224x224x3 float32"),
        (m.vector(1, 80, 3), "takes 1x80x3 float32"),
        (m.vector(1, 1, 1, 3), "takes 1x1x1x3 float32"),
        (m.one_conv(1, 1, 1, 3, signature=(1, -1, -1, -1)), "takes 1x?x?x? uint8"),
    ],
)
def test_what_is_no_picture_is_said_before_anything_runs(
    model: bytes, said: str, picture: Path
) -> None:
    with pytest.raises(UserError) as caught:
        run_model(model, picture)
    assert said in caught.value.message
    assert caught.value.hint
    # The same by hand, from the runtime's own details.
    error = facts_of(model, picture)["error"]
    assert error["stage"] == "model"
    assert said.partition(" (")[0] in error["message"]


def test_a_host_and_a_virtual_npu_refuse_it_before_they_are_asked(
    picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bsp.remote.inventory import Host
    from userspace.npu.validate import smoke
    from virtual.npu.shim import host as shim_host
    from virtual.npu.shim.place import VirtualNpu

    def never(*_: object, **__: object) -> Any:
        raise AssertionError("something ran")

    monkeypatch.setattr(smoke, "connect", never)
    monkeypatch.setattr(shim_host, "virtual_host", never)
    path = picture.with_name("model.tflite")
    path.write_bytes(m.vector(1, 640))
    request = SmokeTestRequest(model=str(path), image=str(picture))
    with pytest.raises(UserError, match="takes 1x640"):
        smoke_test("label_image", request, host=Host(name="board", address="127.0.0.1"))
    with pytest.raises(UserError, match="takes 1x640"):
        smoke_test("label_image", request, place=VirtualNpu("virtual:a311d"))


@pytest.mark.slow
def test_a_board_with_an_older_userspace_says_so(
    picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = picture.with_name("model.tflite")
    machine = ThisMachine()

    def older(*arguments: Any, **more: Any) -> Any:
        facts = ThisMachine.run_runner(machine, *arguments, **more)
        del facts["inputs"]
        return facts

    monkeypatch.setattr(machine, "run_runner", older)
    for model, fails in ((m.one_conv(1, 16, 16, 3), False), (m.one_conv(1, 16, 16, 1), True)):
        path.write_bytes(model)
        request = SmokeTestRequest(
            model=str(path), image=str(picture), delegate="cpu", runs=1, views=0
        )
        if not fails:
            assert label_image.smoke_test(machine, request, host="board")["verdict"] == "pass"
            continue
        with pytest.raises(UserError, match="the userspace on board is older") as caught:
            label_image.smoke_test(machine, request, host="board")
        assert caught.value.hint == "./inv deploy --host board"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "said", "hint"),
    [
        (m.with_operator(250), "cannot run this model: Op builtin_code out of range: 250", "newer"),
        (m.with_operator(19, version=99), "'RELU' version '99'", "newer TFLite runtime"),
        (m.with_operator(CUSTOM, custom="vendor-op"), "custom op: vendor-op", "vendor's runtime"),
        (m.with_operator(CUSTOM, custom="FlexErf"), "Select TensorFlow op", "SELECT_TF_OPS"),
        (m.with_operator(CUSTOM, custom="edgetpu-custom-op"), "edgetpu-custom-op", "Edge TPU"),
    ],
)
def test_operators_that_the_runtime_lacks_are_the_models_matter(
    model: bytes, said: str, hint: str, picture: Path
) -> None:
    with pytest.raises(UserError) as caught:
        run_model(model, picture)
    assert said in caught.value.message
    assert hint in caught.value.hint


_NUMPY_2 = """
import sys
import numpy
sys.path.insert(0, sys.argv[1])
numpy.__version__ = "2.2.6"
import loading

class Runtime:
    class OpResolverType:
        BUILTIN_WITHOUT_DEFAULT_DELEGATES = 0

    def Interpreter(self, **_):
        raise SystemError("<built-in method> returned a result with an exception set")

for name in ("tflite-runtime 2.14.0", "ai-edge-litert 2.3.0"):
    try:
        loading.load(Runtime(), name, b"")
    except loading.LoadError as error:
        print(error.stage, error, error.hint, sep="; ")
"""


def test_a_runtime_that_numpy_2_breaks_is_named_with_its_cause() -> None:
    command = [sys.executable, "-c", _NUMPY_2, str(RUNNER.parent)]
    lines = subprocess.run(command, capture_output=True, check=True).stdout.decode().splitlines()
    assert lines[0] == (
        "runtime; tflite-runtime 2.14.0 was compiled for numpy 1 and does not work with numpy 2.2.6; "
        "pip install 'numpy<2', in the Python that runs this"
    )
    assert lines[1].startswith("model; ai-edge-litert 2.3.0 cannot run this model: <built-in")


def test_broken_models_are_refused_in_words(picture: Path) -> None:
    whole = m.one_conv(1, 16, 16, 3)
    for content, said in (
        (b"", "an empty file"),
        (b"text, and no model at all", "not a .tflite file"),
        (b"\x1f\x8b\x08" + bytes(99), "a gzip archive"),
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "a Keras model"),
        (b"<!DOCTYPE html><html></html>", "a web page"),
        (whole[:60], "cut short or broken"),
        (whole[: len(whole) * 3 // 4], "cut short or broken"),
        (m.Model().written([], []), "no operations"),
    ):
        with pytest.raises(UserError) as caught:
            run_model(content, picture)
        assert said in caught.value.message
        assert caught.value.hint


def test_a_model_without_its_buffers(picture: Path) -> None:
    """The table of buffers is cut to its first, empty one."""
    content = bytearray(m.one_conv(1, 16, 16, 3))
    from userspace.npu.model.flatbuffer import Table

    start, length = Table(bytes(content), int.from_bytes(content[:4], "little")).span(4)
    assert length > 1
    content[start - 4 : start] = (1).to_bytes(4, "little")
    with pytest.raises(UserError, match=r"tensor 'w' has its values in buffer 1, of 1"):
        run_model(bytes(content), picture)


def test_pictures_that_cannot_be_read_are_refused_before_anything_runs(picture: Path) -> None:
    model = picture.with_name("model.tflite")
    model.write_bytes(m.one_conv(1, 16, 16, 3))
    picture.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    with pytest.raises(UserError, match="found a PNG picture") as caught:
        choose(SmokeTestRequest(model=str(model), image=str(picture)))
    assert "ImageMagick" in caught.value.hint


# --- the parts -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "dtype", "layout"),
    [
        ((1, 224, 224, 3), "uint8", "NHWC"),
        ((1, 3, 224, 224), "float32", "NCHW"),
        ((1, 1, 28, 28), "float32", "NCHW"),
        ((1, 28, 28), "float32", "NHW"),
        ((1, 128, 13), "float32", ""),
        ((224, 224, 3), "uint8", "HWC"),
        ((3, 224, 224), "float32", "CHW"),
        ((1, 192, 192, 3), "int32", "NHWC"),
        ((1, 192, 192, 1), "int32", ""),
        ((1, 224, 224, 3), "bool", ""),
        ((1, 224, 224, 3), "string", ""),
        ((), "float32", ""),
    ],
)
def test_layouts(shape: tuple[int, ...], dtype: str, layout: str) -> None:
    assert model_inputs.layout_of(Input("x", shape, shape, dtype)) == layout


def values(shape: tuple[int, ...], dtype: str, scale: float = 0.0) -> Any:
    (filling,) = fillings([Input("x", shape, shape, dtype, scale)])
    colours = np.array([255.0, 127.5, 0.0], np.float32)
    return model_inputs.values(
        filling, lambda height, width: np.tile(colours, (height, width, 1)), preprocess.to_input
    )


def test_values_have_the_inputs_shape_and_type() -> None:
    grey = int(0.299 * 255 + 0.587 * 127.5)
    assert values((1, 2, 4, 1), "uint8")[0, 0, 0].tolist() == [grey]
    assert values((1, 2, 4, 4), "uint8")[0, 0, 0].tolist() == [255, 127, 0, 255]
    assert values((1, 2, 4, 4), "int8")[0, 0, 0].tolist() == [127, -1, -128, 127]
    assert values((2, 3, 2, 5), "float32")[1, :, 0, 0].tolist() == [1.0, 0.0, -1.0]
    assert values((3, 2, 5), "float16")[:, 0, 0].tolist() == [1.0, 0.0, -1.0]
    assert values((1, 2, 4, 3), "int16", 1 / 32767)[0, 0, 0].tolist() == [32767, 0, -32767]
    for shape in ((1, 9, 9), (2, 5, 3), (4, 5, 6), (2, 3, 5, 7)):
        made = values(shape, "uint8")
        assert (made.shape, made.dtype) == (shape, np.uint8)
    with pytest.raises(InputError, match="without a scale"):
        values((1, 2, 4, 3), "int16")


def test_what_cannot_be_generated_is_said() -> None:
    image = Input("image", (1, 8, 8, 3), (1, 8, 8, 3), "uint8")
    for dtype in ("string", "object", "resource", "complex64"):
        with pytest.raises(InputError, match=f"input 'more' takes 1x4 {dtype}, beside a picture"):
            fillings([image, Input("more", (1, 4), (1, 4), dtype)])
    with pytest.raises(InputError, match="no input"):
        fillings([])
