# SPDX-License-Identifier: MIT
"""Systems that update themselves with two copies of their root (A/B): known by marks, and left alone.

They choose what boots and count its attempts; a generation of ours beside that would be undone by
their next update, or would undo it. What they take instead is a bundle of their own:
``bundle --format rauc`` makes RAUC's.
"""

from __future__ import annotations

import re
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
    words = facts.cmdline.split()
    ids = {facts.setting(file, "ID").lower() for file in ("/etc/os-release", "/usr/lib/os-release")}
    variables = facts.variables or {}
    rauc = next((word for word in words if word.startswith("rauc.")), "")
    if "haos" in ids or "hassos" in ids or "hassos" in facts.programs:
        return Owner(
            "Home Assistant OS",
            rauc or "ID=haos in os-release",
            "its updates replace kernel and device tree: ask for the node in its own device tree, or run "
            "another system",
        )
    if rauc or "/etc/rauc/system.conf" in facts.settings:
        return Owner("RAUC", rauc or "/etc/rauc/system.conf", _RAUC)
    ostree = next((word for word in words if word.startswith("ostree=")), "")
    if ostree or facts.ostree:
        name = "Torizon OS" if "torizon" in ids else "OSTree"
        instead = (
            "an overlay by its own tool: `torizoncore-builder`, or /boot/ostree's overlays.txt through it"
            if name == "Torizon OS"
            else "a commit of the system with the device tree in it"
        )
        return Owner(name, ostree or "/ostree", instead)
    mender = next((name for name in sorted(variables) if name.startswith("mender_")), "")
    if mender or "/etc/mender/mender.conf" in facts.settings:
        mark = f"{mender} of U-Boot's variables" if mender else "/etc/mender/mender.conf"
        return Owner("Mender", mark, "a Mender artifact with the device tree in it")
    if "/etc/swupdate.cfg" in facts.settings:
        return Owner(
            "SWUpdate", "/etc/swupdate.cfg", "an update of SWUpdate's with the device tree in it"
        )
    slot = next((word for word in words if word.startswith("androidboot.slot_suffix=")), "")
    if slot:
        return Owner("Android's slots", slot, "a boot image for its slots")
    if re.search(r"\bBOOT_(A|B)_LEFT\b", " ".join(variables)):
        return Owner("RAUC", "BOOT_A_LEFT of U-Boot's variables", _RAUC)
    return None


def slot_words(cmdline: str) -> list[str]:
    """Return the words of a command line that name one copy of an A/B system."""
    return [word for word in cmdline.split() if word.startswith(SLOT_WORDS)]
