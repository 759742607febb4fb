# SPDX-License-Identifier: MIT
"""Unpacked arm64 systems with a delegate of any version: Debian's suites, one package file, or a library.

Each has the Python of a distribution that the payload has wheels for, and of every package the newer one
of that distribution's and the delegate's: a library runs what was built against an older one.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from bsp.base.cache import cache_dir, make_once
from bsp.base.download import sha256_of
from bsp.base.errors import InfrastructureError, UserError, nearest
from bsp.base.packages.apt import Archive
from bsp.base.process import ToolFailedError, run
from bsp.base.progress import step
from userspace.npu.mesa.manifest import (
    BuiltMesa,
    check_library,
    glibc_of,
    named,
    patches_in,
    read_built,
)
from userspace.npu.validate.onboard.delegate_paths import mesa_version
from userspace.payload.catalogue import ARCHITECTURE, catalogue

from ..npu.shim.host import DISTRIBUTION

SUITES = ("bookworm-backports", "trixie", "trixie-backports", "sid")
"""Suites that are known to have the delegate, oldest version first."""
SUITE_OF_DRIVER = {"etnaviv": DISTRIBUTION, "rocket": "trixie-backports"}
"""The first suite after ``DISTRIBUTION`` whose delegate has a driver: what boards with it can install."""
_PYTHON = ("python3", "base-files", "libstdc++6")
_NEWEST_SUITE = SUITES[-1]


@dataclass(frozen=True)
class Delegate:
    """A version of the delegate, ready to run.

    Attributes:
        version: of the package.
        origin: suite or file that it came from.
        library: path of libteflon.so inside the root, as the client sees it.
        distribution: whose Python is in the root; it decides which TFLite runtime fits.
        patches: how many of ours are in it.
    """

    version: str
    origin: str
    root: Path
    library: str
    distribution: str = DISTRIBUTION
    patches: int = 0

    @property
    def upstream(self) -> str:
        """Mesa's own version: ``25.0.7``."""
        return re.sub(r"^\d+:", "", self.version).partition("-")[0].partition(" ")[0]


def find_delegate(text: str, *, distribution: str = DISTRIBUTION) -> Delegate:
    """Return the delegate that ``text`` names: what ``--mesa`` takes wherever a virtual NPU runs it.

    That is a suite, a version that one has, a .deb file, a libteflon.so, or a folder of ``build-mesa``.

    Args:
        distribution: whose Python it is to run in.

    Raises:
        UserError: it names none of them, or the file has no delegate for arm64.
        InfrastructureError: packages cannot be had.
    """
    path = Path(text).expanduser().absolute()
    if path.is_dir():
        return from_built(read_built(path), distribution=distribution)
    if text.endswith((".deb", ".so")) or "/" in text:
        make = from_library if _is_elf(path) else from_file
        return make(path, distribution=distribution)
    if is_version(text):
        return from_version(text, distribution=distribution)
    return from_suite(text, distribution=distribution)


def is_version(text: str) -> bool:
    """Whether a name is that of a version of Mesa, not of a suite or a file."""
    return bool(re.fullmatch(r"\d+\.\d+[^/]*", text)) and not text.endswith((".deb", ".so"))


def _is_elf(path: Path) -> bool:
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def named_delegate(package: str, suite: str, mesa: str) -> str:
    """Return what ``find_delegate`` takes, from the flags that name a delegate.

    Raises:
        UserError: none or several of them are given.
    """
    if sum(bool(each) for each in (package, suite, mesa)) != 1:
        raise UserError(
            "one of --package, --suite and --mesa is needed",
            hint="for instance --suite trixie-backports, --package mesa-teflon-delegate_..._arm64.deb, or "
            "--mesa FOLDER of ./inv build-mesa",
        )
    return str(Path(package).absolute()) if package else suite or mesa


