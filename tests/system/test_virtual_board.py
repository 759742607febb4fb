# SPDX-License-Identifier: MIT
"""The payload on the virtual board: real arm64 Debian, over SSH, in a folder of its own."""

from __future__ import annotations

import os
import re
import shutil
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from bsp.base.process import run
from bsp.base.project import PROJECT
from bsp.remote.inventory import Host
from bsp.remote.ssh import Connection, connect
from userspace.npu.model import tiny_model
from userspace.npu.opencl import build, rusticl
from userspace.npu.validate import models
from userspace.npu.validate.label_image import SmokeTestRequest
from userspace.npu.validate.machine import BoardMachine
from userspace.npu.validate.smoke import smoke_test
from userspace.payload.payload import build_payload

FOLDER = "/tmp/userspace-of-a-test"
MOBILENET = "mobilenet_v1_0.25_128_quant"
HANG_S = 20.0
pytestmark = pytest.mark.network


@pytest.fixture(scope="module")
def board(virtual_board: Host) -> Iterator[Host]:
    """The virtual board, with a payload in a folder."""
    made = build_payload(distribution="trixie")
    packed = BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.add(made.folder, arcname=".")
    with connect(virtual_board, timeout_s=60) as connection:
        unpack = f"rm -rf {FOLDER} && mkdir {FOLDER} && exec tar -x -f - -C {FOLDER}"
        connection.run(["sh", "-c", unpack], stdin=packed.getvalue(), timeout_s=300)
    try:
        yield virtual_board
    finally:
        with connect(virtual_board, timeout_s=60) as connection:
            connection.run(["rm", "-rf", FOLDER], timeout_s=120)


def by_delegate(document: Any) -> dict[str, Any]:
    return {row["delegate"]: row for row in document["results"]}


def test_smoke_test_on_the_virtual_board(board: Host) -> None:
    document = smoke_test(
        "label_image",
        SmokeTestRequest("cpu,cpu-reference,teflon", model=tiny_model.NAME, runs=3, budget_s=5),
        host=board,
        userspace=FOLDER,
    )
    rows = by_delegate(document)
    assert document["verdict"] == "pass"
    assert document["board"] == "virtual"
    assert rows["cpu"]["status"] == rows["cpu-reference"]["status"] == "pass"
    assert (rows["teflon"]["status"], rows["teflon"]["reason"]) == ("skip", "no NPU device")


# --- the whole matrix, where the OpenCL delegate was built -----------------------------------


@pytest.fixture(scope="module")
def delegate() -> build.BuiltDelegate:
    made = build.built()
    if made is None:
        pytest.skip("the OpenCL delegate is not built: ./inv build-delegate opencl")
    return made


@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.skipif(
    shutil.which("aarch64-linux-gnu-gcc") is None, reason="needs aarch64-linux-gnu-gcc"
)
def test_misbehaving_delegates_fail_each_in_its_own_way(board: Host, tmp_path: Path) -> None:
    library = tmp_path / "libbroken.so"
    source = PROJECT / "tests/support/broken_delegate.c"
    run(["aarch64-linux-gnu-gcc", "-shared", "-fPIC", "-o", library, source])
    there = f"{FOLDER}/libbroken.so"
    said = {
        f"{there}:how=segfault": "crashed with SIGSEGV",
        f"{there}:how=hang": f"did not end within {HANG_S:g} s",
        f"{there}:how=nothing": "took no operation: the model ran on the CPU",
        f"{there}:how=wrong;value=-1": "top class is",
        f"{there}:how=refuse": "does not load: I will not",
        f"{FOLDER}/bin/preprocess.py": "does not load",  # no delegate at all
    }
    with connect(board, timeout_s=60) as connection:
        connection.run(["sh", "-c", f"cat >{there}"], stdin=library.read_bytes(), timeout_s=60)
    request = SmokeTestRequest(
        ",".join(["cpu", "teflon", *said]),
        model=tiny_model.NAME,
        runs=1,
        budget_s=1,
        views=0,
        timeout_s=HANG_S,
    )
    document = smoke_test("label_image", request, host=board, userspace=FOLDER)
    rows = by_delegate(document)
    assert rows["cpu"]["status"] == rows["cpu-reference"]["status"] == "pass"
    assert rows["teflon"]["status"] == "skip"
    for name, reason in said.items():
        assert rows[name]["status"] == "fail", rows[name]
        assert reason in rows[name]["reason"]


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.skipif("NPU_BSP_ASSETS" not in os.environ, reason="needs the real models")
def test_every_delegate_with_mobilenet(board: Host, delegate: build.BuiltDelegate) -> None:
    """Nothing is installed on the board: rusticl and the delegate come with the test."""
    request = SmokeTestRequest(model=MOBILENET, runs=2, budget_s=5, views=1, timeout_s=900)
    document = smoke_test("label_image", request, host=board, userspace=FOLDER)
    rows = by_delegate(document)
    assert document["verdict"] == "pass", rows
    for name in ("cpu", "cpu-reference", "opencl"):
        assert rows[name]["status"] == "pass", rows[name]
        # What this smallest of the MobileNets takes Grace Hopper's uniform for, on every CPU.
        assert rows[name]["top"][0]["label"] == "academic gown"
        assert rows[name]["latency_ms"]["median"] > 0
    opencl = rows["opencl"]
    assert opencl["driver"].startswith("llvmpipe")
    assert opencl["delegated_ops"] == opencl["total_ops"] == 31
    assert opencl["environment"]["RUSTICL_ENABLE"] == "llvmpipe"
    assert (rows["teflon"]["status"], rows["teflon"]["reason"]) == ("skip", "no NPU device")
    assert rows["tim-vx"]["status"] == "skip"
    with connect(board, timeout_s=60) as connection:
        theirs = _oracle(connection, board.name, delegate, request)
    top = opencl["top"][0]
    assert theirs[0][1] == top["index"]
    assert theirs[0][0] == pytest.approx(top["score"], abs=0.02)
    assert {index for _, index in theirs[:3]} <= {each["index"] for each in opencl["top"]}


def _oracle(
    connection: Connection, name: str, delegate: build.BuiltDelegate, request: SmokeTestRequest
) -> list[tuple[float, int]]:
    """Return scores and classes of TensorFlow's own label_image, on the same driver."""
    machine = BoardMachine(connection, name=name, userspace=FOLDER)
    inputs = models.choose(request.model, request.image)
    there, driver = machine.place_folder(delegate.folder), machine.place_folder(rusticl.build())
    labels = "".join(f"{label}\n" for label in inputs.labels)
    connection.run(["sh", "-c", f"cat >{FOLDER}/labels"], stdin=labels.encode(), timeout_s=60)
    environment = {
        **rusticl.environment(driver),
        "RUSTICL_ENABLE": "llvmpipe",
        "RUSTICL_DEVICE_TYPE": "gpu",
    }
    said = connection.run(
        [
            "env", *(f"{key}={value}" for key, value in environment.items()),
            f"{there}/bin/{build.ORACLE}", "--use_gpu=true", "--gpu_backend=cl",
            "-m", machine.place(inputs.model), "-i", machine.place(inputs.image),
            "-l", f"{FOLDER}/labels",
        ],
        timeout_s=900,
    ).stderr.decode()  # fmt: skip
    assert "Applied GPU delegate" in said
    return [
        (float(score), int(index)) for score, index in re.findall(r"INFO: ([\d.]+): (\d+) ", said)
    ]
