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
from collections.abc import Sequence
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


def read_recipe() -> Recipe:
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
    recipe = read_recipe()
    if mesa is not None:
        recipe = msgspec.structs.replace(recipe, suite=mesa.manifest["built_for"])
    debs = Archive(recipe.suite, recipe.architecture).download(
        list(recipe.packages), with_dependencies=True
    )
    inputs = (_HERE / "rusticl.toml", _SOURCE, Path(__file__))
    described = [*(sha256_of(path) for path in inputs), *sorted(deb.name for deb in debs)]
    described += [mesa.build_id] if mesa else []
    key = hashlib.sha256("\n".join(described).encode()).hexdigest()[:16]
    folder = cache_dir() / "delegates" / f"rusticl-{recipe.architecture}-{key}"
    folder.parent.mkdir(parents=True, exist_ok=True)

    def make(target: Path) -> None:
        require_tool(_COMPILER)
        what = "what rusticl needs" if mesa else "rusticl"
        with step(f"Taking {what} out of Debian {recipe.suite}'s packages"):
            _build(recipe, debs, target, mesa)

    return make_once(folder, make)


def environment(folder: Path | str) -> dict[str, str]:
    """Return the variables with which a program uses the folder; ``runner.py`` sets the same."""
    return {
        "LD_LIBRARY_PATH": f"{folder}/lib",
        "LD_PRELOAD": f"{folder}/lib/{PRELOADED}",
        "NPU_BSP_LIBCLC": f"{folder}/clc",
        "OCL_ICD_VENDORS": f"{folder}/rusticl.icd",
    }


class _Packages:
    """Packages, extracted into a folder; ``used`` has the names of those that something was taken of."""

    def __init__(self, debs: Sequence[Path], folder: Path, named: Sequence[str]) -> None:
        self._folder, self._named = folder, named
        self._libraries: dict[str, tuple[str, Path]] = {}  # name -> its package and file
        self.versions: dict[str, str] = {}
        self.used: set[str] = set()
        folder.mkdir()
        for deb in debs:
            package, version, _ = deb.stem.split("_")
            self.versions[package] = version.replace("%3a", ":")
            run(["dpkg-deb", "--extract", deb, folder / package])
            for file in (folder / package / "usr/lib").rglob("*.so*"):
                if file.exists():
                    self._libraries.setdefault(file.name, (package, file.resolve()))

    def library(self, name: str) -> Path:
        """Return the file of a shared library."""
        if name not in self._libraries:
            raise InfrastructureError(f"no package that rusticl depends on has the library {name}")
        package, file = self._libraries[name]
        self.used.add(package)
        return file

    def file(self, pattern: str) -> Path:
        """Return the first file that a pattern matches."""
        files = sorted(self._folder.glob(f"*/{pattern}"))
        if not files:
            raise InfrastructureError(f"no package of {', '.join(self._named)} has {pattern}")
        self.used.add(files[0].relative_to(self._folder).parts[0])
        return files[0]

    def licences(self) -> dict[str, Path]:
        """Return the licence of each package that was used, where it has one."""
        files = {
            package: self._folder / package / "usr/share/doc" / package / "copyright"
            for package in sorted(self.used)
        }
        return {package: file for package, file in files.items() if file.exists()}


def _build(recipe: Recipe, debs: list[Path], target: Path, mesa: BuiltMesa | None) -> None:
    packages = _Packages(debs, target.with_name("work"), recipe.packages)
    _copy_libraries(recipe, packages, target / "lib", mesa)
    # clang::driver::Driver::GetResourcesPath: ../lib/clang/VERSION, from where libclang-cpp lies.
    header = packages.file(recipe.headers)
    place = target / "lib" / Path(*header.parts[header.parts.index("clang") :])
    place.parent.mkdir(parents=True)
    shutil.copyfile(header, place)
    (target / "clc").mkdir()
    for pattern in recipe.clc:
        shutil.copyfile(packages.file(pattern), target / "clc" / Path(pattern).name)
    icd = mesa.folder / "rusticl.icd" if mesa else packages.file(recipe.icd)
    shutil.copyfile(icd, target / "rusticl.icd")
    run([_COMPILER, *_FLAGS, "-o", target / "lib" / PRELOADED, _SOURCE], timeout_s=120)
    (target / "licences").mkdir()
    for package, licence in packages.licences().items():
        shutil.copyfile(licence, target / "licences" / package)
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "architecture": recipe.architecture,
        "distribution": recipe.suite,
        "packages": {package: packages.versions[package] for package in sorted(packages.used)},
    }
    if mesa:
        shutil.copytree(mesa.folder / "licences", target / "licences" / "built-here")
        manifest["mesa"] = mesa.manifest
    (target / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _copy_libraries(
    recipe: Recipe, packages: _Packages, target: Path, mesa: BuiltMesa | None
) -> None:
    """Copy rusticl, the loader and all that they link to, but for what each board has."""
    target.mkdir(parents=True)
    waiting = [recipe.library, recipe.loader]
    while waiting:
        name = waiting.pop()
        if name in recipe.base_libraries or (target / name).exists():
            continue
        built = mesa.opencl if mesa and name == recipe.library else None
        file = built or packages.library(name)
        shutil.copyfile(file, target / name)
        waiting += needed_libraries([file])
    (target / recipe.loader).rename(target / "libOpenCL.so")
    (target / recipe.loader).symlink_to("libOpenCL.so")
