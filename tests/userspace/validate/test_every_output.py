# SPDX-License-Identifier: MIT
"""Models with several outputs on this machine: TFLite's two sets of kernels, and a wrong delegate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bsp.base.errors import UserError
from bsp.base.process import run
from bsp.base.project import PROJECT
from tests.support.models.noise import noise_picture
from tests.support.models.small_nets import Net
from userspace.npu.model.sinks import read_sinks
from userspace.npu.model.tflite_file import Tensor, average_pool, write_model
from userspace.npu.validate.label_image import SmokeTestRequest
from userspace.npu.validate.model_check import check_picture
from userspace.npu.validate.onboard.bmp import encode_bmp
from userspace.npu.validate.smoke import smoke_test

pytestmark = pytest.mark.usefixtures("own_state")


def judged(model: bytes, folder: Path, **changes: Any) -> Any:
    path, image = folder / "model.tflite", folder / "noise.bmp"
    path.write_bytes(model)
    noise_picture(image, 64)
    given: Any = {"model": str(path), "image": str(image), "runs": 1, "views": 2}
    return smoke_test("label_image", SmokeTestRequest(**given | {"delegate": "cpu"} | changes))


def deep_net(dtype: str, seed: int) -> bytes:
    """Twelve convolutions, so that what kernels round differently is carried on; four outputs."""
    net = Net(32, dtype=dtype, seed=seed)
    source = net.conv(0, 16, scale=0.04)
    for number in range(10):
        scale = 0.05 + 0.01 * (number % 3)
        if number % 3 == 1:
            source = net.depthwise(source, stride=2 if number == 4 else 1, scale=scale)
        else:
            source = net.conv(source, 16 + 8 * (number % 2), scale=scale, relu=number % 2 == 0)
    features = net.pool(source, 16)
    answer = net.scores(net.conv(features, 10, kernel=1, scale=0.1))
    return net.model([answer, source, features, 3])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_tflites_own_kernels_agree_on_every_output(dtype: str, seed: int, tmp_path: Path) -> None:
    document = judged(deep_net(dtype, seed), tmp_path)
    assert document["verdict"] == "pass", [row["reason"] for row in document["results"]]
    rows = {row["delegate"]: row for row in document["results"]}
    outputs = rows["cpu"]["outputs"]
    assert [each["kind"] for each in outputs] == ["scores", "values", "vector", "values"]
    assert all(each["compared"] and not each["problem"] for each in outputs)
    assert [each["shape"] for each in outputs][2] == [1, 1, 1, 24]
    assert rows["cpu"]["top"][0]["index"] == int(rows["cpu-reference"]["top"][0]["index"])
    assert not any(each["compared"] for each in rows["cpu-reference"]["outputs"])


def test_what_the_models_file_says_of_its_outputs() -> None:
    sinks = read_sinks(deep_net("int8", 1))
    assert [sink.maker for sink in sinks] == ["SOFTMAX", "CONV_2D", "AVERAGE_POOL_2D", "CONV_2D"]
    assert [round(sink.step, 4) for sink in sinks] == [0.0039, 0.05, 0.05, 0.04]
    assert not any(sink.picked for sink in sinks)


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("delegate") / "libbroken.so"
    run(["gcc", "-shared", "-fPIC", "-o", library, PROJECT / "tests/support/broken_delegate.c"])
    return library


@pytest.mark.slow
@pytest.mark.parametrize("value", [-1, 0, 200])
@pytest.mark.parametrize("wrong_first", [False, True])
def test_an_output_that_is_wrong_fails_whichever_it_is(
    broken: Path, value: int, wrong_first: bool, tmp_path: Path
) -> None:
    """The delegate takes the convolutions; the average over the picture stays right."""
    net = Net(32)
    right, wrong = net.pool(0, 2), net.conv(0, 8, scale=0.1)
    outputs = [wrong, right] if wrong_first else [right, wrong]
    document = judged(net.model(outputs), tmp_path, delegate=f"{broken}:how=wrong;value={value}")
    row = document["results"][-1]
    assert (row["status"], document["verdict"]) == ("fail", "fail")
    place = 0 if wrong_first else 1
    assert f"output {place}" in row["reason"]
    assert f"output {1 - place}" not in row["reason"]
    assert [bool(each["problem"]) for each in row["outputs"]] == [place == 0, place == 1]
    assert row["outputs"][1 - place]["different"] == 0


@pytest.mark.slow
def test_numbers_of_classes_are_judged_by_the_scores_they_were_picked_from(
    broken: Path, tmp_path: Path
) -> None:
    net = Net(32, dtype="int8", seed=3)
    model = net.model([net.best(net.conv(net.conv(0, 16, scale=0.04), 5, kernel=1, scale=0.1))])
    document = judged(model, tmp_path)
    assert document["verdict"] == "pass", [row["reason"] for row in document["results"]]
    assert {row["outputs"][0]["kind"] for row in document["results"]} == {"indices"}
    for value in (-1, 0, 200):
        bad = judged(model, tmp_path, delegate=f"{broken}:how=wrong;value={value}")
        assert bad["results"][-1]["status"] == "fail", value
        assert "worse by" in bad["results"][-1]["reason"]


def test_a_picture_of_one_colour_proves_nothing(tmp_path: Path) -> None:
    pixels = np.full((300, 300, 3), 128, np.uint8)
    path = tmp_path / "grey.bmp"
    path.write_bytes(encode_bmp(pixels))
    with pytest.raises(UserError, match=r"grey\.bmp is of one colour"):
        check_picture(path)
    pixels[299, 299, 2] = 127
    path.write_bytes(encode_bmp(pixels))
    check_picture(path)


def test_a_model_whose_outputs_say_nothing_of_its_input_is_refused(tmp_path: Path) -> None:
    picture = Tensor("picture", (1, 32, 32, 3), "uint8", 1 / 255, 0)
    same = Tensor("same", (1, 4, 4, 3), "uint8", 0.1, 0, np.arange(48, dtype=np.uint8))
    sink = Tensor("out", (1, 4, 4, 3), "uint8", 0.1, 0)

    def model(outputs: list[int]) -> bytes:
        return write_model(
            [picture, same, sink], [average_pool(1, 2, size=1)], inputs=[0], outputs=outputs,
            description="",
        )  # fmt: skip

    with pytest.raises(UserError, match=r"no output of model\.tflite depends on its inputs"):
        judged(model([2]), tmp_path)
    with pytest.raises(UserError, match=r"model\.tflite has no outputs"):
        judged(model([]), tmp_path)
