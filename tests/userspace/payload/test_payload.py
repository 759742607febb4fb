# SPDX-License-Identifier: MIT
"""The offline userspace: what is in it, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from bsp.base.errors import InfrastructureError, UserError
from bsp.base.process import run
from bsp.base.project import PROJECT
from userspace.payload import payload, wheels
from userspace.payload.catalogue import REQUIREMENTS, catalogue
from userspace.payload.elf import needed_libraries
from userspace.payload.parts import pinned
from userspace.payload.payload import Payload, build_payload
from userspace.payload.plan import plan_payload


@pytest.fixture(scope="module")
def trixie() -> Payload:
    return build_payload(distribution="trixie")


@pytest.mark.network
def test_what_is_in_it(trixie: Payload) -> None:
    folder, manifest = trixie.folder, trixie.manifest
    for name in ("bin/runner.py", "bin/preprocess.py", "bin/delegate_library.py",
                 "lib/libteflon.so", "lib/libdrm.so.2",
                 "lib/libstdc++.so.6", "site/numpy/__init__.py", "site/ai_edge_litert/interpreter.py",
                 "licences/npu-bsp/copyright"):  # fmt: skip
        assert (folder / name).is_file(), name
    assert not (folder / "lib" / "libc.so.6").exists()
    assert (manifest["distribution"], manifest["python"]) == ("trixie", "3.13")
    versions = {part["name"]: part["version"] for part in manifest["parts"]}
    assert versions["mesa-teflon-delegate"].startswith("25.0.7-")
    assert versions["ai-edge-litert"] == "2.3.0"
    for part in manifest["parts"]:
        assert len(part["sha256"]) == 64
        assert part["licence"]
        assert part["licence_files"], part["name"]
        for name in part["licence_files"]:
            assert (folder / name).stat().st_size > 100
    assert trixie.document()["path"] == str(folder)
    assert max(map(len, trixie.text().splitlines()[3:])) <= 80


@pytest.mark.network
def test_every_library_that_is_needed_is_there_or_in_libc(trixie: Payload) -> None:
    files = [path for path in trixie.folder.rglob("*") if ".so" in path.suffixes]
    there = {path.name for path in files}
    libc = {"libc.so.6", "libm.so.6", "ld-linux-aarch64.so.1", "libpthread.so.0", "libdl.so.2"}
    assert set(needed_libraries(files)) <= there | libc
    for path in files:  # all of it is for the board, not for this machine: e_machine 183 is AArch64
        assert path.read_bytes()[18:20] == (183).to_bytes(2, "little"), path


@pytest.mark.network
def test_it_is_built_once_and_copied_where_it_is_wanted(trixie: Payload, tmp_path: Path) -> None:
    assert build_payload(distribution="trixie").folder == trixie.folder
    copy = build_payload(distribution="trixie", python="3.13", target=tmp_path / "userspace")
    assert copy.manifest == trixie.manifest
    assert [path.name for path in tmp_path.iterdir()] == ["userspace"]
    (tmp_path / "userspace" / "bin" / "runner.py").unlink()
    assert (trixie.folder / "bin" / "runner.py").exists()
    with pytest.raises(UserError, match="exists"):
        build_payload(distribution="trixie", target=tmp_path / "userspace")


@pytest.mark.slow
@pytest.mark.network
def test_bookworm_gets_its_own_runtime() -> None:
    made = build_payload(distribution="bookworm")
    versions = {part["name"]: part["version"] for part in made.manifest["parts"]}
    assert (made.manifest["python"], versions["tflite-runtime"]) == ("3.11", "2.14.0")
    assert versions["numpy"].startswith("1.")
    assert "bpo12" in versions["libdrm2"]  # bookworm's own is too old for this delegate


@pytest.mark.parametrize(
    ("distribution", "python", "said"),
    [
        ("trixi", None, "did you mean 'trixie'"),
        ("trixie", "3.7", "no TFLite runtime for Python '3.7'"),
        ("trixie", "313", "did you mean '3.13'"),
    ],
)
def test_unknown_distribution_or_python(distribution: str, python: str | None, said: str) -> None:
    with pytest.raises(UserError) as caught:
        plan_payload(distribution, python)
    assert said in caught.value.message
    assert "known: " in caught.value.hint


@pytest.mark.network
def test_a_wheel_with_another_hash_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_payload("trixie")
    wrong = tmp_path / "requirements.txt"
    wrong.write_text(f"numpy==2.5.5 --hash=sha256:{'0' * 64}\n")
    with pytest.raises(InfrastructureError, match="pip cannot fetch the wheels") as caught:
        payload._build(replace(plan, requirements=wrong), tmp_path / "target")
    assert "HASH" in caught.value.message.upper()


def make_wheel(folder: Path, *names: str) -> Path:
    wheel = folder / "thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in names:
            archive.writestr(name, "License: X\n\n" if name.endswith("METADATA") else "x" * 200)
    return wheel


def test_a_wheel_is_unpacked_as_pip_would_without_what_is_left_out(tmp_path: Path) -> None:
    wheel = make_wheel(
        tmp_path, "thing/__init__.py", "thing/hints.pyi", "numpy/core/tests/t.py",
        "thing-1.0.data/platlib/native.py", "thing-1.0.data/scripts/run",
        "thing-1.0.dist-info/METADATA", "thing-1.0.dist-info/licenses/LICENSE.txt",
    )  # fmt: skip
    part = wheels.unpack_wheel(wheel, tmp_path / "site")
    found = {str(path.relative_to(tmp_path / "site")) for path in tmp_path.rglob("site/**/*")}
    assert {"thing/__init__.py", "native.py"} <= found
    assert not found & {"thing/hints.pyi", "numpy/core/tests/t.py", "run"}
    assert (part["name"], part["version"], part["licence"]) == ("thing", "1.0", "X")
    assert part["licence_files"] == ["site/thing-1.0.dist-info/licenses/LICENSE.txt"]


@pytest.mark.parametrize("name", ["../escape.py", "/etc/escape.py"])
def test_a_wheel_that_reaches_outside_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InfrastructureError, match="a file outside of it"):
        wheels.unpack_wheel(make_wheel(tmp_path, name), tmp_path / "site")
    assert not (tmp_path / "escape.py").exists()


def test_a_damaged_wheel_is_refused(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, "thing/__init__.py")
    wheel.write_bytes(wheel.read_bytes()[:-30])
    with pytest.raises(InfrastructureError, match="is damaged"):
        wheels.unpack_wheel(wheel, tmp_path / "site")


def test_every_requirement_file_pins_and_hashes() -> None:
    for runtime in catalogue().runtimes:
        file = REQUIREMENTS / runtime.requirements
        pins = pinned(file)
        assert runtime.name in pins
        assert "numpy" in pins
        assert "--hash=sha256:" in file.read_text()
    assert catalogue().delegate.package == "mesa-teflon-delegate"


def test_needed_libraries_are_those_that_readelf_reads(tmp_path: Path) -> None:
    library = tmp_path / "libone.so"
    (tmp_path / "one.c").write_text("#include <math.h>\ndouble f(double x) { return cos(x); }\n")
    command: list[str | Path] = [
        "gcc",
        "-shared",
        "-fPIC",
        "-Wl,--no-as-needed",
        "-o",
        library,
        tmp_path / "one.c",
    ]
    run([*command, "-lm"])
    listed = subprocess.run(["readelf", "-d", library], check=True, capture_output=True, text=True)
    wanted = sorted(
        line.split("[")[1].rstrip("]") for line in listed.stdout.splitlines() if "(NEEDED)" in line
    )
    assert needed_libraries([library]) == wanted
    assert "libm.so.6" in wanted
    assert needed_libraries([Path(__file__)]) == []


@pytest.mark.network
def test_the_task(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "invoke", "build-userspace", "--board", "vim3", "--json"]
    planned = subprocess.run([*command, "--dry-run"], cwd=PROJECT, capture_output=True, check=True)
    assert json.loads(planned.stdout)["wheels"]["ai-edge-litert"] == "2.3.0"
