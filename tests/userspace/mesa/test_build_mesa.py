# SPDX-License-Identifier: MIT
"""Mesa is really built: from nothing, twice, after an edit; and the virtual NPUs judge it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bsp.base.errors import UserError
from bsp.base.project import PROJECT
from userspace.npu.mesa.build import MesaRequest, build_mesa
from userspace.npu.mesa.manifest import BuiltMesa
from userspace.npu.mesa.patches import all_series, patches_of
from userspace.npu.mesa.source import mesa_tree
from userspace.npu.validate.label_image import SmokeTestRequest
from virtual.gates import mesa
from virtual.npu.shim.place import VirtualNpu

pytestmark = pytest.mark.full
SOURCE = "distribution:trixie"
WHOLE = [
    ("label_image", "yolox.tflite"),
    ("detect", "ssdlite_mobiledet_coco_qat_postprocess.tflite"),
]
DRIVER = "src/gallium/drivers/etnaviv/etnaviv_ml.c"


@pytest.fixture(scope="module")
def built() -> BuiltMesa:
    return build_mesa(MesaRequest(SOURCE))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the source to work on; what is built of it goes into another cache."""
    folder = tmp_path_factory.mktemp("mesa")
    subprocess.run(["cp", "--archive", mesa_tree(SOURCE).path, folder / "tree"], check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NPU_BSP_CACHE", str(folder / "cache"))
        patch.setenv("CCACHE_DISABLE", "1")
        yield folder / "tree"


def test_the_result_says_what_it_was_built_from(built: BuiltMesa) -> None:
    series = next(iter(all_series()))
    assert [each["name"] for each in built.manifest["patches"]] == [
        patch.name for patch in patches_of(series)
    ]
    assert built.title.startswith(
        f"{built.version} + {len(patches_of(series))} patches of npu-bsp "
    )
    assert built.version.encode() + b"+npu-bsp" in built.library.read_bytes()
    assert built.manifest["needed"] == ["libc.so.6", "libdrm.so.2", "libm.so.6"]
    assert (built.folder / "licences/mesa").stat().st_size > 500


def test_nothing_that_the_delegate_takes_comes_out_wrong(built: BuiltMesa) -> None:
    document = mesa.gate(mesa.GateRequest(mesa=str(built.folder), quick=True))
    assert document["verdict"] == "good"
    assert not [case["name"] for case in document["cases"] if "only because" in case["note"]]
    kinds = {kind["kind"] for kind in document["kinds"] if kind["good"]}
    assert {"convolution 1x1", "convolution kxk", "depthwise kxk", "add of convolutions"} <= kinds


@pytest.mark.parametrize("npu", ["virtual:a311d", "virtual:imx8mp"])
@pytest.mark.parametrize(("test", "model"), WHOLE)
def test_whole_detectors_are_right(built: BuiltMesa, npu: str, test: str, model: str) -> None:
    """Exactly as TFLite computes, with poisoned memory; the package gets both wrong on both."""
    file = mesa_tree(SOURCE).path / "src/gallium/targets/teflon/tests" / model
    request = SmokeTestRequest("cpu-reference,teflon", model=str(file), test=test, timeout_s=1200)
    place = VirtualNpu(npu, exact=True, strict=True, mesa=str(built.folder))
    document = place.smoke_test(request)
    (row,) = [each for each in document["results"] if each["delegate"] == "teflon"]
    assert (row["status"], row["max_abs_diff"]) == ("pass", 0), row["reason"]
    assert (row["delegated_ops"] or 0) >= 107
    assert [document["npu"][what] for what in ("faults", "wrong")] == [[], []]


def test_two_builds_in_two_places_are_the_same_bytes(built: BuiltMesa, tree: Path) -> None:
    again = build_mesa(MesaRequest(f"path:{tree}"))
    assert again.folder.parent != built.folder.parent
    assert again.library.read_bytes() == built.library.read_bytes()
    assert not (tree / "build.ninja").exists()


def test_an_edit_is_built_in_seconds_and_a_mistake_is_named(tree: Path) -> None:
    first = build_mesa(MesaRequest(f"path:{tree}"))
    file = tree / DRIVER
    text = file.read_text()
    file.write_text(text + "\n#error here\n")
    with pytest.raises(UserError, match=r"(?s)Mesa does not compile:.*etnaviv_ml\.c:\d+.*here"):
        build_mesa(MesaRequest(f"path:{tree}"))
    file.write_text(text.replace('"Adding convolution.', '"Adding a convolution.'))
    started = time.monotonic()
    second = build_mesa(MesaRequest(f"path:{tree}"))
    assert time.monotonic() - started < 60
    assert second.build_id != first.build_id


def test_an_interrupted_build_goes_on_where_it_was(tree: Path) -> None:
    expected = build_mesa(MesaRequest(f"path:{tree}"))
    for path in (tree / DRIVER).parent.glob("*.c"):
        os.utime(path)  # dozens of files to compile
    command = [
        sys.executable,
        "-m",
        "invoke",
        "build-mesa",
        "--jobs",
        "1",
        "--source",
        f"path:{tree}",
    ]
    with subprocess.Popen(
        command, cwd=PROJECT, stderr=subprocess.PIPE, start_new_session=True
    ) as run:
        assert run.stderr
        assert any(b"Compiling" in line for line in run.stderr)
        time.sleep(2)
        os.killpg(run.pid, signal.SIGINT)
        said = run.stderr.read()
    assert run.returncode == 130, said
    assert b"Traceback" not in said
    assert build_mesa(MesaRequest(f"path:{tree}")).build_id == expected.build_id
