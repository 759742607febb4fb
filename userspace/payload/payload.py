# SPDX-License-Identifier: MIT
"""The offline userspace of a board: one folder, for the board's own Python and distribution.

    bin/        runner.py and its modules: what runs on the board, readable alone
    site/       numpy and the TFLite runtime, unpacked wheels
    lib/        Mesa's Teflon delegate, the libraries that a minimal root file system may lack, and the one
                that stamps an NPU's jobs for a profile
    licences/   copyright files of the packages; the wheels keep theirs in site/*.dist-info
    manifest.json

Wheels come by hash (``requirements/``), libraries from the distribution's packages, which apt verifies.
Nothing here is installed into the board's Python: the runner finds its packages beside itself.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import sys
import tomllib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any, TypedDict

import msgspec

from bsp.base.cache import cache_dir, make_once
from bsp.base.download import sha256_of
from bsp.base.errors import InfrastructureError, UserError, nearest
from bsp.base.output import table
from bsp.base.packages.apt import Archive
from bsp.base.process import ToolFailedError, run
from bsp.base.progress import step
from bsp.base.project import PROJECT
from bsp.base.result import Result
from bsp.base.words import counted
from userspace.npu.mesa.manifest import BuiltMesa, PatchRecord
from userspace.npu.profile.library import compiled
from userspace.npu.validate.onboard.profiling import LIBRARY_NAME

from .elf import needed_libraries

FORMAT = 1
ARCHITECTURE = "arm64"
MACHINE = "aarch64"
_HERE = Path(__file__).parent
_DISTRIBUTIONS = _HERE / "distributions.toml"
_REQUIREMENTS = _HERE / "requirements"
BOARD_PROGRAMS = tuple(
    path
    for path in sorted((PROJECT / "userspace/npu/validate/onboard").glob("*.py"))
    if path.name != "__init__.py"
)
_OWN_LICENCE = PROJECT / "LICENSE"
_PIP_TIMEOUT_S = 900


class Distribution(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A Debian release: where its packages are, its Python and its C library."""

    suite: str
    python: str
    glibc: str


