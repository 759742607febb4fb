# SPDX-License-Identifier: MIT
"""The bootloader on a disk: where the SoC's boot ROM expects it, and the file that is written there."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bsp.base.errors import UserError
from bsp.catalog import load_soc
from bsp.profile import Board, Bootloader

from .layout import MIB

FIRST_PARTITION_BYTES = 16 * MIB
"""The space before it holds the bootloader of any SoC that boots from the disk."""


@dataclass(frozen=True)
class LoaderFile:
    """The bootloader: where the SoC expects it, and the file that was given."""

    record: Bootloader | None
    file: Path | None
    content: bytes = b""

    @property
    def sha256(self) -> str:
        """Of the file; of nothing, where none was given."""
        return hashlib.sha256(self.content).hexdigest()

    def document(self) -> dict[str, Any]:
        """Return it as a disk's description lists it."""
        if self.record is None:
            return {"included": False, "needs": None, "note": "the machine brings its own"}
        return {
            "included": self.file is not None,
            "file": str(self.file) if self.file else None,
            "offsets_bytes": [piece.offset_bytes for piece in self.record.pieces],
            "sha256": self.sha256 if self.file else None,
            "needs": None if self.file else f"{self.record.file}: {self.record.needs}",
        }

    def pieces(self) -> list[tuple[int, bytes]]:
        """Return the pieces of the bootloader: (offset on the disk, content)."""
        if self.record is None or self.file is None:
            return []
        placed = []
        for piece in self.record.pieces:
            end = None if piece.length_bytes is None else piece.skip_bytes + piece.length_bytes
            placed.append((piece.offset_bytes, self.content[piece.skip_bytes : end]))
        return placed


def read_bootloader(board: Board, file: Path | None) -> LoaderFile:
    """Return the bootloader of a board's SoC, from the file that was given; None: it is not on the disk.

    Raises:
        UserError: the SoC starts none from the disk, or the file cannot be read or does not fit.
    """
    record = load_soc(board.soc).bootloader
    if file is None:
        return LoaderFile(record, None)
    if record is None:
        raise UserError(
            f"the profile of {board.soc} defines no place for a bootloader",
            hint="leave --bootloader out: this machine brings its own",
        )
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(
            f"cannot read the bootloader {file}: {error.strerror}",
            hint=f"it is {record.file}: {record.needs}",
        ) from error
    loader = LoaderFile(record, file, content)
    for offset, piece in loader.pieces():
        if not piece:
            raise UserError(
                f"{file} has only {len(content)} bytes: nothing would be written at byte {offset}",
                hint=f"it is {record.file}: {record.needs}",
            )
        if offset + len(piece) > FIRST_PARTITION_BYTES:
            raise UserError(
                f"{file} does not fit: {len(piece)} bytes at byte {offset}, the first partition "
                f"begins at byte {FIRST_PARTITION_BYTES}"
            )
    return loader
