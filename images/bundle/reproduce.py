# SPDX-License-Identifier: MIT
"""The same inputs, the same bytes: a bundle made twice, apart in folder, time, time zone and umask.

What is fetched is shared (packages, sources, kernels that were built); all that is made of it is made
anew each time: device tree, userspace, initial RAM disk, manifest, SBOM, signature.
"""

from __future__ import annotations

import filecmp
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bsp.base.cache import cache_dir
from bsp.base.errors import ValidationError
from bsp.base.process import run
from bsp.base.progress import step
from bsp.base.project import PROJECT
from bsp.base.words import counted

_FETCHED = ("apt", "downloads", "kernels", "packages", "sources", "builds", "models")
_ZONES = ("UTC", "Pacific/Kiritimati")
_UMASKS = ("022", "077")
_APART_S = 2.1
"""FAT and ZIP count in steps of two seconds; whatever keeps a time shows it after that."""


def reproduce(arguments: list[str]) -> dict[str, Any]:
    """Make a bundle twice with ``./inv bundle ARGUMENTS``, and compare.

    Returns:
        ``identical``, ``generation``, ``files``, ``bytes_total``, ``different`` (paths).

    Raises:
        ValidationError: the two differ; says in which files.
        ToolFailedError: it cannot be made.
    """
    with tempfile.TemporaryDirectory(prefix="npu-bsp-reproduce-", dir=cache_dir()) as name:
        folders = []
        for number, zone in enumerate(_ZONES):
            place = Path(name) / ("a" if number == 0 else "another-folder") / "cache"
            place.mkdir(parents=True)
            for shared in _FETCHED:
                (cache_dir() / shared).mkdir(exist_ok=True)
                (place / shared).symlink_to(cache_dir() / shared)
            target = place.parent / "bundle"
            with step(f"Making the bundle in {place.parent.name}/"):
                run(
                    ["sh", "-c", f'umask {_UMASKS[number]}; exec "$@"', "sh", sys.executable, "-m",
                     "invoke", "bundle", *arguments, "--output", target, "--json"],
                    cwd=PROJECT,
                    env={"NPU_BSP_CACHE": str(place), "TZ": zone},
                )  # fmt: skip
            folders.append(target)
            if number == 0:
                time.sleep(_APART_S)
        with step("Comparing"):
            return _compared(*folders)


def _compared(one: Path, other: Path) -> dict[str, Any]:
    from images.bundle import manifest as bundles

    names = [
        {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not _is_folder(path)}
        for folder in (one, other)
    ]
    different = sorted(names[0] ^ names[1])
    for name in sorted(names[0] & names[1]):
        first, second = one / name, other / name
        if first.is_symlink() or second.is_symlink():
            same = _link(first) == _link(second)
        else:
            same = filecmp.cmp(first, second, shallow=False)
            same = same and first.stat().st_mode & 0o111 == second.stat().st_mode & 0o111
        if not same:
            different.append(name)
    found = bundles.load(one)
    if different:
        raise ValidationError(
            f"two bundles of the same inputs differ in {counted(len(different), 'file')}: "
            f"{', '.join(different[:6])}",
            hint="an input that changes by itself? ./inv lock --board B --update shows what changed",
        )
    return {
        "identical": True,
        "generation": found.generation,
        "files": len(names[0]),
        "bytes_total": found.manifest.total_bytes,
        "different": [],
    }


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _link(path: Path) -> Path | None:
    return path.readlink() if path.is_symlink() else None
