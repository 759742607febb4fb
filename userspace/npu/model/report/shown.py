# SPDX-License-Identifier: MIT
"""Names from a file, for a terminal."""

from __future__ import annotations


def shown(name: str, columns: int) -> str:
    """Return a name with ? for what a terminal would act upon, cut to a width."""
    clean = "".join(each if each.isprintable() else "?" for each in name[: 4 * columns])
    return clean if len(clean) <= columns else f"{clean[: columns - 3]}..."
