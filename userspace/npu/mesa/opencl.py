# SPDX-License-Identifier: MIT
"""rusticl, Mesa's OpenCL, beside the delegate: how it is configured, and with whose LLVM, Clang and Rust.

It is built in a folder of its own: the delegate is to need no LLVM on a board. Rust and bindgen are the
suite's, unpacked in the cache and started through their own dynamic linker, whatever this machine has;
LLVM and Clang for arm64 are the suite's, too, here and on the board (``npu/opencl/rusticl.py``).
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from bsp.base.cache import cache_dir, make_once
from bsp.base.errors import InfrastructureError, UserError
from bsp.base.packages.apt import Archive, unpacked_program
from bsp.base.packages.host_system import host_architecture

from .configure import (
    PACKAGES,
    SOURCE,
    TRIPLET,
    Setup,
    cross_file,
    options_for,
    options_of,
)
from .manifest import OPENCL_LIBRARY

ICD = "rusticl.icd"
TARGET = f"src/gallium/targets/rusticl/{OPENCL_LIBRARY}.0.0"
COSTS = "about 280 MB to fetch, 1.6 GB in the cache, and 4 minutes more on two cores"
LEAST_FREE_BYTES = 2200 << 20

_RUST_TARGET = "aarch64-unknown-linux-gnu"
# Beside the delegate's; llvmpipe is what computes where no GPU can, and on emulated boards.
_SOFTWARE = "llvmpipe"
_OPTIONS = {
    "teflon": "false",
    "gallium-rusticl": "true",
    "llvm": "enabled",
    "shared-llvm": "enabled",
    "spirv-tools": "enabled",
    "shader-cache": "enabled",
}
# What is linked into the library whole or in part, and the package with its licence.
_PARTS = {"Rust's standard library": "libstd-rust-dev", "SPIRV-Tools": "spirv-tools"}


def check(tree: Path, version: str, suite: str) -> None:
    """Check that a source has rusticl, and that a suite has the Rust for it; fetches package lists only.

    Raises:
        UserError: it has none, or the suite's Rust or bindgen is older than it wants.
    """
    if "gallium-rusticl" not in options_of(tree):
        raise UserError(
            f"Mesa {version} has no meson option 'gallium-rusticl'",
            hint="take another Mesa, or leave --opencl out: the delegate needs no OpenCL",
        )
    archive = Archive(suite, host_architecture())
    for package, words, least in _least_versions(tree):
        there = _number(archive.version(package))
        if _key(there) < _key(least):
            raise UserError(
                f"Mesa {version} asks for {words} {least} or later for rusticl; Debian {suite} has {there}",
                hint="--distribution trixie or a later one, or leave --opencl out",
            )


def is_there(suite: str) -> bool:
    """Whether the compilers for a suite were fetched before."""
    name = f"{suite}-{'[0-9a-f]' * 16}"
    return any((cache_dir() / "mesa" / "tools").glob(f"{name}/rustc"))


def _least_versions(tree: Path) -> list[tuple[str, str, str]]:
    """Return package, name and least version of what Mesa's own meson.build asks for."""
    text = (tree / "meson.build").read_text(encoding="utf-8", errors="replace")
    versions = []
    for package, words in (("rustc", "Rust"), ("bindgen", "bindgen")):
        name = rf"{package}(?:\.version\(\)|_version)"
        if least := re.search(rf"{name}\.version_compare\('< ?([\d.]+)'\)", text):
            versions.append((package, words, least[1]))
    return versions


def _number(version: str) -> str:
    """``1.85.1`` for ``1.85.1+dfsg1-1``, ``19.0`` for ``1:19.0-63``."""
    match = re.match(r"(?:\d+:)?(\d+(?:\.\d+)*)", version)
    return match[1] if match else version


