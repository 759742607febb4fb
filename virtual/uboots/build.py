# SPDX-License-Identifier: MIT
"""Builds a U-Boot for QEMU from the distribution's source package; cached by what goes into it."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from bsp.base.cache import cache_dir, make_once, write_atomically
from bsp.base.errors import InfrastructureError, UserError
from bsp.base.packages.apt import Archive
from bsp.base.process import ToolFailedError, require_tool, require_unpacker, run
from bsp.base.progress import step
from bsp.base.room import require_room
from bsp.kernel.config.compare import read_config
from bsp.uboot import UBoot

from . import like

_SUITE, _PACKAGE = "trixie", "u-boot"
_BASE = "qemu_arm64_defconfig"
_CROSS = "aarch64-linux-gnu-"
# A change in how it is built makes another one.
_RECIPE = "1"
_NEEDED_BYTES = 1 << 30


def built(uboot: UBoot, *, jobs: int = 0) -> Path:
    """Return ``u-boot.bin`` for QEMU's virt machine that is like a board's; built on first use.

    Args:
        jobs: how many compilers at once; 0 for one a core.

    Raises:
        UserError: a tool is missing.
        InfrastructureError: the source cannot be fetched, does not build, or not as it has to be.
    """
    archives = Archive(_SUITE, "arm64", sources=True).source(_PACKAGE)
    texts = (_RECIPE, *(each.name for each in archives), like.fragment(uboot),
             like.environment(uboot), like.header(uboot))  # fmt: skip
    key = hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
    folder = cache_dir() / "uboots"
    folder.mkdir(parents=True, exist_ok=True)

    def make(target: Path) -> None:
        with step(f"Building a U-Boot like {uboot.name} (two minutes)"):
            _build(uboot, archives, target, jobs or os.cpu_count() or 1)

    return make_once(folder / f"{uboot.name}-{key}", make) / "u-boot.bin"


def _build(uboot: UBoot, archives: list[Path], target: Path, jobs: int) -> None:
    for tool in (f"{_CROSS}gcc", "make", "bison", "flex", "patch"):
        require_tool(tool)
    require_room(target.parent, _NEEDED_BYTES, "a U-Boot")
    with tempfile.TemporaryDirectory(prefix="workspace-", dir=target.parent) as name:
        source, output = Path(name) / "source", Path(name) / "build"
        _unpack(archives, source)
        _put(source / "include/configs/qemu-arm.h", like.header(uboot))
        _put(source / "board/emulation/qemu-arm/qemu-arm.env", like.environment(uboot))
        wanted = source / "configs/npu_bsp_like.config"
        wanted.write_text(like.fragment(uboot))
        make = ["make", "-C", str(source), f"O={output}", f"CROSS_COMPILE={_CROSS}"]
        make += [f"-j{jobs}", "-s"]
        # The same source gives the same bytes, whenever it is built.
        env = {"SOURCE_DATE_EPOCH": "946684800", "LC_ALL": "C", "KBUILD_BUILD_USER": "npu-bsp",
               "KBUILD_BUILD_HOST": "npu-bsp"}  # fmt: skip
        try:
            run([*make, _BASE, wanted.name], env=env)
            _compare(read_config(output / ".config"), uboot)
            run([*make, "u-boot.bin"], env=env)
        except ToolFailedError as error:
            raise InfrastructureError(
                f"U-Boot (Debian {_SUITE}) like {uboot.name} does not build:\n{error.message}",
                hint="sudo apt-get install gcc-aarch64-linux-gnu bison flex libssl-dev",
            ) from error
        target.mkdir()
        for file in (output / "u-boot.bin", output / ".config"):
            shutil.copyfile(file, target / file.name.lstrip("."))
    (target / "u-boot.bin").chmod(0o444)


def _unpack(archives: list[Path], source: Path) -> None:
    """Unpack the tarballs of a source package, and apply the distribution's patches."""
    source.mkdir()
    for tarball in sorted(archives, key=lambda path: ".debian." in path.name):
        if tarball.name.endswith(".asc"):
            continue
        require_unpacker(tarball)
        strip = "0" if ".debian." in tarball.name else "1"
        run(["tar", "--extract", "--file", tarball, "--directory", source, "--no-same-owner",
             f"--strip-components={strip}"])  # fmt: skip
    patches = source / "debian/patches"
    if not (source / "Makefile").is_file() or not (patches / "series").is_file():
        raise InfrastructureError(
            f"the source package {_PACKAGE} of Debian {_SUITE} is not laid out as expected: no Makefile or "
            "no debian/patches/series"
        )
    for line in (patches / "series").read_text().splitlines():
        name = line.partition("#")[0].split()
        if name:
            content = (patches / name[0]).read_bytes()
            run(["patch", "--batch", "--silent", "-p1", "-d", source], stdin=content)


def _put(path: Path, text: str) -> None:
    if not path.is_file():
        raise InfrastructureError(f"U-Boot's source has no {path.name} where it was in 2025.01")
    write_atomically(path, text.encode())


def _compare(config: Mapping[str, str], uboot: UBoot) -> None:
    """Check that the configuration is as asked for: Kconfig drops what it cannot have without a word.

    Raises:
        InfrastructureError: it is not.
    """
    wrong = [
        f"CONFIG_{symbol} is {config.get(symbol, 'n')}, expected {'y' if there else 'n'}"
        for symbol, there in like.symbols(uboot).items()
        if (config.get(symbol, "n") == "y") != there
    ]
    if wrong:
        raise InfrastructureError(
            f"no U-Boot like {uboot.name} can be made of Debian {_SUITE}'s: " + "; ".join(wrong)
        )


def version_of(file: Path) -> str:
    """Return what a U-Boot says of itself (``U-Boot 2025.01-...``).

    Raises:
        UserError: it is not a U-Boot.
    """
    match = re.search(rb"U-Boot 20\d\d\.\d\d[^\0\n]{0,80}", file.read_bytes())
    if match is None:
        raise UserError(f"{file} is not a U-Boot: nothing in it says which one it is")
    return match[0].decode(errors="replace")
