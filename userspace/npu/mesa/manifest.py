# SPDX-License-Identifier: MIT
"""A built Mesa: the folder that ``build-mesa`` makes and ``--mesa`` names, read and checked."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, cast

from bsp.base.download import sha256_of
from bsp.base.errors import UserError
from bsp.base.output import table
from bsp.base.result import Result
from bsp.base.words import counted, filled

FORMAT = 1
MANIFEST = "manifest.json"
LIBRARY = "libteflon.so"
OPENCL_LIBRARY = "libRusticlOpenCL.so.1"
_ENTRY = b"tflite_plugin_create_delegate"
_AARCH64 = 0xB7
_BUILD = "./inv build-mesa makes one, and prints its path"
_MARKED = re.compile(r"(\d+\.\d+\S*?)\+npu-bsp(\d+\.\d+(?:\.\d+)?)\.p(\d+)")


def mark(npu_bsp: str) -> str:
    """Return what the version of a patched Mesa gets behind it; ``{count}`` is the number of patches."""
    return f"+npu-bsp{npu_bsp}.p{{count}}"


def named(version: str) -> str:
    """Return a version that a library carries as people read it.

    ``25.0.7+npu-bsp0.2.0.p9`` is ``25.0.7 + 9 patches of npu-bsp 0.2.0``; others are returned as they are.
    """
    match = _MARKED.fullmatch(version)
    if not match:
        return version
    upstream, npu_bsp, count = match.groups()
    return f"{upstream} + {counted(int(count), 'patch', 'patches')} of npu-bsp {npu_bsp}"


def patches_in(version: str) -> int:
    """Return how many of our patches the version that a library carries speaks of."""
    match = _MARKED.fullmatch(version)
    return int(match[3]) if match else 0


class PatchRecord(TypedDict):
    """A patch of ours: its name, its first line, the hash of its file."""

    name: str
    title: str
    sha256: str


class OpenclRecord(TypedDict):
    """rusticl beside the delegate; ``contains``: versions of what is linked into it."""

    drivers: list[str]
    options: list[str]
    needed: list[str]
    contains: dict[str, str]


class MesaManifest(TypedDict, total=False):
    """What ``manifest.json`` of a built Mesa says.

    Attributes:
        source: as ``--source`` names it; origin: what that was, exactly.
        patches: those that were applied; patches_present: those that the source had already.
        built_for: the Debian release whose libraries it needs.
        needed: these libraries.
        files: SHA-256 by path in the folder.
        opencl: only where it was asked for.
    """

    format: int
    name: str
    version: str
    title: str
    source: str
    origin: str
    series: str
    patches: list[PatchRecord]
    patches_present: list[PatchRecord]
    drivers: list[str]
    built_for: str
    options: list[str]
    compiler: str
    needed: list[str]
    licence: str
    files: dict[str, str]
    opencl: OpenclRecord
    build_id: str


@dataclass(frozen=True)
class BuiltMesa(Result):
    """A delegate that was built from source: its folder and its manifest."""

    folder: Path
    manifest: MesaManifest

    @property
    def library(self) -> Path:
        """The delegate itself."""
        return self.folder / "lib" / LIBRARY

    @property
    def opencl(self) -> Path | None:
        """rusticl of the same source; None where it was not asked for."""
        return self.folder / "lib" / OPENCL_LIBRARY if self.manifest.get("opencl") else None

    @property
    def build_id(self) -> str:
        """Twelve digits that name source, patches, options and bytes."""
        return self.manifest["build_id"]

    @property
    def version(self) -> str:
        """Mesa's own version: ``25.0.7``."""
        return self.manifest["version"]

    @property
    def title(self) -> str:
        """``25.0.7 + 9 patches of npu-bsp 0.2.0``."""
        return self.manifest["title"]

    @property
    def glibc(self) -> str:
        """The newest version of the C library's symbols that it asks for: ``2.38``."""
        return glibc_of(self.library)

    def document(self) -> dict[str, Any]:
        """What ``build-mesa --json`` prints."""
        return {"path": str(self.folder), **self.manifest}

    def text(self) -> str:
        """The same for people."""
        manifest = self.manifest
        present = manifest["patches_present"]
        lines = [
            f"Mesa {self.title}, build {self.build_id}",
            f"from {manifest['origin']}; drivers: {', '.join(manifest['drivers'])}; "
            f"for {manifest['built_for']}",
            str(self.folder),
        ]
        if self.opencl:
            lines.insert(
                2, f"with rusticl, for OpenCL on {', '.join(manifest['opencl']['drivers'])}"
            )
        rows = [
            (patch["name"].partition("/")[2][:4], patch["title"][:72])
            for patch in manifest["patches"]
        ]
        if rows:
            lines += ["", table(("patch", "what it does"), rows)]
        if present:
            lines += [
                "",
                f"{counted(len(present), 'patch', 'patches')} of ours the source has already",
            ]
        lines += ["", *filled(f"next: ./inv gate-mesa --mesa {self.folder} --quick").splitlines()]
        return "\n".join(lines)


def read_built(folder: Path) -> BuiltMesa:
    """Return what is in a folder that ``build-mesa`` made.

    Raises:
        UserError: it is no such folder, not complete, changed since, or for another machine.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder} is not a built Mesa: {_why(folder, error)}", hint=_BUILD
        ) from error
    if not isinstance(manifest, dict) or manifest.get("name") != "mesa":
        raise UserError(
            f"{folder} is not a built Mesa: its {MANIFEST} is of something else", hint=_BUILD
        )
    if manifest.get("format") != FORMAT:
        raise UserError(
            f"{folder} was made by another version of this project (format {manifest.get('format')}, "
            f"expected {FORMAT})",
            hint=_BUILD,
        )
    for name, sha256 in manifest["files"].items():
        if not (folder / name).is_file() or sha256_of(folder / name) != sha256:
            raise UserError(f"{folder} is not complete, or changed since: {name}", hint=_BUILD)
    built = BuiltMesa(folder, cast(MesaManifest, manifest))
    check_library(built.library)
    return built


def named_mesa(folder: str) -> BuiltMesa | None:
    """Return what ``--mesa`` names; None where it was not given.

    Raises:
        UserError: as ``read_built``.
    """
    return read_built(Path(folder).expanduser().absolute()) if folder else None


def _why(folder: Path, error: OSError | ValueError) -> str:
    if not folder.exists():
        return "there is no such folder"
    if isinstance(error, NotADirectoryError):
        return "it is a file"
    if isinstance(error, FileNotFoundError):
        return f"it has no {MANIFEST}"
    return f"its {MANIFEST} cannot be read"


def check_library(library: Path) -> None:
    """Check that a file is a TFLite delegate for arm64.

    Raises:
        UserError: it is not.
    """
    content = library.read_bytes()
    machine = int.from_bytes(content[18:20], "little")
    if content[:6] != b"\x7fELF\x02\x01" or machine != _AARCH64:
        raise UserError(f"{library} is not a library for arm64", hint=_BUILD)
    if _ENTRY not in content:
        raise UserError(f"{library} is not a TFLite delegate (no {_ENTRY.decode()})", hint=_BUILD)


def glibc_of(library: Path) -> str:
    """Return the newest version of the C library's symbols that a library asks for: ``2.38``."""
    minors = re.findall(rb"GLIBC_2\.(\d+)\0", library.read_bytes())
    return f"2.{max((int(number) for number in minors), default=17)}"
