# SPDX-License-Identifier: MIT
"""Asked = got: a kernel's configuration compared with what the fragments ask for.

The kernel's own tools drop a symbol whose dependencies are not met without a word; a kernel that lacks
its storage driver is then found out about by a board that does not boot.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .fragments import Asked

_SYMBOL = re.compile(r"^\s*(?:menu)?config\s+(\w+)\s*$", re.M)
_OFF = ("n", "")


@dataclass(frozen=True)
class Difference:
    """A symbol that is not as it was asked for.

    Attributes:
        got: its value; empty: the configuration does not mention it.
        reasons: why, as far as the kernel's Kconfig files say, one line each, indented by depth.
    """

    asked: Asked
    got: str
    reasons: tuple[str, ...] = field(default=())

    def text(self) -> str:
        """A paragraph for people."""
        got = f"is {self.got}" if self.got else "was dropped"
        lines = [f"{self.asked.symbol}: asked for {self.asked.value} ({self.asked.where}), {got}"]
        return "\n".join([*lines, *(f"  {reason}" for reason in self.reasons)])

    def document(self) -> dict[str, object]:
        """The same as JSON."""
        return {
            "symbol": self.asked.symbol,
            "asked": self.asked.value,
            "got": self.got or None,
            "where": self.asked.where,
            "reasons": list(self.reasons),
        }


def read_config(path: Path) -> dict[str, str]:
    """Return the symbols of a ``.config`` and their values; those that are not set have ``n``."""
    values = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("CONFIG_"):
            symbol, _, value = line.removeprefix("CONFIG_").partition("=")
            values[symbol] = value
        elif line.startswith("# CONFIG_") and line.endswith(" is not set"):
            values[line.removeprefix("# CONFIG_").removesuffix(" is not set")] = "n"
    return values


def differences(
    asked: Mapping[str, Asked],
    got: Mapping[str, str],
    *,
    module_will_do: bool = False,
    shipped_files: int = 0,
) -> list[Difference]:
    """Return what is not as asked.

    Args:
        module_will_do: take ``m`` for ``y``, and leave mere preferences out: for kernels that others
            configured.
        shipped_files: how many of the fragments, from the first on, are this project's: such a kernel may
            have what these leave off, and not what a user's switches off.
    """
    mismatches = []
    for each in asked.values():
        value = got.get(each.symbol, "")
        if each.is_unset_in_passing or (
            value == each.value
            or (each.value in _OFF and value in _OFF)
            or _same(each.value, value)
        ):
            continue
        if module_will_do and (
            each.preferred_only
            or (each.value == "n" and each.rank < shipped_files)
            or {each.value, value} <= {"y", "m"}
        ):
            continue
        mismatches.append(Difference(each, value))
    return mismatches


def _same(asked: str, got: str) -> bool:
    """Whether two numbers are the same, one perhaps in hexadecimal."""
    try:
        return int(asked, 0) == int(got, 0)
    except ValueError:
        return False


def known_symbols(tree: Path) -> set[str]:
    """Return the names of all symbols in the Kconfig files that arm64 can reach, and then some."""
    skip = {tree / "arch" / name.name for name in (tree / "arch").iterdir() if name.name != "arm64"}
    skip |= {tree / "Documentation", tree / "tools", tree / "scripts" / "kconfig" / "tests"}
    return _symbols_below(tree, skip)


def foreign_symbols(tree: Path) -> dict[str, str]:
    """Return the names of symbols that only other architectures have, each with one of them."""
    symbols: dict[str, str] = {}
    for folder in sorted(_entries(tree / "arch")):
        if folder.is_dir() and folder.name not in ("arm64", "um"):
            for symbol in _symbols_below(folder, {folder / "boot"}):
                symbols.setdefault(symbol, folder.name)
    return symbols


def _symbols_below(top: Path, skip: Collection[Path]) -> set[str]:
    symbols: set[str] = set()
    folders = [top]
    while folders:
        folder = folders.pop()
        for entry in _entries(folder):
            if entry.is_dir() and not entry.is_symlink():
                if entry not in skip and entry.name != ".git":
                    folders.append(entry)
            elif entry.name.startswith("Kconfig"):
                symbols.update(_SYMBOL.findall(entry.read_text(encoding="utf-8", errors="replace")))
    return symbols


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []
