# SPDX-License-Identifier: MIT
"""Reproducibility: make a bundle twice, in another folder, time zone and umask, and compare the bytes.

Both builds share what is fetched (packages, sources, built kernels). Everything that is made from it is
made again: device tree, userspace, initial RAM disk, manifest, SBOM, signature.
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
_PAUSE_S = 2.1
"""FAT and ZIP store times in steps of two seconds: after this pause an embedded time differs."""


def reproduce(arguments: list[str]) -> dict[str, Any]:
    """Make a bundle twice with ``./inv bundle ARGUMENTS``, and compare.

    Returns:
        ``identical``, ``generation``, ``files``, ``bytes_total``, ``different`` (paths).

    Raises:
        ValidationError: the two differ; the message names the files.
        ToolFailedError: the bundle cannot be made.
    """
    with tempfile.TemporaryDirectory(prefix="npu-bsp-reproduce-", dir=cache_dir()) as workspace:
        folders = []
        for number, zone in enumerate(_ZONES):
            cache = Path(workspace) / ("a" if number == 0 else "another-folder") / "cache"
            cache.mkdir(parents=True)
            for shared in _FETCHED:
                (cache_dir() / shared).mkdir(exist_ok=True)
                (cache / shared).symlink_to(cache_dir() / shared)
            target = cache.parent / "bundle"
            with step(f"Making the bundle in {cache.parent.name}/"):
                run(
                    ["sh", "-c", f'umask {_UMASKS[number]}; exec "$@"', "sh", sys.executable, "-m",
                     "invoke", "bundle", *arguments, "--output", target, "--json"],
                    cwd=PROJECT,
                    env={"NPU_BSP_CACHE": str(cache), "TZ": zone},
                )  # fmt: skip
            folders.append(target)
            if number == 0:
                time.sleep(_PAUSE_S)
        with step("Comparing the two bundles"):
            return _compare(*folders)


def _compare(left: Path, right: Path) -> dict[str, Any]:
    from images.bundle import manifest as bundles

    names = [
        {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not _is_folder(path)}
        for folder in (left, right)
    ]
    different = sorted(names[0] ^ names[1])
    for name in sorted(names[0] & names[1]):
        first, second = left / name, right / name
        if first.is_symlink() or second.is_symlink():
            same = _link(first) == _link(second)
        else:
            same = filecmp.cmp(first, second, shallow=False)
            same = same and first.stat().st_mode & 0o111 == second.stat().st_mode & 0o111
        if not same:
            different.append(name)
    bundle = bundles.load(left)
    if different:
        raise ValidationError(
            f"two bundles of the same inputs differ in {counted(len(different), 'file')}: "
            f"{', '.join(different[:6])}",
            hint="an input may have changed meanwhile: ./inv lock --board B --update shows which",
        )
    return {
        "identical": True,
        "generation": bundle.generation,
        "files": len(names[0]),
        "bytes_total": bundle.manifest.total_bytes,
        "different": [],
    }


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _link(path: Path) -> Path | None:
    return path.readlink() if path.is_symlink() else None
