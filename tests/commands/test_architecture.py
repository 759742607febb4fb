# SPDX-License-Identifier: MIT
"""The architecture page names the rooms that there are, and files that there are."""

from __future__ import annotations

import re

from bsp.base.project import PROJECT

from ..test_floors import FLOORS

PAGE = PROJECT / "docs/architecture.md"
GUIDE = PROJECT / "CONTRIBUTING.md"


def drawn_rooms() -> set[str]:
    """The folders of the picture, with the folders that they are drawn in."""
    picture = PAGE.read_text(encoding="utf-8").split("```text\n")[1].split("```")[0]
    found: set[str] = set()
    path: list[tuple[int, str]] = []
    for line in picture.splitlines():
        if match := re.match(r"( *)([a-z_]+)/( |$)", line):
            path = [*(each for each in path if each[0] < len(match[1])), (len(match[1]), match[2])]
            found.add("/".join(name for _, name in path))
    return found


def rooms() -> set[str]:
    """The folders that hold modules of the floors, and the data of boards."""
    found = {"bsp/boards", "bsp/socs", "bsp/uboots"}
    for floor in FLOORS:
        for module in (PROJECT / floor).rglob("*.py"):
            found.add(str(module.parent.relative_to(PROJECT)))
    return found


def test_the_picture_shows_each_room() -> None:
    inner = {"images/disk/initrd", "images/disk/rootfs"}  # parts of a room, each with one module
    assert drawn_rooms() == rooms() - inner


def test_files_that_are_named_exist() -> None:
    for page in (PAGE, GUIDE):
        for name in re.findall(r"`((?:[a-z_]+/)+[\w.]+)`", page.read_text(encoding="utf-8")):
            if "NAME" not in name:
                assert (PROJECT / name).exists(), f"{page.name}: {name}"
