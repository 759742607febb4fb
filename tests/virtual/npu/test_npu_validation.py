# SPDX-License-Identifier: MIT
"""``smoke-test --npu``: what goes wrong on a virtual NPU is never taken for a pass or an absence."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from bsp.base.project import PROJECT
from tests.support.models.noise import noise_picture
from tests.support.models.small_nets import Net
from userspace.npu.model import tiny_model
from userspace.npu.validate.label_image import SmokeTestRequest
from userspace.npu.validate.smoke import smoke_test
from virtual.npu.shim import session
from virtual.npu.shim.place import VirtualNpu

pytestmark = [
    pytest.mark.usefixtures("own_state"),
    pytest.mark.slow,
    pytest.mark.network,
    pytest.mark.timeout(600),
]


def noise(folder: Path, side: int = 32) -> str:
    return str(noise_picture(folder / "noise.bmp", side))


def run(model: bytes, folder: Path, npu: str, **changes: Any) -> Any:
    """Run a model on a virtual NPU; ``changes`` are a request's, or ``exact`` and ``strict``."""
    path = folder / "model.tflite"
    path.write_bytes(model)
    flags = {name: changes.pop(name) for name in ("exact", "strict") if name in changes}
    given: Any = {"delegate": "teflon", "image": noise(folder), "views": 0, "runs": 2}
    request = SmokeTestRequest(**given | {"model": str(path)} | changes)
    return smoke_test("label_image", request, place=VirtualNpu(f"virtual:{npu}", **flags))


def depthwise_of_three() -> bytes:
    """A depthwise convolution right on the picture: Mesa 25.0.7 ends with SIGSEGV on generation 8."""
    net = Net(16)
    return net.model([net.depthwise(0, scale=0.02)])


def test_a_crash_of_the_delegate_fails_in_every_form(tmp_path: Path) -> None:
    model, junit = tmp_path / "model.tflite", tmp_path / "junit.xml"
    model.write_bytes(depthwise_of_three())
    command = [
        sys.executable,
        "-m",
        "invoke",
        "smoke-test",
        "label_image",
        "--npu",
        "virtual:imx8mp",
    ]
    command += ["--model", str(model), "--image", noise(tmp_path), "--json", "--junit", str(junit)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, check=False)
    assert done.returncode == 4, done.stderr.decode()
    document = json.loads(done.stdout)
    rows = {row["delegate"]: row for row in document["results"]}
    assert document["verdict"] == rows["teflon"]["status"] == "fail"
    assert "crashed with SIGSEGV (driver etnaviv, after it compiled 0" in rows["teflon"]["reason"]
    assert (rows["teflon"]["signal"], rows["cpu"]["status"]) == (11, "pass")
    assert {rows[name]["status"] for name in ("opencl", "tim-vx")} == {"skip"}
    suite = ET.fromstring(junit.read_bytes())[0]
    assert suite.get("failures") == "1"
    (failed,) = [case for case in suite if case.find("failure") is not None]
    assert failed.get("name") == "teflon"


# The emulator, with an NPU that never ends what it was given.
_STUCK = """
import sys, time
from virtual.npu.shim import server
from virtual.npu.vivante.engine import Engine
Engine.submit = lambda *_: time.sleep(600)
sys.exit(server.main())
"""


def test_a_row_that_takes_too_long_names_the_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = session._server_command

    def stuck(*arguments: Any) -> list[str]:
        python, _, _, *words = command(*arguments)
        return [python, "-c", _STUCK, *words]

    monkeypatch.setattr(session, "_server_command", stuck)
    net = Net(16)
    document = run(net.model([net.conv(0, 8)]), tmp_path, "a311d", timeout_s=15)
    row = document["results"][-1]
    assert (row["delegate"], row["status"], document["verdict"]) == ("teflon", "fail", "fail")
    assert row["reason"].startswith("did not end within 15 s")


