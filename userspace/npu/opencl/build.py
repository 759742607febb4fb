# SPDX-License-Identifier: MIT
"""Builds TFLite's OpenCL delegate for boards: what ``./inv build-delegate opencl`` calls.

TFLite's GPU delegate is in no Debian package and in no wheel. It is cross-compiled here from the
distribution's TensorFlow source, with an adapter of ours (``adapter.cc``) that makes it an external
delegate, beside the C++ ``label_image`` of the same source. ``recipe.toml`` says from what.

    lib/libopencl_delegate.so   for load_delegate() of any runtime, with the libraries that it needs
    bin/label_image             TensorFlow's own program, the peer that results are compared with
    licences/, manifest.json

It takes about 15 minutes of two idle cores. The object files are kept in the cache, so that a build that
was interrupted goes on where it was. ``make`` runs the compilers.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shutil
import tomllib
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from bsp.base.cache import cache_dir, lock, make_once
from bsp.base.download import sha256_of
from bsp.base.errors import InfrastructureError, UserError, nearest
from bsp.base.output import table
from bsp.base.packages.apt import Archive
from bsp.base.process import require_tool, require_unpacker, run
from bsp.base.progress import step
from bsp.base.result import Result
from bsp.base.words import counted
from userspace.payload.elf import needed_libraries

FORMAT = 1
NAME = "opencl"
LIBRARY = "libopencl_delegate.so"
ORACLE = "label_image"
_HERE = Path(__file__).parent
_RECIPE = _HERE / "recipe.toml"
_ADAPTER = _HERE / "adapter.cc"
_COMMON = _HERE / "common.h"
_COMPILER = "aarch64-linux-gnu-g++"
_MAKE_TIMEOUT_S = 4 * 3600


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Source files: those of whole folders but for what ``leave_out`` matches, and single ones."""

    folders: tuple[str, ...]
    leave_out: str
    files: tuple[str, ...]


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``recipe.toml``."""

    format: int
    suite: str
    architecture: str
    runs_on: tuple[str, ...]
    source: str
    unpack: tuple[str, ...]
    header_packages: tuple[str, ...]
    opencl_headers_suite: str
    opencl_headers: str
    library_package: str
    linked: tuple[str, ...]
    include: tuple[str, ...]
    include_after: tuple[str, ...]
    base_libraries: tuple[str, ...]
    flags: tuple[str, ...]
    delegate: Part
    label_image: Part


@dataclass(frozen=True)
class BuiltDelegate(Result):
    """What was built: its folder and its manifest."""

    folder: Path
    manifest: dict[str, Any]

    def document(self) -> dict[str, Any]:
        """What ``build-delegate --json`` prints."""
        return {"path": str(self.folder), **self.manifest}

    def text(self) -> str:
        """The same for people."""
        rows = [(name, f"{size / 1e6:.1f} MB") for name, size in self.manifest["files"].items()]
        title = (
            f"{self.manifest['name']} delegate, {self.manifest['source']}, for "
            f"{', '.join(self.manifest['runs_on'])} {self.manifest['architecture']}"
        )
        return f"{title}\n{self.folder}\n\n{table(('file', 'size'), rows)}"


@functools.cache
def recipe() -> Recipe:
    """Return what is built, and from what."""
    return msgspec.convert(tomllib.loads(_RECIPE.read_text(encoding="utf-8")), Recipe)


def check_name(name: str) -> None:
    """Raise a UserError unless there is a delegate of that name to build."""
    if name != NAME:
        raise UserError(
            f"no recipe for a delegate {name!r}{nearest(name, [NAME])}", hint=f"there is: {NAME}"
        )


def plan() -> dict[str, Any]:
    """Return what a build would take; fetches nothing."""
    built_from = recipe()
    folder = _folder()
    return {
        "name": NAME,
        "suite": built_from.suite,
        "architecture": built_from.architecture,
        "source": built_from.source,
        "packages": [*built_from.header_packages, built_from.library_package],
        "flags": list(built_from.flags),
        "runs_on": list(built_from.runs_on),
        "path": str(folder),
        "built": folder.exists(),
    }


def plan_text(planned: dict[str, Any]) -> str:
    """Return ``plan`` for people."""
    there = "is built already" if planned["built"] else "is not built yet: about 15 minutes"
    return (
        f"{planned['name']} delegate from {planned['source']} of Debian {planned['suite']}, "
        f"{planned['architecture']}: {there}\n{planned['path']}\n"
        f"packages: {', '.join(planned['packages'])}"
    )


def built() -> BuiltDelegate | None:
    """Return the delegate, if it was built already."""
    folder = _folder()
    return _read(folder) if folder.exists() else None


def build(*, jobs: int | None = None) -> BuiltDelegate:
    """Return the delegate, built once and kept in the cache.

    Args:
        jobs: compilers at once; None: one a core.

    Raises:
        UserError: the cross compiler is missing.
        InfrastructureError: the source or packages cannot be had, or do not compile.
    """
    folder = _folder()
    folder.parent.mkdir(parents=True, exist_ok=True)
    if not folder.exists():
        require_tool(_COMPILER)

    def make(target: Path) -> None:
        _build(target, jobs or os.cpu_count() or 1)

    return _read(make_once(folder, make))


def _read(folder: Path) -> BuiltDelegate:
    return BuiltDelegate(folder, json.loads((folder / "manifest.json").read_text(encoding="utf-8")))


def _folder() -> Path:
    """The cached result; its name changes when the recipe does."""
    described = "\n".join(sha256_of(path) for path in (_RECIPE, _ADAPTER, _COMMON))
    key = hashlib.sha256(f"{FORMAT}\n{described}".encode()).hexdigest()[:16]
    return cache_dir() / "delegates" / f"{NAME}-{recipe().architecture}-{key}"


def _build(target: Path, jobs: int) -> None:
    built_from = recipe()
    archive = Archive(built_from.suite, built_from.architecture, sources=True)
    source = source_tree(archive)
    opencl = Archive(built_from.opencl_headers_suite, built_from.architecture)
    # First those that are also in the others, in another version.
    headers = [
        opencl.unpacked([built_from.opencl_headers]),
        archive.unpacked(built_from.header_packages),
    ]
    root = archive.unpacked([built_from.library_package], with_dependencies=True)
    # Objects depend on source and flags alone: a change of the adapter is no reason to compile all again.
    key = hashlib.sha256(
        "\n".join([source.name, *(each.name for each in headers), *built_from.flags]).encode()
    ).hexdigest()
    work = cache_dir() / "delegates" / f"objects-{key[:16]}"
    work.mkdir(parents=True, exist_ok=True)
    with lock(work.with_name(work.name + ".lock")):
        text = makefile(source, headers, root)
        (work / "Makefile").write_text(text, encoding="utf-8")
        if not (work / "common.h").exists():
            shutil.copyfile(_COMMON, work / "common.h")
        waiting = sum(not (work / name).exists() for name in _objects_in(text))
        with step(f"Compiling TFLite's OpenCL delegate: {counted(waiting, 'file')}"):
            command: list[str | Path] = [
                "make",
                f"--jobs={jobs}",
                "--silent",
                "--keep-going",
                "--directory",
                work,
            ]
            run(command, timeout_s=_MAKE_TIMEOUT_S, hint=f"the object files are kept in {work}")
        for folder in ("lib", "bin", "licences"):
            (target / folder).mkdir(parents=True)
        shutil.copy2(work / LIBRARY, target / "lib" / LIBRARY)
        shutil.copy2(work / ORACLE, target / "bin" / ORACLE)
    packages = _take_libraries(target, root)
    for package in [built_from.library_package, *packages]:
        licence = root / "usr/share/doc" / package / "copyright"
        if licence.exists():
            shutil.copyfile(licence, target / "licences" / package)
    manifest = {
        "format": FORMAT,
        "name": NAME,
        "source": urllib.parse.unquote(source.name.rpartition("-")[0]),
        "architecture": built_from.architecture,
        "runs_on": list(built_from.runs_on),
        "files": {
            str(path.relative_to(target)): path.stat().st_size
            for path in sorted(target.rglob("*"))
            if path.is_file()
        },
    }
    (target / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def source_tree(archive: Archive) -> Path:
    """Return TensorFlow's own source (without Debian's patches), as far as the recipe needs it."""
    built_from = recipe()
    tarballs = archive.source(built_from.source)
    original = next(path for path in tarballs if ".orig.tar." in path.name)
    debian = next(path for path in tarballs if ".debian.tar." in path.name)
    parts = hashlib.sha256("\n".join(built_from.unpack).encode()).hexdigest()[:8]
    name = debian.name.partition(".debian.tar.")[0]
    folder = cache_dir() / "sources"
    folder.mkdir(parents=True, exist_ok=True)

    def make(target: Path) -> None:
        with step(f"Unpacking the source of {name}"):
            require_unpacker(original)
            target.mkdir()
            patterns = [f"*/{part}" for part in built_from.unpack]
            run(["tar", "--extract", "--file", original, "--directory", target, "--no-same-owner",
                 "--strip-components=1", "--wildcards", *patterns])  # fmt: skip

    return make_once(folder / f"{name}-{parts}", make)


def sources_of(part: Part, source: Path) -> list[str]:
    """Return the source files of a part, relative to the tree, sorted.

    Raises:
        InfrastructureError: the tree lacks a folder or file: it is another version.
    """
    files = set(part.files)
    for folder in part.folders:
        files |= {f"{folder}/{path.name}" for path in (source / folder).glob("*.cc")}
    kept = sorted(name for name in files if not re.search(part.leave_out, name))
    missing = [name for name in (*part.folders, *kept) if not (source / name).exists()]
    if missing:
        raise InfrastructureError(
            f"{source.name} has no {missing[0]}: the recipe is for another version",
            hint=f"adapt {_RECIPE}",
        )
    return kept


def makefile(source: Path, headers: Sequence[Path], root: Path) -> str:
    """Return a makefile for both programs; objects lie beside it, named by their source."""
    built_from = recipe()
    machine = "usr/lib/aarch64-linux-gnu"
    parts = {name: sources_of(part, source) for name, part in
             (("DELEGATE", built_from.delegate), ("LABEL_IMAGE", built_from.label_image))}  # fmt: skip
    system = headers[1] / "usr/include"
    folders = [
        headers[0] / "usr/include",
        source,
        system,
        *(system / each for each in built_from.include),
    ]
    include = " ".join(f"-I{folder}" for folder in folders)
    include += "".join(f" -idirafter {source / each}" for each in built_from.include_after)
    # The libraries were linked with a newer C library than the cross compiler has.
    link = "-Wl,--allow-shlib-undefined -Wl,--as-needed -Wl,--disable-new-dtags"
    libraries = [root / machine / f"{name}*" for name in built_from.linked]
    lines = [
        f"CXX = {_COMPILER}",
        f"FLAGS = {' '.join(built_from.flags)} {include}",
        f"LINKED = $(wildcard {' '.join(str(path) for path in libraries)}) "
        f"$(wildcard {root / machine}/libabsl_*.so.*)",
        f"all: {LIBRARY} {ORACLE}",
    ]
    for name, files in parts.items():
        lines.append(f"{name} = {' '.join(_object(file) for file in files)}")
    for file in sorted({file for files in parts.values() for file in files}):
        first = file in parts["DELEGATE"]
        lines += [f"{_object(file)}:{' | common.h.gch' if first else ''}",
                  f"\t$(CXX) $(FLAGS) {'-include common.h ' if first else ''}-c {source / file} "
                  "-o $@.part", "\tmv $@.part $@"]  # fmt: skip
    lines += [
        "common.h.gch: common.h",
        "\t$(CXX) $(FLAGS) -x c++-header common.h -o $@",
        f"adapter.o: {_ADAPTER}",
        f"\t$(CXX) $(FLAGS) -fvisibility=hidden -c {_ADAPTER} -o $@",
        f"{LIBRARY}: adapter.o $(DELEGATE)",
        f"\t$(CXX) -shared -Wl,--no-undefined {link} -Wl,-rpath,'$$ORIGIN' -Wl,--gc-sections "
        f"-o $@.part $^ $(LINKED) -lpthread -ldl",
        "\tmv $@.part $@",
        f"{ORACLE}: $(LABEL_IMAGE) $(DELEGATE)",
        f"\t$(CXX) {link} -Wl,-rpath,'$$ORIGIN/../lib' -o $@.part $^ $(LINKED) -lpthread -ldl",
        "\tmv $@.part $@",
    ]
    return "\n".join(lines) + "\n"


def _object(file: str) -> str:
    return file.removeprefix("tensorflow/").replace("/", "-").removesuffix(".cc") + ".o"


def _objects_in(text: str) -> Sequence[str]:
    return re.findall(r"^(\S+\.o):", text, re.MULTILINE)


def _take_libraries(target: Path, root: Path) -> list[str]:
    """Copy the libraries that the results need beside them; return their packages' names."""
    built_from = recipe()
    homes = {path.name: path for path in (root / "usr/lib/aarch64-linux-gnu").glob("*.so*")}
    waiting = list(needed_libraries([target / "lib" / LIBRARY, target / "bin" / ORACLE]))
    taken: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in built_from.base_libraries or name in taken:
            continue
        if name not in homes:
            raise InfrastructureError(f"no package that was looked at has the library {name}")
        shutil.copyfile(homes[name], target / "lib" / name)
        taken.add(name)
        waiting += needed_libraries([homes[name]])
    documents = (root / "usr/share/doc").iterdir()
    return sorted(path.name for path in documents if not path.name.startswith(("libc", "gcc")))
