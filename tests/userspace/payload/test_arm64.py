# SPDX-License-Identifier: MIT
"""The payload on arm64, without a board: Debian's arm64 Python under qemu-user, the real libteflon.so."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from bsp.base.packages.apt import Archive
from bsp.base.process import run
from bsp.base.project import PROJECT
from tests.support.models.foreign import python_command
from userspace.npu.model import tiny_model
from userspace.npu.validate.label_image import SmokeTestRequest, smoke_test
from userspace.npu.validate.machine import ThisMachine
from userspace.payload.payload import build_payload
from virtual.npu import shim
from virtual.npu.shim import session

pytestmark = [pytest.mark.slow, pytest.mark.network]

# Runs under the arm64 Python: our resize against TFLite's own kernel, and the hash of the small model.
_CHECK = f"""
import hashlib, json, sys
sys.path[:0] = [sys.argv[1] + "/site", {str(PROJECT)!r}, sys.argv[2]]
import ctypes
for name in ("libgcc_s.so.1", "libstdc++.so.6"):
    ctypes.CDLL(sys.argv[1] + "/lib/" + name, mode=ctypes.RTLD_GLOBAL)
import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from userspace.npu.model import tflite_file as t, tiny_model
from userspace.npu.validate.onboard import preprocess
different = []
for height, width, to_height, to_width in ((606, 517, 224, 224), (37, 53, 224, 224), (100, 333, 31, 77)):
    pixels = np.random.default_rng(5).integers(0, 256, (height, width, 3), dtype=np.uint8)
    tensors = [t.Tensor("i", (1, height, width, 3), "float32"),
               t.Tensor("s", (2,), "int32", data=np.array([to_height, to_width])),
               t.Tensor("o", (1, to_height, to_width, 3), "float32")]
    model = t.write_model(tensors, [t.resize_bilinear(0, 1, 2)], inputs=[0], outputs=[2],
                          description="resize")
    plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = Interpreter(model_content=model, experimental_op_resolver_type=plain)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], pixels[None].astype(np.float32))
    interpreter.invoke()
    theirs = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])[0]
    assert preprocess.fuses_multiply_add()
    ours = preprocess.resize_bilinear(pixels, to_height, to_width, fused=True)
    different.append(int((ours != theirs).sum()))
print(json.dumps({{"different": different}}))
"""


def by_delegate(document: Any) -> dict[str, Any]:
    return {row["delegate"]: row for row in document["results"]}


@pytest.mark.parametrize("distribution", ["trixie", "bookworm"])
def test_the_payload_runs_and_finds_no_npu(tmp_path: Path, distribution: str) -> None:
    made = build_payload(distribution=distribution)
    machine = ThisMachine(userspace=made.folder, python=python_command(tmp_path, distribution))
    request = SmokeTestRequest("cpu,teflon", tiny_model.NAME, runs=1, budget_s=2, views=1)
    document = smoke_test(machine, request)
    rows = by_delegate(document)
    assert document["verdict"] == "pass"
    assert document["machine"]["machine"] == "aarch64"
    assert document["runtime"].startswith(made.manifest["runtime"])
    assert rows["cpu-reference"]["top"][0]["index"] == 7
    # The library was loaded, and it was it that found none.
    assert (rows["teflon"]["status"], rows["teflon"]["reason"]) == ("skip", "no NPU device")
    assert rows["teflon"]["library"] == str(made.folder / "lib" / "libteflon.so")


@pytest.mark.full
@pytest.mark.timeout(600)
def test_the_payload_of_another_python_than_the_distribution_s(tmp_path: Path) -> None:
    """Debian sid's Python is 3.14 (2026-11): the payload for it, with trixie's libraries."""
    version = Archive("sid", "arm64").version("python3")
    series = ".".join(version.split(".")[:2])
    if series in ("3.11", "3.13"):
        pytest.skip(f"sid's Python is {series}, which the distributions' own payloads run under")
    made = build_payload(distribution="trixie", python=series)
    machine = ThisMachine(userspace=made.folder, python=python_command(tmp_path, "sid"))
    document = smoke_test(
        machine, SmokeTestRequest(model=tiny_model.NAME, runs=1, budget_s=2, views=1)
    )
    rows = by_delegate(document)
    assert document["machine"]["python"].startswith(f"{series}.")
    assert rows["cpu"]["status"] == rows["cpu-reference"]["status"] == "pass"
    assert (rows["teflon"]["status"], rows["teflon"]["reason"]) == ("skip", "no NPU device")


def test_preprocessing_is_bit_exact_on_arm64(tmp_path: Path) -> None:
    import flatbuffers

    made = build_payload(distribution="trixie")
    assert flatbuffers.__file__
    package = tmp_path / "pure" / "flatbuffers"
    shutil.copytree(Path(flatbuffers.__file__).parent, package)
    command = [*python_command(tmp_path, "trixie"), "-c", _CHECK, made.folder, package.parent]
    answer = json.loads(run(command, timeout_s=300).stdout)
    assert answer == {"different": [0, 0, 0]}


@pytest.mark.skipif("NPU_BSP_ASSETS" not in os.environ, reason="needs the real models")
def test_mobilenet_gives_the_documented_answer_on_arm64(tmp_path: Path) -> None:
    made = build_payload(distribution="trixie")
    machine = ThisMachine(userspace=made.folder, python=python_command(tmp_path, "trixie"))
    request = SmokeTestRequest(
        model="mobilenet_v1_1.0_224_quant",
        image="grace_hopper.bmp",
        delegate="cpu-reference",
        runs=1,
        views=0,
    )
    top = by_delegate(smoke_test(machine, request))["cpu-reference"]["top"]
    assert [(entry["index"], entry["score"]) for entry in top] == [
        (653, 0.780392), (907, 0.105882), (458, 0.015686), (466, 0.011765), (835, 0.007843),
    ]  # fmt: skip


@pytest.mark.skipif(
    shutil.which("aarch64-linux-gnu-gcc") is None, reason="needs aarch64-linux-gnu-gcc for the shim"
)
def test_teflon_computes_on_the_virtual_npu(tmp_path: Path) -> None:
    """The good path, whole: device, delegation by log and by the runtime's count, the right answer."""
    made = build_payload(distribution="trixie")
    with session.emulator("a311d") as emulator:
        python = python_command(
            tmp_path, "trixie", preload=shim.build("aarch64"), environment=emulator.environment
        )
        machine = ThisMachine(userspace=made.folder, python=python)
        request = SmokeTestRequest(
            model=tiny_model.NAME, delegate="teflon", runs=2, threads=1, views=1
        )
        document = smoke_test(machine, request)
    row = by_delegate(document)["teflon"]
    assert row["status"] == "pass", row
    assert (row["driver"], row["delegated_ops"], row["total_ops"]) == ("etnaviv", 4, 7)
    assert row["top"][0]["label"] == "seven"
    assert document["verdict"] == "pass"
    assert emulator.faults == []
