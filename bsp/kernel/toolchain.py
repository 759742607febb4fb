# SPDX-License-Identifier: MIT
"""The compiler that builds a kernel for arm64: the host's gcc or clang, and whether it is new enough."""

from __future__ import annotations

import os
import platform
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from ..base.errors import UserError
from ..base.process import require_tool, run

_PREFIX = "aarch64-linux-gnu-"


@dataclass(frozen=True)
class Toolchain:
    """A compiler for arm64.

    Attributes:
        kind: ``gcc`` or ``clang``.
        banner: first line of what it says of itself; Kconfig's ``CC_VERSION_TEXT``.
        make_arguments: what ``make`` has to be told to use it.
        compiler: how it is started.
    """

    kind: str
    version: str
    banner: str
    make_arguments: tuple[str, ...]
    compiler: str

    def kconfig_variables(self, tree: Path, release: str) -> dict[str, str]:
        """What the kernel's Makefile would export to Kconfig."""
        prefix = next(
            (
                word.partition("=")[2]
                for word in self.make_arguments
                if word.startswith("CROSS_COMPILE=")
            ),
            "",
        )
        binutils = "llvm-" if self.kind == "clang" else prefix
        return {
            "ARCH": "arm64", "SRCARCH": "arm64", "KERNELVERSION": release, "CROSS_COMPILE": prefix,
            "CC": self.compiler.split()[-1], "HOSTCC": "gcc", "HOSTCXX": "g++",
            "LD": "ld.lld" if self.kind == "clang" else f"{prefix}ld", "NM": f"{binutils}nm",
            "AR": f"{binutils}ar", "OBJCOPY": f"{binutils}objcopy", "RUSTC": "rustc",
            "BINDGEN": "bindgen", "PAHOLE": "pahole", "CC_VERSION_TEXT": self.banner,
            "RUSTC_VERSION_TEXT": "", "objtree": str(tree),
        }  # fmt: skip


def find_toolchain(tree: Path, *, llvm: bool = False) -> Toolchain:
    """Return the compiler for a kernel tree. ``CROSS_COMPILE`` in the environment chooses another gcc.

    Raises:
        UserError: it is not installed, or older than the tree wants.
    """
    prefix = os.environ.get("CROSS_COMPILE")
    if prefix is None:
        native = platform.machine() == "aarch64" and not shutil.which(f"{_PREFIX}gcc")
        prefix = "" if native else _PREFIX
    name = "clang" if llvm else f"{prefix}gcc"
    require_tool(name)
    for tool in ("ld.lld", "llvm-ar") if llvm else ():
        require_tool(tool)
    banner = run([name, "--version"]).text.splitlines()[0]
    match = re.search(r"(\d+(?:\.\d+)+)(?!.*\d+\.\d+)", banner) or re.search(r"(\d+)", banner)
    version = match.group(1) if match else "0"
    _refuse_old(tree, "clang" if llvm else "gcc", name, version)
    compiler = name
    arguments = ["ARCH=arm64", *(["LLVM=1"] if llvm else [f"CROSS_COMPILE={prefix}"])]
    if shutil.which("ccache"):
        compiler = f"ccache {name}"
        arguments.append(f"CC={compiler}")
    return Toolchain("clang" if llvm else "gcc", version, banner, tuple(arguments), compiler)


def _refuse_old(tree: Path, kind: str, name: str, version: str) -> None:
    """Ask the tree's own scripts/min-tool-version.sh, which trees since 5.15 have.

    Raises:
        UserError: the compiler is too old.
    """
    script = tree / "scripts/min-tool-version.sh"
    if not script.is_file():
        return
    query = run(
        ["sh", script, "llvm" if kind == "clang" else kind], env={"SRCARCH": "arm64"}, check=False
    )
    least = query.text.strip()
    if re.fullmatch(r"\d+(\.\d+)*", least) and _key(version) < _key(least):
        raise UserError(
            f"this kernel wants {kind} {least} or newer; {name} is {version}",
            hint="install a newer one, or name it: CROSS_COMPILE=PREFIX ./inv build-kernel ...",
        )


def _key(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
