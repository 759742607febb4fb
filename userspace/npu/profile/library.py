# SPDX-License-Identifier: MIT
"""The library that stamps jobs, as a payload has it: ``preload.c``, compiled."""

from __future__ import annotations

from pathlib import Path

from bsp.base.compile.shared_library import SharedLibrary
from bsp.base.errors import UserError
from bsp.base.progress import say

from ..validate.onboard.profiling import LIBRARY_NAME

_LIBRARY = SharedLibrary(
    Path(LIBRARY_NAME).stem,
    "the profile's library",
    (Path(__file__).with_name("preload.c"),),
)


def compiled(machine: str) -> Path | None:
    """Return the library for a machine (``aarch64``); None, and say so, where there is no compiler."""
    try:
        return _LIBRARY.build(machine)
    except UserError as error:
        say(f"without smoke-test --profile: {error.message.splitlines()[0]}")
        return None
