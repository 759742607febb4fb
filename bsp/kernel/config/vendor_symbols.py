# SPDX-License-Identifier: MIT
"""Symbols that only vendors' kernel trees have, known by their names: ``vendor_symbols.toml``."""

from __future__ import annotations

import functools
import re
import tomllib
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("vendor_symbols.toml")


@functools.cache
def _data() -> dict[str, Any]:
    return tomllib.loads(FILE.read_text(encoding="utf-8"))


def is_vendors_own(symbol: str) -> bool:
    """Whether a symbol was seen in a vendor's tree."""
    return any(symbol in tree["has"] for tree in _data()["tree"])


def vendor_lines(symbol: str) -> tuple[str, ...]:
    """Say which tree has a symbol that the kernel at hand has not; nothing where its name does not tell."""
    data = _data()
    for tree in data["tree"]:
        if symbol in tree["has"]:
            instead = data["instead"].get(symbol)
            return (f"{tree['name']} has it", *([f"it is {instead}"] if instead else []))
    for tree in data["tree"]:
        if any(re.fullmatch(pattern, symbol) for pattern in tree["like"]):
            return (f"by its name it is of {tree['name']}",)
    return ()
