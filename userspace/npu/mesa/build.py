# SPDX-License-Identifier: MIT
"""Mesa's delegate, cross-built: what ``./inv build-mesa`` makes, and what ``--mesa`` takes.

    lib/libteflon.so
    lib/libRusticlOpenCL.so.1, rusticl.icd     with ``--opencl``
    licences/
    manifest.json     versions, patches, options, and the build id that names all of them

The build folder in the cache belongs to a source, its drivers and a compiler; ``ninja`` decides what is
stale in it. The result is copied into a folder that never changes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bsp.base.cache import cache_dir, copy_folder, lock, make_once
from bsp.base.compile.make import compile_in
from bsp.base.compile.patching import Patch
from bsp.base.download import sha256_of
from bsp.base.errors import UserError
from bsp.base.process import run
from bsp.base.progress import Step, say, step
from bsp.base.project import PROJECT
from bsp.base.project import version as npu_bsp_version
from bsp.base.room import require_room
from userspace.payload.elf import needed_libraries

from . import opencl
from .configure import Setup, configure, drivers_named, environment, prefix, setup_for
from .manifest import (
    FORMAT,
    LIBRARY,
    MANIFEST,
    OPENCL_LIBRARY,
    BuiltMesa,
    MesaManifest,
    OpenclRecord,
    PatchRecord,
    mark,
    named,
    read_built,
)
from .patches import NONE, Patched, patched, patches_of, series_for, title_of
from .source import DEFAULT, MesaTree, check_source_name, mesa_tree

_TARGET = "src/gallium/targets/teflon/libteflon.so"
_LEAST_FREE_BYTES = 600 << 20
_DONE = re.compile(rb"^\[(\d+)/(\d+)\]")


@dataclass(frozen=True)
class MesaRequest:
    """What is to be built.

    Attributes:
        source: how the source is named.
        series: of patches; empty: the one that is for the source's version; ``none``.
        suite: Debian suite of the libraries that it is built against.
        jobs: how many compilers at once.
        opencl: rusticl, too.
    """

    source: str
    series: str = ""
    drivers: tuple[str, ...] = ("etnaviv",)
    suite: str = "trixie"
    jobs: int = 0
    opencl: bool = False


@dataclass(frozen=True)
class _Part:
    """One of the two libraries: what people call it, and its build folder."""

    name: str
    setup: Setup
    folder: Path
    target: str

    @property
    def library(self) -> Path:
        return self.folder / self.target


def request_for(
    *,
    source: str = "",
    patches: str = "",
    drivers: str = "etnaviv",
    suite: str = "trixie",
    jobs: int = 0,
    opencl: bool = False,
) -> MesaRequest:
    """Return a request, checked as far as that goes without fetching.

    Raises:
        UserError: an argument is wrong, or a program is missing.
    """
    source = source or DEFAULT
    check_source_name(source)
    patches_of(patches)
    if jobs < 0:
        raise UserError(f"--jobs {jobs}: expected a number of compilers", hint="leave it out")
    check_source_name(f"distribution:{suite}")
    return MesaRequest(source, patches, drivers_named(drivers), suite, jobs, opencl)


def plan(request: MesaRequest) -> dict[str, Any]:
    """Return what would be built; fetches nothing, so the series for a source may not be known yet."""
    series = request.series
    if not series and request.source.partition(":")[0] == "path":
        series = series_for(mesa_tree(request.source).version) or NONE
    return {
        "source": request.source,
        "series": series,
        "patches": [{"name": patch.name, "title": title_of(patch)} for patch in patches_of(series)],
        "drivers": list(request.drivers),
        "distribution": request.suite,
        "opencl": opencl.COSTS if request.opencl else None,
    }


def plan_text(planned: dict[str, Any]) -> str:
    """Return ``plan`` for people."""
    series = planned["series"] or "the ones for its version"
    lines = [
        f"Mesa from {planned['source']}, drivers {', '.join(planned['drivers'])}, for "
        f"{planned['distribution']}; patches: {series}"
    ]
    if planned["opencl"]:
        lines.append(f"with rusticl, for OpenCL: {planned['opencl']}")
    return "\n".join([*lines, *(f"  {patch['title']}" for patch in planned["patches"])])


def build_mesa(request: MesaRequest, *, output: Path | None = None) -> BuiltMesa:
    """Return the delegate, patched and compiled.

    Args:
        output: a folder, not there yet, that gets a copy.

    Raises:
        UserError: the source, a patch or an option is wrong; it does not compile.
        InfrastructureError: something cannot be fetched, or the disk is full; the next run goes on.
    """
    if output is not None and output.exists():
        raise UserError(f"{output} exists already", hint="give another folder, or remove it")
    tree = mesa_tree(request.source)
    ready = patched(tree, request.series or series_for(tree.version), mark(npu_bsp_version()))
    if not ready.series and request.series != NONE:
        say(f"there are no patches for Mesa {tree.version}: it is built as it is")
    if request.opencl:
        opencl.check(ready.path, tree.version, request.suite)
    setup = setup_for(ready.path, tree.version, request.drivers, request.suite)
    parts = {LIBRARY: _Part("delegate", setup, _folder(tree, ready, setup), _TARGET)}
    if request.opencl:
        driver = _with_opencl(setup, ready, tree.version)
        folder = _folder(tree, ready, driver)
        parts[OPENCL_LIBRARY] = _Part("OpenCL driver", driver, folder, opencl.TARGET)
    with contextlib.ExitStack() as locks:
        for part in parts.values():
            locks.enter_context(lock(part.folder.with_name(part.folder.name + ".lock")))
            if not part.library.exists():
                require_room(part.folder.parent, _LEAST_FREE_BYTES, "a build of Mesa")
            configure(part.setup, ready.path, part.folder)
            _compile(part, request.jobs)
        built = _product(tree, ready, parts)
    if output is not None:
        copy_folder(built.folder, output)
        return read_built(output)
    return built


def _with_opencl(setup: Setup, ready: Patched, version: str) -> Setup:
    """Return how rusticl is configured; says what it costs before anything is fetched for it."""
    if not opencl.is_there(setup.suite):
        say(f"rusticl needs LLVM, Clang and Rust of Debian {setup.suite}: {opencl.COSTS}")
        require_room(cache_dir(), opencl.LEAST_FREE_BYTES, "what rusticl is built with")
    return opencl.setup_for(setup, ready.path, version)


def _folder(tree: MesaTree, ready: Patched, setup: Setup) -> Path:
    key = ready.path.name
    if not tree.fixed:
        key = f"mesa-path-{hashlib.sha256(str(ready.path).encode()).hexdigest()[:12]}"
    folder = cache_dir() / "builds"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{key}-{'-'.join(setup.drivers)}-{setup.suite}"


# --- compiling -----------------------------------------------------------------------------------


def _compile(part: _Part, jobs: int) -> None:
    jobs = jobs or os.cpu_count() or 1
    command = ["ninja", "-C", str(part.folder), f"-j{jobs}", part.target]
    with step(f"Compiling Mesa's {part.name}") as now:
        compile_in(
            part.folder,
            command,
            what="Mesa",
            env={**environment(part.setup), "NINJA_STATUS": "[%f/%t] "},
            on_lines=lambda lines: _note(now, lines),
        )


def _note(now: Step, lines: list[bytes]) -> None:
    """Note how far ninja is, as it says."""
    counts = [match for line in lines if (match := _DONE.match(line))]
    if counts:
        now.note(f"{int(counts[-1][1])} of {int(counts[-1][2])}")


# --- the product ---------------------------------------------------------------------------------


def _product(tree: MesaTree, ready: Patched, parts: Mapping[str, _Part]) -> BuiltMesa:
    """Copy what was built into a folder of its own, named by its build id."""
    target = cache_dir() / "mesa" / "built"
    target.mkdir(parents=True, exist_ok=True)
    workspace = Path(tempfile.mkdtemp(prefix=".build-", dir=target))
    try:
        new = workspace / "new"
        (new / "lib").mkdir(parents=True)
        for name, part in parts.items():
            run([f"{prefix()}strip", "--strip-unneeded", "-o", new / "lib" / name, part.library])
        _take_licences(ready.path, new / "licences")
        record = _record(tree, ready, parts[LIBRARY].setup, new / "lib" / LIBRARY)
        if OPENCL_LIBRARY in parts:
            record["opencl"] = _take_opencl(parts[OPENCL_LIBRARY], new)
            for name in (f"lib/{OPENCL_LIBRARY}", opencl.ICD):
                record["files"][name] = sha256_of(new / name)
        record["build_id"] = _build_id(record)
        text = json.dumps(record, indent=1) + "\n"
        (new / MANIFEST).write_text(text, encoding="utf-8")
        place = target / f"{tree.version}-{record['build_id']}"

        def move(made: Path) -> None:
            new.rename(made)

        return read_built(make_once(place, move))
    finally:
        shutil.rmtree(workspace, ignore_errors=True)


def _take_licences(tree: Path, target: Path) -> None:
    target.mkdir()
    texts = [tree / "licenses" / "MIT", tree / "docs" / "license.rst"]
    licence = next((path for path in texts if path.is_file()), None)
    if licence is not None:
        shutil.copyfile(licence, target / "mesa")
    shutil.copyfile(PROJECT / "LICENSE", target / "npu-bsp")


def _take_opencl(part: _Part, new: Path) -> OpenclRecord:
    """Copy what goes with rusticl, and return what the manifest says of it."""
    shutil.copyfile(part.library.with_name(opencl.ICD), new / opencl.ICD)
    contains = {}
    for name, (version, licence) in opencl.contained(part.setup.suite).items():
        contains[name] = version
        shutil.copyfile(licence, new / "licences" / licence.parent.name)
    return {
        "drivers": list(part.setup.drivers),
        "options": list(part.setup.options),
        "needed": sorted(needed_libraries([new / "lib" / OPENCL_LIBRARY])),
        "contains": contains,
    }


def _record(tree: MesaTree, ready: Patched, setup: Setup, library: Path) -> MesaManifest:
    return {
        "format": FORMAT,
        "name": "mesa",
        "version": tree.version,
        "title": _title(tree.version, ready),
        "source": tree.name,
        "origin": tree.origin,
        "series": ready.series,
        "patches": [_described(patch) for patch in ready.applied],
        "patches_present": [_described(patch) for patch in ready.present],
        "drivers": list(setup.drivers),
        "built_for": setup.suite,
        "options": list(setup.options),
        "compiler": setup.compiler,
        "needed": sorted(needed_libraries([library])),
        "licence": "MIT",
        "files": {f"lib/{LIBRARY}": sha256_of(library)},
    }


def _build_id(record: MesaManifest) -> str:
    identity = json.dumps({**record, "title": ""}, sort_keys=True)
    return hashlib.sha256(identity.encode()).hexdigest()[:12]


def _title(version: str, ready: Patched) -> str:
    """``25.0.7 + 9 patches of npu-bsp 0.2.0``: as the library itself says, where it was patched here."""
    count = len(ready.applied) + len(ready.present)
    return named(version + mark(npu_bsp_version()).format(count=count)) if count else version


def _described(patch: Patch) -> PatchRecord:
    return {"name": patch.name, "title": title_of(patch), "sha256": sha256_of(patch.path)}
