# SPDX-License-Identifier: MIT
"""What a payload is to be made of: decided before anything is unpacked."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bsp.base.cache import cache_dir
from bsp.base.download import sha256_of
from bsp.base.errors import UserError, nearest
from bsp.base.output import table
from bsp.base.packages.apt import Archive
from bsp.base.project import PROJECT
from bsp.base.result import Result
from userspace.npu.mesa.manifest import BuiltMesa
from userspace.npu.profile.library import compiled

from .catalogue import ARCHITECTURE, DISTRIBUTIONS, MACHINE, REQUIREMENTS, catalogue
from .parts import name_and_version, pinned

_HERE = Path(__file__).parent
BOARD_PROGRAMS = tuple(
    path
    for path in sorted((PROJECT / "userspace/npu/validate/onboard").glob("*.py"))
    if path.name != "__init__.py"
)
OWN_LICENCE = PROJECT / "LICENSE"


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
            "wheels": pinned(self.requirements),
            "packages": [name_and_version(deb) for deb in self.debs],
            "mesa": self.mesa.title if self.mesa else None,
            "path": str(cached(self)),
            "built": cached(self).exists(),
        }

    def text(self) -> str:
        """The same for people."""
        rows = [(name, version, "wheel") for name, version in pinned(self.requirements).items()]
        rows += [
            (*name_and_version(deb), "Debian, if a library of it is needed") for deb in self.debs
        ]
        if self.mesa:
            rows.append(("Mesa's delegate", self.mesa.title, "built here"))
        if self.profile:
            rows.append(("profile's library", "", "built here"))
        title = f"userspace for Debian {self.distribution}, Python {self.python}, {ARCHITECTURE}"
        return f"{title}\n\n{table(('part', 'version', 'from'), rows)}"


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
    requirements = REQUIREMENTS / runtime.requirements
    delegate = catalogue().delegate
    debs = Archive(release.suite, ARCHITECTURE).download(
        [delegate.package, *delegate.library_packages], with_dependencies=True
    )
    inputs = [
        DISTRIBUTIONS,
        requirements,
        *BOARD_PROGRAMS,
        *sorted(_HERE.glob("*.py")),
        OWN_LICENCE,
    ]
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


def cached(plan: Plan) -> Path:
    """Return the folder in the cache that a payload has, or gets."""
    name = f"{plan.distribution}-{ARCHITECTURE}-python{plan.python}-{plan.key}"
    return cache_dir() / "userspace" / name
