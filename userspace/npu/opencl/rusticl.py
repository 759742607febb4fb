# SPDX-License-Identifier: MIT
"""rusticl, Mesa's OpenCL driver, for boards that have none: one folder, from the distribution's packages.

    lib/            libRusticlOpenCL.so.1 and what it needs; libOpenCL.so, the name that TFLite looks for;
                    libclc_path.so, ours (``libclc.c``)
    lib/clang/      the header that each kernel includes, where libclang-cpp looks: beside itself
    clc/            libclc as SPIR-V
    rusticl.icd     for OCL_ICD_VENDORS
    licences/, manifest.json

``runner.py --rusticl FOLDER`` sets the variables. Nothing is installed on the board. It takes 260 MB there,
nearly all of it LLVM. Where it comes from is in ``rusticl.toml``; rusticl itself may be that of
``build-mesa --opencl``.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import msgspec

from bsp.base.cache import cache_dir, make_once
from bsp.base.download import sha256_of
from bsp.base.errors import InfrastructureError
from bsp.base.packages.apt import Archive
from bsp.base.process import require_tool, run
from bsp.base.progress import step
from userspace.npu.mesa.manifest import BuiltMesa
from userspace.payload.elf import needed_libraries

FORMAT = 1
_HERE = Path(__file__).parent
_SOURCE = _HERE / "libclc.c"
_COMPILER = "aarch64-linux-gnu-gcc"
_FLAGS = ("-std=gnu11", "-Wall", "-Wextra", "-O2", "-fPIC", "-shared", "-fvisibility=hidden")
PRELOADED = "libclc_path.so"


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``rusticl.toml``."""

    format: int
    suite: str
    architecture: str
    packages: tuple[str, ...]
    library: str
    loader: str
    icd: str
    headers: str
    clc: tuple[str, ...]
    base_libraries: tuple[str, ...]


def recipe() -> Recipe:
    """Return what the folder is made of."""
    return msgspec.toml.decode((_HERE / "rusticl.toml").read_bytes(), type=Recipe)


def build(mesa: BuiltMesa | None = None) -> Path:
    """Return the folder, made once and kept in the cache; its name changes with its content.

    Args:
        mesa: built with rusticl, which is taken in place of the package's; what it needs is the suite's.

    Raises:
        UserError: the cross compiler is missing.
        InfrastructureError: packages cannot be had, or lack a file.
    """
    known = recipe()
    if mesa is not None:
        known = msgspec.structs.replace(known, suite=mesa.manifest["built_for"])
    debs = Archive(known.suite, known.architecture).download(
        list(known.packages), with_dependencies=True
    )
    inputs = (_HERE / "rusticl.toml", _SOURCE, Path(__file__))
    described = [*(sha256_of(path) for path in inputs), *sorted(deb.name for deb in debs)]
    described += [mesa.build_id] if mesa else []
    key = hashlib.sha256("\n".join(described).encode()).hexdigest()[:16]
    folder = cache_dir() / "delegates" / f"rusticl-{known.architecture}-{key}"
    folder.parent.mkdir(parents=True, exist_ok=True)

    def make(target: Path) -> None:
        require_tool(_COMPILER)
        what = "what rusticl needs" if mesa else "rusticl"
        with step(f"Taking {what} out of Debian {known.suite}'s packages"):
            _build(known, debs, target, mesa)

    return make_once(folder, make)


def environment(folder: Path | str) -> dict[str, str]:
    """Return the variables with which a program uses the folder; ``runner.py`` sets the same."""
    return {
        "LD_LIBRARY_PATH": f"{folder}/lib",
        "LD_PRELOAD": f"{folder}/lib/{PRELOADED}",
        "NPU_BSP_LIBCLC": f"{folder}/clc",
        "OCL_ICD_VENDORS": f"{folder}/rusticl.icd",
    }


def _build(known: Recipe, debs: list[Path], target: Path, mesa: BuiltMesa | None) -> None:
    work = target.with_name("work")
    homes: dict[str, tuple[str, Path]] = {}  # library's name -> its package and file
    versions: dict[str, str] = {}
    work.mkdir()
    for deb in debs:
        package, version, _ = deb.stem.split("_")
        versions[package] = version.replace("%3a", ":")
        run(["dpkg-deb", "--extract", deb, work / package])
        for file in (work / package / "usr/lib").rglob("*.so*"):
            if file.exists():
                homes.setdefault(file.name, (package, file.resolve()))

    used: set[str] = set()

    def find(pattern: str) -> Path:
        found = sorted(work.glob(f"*/{pattern}"))
        if not found:
            raise InfrastructureError(f"no package of {', '.join(known.packages)} has {pattern}")
        used.add(found[0].relative_to(work).parts[0])
        return found[0]

    libraries = target / "lib"
    libraries.mkdir(parents=True)
    waiting = [known.library, known.loader]
    while waiting:
        name = waiting.pop()
        if name in known.base_libraries or (libraries / name).exists():
            continue
        if name not in homes:
            raise InfrastructureError(f"no package that rusticl depends on has the library {name}")
        package, file = homes[name]
        if mesa and mesa.opencl and name == known.library:
            file = mesa.opencl
        else:
            used.add(package)
        shutil.copyfile(file, libraries / name)
        waiting += needed_libraries([file])
    (libraries / known.loader).rename(libraries / "libOpenCL.so")
    (libraries / known.loader).symlink_to("libOpenCL.so")
    # clang::driver::Driver::GetResourcesPath: ../lib/clang/VERSION, from where libclang-cpp lies.
    header = find(known.headers)
    place = target / "lib" / Path(*header.parts[header.parts.index("clang") :])
    place.parent.mkdir(parents=True)
    shutil.copyfile(header, place)
    (target / "clc").mkdir()
    for pattern in known.clc:
        shutil.copyfile(find(pattern), target / "clc" / Path(pattern).name)
    icd = mesa.folder / "rusticl.icd" if mesa else find(known.icd)
    shutil.copyfile(icd, target / "rusticl.icd")
    run([_COMPILER, *_FLAGS, "-o", libraries / PRELOADED, _SOURCE], timeout_s=120)
    (target / "licences").mkdir()
    for package in sorted(used):
        licence = work / package / "usr/share/doc" / package / "copyright"
        if licence.exists():
            shutil.copyfile(licence, target / "licences" / package)
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "architecture": known.architecture,
        "distribution": known.suite,
        "packages": {package: versions[package] for package in sorted(used)},
    }
    if mesa:
        shutil.copytree(mesa.folder / "licences", target / "licences" / "built-here")
        manifest["mesa"] = mesa.manifest
    (target / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