def from_suite(suite: str, *, distribution: str = DISTRIBUTION) -> Delegate:
    """Return the delegate of a Debian suite.

    Raises:
        UserError: there is no such suite, or it has no delegate.
        InfrastructureError: packages cannot be had.
    """
    if not re.fullmatch(r"[a-z]+(-[a-z]+)*", suite):
        raise UserError(f"{suite!r} is not a suite", hint=f"known: {', '.join(SUITES)}")
    package = catalogue().delegate.package
    archive = Archive(suite, ARCHITECTURE)
    try:
        version = archive.version(package)
    except InfrastructureError as error:
        if suite in SUITES:
            raise
        raise UserError(
            f"Debian's {suite!r} cannot be read{nearest(suite, list(SUITES))}",
            hint=f"known: {', '.join(SUITES)}",
        ) from error
    debs = archive.download(
        [package, *catalogue().delegate.library_packages], with_dependencies=True
    )
    return _assembled(debs, version, suite, distribution)


def from_version(version: str, *, distribution: str = DISTRIBUTION) -> Delegate:
    """Return the delegate of the first suite that has a version of Mesa.

    Raises:
        UserError: no suite has it.
    """
    package = catalogue().delegate.package
    version_of = {}
    for suite in (DISTRIBUTION, *(suite for suite in SUITES if suite != DISTRIBUTION)):
        version_of[suite] = Archive(suite, ARCHITECTURE).version(package)
        if version_of[suite] == version or version_of[suite].partition("-")[0] == version:
            return from_suite(suite, distribution=distribution)
    there = ", ".join(f"{number} ({suite})" for suite, number in version_of.items())
    raise UserError(f"no suite has Mesa {version}", hint=f"there are: {there}; or name a .deb file")


def from_file(path: Path, *, distribution: str = DISTRIBUTION) -> Delegate:
    """Return the delegate in a package file; what it depends on comes from Debian.

    Raises:
        UserError: there is no such file, or it is not an arm64 package with the delegate.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    delegate = catalogue().delegate
    try:
        control = run(["dpkg-deb", "--field", path, "Architecture", "Version", "Depends"]).text
        listing = run(["dpkg-deb", "--contents", path]).text
    except ToolFailedError as error:
        raise UserError(f"{path} is not a Debian package:\n{error.message}") from error
    fields = dict(line.split(": ", 1) for line in control.splitlines() if ": " in line)
    if fields.get("Architecture") != ARCHITECTURE:
        raise UserError(
            f"{path} is for {fields.get('Architecture')}, not for {ARCHITECTURE}",
            hint=f"build or fetch the package {delegate.package} for {ARCHITECTURE}",
        )
    if delegate.library not in listing:
        raise UserError(
            f"{path} has no {delegate.library}", hint=f"name a {delegate.package} package"
        )
    if any(line[:1] in "bcp" for line in listing.splitlines()):
        raise UserError(
            f"{path} has devices or pipes among its files", hint="name a package of Mesa"
        )
    suite, names = _suite_for(fields.get("Depends", ""))
    debs = Archive(suite, ARCHITECTURE).download(
        [*names, *delegate.library_packages], with_dependencies=True
    )
    return _assembled([*debs, path.absolute()], fields["Version"], str(path), distribution)


def from_built(built: BuiltMesa, *, distribution: str = DISTRIBUTION) -> Delegate:
    """Return a delegate that was built from source; what it depends on comes from Debian."""
    patches = len(built.manifest["patches"]) + len(built.manifest["patches_present"])
    return _with_library(
        built.library, Delegate(built.title, str(built.folder), Path(), "", distribution, patches),
    )  # fmt: skip


def from_library(path: Path, *, distribution: str = DISTRIBUTION) -> Delegate:
    """Return the delegate that a libteflon.so is; what it depends on comes from Debian.

    Raises:
        UserError: it is for another machine, no delegate, or does not say its version.
    """
    check_library(path)
    version = mesa_version(str(path))
    if version is None:
        raise UserError(
            f"{path} carries no version of Mesa", hint="name a libteflon.so as Mesa builds it"
        )
    return _with_library(
        path, Delegate(named(version), str(path), Path(), "", distribution, patches_in(version)),
    )  # fmt: skip


def _with_library(library: Path, described: Delegate) -> Delegate:
    """Put a library where Debian's is, in a system of its own."""
    usual = catalogue().distributions[DISTRIBUTION].glibc
    newer = int(glibc_of(library).partition(".")[2]) > int(usual.partition(".")[2])
    base = from_suite(_NEWEST_SUITE if newer else DISTRIBUTION, distribution=described.distribution)

    def make(target: Path) -> None:
        with step(f"Copying a system for Mesa {described.version}"):
            run(["cp", "--archive", "--link", base.root, target])
            place = target / base.library[1:]
            place.unlink()  # a hard link
            shutil.copyfile(library, place)

    root = make_once(base.root.with_name(f"{base.root.name}-mesa-{sha256_of(library)[:12]}"), make)
    return replace(described, root=root, library=base.library)


