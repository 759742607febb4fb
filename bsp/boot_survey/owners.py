# SPDX-License-Identifier: MIT
"""Systems that choose what boots, most with two copies of their root (A/B): known by marks, left alone.

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
    "snapd_recovery_mode=",
    "snap_core=",
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
    if not marks.ids & {"haos", "hassos", "hassio-os"} and "hassos" not in marks.facts.programs:
        return None
    return Owner(
        "Home Assistant OS",
        marks.word("rauc.") or "ID=haos in os-release",
        "its updates replace kernel and device tree: ask for the node in its own device tree, or run "
        "another system",
    )


def _rauc(marks: _Marks) -> Owner | None:
    folders = ("/etc/rauc", "/run/rauc", "/usr/lib/rauc")
    files = (marks.file(f"{folder}/system.conf") for folder in folders)
    mark = marks.word("rauc.") or next(filter(None, files), "")
    return Owner("RAUC", mark, _RAUC) if mark else None


def _ubuntu_core(marks: _Marks) -> Owner | None:
    mark = marks.word("snapd_recovery_mode=") or marks.word("snap_core=")
    return (
        Owner("Ubuntu Core", mark, "a kernel snap (and a gadget) with the device tree in it")
        if mark
        else None
    )


def _balena(marks: _Marks) -> Owner | None:
    mark = next((name for name in ("balena-os", "resin-os", "resinos") if name in marks.ids), "")
    return (
        Owner(
            "balenaOS",
            f"ID={mark} in os-release",
            "an image of balenaOS with the device tree in it",
        )
        if mark
        else None
    )


def _nixos(marks: _Marks) -> Owner | None:
    if "nixos" not in marks.ids:
        return None
    return Owner(
        "NixOS",
        "ID=nixos in os-release",
        "its generations are the way back: hardware.deviceTree.overlays in its configuration, then "
        "`nixos-rebuild boot`",
    )


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
    variable = "ustate of U-Boot's variables" if "ustate" in marks.variables else ""
    mark = variable or marks.file("/etc/swupdate.cfg")
    return (
        Owner("SWUpdate", mark, "an update of SWUpdate's with the device tree in it")
        if mark
        else None
    )


def _android(marks: _Marks) -> Owner | None:
    mark = marks.word("androidboot.slot_suffix=")
    return Owner("Android's slots", mark, "a boot image for its slots") if mark else None


def _rauc_of_uboot(marks: _Marks) -> Owner | None:
    left = [name for name in marks.variables if re.fullmatch(r"BOOT_\w+_LEFT", name)]
    return Owner("RAUC", f"{left[0]} of U-Boot's variables", _RAUC) if left else None


_SYSTEMS: tuple[Callable[[_Marks], Owner | None], ...] = (
    _home_assistant,
    _ubuntu_core,
    _balena,
    _nixos,
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
