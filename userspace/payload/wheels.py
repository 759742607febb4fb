# SPDX-License-Identifier: MIT
"""Wheels: fetched by hash, unpacked without what a board does not need."""

from __future__ import annotations

import sys
import zipfile
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from bsp.base.download import sha256_of
from bsp.base.errors import InfrastructureError
from bsp.base.process import ToolFailedError, run
from bsp.base.progress import step
from bsp.base.room import hint_of

from .catalogue import MACHINE, catalogue
from .parts import PartRecord
from .plan import Plan

_PIP_TIMEOUT_S = 900


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


def unpack_wheels(plan: Plan, downloads: Path, site: Path) -> list[PartRecord]:
    """Fetch and unpack a payload's wheels into ``site``; describe them."""
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
                hint=hint_of(
                    output,
                    "check the network and `pip config list`, then run the same command again",
                ),
            ) from error
    site.mkdir()
    return [unpack_wheel(wheel, site) for wheel in sorted(downloads.glob("*.whl"))]


def unpack_wheel(wheel: Path, site: Path) -> PartRecord:
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
