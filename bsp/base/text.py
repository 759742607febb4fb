# SPDX-License-Identifier: MIT
"""Text files of users, in whatever encoding their editors have written them."""

from __future__ import annotations

import codecs
from pathlib import Path

from .errors import UserError


def content(path: Path, *, kind: str, max_bytes: int) -> bytes:
    """Return what is in a file of a user's, which has a bound: no pipe is waited for, no memory filled.

    Args:
        kind: what the file is, for the error: ``a profile``.

    Raises:
        UserError: it is a pipe, or longer than any file of its kind.
        OSError: it cannot be read.
    """
    if path.is_fifo():
        raise UserError(f"{path} is a pipe, not a file", hint=f"{kind} is a text file, in UTF-8")
    with path.open("rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise UserError(
            f"{path} is too long for {kind}: more than {max_bytes >> 10} KiB",
            hint=f"{kind} is a text file, in UTF-8",
        )
    return data


def decoded(data: bytes) -> str | None:
    """Return a text in UTF-8, or as other editors write it: UTF-16 (PowerShell's ``>``), Latin-1.

    A mark at its beginning (Notepad's) is left out. None: it is not a text.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", errors="replace")
    if b"\0" in data:
        return None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")