def _key(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def setup_for(plain: Setup, tree: Path, version: str) -> Setup:
    """Return how a source is configured for rusticl; fetches LLVM, Clang and Rust where they lack.

    Args:
        plain: how it is for the delegate.

    Raises:
        UserError: the suite has no such packages.
        InfrastructureError: packages cannot be had.
    """
    drivers = (*plain.drivers, _SOFTWARE)
    options = options_for(
        tree, version, plain.drivers, {**_OPTIONS, "gallium-drivers": ",".join(drivers)}
    )
    llvm = _llvm_of(plain.suite)
    sysroot = _sysroot(plain.suite, llvm)
    tools = _tools(plain.suite, llvm, sysroot)
    rust = [str(tools / "rustc"), f"--remap-path-prefix={SOURCE}/="]
    return dataclasses.replace(
        plain,
        drivers=drivers,
        options=options,
        cross=cross_file(sysroot),
        files=(
            ("--cross-file", _cross(tools, rust, sysroot)),
            ("--native-file", _file({"rust": rust})),
        ),
    )


def _llvm_of(suite: str) -> str:
    """Return the number of the LLVM that a suite builds with: ``19``."""
    return _number(Archive(suite, "arm64").version("llvm-dev")).partition(".")[0]


def _sysroot(suite: str, llvm: str) -> Path:
    """Return headers and libraries of the suite's arm64, with LLVM, Clang and Rust's library."""
    unpacked = Archive(suite, "arm64").unpacked(
        [*PACKAGES, f"libllvmspirvlib-{llvm}-dev", f"libclang-cpp{llvm}-dev"],
        with_dependencies=True,
        alone=[f"llvm-{llvm}-dev", f"libclang-{llvm}-dev", f"libclc-{llvm}-dev", "libstd-rust-dev",
               "spirv-tools"],
        without=["usr/lib/llvm-*/lib/*.a"],  # the shared libraries are linked
    )  # fmt: skip

    def make(target: Path) -> None:
        # Hard links: what libc.so names is looked for in the sysroot only if the file itself lies there.
        shutil.copytree(unpacked / "usr", target / "usr", symlinks=True, copy_function=os.link)
        (target / "lib").symlink_to("usr/lib")
        # Among a system's libraries, of which meson notes no path in what it links.
        link = target / f"usr/lib/{TRIPLET}/libclang-cpp.so"
        link.symlink_to(f"../llvm-{llvm}/lib/{link.name}")

    folder = cache_dir() / "mesa" / "sysroots"
    folder.mkdir(parents=True, exist_ok=True)
    return make_once(folder / f"opencl-{suite}-{unpacked.name}", make)


def contained(suite: str) -> dict[str, tuple[str, Path]]:
    """Return what becomes part of the library: name to version and file with its licence."""
    sysroot = _sysroot(suite, _llvm_of(suite))
    archive = Archive(suite, "arm64")
    return {
        name: (archive.version(package), sysroot / "usr/share/doc" / package / "copyright")
        for name, package in _PARTS.items()
    }


# --- tools of this machine -------------------------------------------------------------------------


def _tools(suite: str, llvm: str, sysroot: Path) -> Path:
    """Return a folder with ``rustc``, ``bindgen`` and ``llvm-config``: scripts that start the suite's.

    The last answers for arm64's LLVM, whose own program this machine may not run. ``clang`` there has the
    headers that bindgen's Clang brings itself.
    """
    host = host_architecture()
    root = Archive(suite, host).unpacked(
        ["libstd-rust-dev", f"libclang1-{llvm}"],
        with_dependencies=True,
        alone=["rustc", "bindgen", f"libclang-common-{llvm}-dev"],
    )
    rustc = shlex.join(unpacked_program(root, "usr/bin/rustc"))
    # A rustfmt that this machine happens to have is not asked.
    bindgen = shlex.join([*unpacked_program(root, "usr/bin/bindgen"), "--formatter", "none"])
    libclang = shlex.quote(str(root / f"usr/lib/llvm-{llvm}/lib"))
    scripts = {
        "rustc": f'exec {rustc} --sysroot "${{0%/*}}/rust" "$@"',
        "bindgen": f'export LIBCLANG_PATH={libclang}\nexec {bindgen} "$@"',
        "llvm-config": _llvm_config(sysroot, f"usr/lib/llvm-{llvm}"),
    }

    def make(target: Path) -> None:
        (target / "rust/lib/rustlib").mkdir(parents=True)
        for each in (sysroot, root):
            for library in (each / "usr/lib/rustlib").glob("*-unknown-linux-gnu*"):
                link = target / "rust/lib/rustlib" / library.name
                link.unlink(missing_ok=True)
                link.symlink_to(library)
        (target / "clang").symlink_to(root / f"usr/lib/llvm-{llvm}/lib/clang" / llvm)
        for name, text in scripts.items():
            _script(target / name, text)

    folder = cache_dir() / "mesa" / "tools"
    folder.mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256("\n".join(scripts.values()).encode()).hexdigest()[:16]
    return make_once(folder / f"{suite}-{key}", make)


def _script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def _llvm_config(sysroot: Path, llvm: str) -> str:
    """Return a script that answers meson as ``llvm-config`` does, by what LLVM tells CMake."""
    settings = (sysroot / llvm / "cmake/LLVMConfig.cmake").read_text(encoding="utf-8")

    def setting(name: str) -> str:
        match = re.search(rf"^set\({name} \"?(.*?)\"?\)$", settings, re.MULTILINE)
        if not match:
            raise InfrastructureError(f"{sysroot / llvm} does not say its {name}")
        return match[1]

    names = [
        name.removeprefix("LLVM").lower() for name in setting("LLVM_AVAILABLE_LIBS").split(";")
    ]
    rtti = "YES" if setting("LLVM_ENABLE_RTTI") in ("ON", "1", "YES", "TRUE") else "NO"
    version = setting("LLVM_PACKAGE_VERSION")
    answers = {
        "--version": version,
        "--components": " ".join([*names, "engine", "native", "all-targets"]),
        "--cppflags": f"-I{sysroot / llvm}/include -D_GNU_SOURCE -D__STDC_CONSTANT_MACROS "
        "-D__STDC_FORMAT_MACROS -D__STDC_LIMIT_MACROS",
        "--shared-mode": "shared",
        "--has-rtti": rtti,
        # Mesa compiles it in: on the board, Clang's headers are looked for there, too.
        "--libdir": f"/{llvm}/lib",
        "--libs": f"-L{sysroot}/usr/lib/{TRIPLET} -lLLVM-{version.partition('.')[0]}",
    }
    cases = "\n".join(
        f"{option}) echo {shlex.quote(setting)} ;;" for option, setting in answers.items()
    )
    return f'case "$1" in\n{cases}\n*) echo "no answer to $1" >&2; exit 1 ;;\nesac'


# --- meson's files -----------------------------------------------------------------------------------


def _cross(tools: Path, rust: Sequence[str], sysroot: Path) -> str:
    clang = [f"--target={TRIPLET}", f"--sysroot={sysroot}", f"-resource-dir={tools / 'clang'}"]
    binaries = {
        "rust": [*rust, f"--target={_RUST_TARGET}"],
        "bindgen": [str(tools / "bindgen")],
        "llvm-config": [str(tools / "llvm-config")],
    }
    # This suite's C library, before that of the cross compiler: SPIRV-Tools wants it.
    link = [f"--sysroot={sysroot}", f"-L{sysroot}/usr/lib/{TRIPLET}"]
    # libclc's is for no machine in particular.
    folders = (f"usr/lib/{TRIPLET}", "usr/lib", "usr/share")
    libraries = ":".join(f"{sysroot}/{folder}/pkgconfig" for folder in folders)
    return (
        _file(binaries)
        + f"\n[properties]\nbindgen_clang_arguments = {clang}\npkg_config_libdir = '{libraries}'\n"
        + f"\n[built-in options]\nc_link_args = {link}\ncpp_link_args = {link}\n"
        + f"rust_args = {[f'-Clink-arg={word}' for word in link]}\n"
    )


def _file(binaries: Mapping[str, Sequence[str]]) -> str:
    return "[binaries]\n" + "".join(f"{name} = {list(words)}\n" for name, words in binaries.items())
