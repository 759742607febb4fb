# SPDX-License-Identifier: MIT
"""Changes as a device tree overlay, by node path, so that it fits trees with and without labels."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from ..base.cache import cache_dir, make_once
from ..base.errors import UserError
from ..base.process import run
from .compiler.compile import tool_key
from .npu.required_changes import Change, is_text, texts

# Each takes milliseconds; a base that was made to keep a program busy is given up.
_TIMEOUT_S = 30

# What dtc takes in a reference by path; a damaged tree may have anything in a node's name.
_PATH = re.compile(r"[\w,.+*#?@/-]+", re.ASCII)


def overlay_source(changes: Sequence[Change], compatible: str) -> str:
    """Return the overlay's source (``.dtso``).

    References to nodes are written by label where the base tree has labels; else as its phandles,
    and the overlay then fits that very tree only.

    Raises:
        UserError: a node that is to be changed has a name that no device tree may have.
    """
    lines = ["/dts-v1/;", "/plugin/;", "", "/ {", f"\tcompatible = {_quoted(compatible)};", "};"]
    for path, group in groupby(changes, key=lambda change: change.path):
        if not _PATH.fullmatch(path):
            raise UserError(f"the device tree has a node with an impossible name: {path!r}")
        lines += ["", f"&{{{path}}} {{"]
        lines += [f"\t{change.property} = {_value(change)};" for change in group]
        lines.append("};")
    return "\n".join(lines) + "\n"


def _value(change: Change) -> str:
    if is_text(change.after):
        return ", ".join(map(_quoted, texts(change.after)))
    labels = dict(change.labels)
    words = (
        f"&{labels[index]}" if index in labels else str(cell)
        for index, cell in enumerate(change.after)
    )
    return f"<{' '.join(words)}>"


def _quoted(text: str) -> str:
    """Return a string as source: dtc knows C's escapes, with two digits behind ``\\x``."""
    plain = range(32, 127)
    letters = (
        chr(byte) if byte in plain and byte not in b'"\\' else f"\\x{byte:02x}"
        for byte in text.encode()
    )
    return f'"{"".join(letters)}"'


def compiled_overlay(source: str) -> Path:
    """Return the ``.dtbo`` of an overlay's source, compiled once."""
    folder = cache_dir() / "dtbs" / "overlays"
    folder.mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256(f"{tool_key('dtc')}\n{source}".encode()).hexdigest()[:32]

    def make(target: Path) -> None:
        run(["dtc", "-q", "-I", "dts", "-O", "dtb", "-o", target, "-"],
            stdin=source.encode(), timeout_s=_TIMEOUT_S)  # fmt: skip

    return make_once(folder / f"{key}.dtbo", make)


def merge(base: Path, overlay: Path, target: Path) -> None:
    """Apply an overlay to a DTB on the host."""
    run(["fdtoverlay", "-i", base, "-o", target, overlay], timeout_s=_TIMEOUT_S)