@pytest.mark.parametrize("wrong_first", [False, True])
def test_a_wrong_output_fails_whichever_it_is(wrong_first: bool, tmp_path: Path) -> None:
    """Mesa pads a depthwise convolution of stride 2 and odd sizes at the wrong sides."""
    net = Net(33)
    source = net.conv(0, 16, zero_point=110)
    right = net.conv(source, 8, kernel=1, scale=0.2, zero_point=120)
    wrong = net.depthwise(source, stride=2)
    outputs = [wrong, right] if wrong_first else [right, wrong]
    document = run(net.model(outputs), tmp_path, "a311d")
    row = document["results"][-1]
    assert (row["status"], document["verdict"]) == ("fail", "fail")
    problems = [bool(each["problem"]) for each in row["outputs"]]
    assert problems == ([True, False] if wrong_first else [False, True])
    # The finding names the operation, and stands beside no pass.
    assert "not what the model says: operation 2 (DEPTHWISE_CONV_2D)" in row["reason"]
    assert document["npu"]["wrong"]


def test_exactly_means_exactly(tmp_path: Path) -> None:
    """A tensor that the graph itself reads, too, comes channel by channel; each job is as it should be."""
    net = Net(20)
    inner = net.conv(0, 16, zero_point=110)
    outer = net.conv(inner, 8, scale=0.1, zero_point=120)
    document = run(net.model([outer, inner]), tmp_path, "a311d", exact=True)
    row = document["results"][-1]
    assert (row["status"], document["verdict"]) == ("fail", "fail")
    assert "output 1 is not exactly cpu-reference's" in row["reason"]
    assert row["outputs"][0]["different"] == 0
    document = run(net.model([outer]), tmp_path, "a311d", exact=True, views=2)
    assert document["verdict"] == "pass", document["results"][-1]["reason"]
    assert document["results"][-1]["outputs"][0]["different"] == 0


def test_errors_of_a_few_steps_are_no_exact_answer_and_no_pass_beside_a_finding(
    tmp_path: Path,
) -> None:
    """With 0.35 a step all that is wrong is a few steps apart: less than a tenth of the range."""
    net = Net(33)
    source = net.conv(0, 16, zero_point=110)
    model = net.model([net.depthwise(source, stride=2, scale=0.35)])
    for exact in (True, False):
        document = run(model, tmp_path, "a311d", exact=exact)
        row = document["results"][-1]
        assert (row["status"], document["verdict"]) == ("fail", "fail")
        assert "not what the model says: operation 1 (DEPTHWISE_CONV_2D)" in row["reason"]
        assert ("is not exactly cpu-reference's" in row["reason"]) == exact


@pytest.mark.parametrize("npu", ["a311d", "imx8mp"])
def test_the_small_model_is_right_in_both_modes(npu: str, tmp_path: Path) -> None:
    for exact in (True, False):
        document = run(tiny_model.build(), tmp_path, npu, exact=exact, views=2)
        row = document["results"][-1]
        assert document["verdict"] == "pass", row["reason"]
        assert document["npu"]["wrong"] == []
        assert (row["outputs"][0]["different"] == 0) or not exact


def test_an_int8_add_that_comes_out_wrong_is_named(tmp_path: Path) -> None:
    """Its inputs come from the CPU; Mesa 25.0.7 puts both at the beginning of the buffer."""
    net = Net(16, dtype="int8")
    model = net.model([net.add(net.pool(0, 1), net.tanh(0), scale=0.02)])
    document = run(model, tmp_path, "imx8mp", exact=True)
    row = document["results"][-1]
    assert (row["status"], document["verdict"]) == ("fail", "fail")
    assert any("(ADD)" in each and "[submission" in each for each in document["npu"]["wrong"])
    assert document["npu"]["faults"] == []


@pytest.mark.parametrize("ends", [True, False])
def test_a_split_that_comes_out_wrong_is_named(ends: bool, tmp_path: Path) -> None:
    net = Net(16)
    parts = net.split(net.conv(0, 16, zero_point=110), 2)
    outputs = parts if ends else [net.conv(each, 4) for each in parts]
    document = run(net.model(outputs), tmp_path, "imx8mp", exact=True)
    assert document["verdict"] == ("fail" if ends else "pass")
    assert ("operation 1 (SPLIT)" in document["results"][-1]["reason"]) == ends
    assert bool(document["npu"]["wrong"]) == ends
