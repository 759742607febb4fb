# SPDX-License-Identifier: MIT
"""Checks the files of a manifest: none may lead out of the folder that they are put into.

The board asks this of each manifest before it writes anything, the host of each bundle that it reads. A
manifest cannot express devices, sockets or owners at all; what it can express is limited here.
"""

from __future__ import annotations

import re

TYPE_CHECKING = False  # see frames.py
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

_PLAIN_PATH = re.compile(
    r"(?!(?:.*/)?\.{1,2}(?:/|\Z))(?!manifest\.json)[^/\x00-\x1f\x7f]+(?:/[^/\x00-\x1f\x7f]+)*"
)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PERMISSIONS = 0o777


def problem_of(entries: Iterable[tuple[Any, Any, Any, Any, Any]]) -> str:
    """Say what is wrong with a manifest's files; empty if nothing is.

    Args:
        entries: path, SHA-256, size in bytes, mode and link target of each, as they came.
    """
    paths: set[str] = set()
    parents: set[str] = set()
    for path, sha256, size_bytes, mode, link in entries:
        if not isinstance(path, str) or not _PLAIN_PATH.fullmatch(path):
            return f"{path!r} is not a path below the bundle"
        if path in paths:
            return f"{path!r} is there twice"
        paths.add(path)
        parents.add(path.rpartition("/")[0])
        # type(), not isinstance(): True is not a number here.
        if type(mode) is not int or mode & ~_PERMISSIONS:
            return f"{path!r} has mode {mode!r}, expected permissions only"
        if link is not None:
            if path.startswith("boot/") or not _stays_inside(path, link):
                return f"{path!r} is a link that leads out of the bundle: {link!r}"
        elif not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
            return f"{path!r} has no SHA-256"
        elif type(size_bytes) is not int or size_bytes < 0:
            return f"{path!r} has a size of {size_bytes!r} bytes"
    # A file below another file, or below a link: it would be written to where that leads.
    while parents:
        inside = parents & paths
        if inside:
            return f"{min(inside)!r} is a file, and others are below it"
        parents = {parent.rpartition("/")[0] for parent in parents} - {""}
    return ""


def _stays_inside(path: str, link: object) -> bool:
    """Return whether a relative link stays below the bundle, by its text alone."""
    if not isinstance(link, str) or not link or link.startswith("/") or "\0" in link:
        return False
    depth = path.count("/")
    for part in link.split("/"):
        depth += -1 if part == ".." else part not in ("", ".")
        if depth < 0:
            return False
    return True
