# SPDX-License-Identifier: MIT
"""The OpenCL delegate: its makefile always; itself where `./inv build-delegate opencl` was run before.

What was built runs here under QEMU's user mode, in a root with Python and without Mesa, on rusticl and
llvmpipe from a folder: the same files that a board gets.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from bsp.base.errors import InfrastructureError, UserError
from bsp.base.process import run
from userspace.npu.model import tiny_model
from userspace.npu.opencl import build, rusticl
from userspace.npu.validate import label_image, models
from userspace.npu.validate.judge.delegation import parse_opencl
from userspace.npu.validate.label_image import SmokeTestRequest
from userspace.npu.validate.machine import ThisMachine
from userspace.payload import payload
from virtual.npu.shim import host as virtual


def tree(folder: Path, *, without: str = "") -> Path:
    """A source tree with one file in each folder of the recipe, and the files that it names."""
    known = build.recipe()
    for part in (known.delegate, known.label_image):
        names = [*part.files, *(f"{each}/one.cc" for each in part.folders)]
        names += [f"{each}/one_test.cc" for each in part.folders]
        for name in names:
            if name != without:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_text("")
    return folder


def test_the_makefile_has_every_source_once_and_no_test(tmp_path: Path) -> None:
    text = build.makefile(tree(tmp_path), [tmp_path / "a", tmp_path / "b"], tmp_path / "root")
    targets = re.findall(r"^(\S+\.o):", text, re.MULTILINE)
    assert len(targets) == len(set(targets))
    known = build.recipe()
    parts = (known.delegate, known.label_image)
    assert len(targets) - 1 == sum(len(part.files) + len(part.folders) for part in parts)
    assert "lite-delegates-gpu-cl-one.o" in targets
    assert not any("_test" in target for target in targets)
    named = run(["make", "--dry-run", "--file", "/dev/stdin"], stdin=text.encode(), check=False)
    assert b"missing separator" not in named.stderr


def test_a_source_of_another_version(tmp_path: Path) -> None:
    missing = "tensorflow/lite/delegates/gpu/delegate.cc"
    source = tree(tmp_path, without=missing)
    with pytest.raises(InfrastructureError, match=re.escape(missing)):
        build.makefile(source, [tmp_path, tmp_path], tmp_path)


def test_names_and_plans() -> None:
    with pytest.raises(UserError, match="did you mean 'opencl'"):
        build.check_name("opencI")
    planned = build.plan()
    assert planned["built"] == (build.built() is not None)
    assert "delegate" in build.plan_text(planned)


@pytest.mark.parametrize(
    ("log", "problem", "devices"),
    [
        ("npu-bsp opencl: libOpenCL.so cannot be loaded\n", "libOpenCL.so cannot be loaded", 0),
        ("npu-bsp opencl: 0 platforms, 0 devices\n", "0 OpenCL platforms, none with a GPU", 0),
        ("x\r\nnpu-bsp opencl: device rusticl | V1 | 25\r\nnpu-bsp opencl: 1 platforms, 1 devices\r\n",
         "", 1),
    ],
)  # fmt: skip
def test_what_the_adapter_says(log: str, problem: str, devices: int) -> None:
    found = parse_opencl(log)
    assert found
    assert (found.problem, len(found.devices)) == (problem, devices)
    assert parse_opencl("INFO: Created TensorFlow Lite delegate for GPU.\n") is None


# --- the real one ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def delegate() -> build.BuiltDelegate:
    made = build.built()
    if made is None:
        pytest.skip("the OpenCL delegate is not built: ./inv build-delegate opencl")
    return made


@pytest.fixture(scope="module")
def root() -> Path:
    """An arm64 trixie with Python."""
    root = virtual.arm64_root()
    assert not (root / "usr/lib/clc").exists()
    return root


def emulated(root: Path, **more: str) -> Sequence[str | Path]:
    """Return the start of a command that runs an arm64 program in ``root``, rusticl beside it."""
    environment = {
        **rusticl.environment(rusticl.build()),
        "RUSTICL_ENABLE": "llvmpipe",
        "RUSTICL_DEVICE_TYPE": "gpu",
    } | more
    command: list[str | Path] = ["prlimit", "--core=0", virtual.qemu_user(), "-cpu", "cortex-a53"]
    command += ["-L", root]
    for name, value in environment.items():
        command += ["-E", f"{name}={value}"]
    return command


@pytest.mark.full
@pytest.mark.network
def test_the_row_runs_on_rusticl(delegate: build.BuiltDelegate, root: Path) -> None:
    python = [*emulated(root), root / "usr/bin/python3"]
    machine = ThisMachine(
        userspace=payload.build_payload(distribution="trixie").folder, python=python
    )
    request = SmokeTestRequest(delegate="opencl", model=tiny_model.NAME, runs=2, budget_s=2)
    row = label_image.smoke_test(machine, request, opencl=str(delegate.folder))["results"][1]
    assert row["status"] == "pass", row
    assert (row["driver"] or "").startswith("llvmpipe")
    assert (row["delegated_ops"], row["partitions"]) == (7, 1)
    assert row["environment"]["RUSTICL_ENABLE"] == "llvmpipe"
    # The seed's driver, where there is no NPU: a platform without a device.
    nothing = emulated(root, RUSTICL_ENABLE="etnaviv")
    machine = ThisMachine(
        userspace=payload.build_payload(distribution="trixie").folder,
        python=[*nothing, root / "usr/bin/python3"],
    )
    request = replace(request, runs=1)
    row = label_image.smoke_test(machine, request, opencl=str(delegate.folder))["results"][1]
    assert row["status"] == "skip"
    assert row["reason"].startswith("no OpenCL device")


@pytest.mark.full
@pytest.mark.network
def test_the_oracle_answers_as_the_runner_does(
    delegate: build.BuiltDelegate, root: Path, tmp_path: Path
) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("".join(f"label{number}\n" for number in range(10)))
    image = tmp_path / "seven.bmp"
    image.write_bytes(tiny_model.sample_bmp())
    command = [*emulated(root), delegate.folder / "bin" / build.ORACLE]
    command += ["-m", models.tiny().path, "-i", image, "-l", labels]
    for more in ([], ["--use_gpu=true", "--gpu_backend=cl"]):
        said = run([*command, *more], timeout_s=300).stderr.decode()
        score, index = re.findall(r"INFO: ([\d.]+): (\d+) label", said)[0]
        assert index == "7"
        assert float(score) == pytest.approx(1.0, abs=0.1)
        assert ("Applied GPU delegate" in said) == bool(more)
