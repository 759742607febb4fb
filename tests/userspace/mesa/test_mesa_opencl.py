# SPDX-License-Identifier: MIT
"""rusticl beside the delegate: refusals, LLVM's answers; the build itself in the full tier."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bsp.base.errors import InfrastructureError, UserError
from bsp.base.process import run
from bsp.base.project import PROJECT
from tests.userspace.mesa.test_mesa import DELEGATE, made_build, made_tree
from userspace.npu.mesa import build, manifest, opencl
from userspace.npu.mesa.build import MesaRequest, build_mesa
from userspace.npu.mesa.manifest import OPENCL_LIBRARY, BuiltMesa
from userspace.npu.mesa.source import mesa_tree
from userspace.npu.opencl import rusticl
from userspace.npu.validate.label_image import SmokeTestRequest
from userspace.npu.validate.smoke import smoke_test
from userspace.payload.elf import needed_libraries
from virtual.npu.shim import host as virtual

SOURCE = "distribution:trixie"
PROBE = PROJECT / "tests/support/opencl_probe.c"


def rusticl_tree(path: Path) -> Path:
    """A tree that asks for what Mesa 25.0.7 asks for, in its words."""
    tree = made_tree(path)
    with (tree / "meson_options.txt").open("a") as file:
        file.write("option(\n  'gallium-rusticl',\n  type : 'boolean',\n)\n")
    (tree / "meson.build").write_text(
        "  if rustc.version().version_compare('< 1.78')\n    error('too old')\n  endif\n"
        "  if bindgen_version.version_compare('< 0.65')\n"
    )
    return tree


def test_what_it_costs_is_said_before_anything_is_fetched() -> None:
    planned = build.plan(build.request_for(opencl=True))
    assert planned["opencl"] == opencl.COSTS
    assert opencl.COSTS in build.plan_text(planned)
    without = build.plan(build.request_for())
    assert without["opencl"] is None
    assert "rusticl" not in build.plan_text(without)


def test_a_source_without_rusticl_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Mesa 24\.1\.0 has no meson option 'gallium-rusticl'"):
        opencl.check(made_tree(tmp_path), "24.1.0", "trixie")


@pytest.mark.slow
@pytest.mark.network
def test_a_suite_whose_rust_is_too_old_is_refused(tmp_path: Path) -> None:
    tree = rusticl_tree(tmp_path)
    with pytest.raises(
        UserError, match=r"Rust 1\.78 or later .*Debian bookworm has 1\.63"
    ) as error:
        opencl.check(tree, "25.0.7", "bookworm")
    assert "trixie" in error.value.hint
    opencl.check(tree, "25.0.7", "trixie")


def test_llvms_answers_are_those_of_the_suites_llvm(tmp_path: Path) -> None:
    told = tmp_path / "usr/lib/llvm-19/cmake/LLVMConfig.cmake"
    told.parent.mkdir(parents=True)
    told.write_text(
        "set(LLVM_PACKAGE_VERSION 19.1.7)\nset(LLVM_ENABLE_RTTI ON)\n"
        'set(LLVM_AVAILABLE_LIBS "LLVMCore;LLVMMCJIT")\n'
    )
    opencl._script(tmp_path / "llvm-config", opencl._llvm_config(tmp_path, "usr/lib/llvm-19"))

    def said(*words: str) -> str:
        return run([tmp_path / "llvm-config", *words]).text.strip()

    assert (said("--version"), said("--has-rtti"), said("--shared-mode")) == (
        "19.1.7", "YES", "shared",
    )  # fmt: skip
    assert {"core", "mcjit", "native"} <= set(said("--components").split())
    linked = said("--libs", "--ldflags", "--link-shared", "core")
    assert linked == f"-L{tmp_path}/usr/lib/aarch64-linux-gnu -lLLVM-19"
    assert said("--libdir") == "/usr/lib/llvm-19/lib"
    assert run([tmp_path / "llvm-config", "--prefix"], check=False).exit_code == 1
    told.write_text("")
    with pytest.raises(InfrastructureError, match="does not say its LLVM_AVAILABLE_LIBS"):
        opencl._llvm_config(tmp_path, "usr/lib/llvm-19")


def test_a_folder_without_it_is_not_sent_to_a_host(tmp_path: Path) -> None:
    folder = made_build(tmp_path / "built")
    assert manifest.read_built(folder).opencl is None
    with pytest.raises(UserError, match="to a host"):
        smoke_test("label_image", SmokeTestRequest(), mesa=str(folder))
    driver = b"driver"
    files = {"lib/libteflon.so": DELEGATE, f"lib/{OPENCL_LIBRARY}": driver}
    folder = made_build(
        tmp_path / "both",
        opencl={"drivers": ["etnaviv", "llvmpipe"]},
        files={name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
    )
    with pytest.raises(UserError, match=f"not complete, .*{OPENCL_LIBRARY}"):
        manifest.read_built(folder)
    (folder / "lib" / OPENCL_LIBRARY).write_bytes(driver)
    found = manifest.read_built(folder)
    assert found.opencl == folder / "lib" / OPENCL_LIBRARY
    assert "OpenCL on etnaviv, llvmpipe" in found.text()


# --- the real one --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built() -> BuiltMesa:
    return build_mesa(MesaRequest(SOURCE, opencl=True))


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("probe") / "probe"
    run(
        ["aarch64-linux-gnu-gcc", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-o", program, PROBE]
    )
    return program


def probed(probe: Path, folder: Path, enabled: str) -> list[str]:
    """What an arm64 program sees of rusticl in a folder, in a root without Mesa."""
    root = virtual.arm64_root()
    assert not (root / "usr/lib/clc").exists()
    environment = {**rusticl.environment(folder), "RUSTICL_ENABLE": enabled}
    words: list[str | Path] = [virtual.qemu_user(), "-cpu", "cortex-a53", "-L", root]
    for name, value in environment.items():
        words += ["-E", f"{name}={value}"]
    return run([*words, probe], timeout_s=600).text.splitlines()


@pytest.mark.full
@pytest.mark.network
@pytest.mark.timeout(1800)
def test_it_computes_as_the_distributions_does(built: BuiltMesa, probe: Path) -> None:
    ours = probed(probe, rusticl.build(built), "llvmpipe")
    theirs = probed(probe, rusticl.build(), "llvmpipe")
    assert ours[:3] == theirs[:3] == ["1 platforms", "platform rusticl", "1 devices"]
    assert ours[3] == theirs[3]
    assert ours[3].startswith("device llvmpipe (LLVM ")
    assert ours[4].startswith(f"driver {built.version}+npu-bsp")
    assert ours[5:] == theirs[5:] == ["1000 of 1000 right"]
    # Of Etnaviv neither makes a device: see docs/build-mesa.md.
    for folder in (rusticl.build(built), rusticl.build()):
        assert probed(probe, folder, "etnaviv")[-1] == "0 devices"


@pytest.mark.full
@pytest.mark.network
@pytest.mark.timeout(1800)
def test_the_folder_says_what_is_in_it(built: BuiltMesa) -> None:
    plain = build_mesa(MesaRequest(SOURCE))
    assert plain.library.read_bytes() == built.library.read_bytes()
    assert (plain.opencl, plain.build_id != built.build_id) == (None, True)
    assert built.opencl
    known = built.manifest["opencl"]
    assert known["needed"] == sorted(needed_libraries([built.opencl]))
    assert {"libLLVM.so.19.1", "libclang-cpp.so.19.1"} <= set(known["needed"])
    assert set(known["contains"]) == {"Rust's standard library", "SPIRV-Tools"}
    for name in ("libstd-rust-dev", "spirv-tools"):
        assert (built.folder / "licences" / name).stat().st_size > 500
    content = built.opencl.read_bytes()
    assert str(Path.home()).encode() not in content
    assert b"npu-bsp/sources" not in content
    assert (built.folder / "rusticl.icd").read_text().strip() == OPENCL_LIBRARY


@pytest.mark.full
@pytest.mark.network
@pytest.mark.timeout(3600)
def test_from_nothing_and_interrupted_it_is_the_same_bytes(
    built: BuiltMesa, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a cache of its own, of a copy of the source: refused without room, ended by Ctrl-C, finished."""
    tree = tmp_path / "tree"
    subprocess.run(["cp", "--archive", mesa_tree(SOURCE).path, tree], check=True)
    monkeypatch.setenv("NPU_BSP_CACHE", str(tmp_path / "cache"))
    request = MesaRequest(f"path:{tree}", opencl=True)
    with monkeypatch.context() as patch:
        patch.setattr(opencl, "LEAST_FREE_BYTES", 1 << 60)
        with pytest.raises(InfrastructureError, match="for what rusticl is built with"):
            build_mesa(request)
    command = [sys.executable, "-m", "invoke", "build-mesa", "--opencl", "--source", f"path:{tree}"]
    with subprocess.Popen(
        command, cwd=PROJECT, stderr=subprocess.PIPE, start_new_session=True
    ) as started:
        assert started.stderr
        said = []
        for line in started.stderr:
            said.append(line.decode())
            if "Compiling Mesa's OpenCL driver" in said[-1]:
                break
        time.sleep(5)
        os.killpg(started.pid, signal.SIGINT)
        said.append(started.stderr.read().decode())
    assert started.returncode == 130, said
    assert opencl.COSTS in "".join(said)
    assert "Traceback" not in "".join(said)
    again = build_mesa(request)
    assert again.folder.is_relative_to(tmp_path)
    assert again.library.read_bytes() == built.library.read_bytes()
    assert again.opencl
    assert built.opencl
    assert again.opencl.read_bytes() == built.opencl.read_bytes()
    # An edit: what hangs on it is compiled, and the result is another one.
    file = tree / "src/gallium/frontends/rusticl/api/icd.rs"
    file.write_text(file.read_text() + "\nfn unfinished( {\n")
    with pytest.raises(UserError, match=r"(?s)Mesa does not compile:.*error:"):
        build_mesa(request)
    file.write_text(file.read_text().replace("\nfn unfinished( {\n", ""))
    assert build_mesa(request).build_id == again.build_id
