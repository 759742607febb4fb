# SPDX-License-Identifier: MIT
"""The shim: a small library in C, compiled once for each architecture and cached."""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path

from bsp.base.cache import cache_dir, make_once
from bsp.base.process import run
from bsp.base.progress import step

_FOLDER = Path(__file__).parent
SOURCES = tuple(_FOLDER / name for name in ("shim.c", "etnaviv.c", "rocket.c"))
_HEADER = _FOLDER / "shim.h"
_FLAGS = ("-std=gnu11", "-Wall", "-Wextra", "-O2", "-fPIC", "-shared")
# Machine as `uname -m` says -> the compiler's prefix in Debian.
_PREFIX = {"aarch64": "aarch64-linux-gnu-", "x86_64": "x86_64-linux-gnu-"}


def build(machine: str) -> Path:
    """Return the compiled shim for a machine (``aarch64``, ``x86_64``), from the cache if it is there.

    Raises:
        UserError: the compiler is not installed.
    """
    compiler = "gcc" if machine == platform.machine() else f"{_PREFIX[machine]}gcc"
    version = run([compiler, "--version"]).text.partition("\n")[0]
    contents = [path.read_bytes() for path in (*SOURCES, _HEADER)]
    key = hashlib.sha256(repr((contents, _FLAGS, machine, version)).encode()).hexdigest()
    folder = cache_dir() / "npu-shim"
    folder.mkdir(parents=True, exist_ok=True)

    def make(target: Path) -> None:
        with step(f"Compiling the NPU shim for {machine}"):
            run([compiler, *_FLAGS, "-o", target, *SOURCES], timeout_s=120)

    return make_once(folder / f"npu-shim-{machine}-{key[:16]}.so", make)