def _suite_for(depends: str) -> tuple[str, list[str]]:
    """Return a suite that has what a package depends on, and the names; the usual one if it does."""
    names, suite = [], DISTRIBUTION
    usual = Archive(DISTRIBUTION, ARCHITECTURE)
    for part in depends.split(","):
        match = re.match(r"\s*([a-z0-9][a-z0-9.+-]+)(?::\w+)?\s*(?:\(>=\s*([^)\s]+)\))?", part)
        if not match:
            continue
        names.append(match[1])
        if match[2] and _is_newer(match[2], usual.version(match[1])):
            suite = _NEWEST_SUITE
    return suite, names


def _assembled(debs: list[Path], version: str, origin: str, distribution: str) -> Delegate:
    base = Archive(distribution, ARCHITECTURE).download(_PYTHON, with_dependencies=True)
    chosen: dict[str, Path] = {}
    for deb in [*base, *debs]:
        name, number = _identity(deb)
        if name not in chosen or _is_newer(number, _identity(chosen[name])[1]):
            chosen[name] = deb
    own = debs[-1] if origin.endswith(".deb") else None
    if own:
        chosen[catalogue().delegate.package] = own
    described = [f"{deb.name} {sha256_of(deb) if deb == own else ''}" for deb in chosen.values()]
    key = hashlib.sha256("\n".join(sorted(described)).encode()).hexdigest()[:16]

    def make(target: Path) -> None:
        with step(f"Unpacking a system with Mesa {version}"):
            target.mkdir()
            for deb in chosen.values():
                run(["dpkg-deb", "--extract", deb, target])
            _merge_usr(target)

    folder = cache_dir() / "packages"
    folder.mkdir(parents=True, exist_ok=True)
    root = make_once(folder / f"teflon-{ARCHITECTURE}-{key}", make)
    return Delegate(version, origin, root, "/" + catalogue().delegate.library, distribution)


def _merge_usr(root: Path) -> None:
    """Move /bin, /sbin and /lib under /usr, as in Debian since trixie; older packages fill both."""
    for name in ("bin", "sbin", "lib"):
        place = root / name
        if place.is_dir() and not place.is_symlink():
            shutil.copytree(place, root / "usr" / name, symlinks=True, dirs_exist_ok=True)
            shutil.rmtree(place)
        if not place.is_symlink():
            place.symlink_to(f"usr/{name}")


def _identity(deb: Path) -> tuple[str, str]:
    """Return name and version of a package file as apt names it, or as the file says."""
    parts = deb.stem.split("_")
    if len(parts) == 3:
        return parts[0], parts[1].replace("%3a", ":")
    output = run(["dpkg-deb", "--showformat", "${Package}\n${Version}", "--show", deb]).text
    name, _, version = output.partition("\n")
    return name, version


def _is_newer(version: str, than: str) -> bool:
    compared = run(["dpkg", "--compare-versions", version, "gt", than], check=False)
    return compared.exit_code == 0
