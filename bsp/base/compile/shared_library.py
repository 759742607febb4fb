# SPDX-License-Identifier: MIT
"""Small libraries of this project in C, compiled once for each machine and cached."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..cache import cache_dir, make_once
from ..process import run
from ..progress import step

_FLAGS = ("-std=gnu11", "-Wall", "-Wextra", "-O2", "-fPIC", "-shared")
# Machine as `uname -m` says -> the compiler's prefix in Debian.
_PREFIX = {"aarch64": "aarch64-linux-gnu-", "x86_64": "x86_64-linux-gnu-"}


@dataclass(frozen=True)
class SharedLibrary:
    """A library that is to be compiled.

    Attributes:
        title: what it is, in a message.
        headers: files that the sources include.
    """

    name: str
    title: str
    sources: Sequence[Path]
    headers: Sequence[Path] = ()

    def key(self, machine: str) -> str:
        """Return what changes when sources, flags or compiler do.

        Raises:
            UserError: the compiler is not installed.
        """
        version = run([_compiler(machine), "--version"]).text.partition("\n")[0]
        contents = [path.read_bytes() for path in (*self.sources, *self.headers)]
        described = repr((contents, _FLAGS, machine, version))
        return hashlib.sha256(described.encode()).hexdigest()[:16]

    def build(self, machine: str) -> Path:
        """Return the library for a machine (``aarch64``, ``x86_64``), from the cache if it is there.

        Raises:
            UserError: the compiler is not installed.
        """
        compiler = _compiler(machine)
        folder = cache_dir() / self.name
        folder.mkdir(parents=True, exist_ok=True)

        def make(target: Path) -> None:
            with step(f"Compiling {self.title} for {machine}"):
                run([compiler, *_FLAGS, "-o", target, *self.sources], timeout_s=120)

        return make_once(folder / f"{self.name}-{machine}-{self.key(machine)}.so", make)


def _compiler(machine: str) -> str:
    return "gcc" if machine == platform.machine() else f"{_PREFIX[machine]}gcc"
