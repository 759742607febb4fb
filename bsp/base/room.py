# SPDX-License-Identifier: MIT
"""Room on a disk: asked for before work begins, and missed by what failed, in one set of words."""

from __future__ import annotations

import errno
import os
import re
import shutil
from pathlib import Path

from .errors import InfrastructureError

_MIB = 1 << 20
_FULL = re.compile(
    f"{os.strerror(errno.ENOSPC)}|{os.strerror(errno.EDQUOT)}|Wrote only \\d+ of \\d+ bytes"  # tar
)
CACHE = "make room, or set NPU_BSP_CACHE to another folder"


def hint_of(error: object, otherwise: str) -> str:
    """Return the hint of an error that a full disk may have caused: of what was fetched or unpacked.

    Args:
        error: the error, or what a program has said.
        otherwise: the hint where the disk is not full.
    """
    return f"the disk is full: {CACHE}" if _FULL.search(str(error)) else otherwise


def require_room(folder: Path, needed_bytes: int, what: str, *, hint: str = CACHE) -> None:
    """Refuse work whose disk has too little room.

    Args:
        folder: where it will be written; present.
        what: a noun, as the message says it: ``an image``.

    Raises:
        InfrastructureError: there is not enough room.
    """
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        raise InfrastructureError(
            f"not enough room for {what}: {free_bytes // _MIB} MiB free in {folder}, "
            f"{needed_bytes // _MIB} MiB needed",
            hint=hint,
        )
