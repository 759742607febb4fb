# SPDX-License-Identifier: MIT
"""Libraries from the distribution's packages: the delegate, and what it and the wheels need."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from bsp.base.download import sha256_of
from bsp.base.errors import InfrastructureError
from bsp.base.process import run
from userspace.npu.mesa.manifest import BuiltMesa

from .catalogue import DISTRIBUTIONS, catalogue
from .elf import needed_libraries
from .parts import PartRecord, name_and_version
from .plan import Plan


def take_libraries(plan: Plan, work: Path, target: Path) -> list[PartRecord]:
    """Copy the delegate and the libraries that it and the wheels need; describe their packages."""
    delegate = catalogue().delegate
    roots: dict[str, Path] = {}
    homes: dict[str, tuple[str, Path]] = {}  # library's name -> its package and file
    base: set[str] = set()
    for deb in plan.debs:
        package = name_and_version(deb)[0]
        root = work / package
        root.mkdir(parents=True)
        run(["dpkg-deb", "--extract", deb, root])
        roots[package] = root
        for file in root.rglob("*.so*"):
            if package in delegate.base_packages:
                base.add(file.name)
            elif file.exists():
                homes.setdefault(file.name, (package, file.resolve()))
    plugin = plan.mesa.library if plan.mesa else roots[delegate.package] / delegate.library
    if not plugin.is_file():
        raise InfrastructureError(
            f"the package {delegate.package} of {plan.distribution} has no {delegate.library}"
        )
    own = [path for path in (target / "site").rglob("*") if ".so" in path.suffixes]
    shipped = {path.name for path in own}
    folder = target / "lib"
    folder.mkdir()
    shutil.copyfile(plugin, folder / plugin.name)
    used = set() if plan.mesa else {delegate.package}
    waiting = list(needed_libraries([plugin, *own]))
    while waiting:
        name = waiting.pop()
        if name in base or name in shipped:
            continue
        if name not in homes:
            raise InfrastructureError(
                f"no package of {plan.distribution} that was looked at has the library {name}",
                hint=f"add its package to library_packages in {DISTRIBUTIONS}",
            )
        package, file = homes[name]
        shutil.copyfile(file, folder / name)
        shipped.add(name)
        used.add(package)
        waiting += needed_libraries([file])
    own_mesa = [_describe_mesa(plan.mesa, target / "licences")] if plan.mesa else []
    return own_mesa + [
        _describe_package(deb, work, target / "licences")
        for deb in plan.debs
        if name_and_version(deb)[0] in used
    ]


def _describe_mesa(mesa: BuiltMesa, licences: Path) -> PartRecord:
    """As ``_describe_package``, of a delegate that was built here; it replaces the package."""
    name = catalogue().delegate.package
    shutil.copytree(mesa.folder / "licences", licences / name)
    record = mesa.manifest
    return {
        "name": name,
        "version": mesa.title,
        "kind": "built from source",
        "file": mesa.library.name,
        "sha256": sha256_of(mesa.library),
        "licence": record["licence"],
        "licence_files": [
            f"licences/{name}/{path.name}" for path in sorted((licences / name).iterdir())
        ],
        "build_id": mesa.build_id,
        "origin": record["origin"],
        "patches": record["patches"],
    }


def _describe_package(deb: Path, work: Path, licences: Path) -> PartRecord:
    name, version = name_and_version(deb)
    document = work / name / "usr" / "share" / "doc" / name
    if document.is_symlink():  # libgcc-s1 -> gcc-14-base
        other = document.readlink().name
        document = work / other / "usr" / "share" / "doc" / other
    copyright_file = document / "copyright"
    kept = licences / name / "copyright"
    kept.parent.mkdir(parents=True)
    if not copyright_file.is_file():
        raise InfrastructureError(f"the package {deb.name} has no copyright file")
    shutil.copyfile(copyright_file, kept)
    return {
        "name": name,
        "version": version,
        "kind": "Debian package",
        "file": deb.name.replace("%3a", ":"),
        "sha256": sha256_of(deb),
        "licence": ", ".join(_licences_in(kept.read_text(encoding="utf-8", errors="replace"))),
        "licence_files": [f"licences/{name}/copyright"],
    }


def _licences_in(text: str) -> Sequence[str]:
    """Return the licences that a copyright file of Debian names, in its machine-readable format."""
    if "copyright-format" not in text[:400]:
        return ["see its copyright file"]
    names = [
        line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("License:")
    ]
    return list(dict.fromkeys(name for name in names if name)) or ["see its copyright file"]
