# SPDX-License-Identifier: MIT
"""Systems that update themselves with two copies of their root (A/B): known by marks, and left alone.

They choose what boots and count its attempts; a generation of ours beside that would be undone by
their next update, or would undo it. What they take instead is a bundle of their own:
``bundle --format rauc`` makes RAUC's.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from .facts import BootFacts

SLOT_WORDS = (
    "rauc.slot=",
    "rauc.external=",
    "ostree=",
    "mender.",
    "androidboot.slot_suffix=",
    "systemd.verity",
)
"""Words of a kernel command line that are right for one copy of the system only."""


class Owner(NamedTuple):
    """Who decides what such a board boots.

    Attributes:
        system: RAUC, OSTree, Mender, Home Assistant OS...
        mark: what it was known by.
        instead: how a device tree and kernel get onto the board.
    """

    system: str
    mark: str
    instead: str


_RAUC = (
    "give device tree and kernel to RAUC: ./inv bundle --format rauc (docs/bundles.md), then `rauc "
    "install` on the board"
)


def owner_of(facts: BootFacts) -> Owner | None:
    """Return the A/B system of a board; None: it has none that is known."""
    marks = _Marks(facts)
    return next((owner for find in _SYSTEMS if (owner := find(marks))), None)


class _Marks:
    """What systems are known by: words of the command line, settings, U-Boot's variables."""

    def __init__(self, facts: BootFacts) -> None:
        self.facts = facts
        self.variables = sorted(facts.variables or {})
        releases = ("/etc/os-release", "/usr/lib/os-release")
        self.ids = {facts.setting(file, "ID").lower() for file in releases}

    def word(self, start: str) -> str:
        """Return the first word of the command line that begins so; "" if none does."""
        return next((word for word in self.facts.cmdline.split() if word.startswith(start)), "")

    def file(self, path: str) -> str:
        """Return the path of a file of settings, where it is there; else ""."""
        return path if path in self.facts.settings else ""


def _home_assistant(marks: _Marks) -> Owner | None:
    if not marks.ids & {"haos", "hassos"} and "hassos" not in marks.facts.programs:
        return None
    return Owner(
        "Home Assistant OS",
        marks.word("rauc.") or "ID=haos in os-release",
        "its updates replace kernel and device tree: ask for the node in its own device tree, or run "
        "another system",
    )


def _rauc(marks: _Marks) -> Owner | None:
    mark = marks.word("rauc.") or marks.file("/etc/rauc/system.conf")
    return Owner("RAUC", mark, _RAUC) if mark else None


def _ostree(marks: _Marks) -> Owner | None:
    mark = marks.word("ostree=") or ("/ostree" if marks.facts.ostree else "")
    if not mark:
        return None
    if "torizon" in marks.ids:
        return Owner(
            "Torizon OS",
            mark,
            "an overlay by its own tool: `torizoncore-builder`, or /boot/ostree's overlays.txt through it",
        )
    return Owner("OSTree", mark, "a commit of the system with the device tree in it")


def _mender(marks: _Marks) -> Owner | None:
    variable = next((name for name in marks.variables if name.startswith("mender_")), "")
    mark = (
        f"{variable} of U-Boot's variables" if variable else marks.file("/etc/mender/mender.conf")
    )
    return Owner("Mender", mark, "a Mender artifact with the device tree in it") if mark else None


def _swupdate(marks: _Marks) -> Owner | None:
    mark = marks.file("/etc/swupdate.cfg")
    return (
        Owner("SWUpdate", mark, "an update of SWUpdate's with the device tree in it")
        if mark
        else None
    )


def _android(marks: _Marks) -> Owner | None:
    mark = marks.word("androidboot.slot_suffix=")
    return Owner("Android's slots", mark, "a boot image for its slots") if mark else None


def _rauc_of_uboot(marks: _Marks) -> Owner | None:
    if not any(re.search(r"\bBOOT_(A|B)_LEFT\b", name) for name in marks.variables):
        return None
    return Owner("RAUC", "BOOT_A_LEFT of U-Boot's variables", _RAUC)


_SYSTEMS: tuple[Callable[[_Marks], Owner | None], ...] = (
    _home_assistant,
    _rauc,
    _ostree,
    _mender,
    _swupdate,
    _android,
    _rauc_of_uboot,
)
"""How each is found; one that is built on another comes before it."""


def slot_words(cmdline: str) -> list[str]:
    """Return the words of a command line that name one copy of an A/B system."""
    return [word for word in cmdline.split() if word.startswith(SLOT_WORDS)]
