# SPDX-License-Identifier: MIT
"""Kernel trees: fetched once, verified, cached outside the project.

A source is named as ``6.12`` (the distribution's source package of that series),
``tarball:URL#sha256=HASH``, ``git:URL@REF`` or ``path:DIR``. For device trees only the files that they
are made of are unpacked, a fifteenth of the whole.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..base.cache import cache_dir, make_once
from ..base.errors import InfrastructureError, UserError, nearest
from ..base.process import run
from ..base.progress import step
from ..base.trees import (
    Fetching,
    Parts,
    from_git,
    from_tarball,
    label,
    ref_named,
    tarball_named,
    unpack,
)
from .distribution import all_series, packaged, series_named

# What a device tree of arch/arm64 may include, and what tells which kernel it is. fnmatch patterns
# below the top folder; `*` does not match a slash; a folder stands for all that is below it.
_DTS_PARTS = (
    "Makefile",
    "arch/arm64/boot/dts",
    "arch/arm/boot/dts/*.dtsi",
    "arch/arm/boot/dts/*.h",
    "arch/arm/boot/dts/*/*.dtsi",
    "arch/arm/boot/dts/*/*.h",
    "arch/arm/boot/dts/allwinner",
    "arch/arm/boot/dts/broadcom",  # the Raspberry Pis of arm64 include those of arm
    "arch/arm/boot/dts/st",
    "arch/arm/boot/dts/bcm2*.dts",  # and the same before 6.5, which had no folders there
    "arch/arm/boot/dts/stm32*.dts",
    "arch/arm/boot/dts/sun*.dts",
    "arch/riscv/boot/dts/*/*.dtsi",
    "arch/riscv/boot/dts/*/*.h",
    "include/dt-bindings",
    "include/uapi/linux/input-event-codes.h",  # include/dt-bindings/input links there
    "scripts/dtc/include-prefixes",
    # what says which NPUs the kernel's drivers know, and which rates its clocks reach
    "drivers/gpu/drm/etnaviv/etnaviv_gpu.c",
    "drivers/gpu/drm/etnaviv/etnaviv_hwdb.c",
    "drivers/accel/*/*_drv.c",
    "drivers/clk/imx/clk-composite-8m.c",
    "drivers/clk/imx/clk-composite-93.c",
    "drivers/clk/imx/clk-imx8mp.c",
    "drivers/clk/imx/clk-imx93.c",
    "drivers/clk/meson/g12a.c",
    "drivers/clk/rockchip/clk-rk3588.c",
    "drivers/clk/sunxi-ng/ccu-sun55i-a523.c",
)

# What device trees are checked against.
BINDINGS = "Documentation/devicetree/bindings"
_BINDINGS_PARTS = ("Makefile", "arch/arm64/boot/dts/Makefile", BINDINGS)


@dataclass(frozen=True)
class KernelTree:
    """A kernel source tree on this machine, whole or in part.

    Attributes:
        path: its top folder; not to be written to.
        name: how the source was named (``--kernel``).
        label: the same as a folder name.
        release: ``6.12.107``, from its Makefile.
        origin: which one exactly: package version, hash or commit.
        fixed: it is in the cache and never changes; ``path.name`` then tells it from all others.
    """

    path: Path
    name: str
    label: str
    release: str
    origin: str
    fixed: bool

    @property
    def series(self) -> str:
        """``6.12`` for ``6.12.107``."""
        return ".".join(self.release.split(".")[:2])


def kernel_tree(name: str, *, whole: bool = False, bindings: bool = False) -> KernelTree:
    """Return the kernel tree that ``name`` stands for, fetching it if need be.

    Args:
        name: ``6.12``, ``tarball:URL#sha256=HASH``, ``git:URL@REF`` or ``path:DIR``.
        whole: all of the source, not just what device trees need.
        bindings: a tree that has the bindings (``Documentation/devicetree/bindings``) and may have no
            more than them.

    Raises:
        UserError: ``name`` cannot be read, or what it names is not a kernel tree.
        InfrastructureError: it cannot be fetched, or what came is corrupt.
    """
    parts = None if whole else _BINDINGS_PARTS if bindings else _DTS_PARTS
    kind, colon, rest = name.partition(":")
    makers = {"tarball": from_tarball, "git": from_git}
    if not colon:
        path, origin = _from_distribution(name, parts)
    elif kind == "path":
        path, origin = Path(rest).expanduser().absolute(), "as it is on disk"
        if not path.is_dir():
            raise UserError(f"--kernel {name}: there is no folder {path}")
    elif kind in makers:
        path, origin = makers[kind](rest, _fetching(parts))
    else:
        raise UserError(
            f"unknown kind of kernel source {kind!r} in {name!r}{nearest(kind, [*makers, 'path'])}",
            hint=f"name {', '.join(all_series())}, tarball:URL#sha256=..., git:URL@ref or path:DIR",
        )
    return KernelTree(path, name, label(name), _release(path, name), origin, kind != "path")


def check_source_name(name: str) -> None:
    """Check what ``--kernel`` takes, without fetching anything.

    Raises:
        UserError: it is not such a name, or the folder that it names is not a kernel tree.
    """
    kind, colon, rest = name.partition(":")
    if not colon:
        series_named(name)
    elif kind == "tarball":
        tarball_named(rest, "--kernel")
    elif kind == "git":
        ref_named(rest, _fetching(None))
    else:
        kernel_tree(name)  # a folder; or no kind that there is


def _release(path: Path, name: str) -> str:
    """Return ``6.12.107`` from the Makefile of a kernel tree.

    Raises:
        UserError: it is not a kernel tree.
    """
    try:
        with (path / "Makefile").open(encoding="utf-8", errors="replace") as makefile:
            top = makefile.read(4096)
    except OSError:
        top = ""
    parts = [re.search(rf"^{word} *= *(\d+)", top, re.M) for word in
             ("VERSION", "PATCHLEVEL", "SUBLEVEL")]  # fmt: skip
    if not all(parts) or not (path / "arch/arm64/boot/dts").is_dir():
        raise UserError(
            f"--kernel {name}: {path} is not a Linux source tree "
            "(expected a Makefile with VERSION and a folder arch/arm64/boot/dts)",
            hint="name the top folder of the kernel source",
        )
    return ".".join(part.group(1) for part in parts if part)


def _fetching(parts: Parts) -> Fetching:
    return Fetching(
        option="--kernel",
        what="kernel source",
        example="https://.../linux.git@v6.12",
        check=_release,
        place=lambda name: _target(name, parts),
        parts=parts,
    )


def _target(name: str, parts: Parts) -> Path:
    """Return where in the cache a tree belongs; trees of other parts lie beside each other."""
    folder = cache_dir() / "sources"
    folder.mkdir(parents=True, exist_ok=True)
    name = name.replace(":", "-")
    if parts is None:
        return folder / f"{name}-whole"
    kind = "bindings" if parts == _BINDINGS_PARTS else "dts"
    if kind == "bindings" and (folder / f"{name}-whole").exists():
        return folder / f"{name}-whole"
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]
    return folder / f"{name}-{kind}-{key}"


# --- the distribution's source package -----------------------------------------------------------


def _from_distribution(series: str, parts: Parts) -> tuple[Path, str]:
    series_named(series)
    suite, package, version = packaged(series, image=False)

    def make(target: Path) -> None:
        from ..base.packages.apt import Archive

        debs = Archive(suite, "arm64").download([package])
        with step(f"Unpacking {package}"):
            unpacked = target.with_name("deb")
            run(["dpkg-deb", "--extract", debs[0], unpacked])
            tarballs = sorted(unpacked.glob("usr/src/*.tar.xz"))
            if len(tarballs) != 1:
                raise InfrastructureError(f"{package} {version} holds no single usr/src/*.tar.xz")
            unpack(tarballs[0], target, parts, "kernel source")
            _release(target, series)  # what is not a kernel tree must not get into the cache

    return make_once(_target(f"{package}_{version}", parts), make), f"{package} {version}"


@functools.cache
def board_sources(folder: Path) -> Sequence[str]:
    """Return the names (without ``.dts``) of the boards in a folder of device tree sources."""
    return sorted(entry.name[:-4] for entry in os.scandir(folder) if entry.name.endswith(".dts"))
