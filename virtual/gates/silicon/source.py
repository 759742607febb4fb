# SPDX-License-Identifier: MIT
"""Mesa's source package: the tests of Teflon, their models, and the lists of results from real boards.

Nothing of it is part of this project; it is fetched, verified by apt's hashes, and kept in the cache.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from bsp.base.cache import cache_dir, make_once
from bsp.base.download import sha256_of
from bsp.base.errors import InfrastructureError, UserError
from bsp.base.packages.apt import Archive
from bsp.base.progress import step
from userspace.payload.catalogue import ARCHITECTURE

from ...npu.shim.host import DISTRIBUTION
from ..packages import SUITES, Delegate

_PACKAGE = "mesa"
_LISTS = PurePosixPath("src/etnaviv/ci")
_TESTS = PurePosixPath("src/gallium/targets/teflon")
_TEMPLATE = "conv2d.tflite"


@dataclass(frozen=True)
class MesaSource:
    """The parts of a source package that are needed here.

    Attributes:
        version: Mesa's own: ``25.0.7``.
        suite: the Debian suite that it came from.
        tarball: its file name.
    """

    version: str
    suite: str
    tarball: str
    folder: Path

    @property
    def lists(self) -> Path:
        """The folder with the lists of expected results."""
        return self.folder / _LISTS

    @property
    def models(self) -> Path:
        """The folder with the models and templates."""
        return self.folder / _TESTS / "tests"

    @property
    def test_source(self) -> Path:
        """The C++ file that defines the tests."""
        return self.folder / _TESTS / "test_teflon.cpp"


def fetch_source(delegate: Delegate) -> MesaSource:
    """Return the source of the Mesa that a delegate was built from.

    Raises:
        UserError: no suite has that version, or its source has no tests of this kind.
        InfrastructureError: the package cannot be fetched.
    """
    suite = _suite_with(delegate)
    version = delegate.upstream
    try:
        files = Archive(suite, ARCHITECTURE, sources=True).source(_PACKAGE)
    except InfrastructureError as error:
        raise InfrastructureError(
            f"the source package of Mesa {version} cannot be fetched: {error.message}",
            hint="the tests and the lists are in it; --suite trixie is the one that is known to work",
        ) from error
    originals = [file for file in files if ".orig.tar." in file.name and file.suffix != ".asc"]
    if not originals:
        raise InfrastructureError(f"the source package of Mesa {version} has no .orig tarball")
    return unpack_source(originals[0], version, suite)


def unpack_source(tarball: Path, version: str, suite: str) -> MesaSource:
    """Unpack the tests and lists of a tarball into the cache.

    Raises:
        UserError: it has none of this kind.
    """

    def make(target: Path) -> None:
        with (
            step(f"Unpacking the tests of Mesa {version}"),
            tarfile.open(tarball) as archive,
        ):
            target.mkdir()
            archive.extractall(target, members=_wanted(archive), filter="data")

    folder = cache_dir() / "silicon"
    folder.mkdir(parents=True, exist_ok=True)
    unpacked = make_once(folder / f"mesa-{version}-{sha256_of(tarball)[:16]}", make)
    source = MesaSource(version, suite, tarball.name, unpacked)
    if not source.test_source.exists() or not (source.models / _TEMPLATE).exists():
        raise UserError(
            f"the source of Mesa {version} has no Teflon tests as they are known here: expected "
            f"{_TESTS}/test_teflon.cpp and tests/{_TEMPLATE} in {tarball.name}",
            hint="compare a Mesa of 24.3 to 25.0: --suite trixie",
        )
    return source


def _wanted(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the members that are needed, with the tarball's top folder left out."""
    for member in archive:
        inside = PurePosixPath(*PurePosixPath(member.name).parts[1:])
        if member.isfile() and any(inside.is_relative_to(part) for part in (_LISTS, _TESTS)):
            yield member.replace(name=str(inside), deep=False)


def _suite_with(delegate: Delegate) -> str:
    """Return the suite whose source package is of a delegate's version: its own, if it names one."""
    if delegate.origin in SUITES:
        return delegate.origin
    # The usual one first: of others the mirrors keep no source of what they have replaced.
    suites = (DISTRIBUTION, *(suite for suite in SUITES if suite != DISTRIBUTION))
    versions = {suite: Archive(suite, ARCHITECTURE).version(_BINARY) for suite in suites}
    for suite, version in versions.items():
        if version.partition("-")[0] == delegate.upstream:
            return suite
    there = ", ".join(f"{version} ({suite})" for suite, version in versions.items())
    raise UserError(
        f"no suite has the source of Mesa {delegate.upstream}",
        hint=f"there are: {there}",
    )


_BINARY = "mesa-teflon-delegate"
