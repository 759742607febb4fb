# SPDX-License-Identifier: MIT
"""How far a kernel build is: which objects its Makefiles want, and which are there.

Kbuild does not know how much work it has before it does it. The Makefiles are read as far as they are
lists (``obj-$(CONFIG_X) += a.o b/``), which finds nearly all; what is computed in them is not followed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

_ASSIGN = re.compile(
    r"^([\w-]+?)-(y|m|objs|\$\((?:subst m,y,\$\()?CONFIG_\w+\)?\)?)\s*[:+?]?=\s*(.*)$"
)
_TOP = ("init", "usr", "arch/arm64", "kernel", "certs", "mm", "fs", "ipc", "security", "crypto",
        "io_uring", "block", "drivers", "sound", "net", "lib", "virt", "arch/arm64/lib")  # fmt: skip


def count_objects(tree: Path, config: Mapping[str, str]) -> int:
    """Return about how many objects are compiled from C and assembly for a configuration."""
    objects: set[str] = set()
    seen: set[str] = set()
    folders = list(_TOP)
    while folders:
        folder = os.path.normpath(folders.pop())
        if folder in seen:
            continue
        seen.add(folder)
        lists = _lists(tree / folder, config)
        wanted = [*lists.pop("obj", []), *lists.pop("lib", [])]
        while wanted:
            word = wanted.pop()
            if word.endswith("/"):
                folders.append(f"{folder}/{word}")
            elif word.endswith(".o"):
                parts = lists.pop(word[:-2], None)
                source = f"{tree}/{folder}/{word[:-2]}"
                if parts and not Path(f"{source}.c").exists():
                    wanted.extend(parts)
                elif Path(f"{source}.c").exists() or Path(f"{source}.S").exists():
                    objects.add(f"{folder}/{word}")
    return len(objects)


def _lists(folder: Path, config: Mapping[str, str]) -> dict[str, list[str]]:
    """The lists in one folder's Makefile that the configuration switches on, by name."""
    for name in ("Kbuild", "Makefile"):
        file = folder / name
        if file.is_file():
            break
    else:
        return {}
    lists: dict[str, list[str]] = {}
    text = file.read_text(encoding="utf-8", errors="replace").replace("\\\n", " ")
    for line in text.splitlines():
        match = _ASSIGN.match(line.strip())
        if not match:
            continue
        name, switch, words = match.groups()
        symbol = re.search(r"CONFIG_(\w+)", switch)
        if symbol and config.get(symbol.group(1), "n") not in ("y", "m"):
            continue
        lists.setdefault(name, []).extend(
            word for word in words.split("#")[0].split() if "$" not in word
        )
    return lists


def existing_objects(folder: Path) -> int:
    """Return how many objects lie in a build folder."""
    count = 0
    for root, directories, files in os.walk(folder):
        if root == str(folder):
            directories[:] = [
                name for name in directories if name not in ("scripts", "tools", "include")
            ]
        count += sum(name.endswith(".o") for name in files)
    return count


def drop_unfinished(folder: Path) -> list[str]:
    """Remove what a build that was cut off may have left half written; return the names.

    Kbuild writes ``.NAME.cmd`` after the command that made NAME has ended, so a NAME that is newer than
    it is one whose command did not.
    """
    dropped = []
    for root, _, files in os.walk(folder):
        there = set(files)
        for name in files:
            if not name.endswith((".o", ".a", ".ko", ".dtb")) and name not in ("vmlinux", "Image"):
                continue
            path, command = Path(root, name), Path(root, f".{name}.cmd")
            if command.name not in there or path.stat().st_mtime_ns > command.stat().st_mtime_ns:
                path.unlink()
                dropped.append(str(path.relative_to(folder)))
    return dropped
