# SPDX-License-Identifier: MIT
"""The shim: a small library in C that a process preloads."""

from __future__ import annotations

from pathlib import Path

from bsp.base.compile.shared_library import SharedLibrary

_FOLDER = Path(__file__).parent
SOURCES = tuple(_FOLDER / name for name in ("shim.c", "etnaviv.c", "rocket.c"))
LIBRARY = SharedLibrary("npu-shim", "the NPU shim", SOURCES, (_FOLDER / "shim.h",))


def build(machine: str) -> Path:
    """Return the compiled shim for a machine (``aarch64``, ``x86_64``), from the cache if it is there.

    Raises:
        UserError: the compiler is not installed.
    """
    return LIBRARY.build(machine)
