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

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from bsp.base.cache import copy_folder, make_once
from bsp.base.download import sha256_of
from bsp.base.errors import UserError
from bsp.base.output import table
from bsp.base.progress import step
from bsp.base.result import Result
from bsp.base.words import counted
from userspace.npu.mesa.manifest import BuiltMesa
from userspace.npu.validate.onboard.profiling import LIBRARY_NAME

from .catalogue import ARCHITECTURE
from .libraries import take_libraries
from .parts import PartRecord
from .plan import BOARD_PROGRAMS, OWN_LICENCE, Plan, cached, plan_payload
from .wheels import unpack_wheels

FORMAT = 1


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
    folder = cached(plan)
    folder.parent.mkdir(parents=True, exist_ok=True)

    def make(temporary: Path) -> None:
        with step(f"Building the userspace for {distribution}, Python {plan.python}"):
            _build(plan, temporary)

    make_once(folder, make)
    if target is not None:
        copy_folder(folder, target)
        folder = target
    return Payload(folder, json.loads((folder / "manifest.json").read_text(encoding="utf-8")))


def _build(plan: Plan, target: Path) -> None:
    work = target.with_name("work")
    target.mkdir()
    parts = unpack_wheels(plan, work / "wheels", target / "site")
    parts += take_libraries(plan, work / "debs", target)
    if plan.profile:
        shutil.copyfile(plan.profile, target / "lib" / LIBRARY_NAME)
    (target / "bin").mkdir()
    for program in BOARD_PROGRAMS:
        shutil.copyfile(program, target / "bin" / program.name)
    own = target / "licences" / "npu-bsp" / "copyright"
    own.parent.mkdir(parents=True)
    shutil.copyfile(OWN_LICENCE, own)
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
