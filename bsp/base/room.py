# SPDX-License-Identifier: MIT
"""Is there room on the disk for what comes? Asked before work begins, with one answer in words."""

from __future__ import annotations

import shutil
from pathlib import Path

from .errors import InfrastructureError

_MIB = 1 << 20
CACHE = "make room, or set NPU_BSP_CACHE to another folder"


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
