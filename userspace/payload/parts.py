# SPDX-License-Identifier: MIT
"""What a payload's manifest says of each part, and how the names of parts are read."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

from userspace.npu.mesa.manifest import PatchRecord


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


def pinned(requirements: Path) -> dict[str, str]:
    """Return the versions of the wheels that a requirements file names."""
    lines = requirements.read_text(encoding="utf-8").splitlines()
    pins = [line.split()[0].partition("==") for line in lines if "==" in line and line[0] != " "]
    return {name: version for name, _, version in pins}


def name_and_version(deb: Path) -> tuple[str, str]:
    """Return a Debian package's name and version, from the name of its file."""
    name, version, _ = deb.stem.split("_")
    return name, version.replace("%3a", ":")
