# SPDX-License-Identifier: MIT
"""The distribution's own arm64 kernel: fetched as a package, unpacked, never installed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..base.cache import cache_dir, make_once
from ..base.errors import InfrastructureError
from ..base.packages.apt import Archive
from ..base.process import run
from ..base.progress import step
from .distribution import packaged, series_named


@dataclass(frozen=True)
class PrebuiltKernel:
    """A kernel that somebody else compiled.

    Attributes:
        series: ``6.12``.
        release: as ``uname -r`` prints it on the board.
        image: the kernel (``vmlinuz``).
        modules: the folder ``lib/modules/<release>``, with ``modules.dep`` and its like.
        dtbs: folder with ``<vendor>/*.dtb``.
        config: the ``.config`` it was built with.
        package: Debian package it comes from.
        version: the package's version.
    """

    series: str
    release: str
    image: Path
    modules: Path
    dtbs: Path
    config: Path
    package: str
    version: str


def prebuilt_kernel(series: str) -> PrebuiltKernel:
    """Return the distribution's arm64 kernel of a series, unpacked in the cache.

    Raises:
        UserError: the distribution has no such series.
        InfrastructureError: the package cannot be fetched, or is not laid out as expected.
    """
    suite, package, version = packaged(series, image=True)
    release = package.removeprefix("linux-image-")
    folder = cache_dir() / "kernels"
    folder.mkdir(parents=True, exist_ok=True)

    def make(target: Path) -> None:
        parts = [part.format(release=release) for part in series_named(series).parts]
        debs = Archive(suite, "arm64").download([package, *parts])
        with step(f"Unpacking {package}"):
            target.mkdir()
            for deb in debs:
                run(["dpkg-deb", "--extract", deb, target])
            if not (target / "lib").exists():  # Debian 13 packages modules under /usr
                (target / "lib").symlink_to("usr/lib")
            _move_together(target, package, release)
            # The package leaves this to its maintainer script, which runs on the board only.
            run(["depmod", "--basedir", target, release])

    root = make_once(folder / f"{package}_{version}".replace(":", "-"), make)
    kernel = PrebuiltKernel(
        series=series,
        release=release,
        image=root / "boot" / f"vmlinuz-{release}",
        modules=root / "lib/modules" / release,
        dtbs=root / "usr/lib" / package,
        config=root / "boot" / f"config-{release}",
        package=package,
        version=version,
    )
    for path in (kernel.image, kernel.modules / "modules.dep", kernel.dtbs, kernel.config):
        if not path.exists():
            raise InfrastructureError(
                f"{package} {version} has no {path.relative_to(root)}",
                hint=f"rm -r {root} and run the same command again",
            )
    return kernel


def _move_together(root: Path, package: str, release: str) -> None:
    """Lay packages from 7.x on, which keep all below ``lib/modules``, out as the earlier ones are."""
    modules = root / "lib/modules" / release
    for inside, outside in (
        ("vmlinuz", f"boot/vmlinuz-{release}"),
        ("config", f"boot/config-{release}"),
        ("dtb", f"usr/lib/{package}"),
    ):
        if (modules / inside).exists() and not (root / outside).exists():
            (root / outside).parent.mkdir(parents=True, exist_ok=True)
            (modules / inside).rename(root / outside)