class Runtime(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A TFLite runtime, and the Pythons that it has wheels for."""

    name: str
    python: tuple[str, ...]
    requirements: str


class Delegate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The package with Mesa's delegate."""

    package: str
    library: str
    library_packages: tuple[str, ...]
    base_packages: tuple[str, ...]


class LeaveOut(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Files of the wheels that are not needed, as shell patterns of their whole path."""

    patterns: tuple[str, ...]


class Catalogue(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``distributions.toml``."""

    format: int
    distributions: dict[str, Distribution]
    runtimes: tuple[Runtime, ...]
    delegate: Delegate
    leave_out: LeaveOut


@functools.cache
def catalogue() -> Catalogue:
    """Return what is known of distributions and runtimes."""
    return msgspec.convert(tomllib.loads(_DISTRIBUTIONS.read_text(encoding="utf-8")), Catalogue)


@dataclass(frozen=True)
class Plan(Result):
    """What a payload is made of.

    Attributes:
        python: major and minor version, as in ``3.13``.
        requirements: the file with the wheels' versions and hashes.
        debs: packages, with the delegate's own and all that it depends on.
        key: changes when any input changes.
        mesa: a delegate that was built here, in place of the package's.
        profile: the library that stamps jobs; None where it cannot be compiled.
    """

    distribution: str
    python: str
    runtime: str
    requirements: Path
    debs: tuple[Path, ...]
    key: str
    mesa: BuiltMesa | None = None
    profile: Path | None = None

    def document(self) -> dict[str, Any]:
        """What ``build-userspace --dry-run --json`` prints."""
        return {
            "distribution": self.distribution,
            "python": self.python,
            "architecture": ARCHITECTURE,
            "runtime": self.runtime,
            "wheels": _pinned(self.requirements),
            "packages": [_name_and_version(deb) for deb in self.debs],
            "mesa": self.mesa.title if self.mesa else None,
            "path": str(_cached(self)),
            "built": _cached(self).exists(),
        }

    def text(self) -> str:
        """The same for people."""
        rows = [(name, version, "wheel") for name, version in _pinned(self.requirements).items()]
        rows += [
            (*_name_and_version(deb), "Debian, if a library of it is needed") for deb in self.debs
        ]
        if self.mesa:
            rows.append(("Mesa's delegate", self.mesa.title, "built here"))
        if self.profile:
            rows.append(("profile's library", "", "built here"))
        title = f"userspace for Debian {self.distribution}, Python {self.python}, {ARCHITECTURE}"
        return f"{title}\n\n{table(('part', 'version', 'from'), rows)}"


class PartRecord(TypedDict, total=False):
    """A wheel, a Debian package or a Mesa that was built here, as far as a payload has it.

    Attributes:
        kind: ``wheel``, ``Debian package`` or ``built from source``.
        sha256: of the file that it came as.
        licence_files: paths in the payload.
        build_id, origin, patches: of a Mesa that was built here.
    """

    name: str
    version: str
    kind: str
    file: str
    sha256: str
    licence: str
    licence_files: list[str]
    build_id: str
    origin: str
    patches: list[PatchRecord]


class PayloadManifest(TypedDict):
    """What ``manifest.json`` of a payload says; ``sha256``: of all paths and their hashes."""

    format: int
    distribution: str
    python: str
    architecture: str
    runtime: str
    sha256: str
    files: int
    size_bytes: int
    parts: list[PartRecord]


@dataclass(frozen=True)
class Payload(Result):
    """A userspace that was built: its folder and its manifest."""

    folder: Path
    manifest: PayloadManifest

    def document(self) -> dict[str, Any]:
        """What ``build-userspace --json`` prints."""
        return {"path": str(self.folder), **self.manifest}

    def text(self) -> str:
        """The same for people."""
        manifest = self.manifest
        rows = [(part["name"], part["version"], part["licence"]) for part in manifest["parts"]]
        title = (
            f"userspace for Debian {manifest['distribution']}, Python {manifest['python']}, "
            f"{manifest['architecture']}: {counted(manifest['files'], 'file')}, "
            f"{manifest['size_bytes'] / 1e6:.0f} MB"
        )
        shown = table(("part", "version", "licence"), rows)
        return f"{title}\n{self.folder}\n\n{shown}"


def plan_payload(
    distribution: str, python: str | None = None, mesa: BuiltMesa | None = None
) -> Plan:
    """Decide what a payload is made of; fetches the packages that it looks at.

    Args:
        distribution: ``trixie``, ``bookworm``.
        python: the board's Python, ``3.13``; None: the distribution's own.
        mesa: a delegate that was built here, in place of the package's.

    Raises:
        UserError: there is no such distribution, or no TFLite runtime for that Python; the delegate was
            built for a newer C library.
        InfrastructureError: the packages cannot be had.
    """
    distributions = catalogue().distributions
    if distribution not in distributions:
        raise UserError(
            f"unknown distribution {distribution!r}{nearest(distribution, list(distributions))}",
            hint=f"known: {', '.join(distributions)}",
        )
    release = distributions[distribution]
    python = python or release.python
    runtimes = catalogue().runtimes
    runtime = next((each for each in runtimes if python in each.python), None)
    if runtime is None:
        every = [version for each in runtimes for version in each.python]
        raise UserError(
            f"there is no TFLite runtime for Python {python!r} on {MACHINE}{nearest(python, every)}",
            hint=f"known: {', '.join(every)}; on the board: python3 --version",
        )
    requirements = _REQUIREMENTS / runtime.requirements
    delegate = catalogue().delegate
    debs = Archive(release.suite, ARCHITECTURE).download(
        [delegate.package, *delegate.library_packages], with_dependencies=True
    )
    inputs = [_DISTRIBUTIONS, requirements, *BOARD_PROGRAMS, Path(__file__), _OWN_LICENCE]
    described = [distribution, python, *(sha256_of(path) for path in inputs)]
    described += sorted(deb.name for deb in debs)
    if mesa is not None:
        _refuse_newer_libc(mesa, distribution, release.glibc)
        described.append(f"mesa {mesa.build_id}")
    profile = compiled(MACHINE)
    described += [profile.name] if profile else []
    key = hashlib.sha256("\n".join(described).encode()).hexdigest()[:16]
    return Plan(distribution, python, runtime.name, requirements, tuple(debs), key, mesa, profile)


def _refuse_newer_libc(mesa: BuiltMesa, distribution: str, glibc: str) -> None:
    needs = tuple(int(part) for part in mesa.glibc.split("."))
    if needs > tuple(int(part) for part in glibc.split(".")):
        raise UserError(
            f"the delegate in {mesa.folder} needs glibc {mesa.glibc}, {distribution} has {glibc}: it was "
            f"built for {mesa.manifest['built_for']}",
            hint=f"./inv build-mesa --distribution {distribution}",
        )


def build_payload(
    *,
    distribution: str,
    python: str | None = None,
    target: Path | None = None,
    mesa: BuiltMesa | None = None,
) -> Payload:
    """Return the userspace for a distribution and Python, built once and kept in the cache.

    Args:
        target: a folder, not there yet, that gets a copy; None: the one in the cache is returned.
        mesa: as ``plan_payload``.

    Raises:
        UserError: as ``plan_payload``; ``target`` exists.
        InfrastructureError: wheels or packages cannot be had, or have another content than expected.
    """
    if target is not None and target.exists():
        raise UserError(
            f"{target} exists; the payload needs a folder of its own", hint="give another --output"
        )
    plan = plan_payload(distribution, python, mesa)
    folder = _cached(plan)
    folder.parent.mkdir(parents=True, exist_ok=True)

    def make(temporary: Path) -> None:
        with step(f"Building the userspace for {distribution}, Python {plan.python}"):
            _build(plan, temporary)

    make_once(folder, make)
    if target is not None:
        target.parent.mkdir(parents=True, exist_ok=True)

        def copy(temporary: Path) -> None:
            shutil.copytree(folder, temporary, symlinks=True)

        make_once(target, copy)
        target.with_name(target.name + ".lock").unlink(missing_ok=True)
        folder = target
    return Payload(folder, json.loads((folder / "manifest.json").read_text(encoding="utf-8")))


def _cached(plan: Plan) -> Path:
    name = f"{plan.distribution}-{ARCHITECTURE}-python{plan.python}-{plan.key}"
    return cache_dir() / "userspace" / name


def _build(plan: Plan, target: Path) -> None:
    work = target.with_name("work")
    target.mkdir()
    parts = _unpack_wheels(plan, work / "wheels", target / "site")
    parts += _take_libraries(plan, work / "debs", target)
    if plan.profile:
        shutil.copyfile(plan.profile, target / "lib" / LIBRARY_NAME)
    (target / "bin").mkdir()
    for program in BOARD_PROGRAMS:
        shutil.copyfile(program, target / "bin" / program.name)
    own = target / "licences" / "npu-bsp" / "copyright"
    own.parent.mkdir(parents=True)
    shutil.copyfile(_OWN_LICENCE, own)
    files = sorted(path for path in target.rglob("*") if path.is_file())
    content = hashlib.sha256()
    for path in files:
        content.update(f"{path.relative_to(target)} {sha256_of(path)}\n".encode())
        path.chmod(0o755 if path.name == "runner.py" else 0o644)
    for folder in [target, *(path for path in target.rglob("*") if path.is_dir())]:
        folder.chmod(0o755)
    manifest: PayloadManifest = {
        "format": FORMAT,
        "distribution": plan.distribution,
        "python": plan.python,
        "architecture": ARCHITECTURE,
        "runtime": plan.runtime,
        "sha256": content.hexdigest(),
        "files": len(files),
        "size_bytes": sum(path.stat().st_size for path in files),
        "parts": parts,
    }
    text = json.dumps(manifest, indent=2) + "\n"
    (target / "manifest.json").write_text(text, encoding="utf-8")


# --- wheels ----------------------------------------------------------------------------------


def _pip_command(plan: Plan, target: Path) -> list[str | Path]:
    minor = int(catalogue().distributions[plan.distribution].glibc.partition(".")[2])
    # PEP 600: a wheel for glibc 2.N runs on every later one.
    platforms = [f"manylinux_2_{number}_{MACHINE}" for number in range(minor, 16, -1)]
    platforms.append(f"manylinux2014_{MACHINE}")
    command: list[str | Path] = [
        sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download",
        "--quiet", "--no-deps", "--require-hashes", "--only-binary", ":all:",
        "--implementation", "cp", "--python-version", plan.python,
        "--abi", "cp" + plan.python.replace(".", ""), "--abi", "abi3", "--abi", "none",
    ]  # fmt: skip
    for platform in platforms:
        command += ["--platform", platform]
    return [*command, "--dest", target, "--requirement", plan.requirements]


def _unpack_wheels(plan: Plan, downloads: Path, site: Path) -> list[PartRecord]:
    downloads.mkdir(parents=True)
    with step(f"Fetching {plan.runtime} and numpy for Python {plan.python}, {MACHINE}"):
        try:
            run(_pip_command(plan, downloads), timeout_s=_PIP_TIMEOUT_S)
        except ToolFailedError as error:
            output = error.completed.stderr.decode(errors="replace")
            errors = [line for line in output.splitlines() if line.startswith(("ERROR:", "    "))]
            raise InfrastructureError(
                f"pip cannot fetch the wheels for Python {plan.python} on {MACHINE}:\n"
                + "\n".join(errors[-8:] or output.splitlines()[-8:]),
                hint="check the network and `pip config list`, then run the same command again",
            ) from error
    site.mkdir()
    return [_unpack_wheel(wheel, site) for wheel in sorted(downloads.glob("*.whl"))]


def _unpack_wheel(wheel: Path, site: Path) -> PartRecord:
    """Unpack one wheel, without what ``[leave_out]`` names, and describe it."""
    name, version = wheel.name.split("-")[:2]
    patterns = catalogue().leave_out.patterns
    metadata = ""
    licence_files = []
    try:
        with zipfile.ZipFile(wheel) as archive:
            for entry in archive.infolist():
                place = PurePosixPath(entry.filename)
                if entry.is_dir() or any(fnmatch(entry.filename, each) for each in patterns):
                    continue
                if place.is_absolute() or ".." in place.parts:
                    raise InfrastructureError(f"{wheel.name} has a file outside of it: {place}")
                if place.parts[0].endswith(".data"):
                    # PEP 427: NAME.data/{purelib,platlib}/ go where the rest goes; scripts are not ours.
                    if place.parts[1] not in ("purelib", "platlib"):
                        continue
                    place = PurePosixPath(*place.parts[2:])
                file = site / place
                file.parent.mkdir(parents=True, exist_ok=True)
                content = archive.read(entry)
                file.write_bytes(content)
                if place.parts[0].endswith(".dist-info"):
                    if place.name == "METADATA":
                        metadata = content.decode(errors="replace")
                    elif place.name.upper().startswith(("LICEN", "COPYING", "NOTICE")):
                        licence_files.append(f"site/{place}")
    except zipfile.BadZipFile as error:
        raise InfrastructureError(f"{wheel.name} is damaged: {error}") from error
    return {
        "name": name.replace("_", "-"),
        "version": version,
        "kind": "wheel",
        "file": wheel.name,
        "sha256": sha256_of(wheel),
        "licence": _licence_of(metadata),
        "licence_files": sorted(licence_files),
    }


def _licence_of(metadata: str) -> str:
    """Return what a wheel's METADATA says of its licence, in one line."""
    fields: dict[str, str] = {}
    for line in metadata.splitlines():
        if not line:
            break
        key, _, value = line.partition(": ")
        if key in ("License-Expression", "License"):
            fields.setdefault(key, value.strip())
        elif key == "Classifier" and value.startswith("License :: "):
            fields.setdefault(key, value.rpartition(" :: ")[2].strip())
    short = fields.get("License", "")
    if short and not short.startswith("Copyright") and len(short) < 40:
        fields["License-Expression"] = fields.get("License-Expression", short)
    return fields.get("License-Expression") or fields.get("Classifier") or "see its files"


def _pinned(requirements: Path) -> dict[str, str]:
    lines = requirements.read_text(encoding="utf-8").splitlines()
    pins = [line.split()[0].partition("==") for line in lines if "==" in line and line[0] != " "]
    return {name: version for name, _, version in pins}


# --- libraries from packages -----------------------------------------------------------------


def _name_and_version(deb: Path) -> tuple[str, str]:
    name, version, _ = deb.stem.split("_")
    return name, version.replace("%3a", ":")


def _take_libraries(plan: Plan, work: Path, target: Path) -> list[PartRecord]:
    """Copy the delegate and the libraries that it and the wheels need; describe their packages."""
    delegate = catalogue().delegate
    roots: dict[str, Path] = {}
    homes: dict[str, tuple[str, Path]] = {}  # library's name -> its package and file
    base: set[str] = set()
    for deb in plan.debs:
        package = _name_and_version(deb)[0]
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
                hint=f"add its package to library_packages in {_DISTRIBUTIONS}",
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
        if _name_and_version(deb)[0] in used
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
    name, version = _name_and_version(deb)
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
