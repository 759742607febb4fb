# SPDX-License-Identifier: MIT
"""Text files of users, in whatever encoding their editors have written them."""

from __future__ import annotations

import codecs


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
