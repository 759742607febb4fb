# SPDX-License-Identifier: MIT
"""``smoke-test --npu``: what goes wrong on a virtual NPU is never taken for a pass or an absence."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bsp.base.project import PROJECT
from userspace.npu.model import tiny_model
from userspace.npu.model.tflite_file import NO_ACTIVATION, Tensor, depthwise_conv, write_model
from userspace.npu.validate.bmp import encode_bmp
from userspace.npu.validate.label_image import Request
from userspace.npu.validate.smoke import smoke_test
from virtual.npu.shim.place import VirtualNpu

pytestmark = [
    pytest.mark.usefixtures("own_state"),
    pytest.mark.slow,
    pytest.mark.network,
    pytest.mark.timeout(600),
]


def noise(folder: Path, side: int = 32) -> str:
    path = folder / "noise.bmp"
    pixels = np.random.default_rng(1).integers(0, 256, (side, side, 3)).astype(np.uint8)
    path.write_bytes(encode_bmp(pixels))
    return str(path)


def run(model: bytes, folder: Path, npu: str, **changes: Any) -> dict[str, Any]:
    """Run a model on a virtual NPU; ``changes`` are a request's, or ``exact`` and ``strict``."""
    path = folder / "model.tflite"
    path.write_bytes(model)
    flags = {name: changes.pop(name) for name in ("exact", "strict") if name in changes}
    given: dict[str, Any] = {"delegate": "teflon", "image": noise(folder), "views": 0}
    request = Request(**given | {"model": str(path)} | changes)
    return smoke_test("label_image", request, place=VirtualNpu(f"virtual:{npu}", **flags))


def depthwise_of_three() -> bytes:
    """A depthwise convolution right on the picture: Mesa 25.0.7 ends with SIGSEGV on generation 8."""
    rng = np.random.default_rng(3)
    weights = rng.integers(40, 216, (1, 3, 3, 3))
    tensors = [
        Tensor("input", (1, 16, 16, 3), "uint8", 1 / 255, 0),
        Tensor("weights", weights.shape, "uint8", 0.01, 128, weights),
        Tensor("bias", (3,), "int32", 0.01 / 255, 0, np.zeros(3)),
        Tensor("output", (1, 16, 16, 3), "uint8", 0.02, 128),
    ]
    operators = [depthwise_conv((0, 1, 2), 3, stride=1, activation=NO_ACTIVATION)]
    return write_model(tensors, operators, inputs=[0], outputs=[3], description="depthwise of 3")


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


def test_a_row_that_takes_too_long_names_the_deadline(tmp_path: Path) -> None:
    document = run(tiny_model.build(), tmp_path, "a311d", timeout_s=0.02)
    row = document["results"][-1]
    assert (row["delegate"], row["status"], document["verdict"]) == ("teflon", "fail", "fail")
    assert row["reason"].startswith("did not end within 0.02 s")
