# SPDX-License-Identifier: MIT
"""Facts about a board beside its NPU: container, C library, displays, boot files. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """A node in ``/dev/dri`` for displays: its driver, and whether it has connectors."""

    path: str
    driver: str
    has_display: bool


@dataclass(frozen=True)
class BootFile:
    """A file that U-Boot takes as what to boot.

    Attributes:
        changed_s: time of its last change, in seconds since 1970.
        ours: whether it is npu-bsp's boot script.
        disk, partition: what it lies on; ``""`` and 0: not known.
    """

    path: str
    changed_s: int
    ours: bool
    disk: str
    partition: int

    @property
    def is_script(self) -> bool:
        """Whether it is a boot script, and not a configuration of extlinux."""
        return self.path.endswith("boot.scr")


@dataclass(frozen=True)
class System:
    """What was found; empty is "could not be seen" or "there is none".

    Attributes:
        container: ``docker``, ``podman``...; ``""``: the board itself.
        libc: files of the C library that the board's programs are linked to.
        elsewhere: libteflon.so where programs do not look for it.
        delegate_drivers: drivers that the delegate has, of those for NPUs.
        vendor_libraries: runtimes that speak only a vendor's driver.
        by_path: device node to its stable name below ``by-path``.
        seats: minor number of a card to the seat that udev gives it to.
        displays: display servers that are installed.
        cut: regulator to the second at which the kernel switched it off as unused.
        extlinux: the ``append`` lines of extlinux.conf.
    """

    container: str = ""
    libc: tuple[str, ...] = ()
    elsewhere: tuple[str, ...] = ()
    delegate_drivers: tuple[str, ...] = ()
    vendor_libraries: tuple[str, ...] = ()
    cards: tuple[Card, ...] = ()
    by_path: dict[str, str] | None = None
    seats: dict[int, str] | None = None
    displays: tuple[str, ...] = ()
    cut: dict[str, float] | None = None
    boot_files: tuple[BootFile, ...] = ()
    extlinux: tuple[str, ...] = ()

    def stable(self, node: str) -> str:
        """Return a node's name that does not change with the order of drivers, or the node itself."""
        return (self.by_path or {}).get(node, node)


def parse_system(rows: Callable[[str], list[str]]) -> System:
    """Read the sections; ``rows`` returns the lines of the one that is named."""
    mounts = _mounts(rows("mounts"))
    return System(
        container=_container(rows("container")),
        libc=tuple(rows("libc")),
        elsewhere=tuple(rows("elsewhere")),
        delegate_drivers=tuple(dict.fromkeys(rows("delegate_drivers"))),
        vendor_libraries=tuple(dict.fromkeys(rows("vendor_libraries"))),
        cards=tuple(
            Card(words[0], words[1], words[2] == "display")
            for row in rows("cards")
            if len(words := row.split()) == 3
        ),
        by_path=_by_path(rows("by_path")),
        seats={
            int(match[1]): match[2]
            for row in rows("seats")
            if (match := re.search(r"c226:(\d+):E:ID_SEAT=(\S+)", row))
        },
        displays=tuple(dict.fromkeys(row.rpartition("/")[2] for row in rows("displays"))),
        cut=_cut(rows("regulators")),
        boot_files=tuple(
            _boot_file(words, mounts)
            for row in rows("boot_files")
            if len(words := row.split()) == 3 and words[1].isdigit()
        ),
        extlinux=tuple(
            row.split(maxsplit=1)[1] for row in rows("extlinux") if len(row.split()) > 1
        ),
    )


def _container(rows: list[str]) -> str:
    names = {"libpod": "podman", "kubepods": "kubernetes", "oci": "podman", "lxc-libvirt": "lxc"}
    names_of_it = [names.get(row.strip(), row.strip()) for row in rows]
    return names_of_it[0] if names_of_it else ""


def _by_path(rows: list[str]) -> dict[str, str]:
    """Read ``ls -l`` of the folders: a link leads to ``renderD128``, ``card0``, ``accel0``."""
    links = {}
    for row in rows:
        if match := re.search(r"(\S+) -> \.\./(\S+)$", row):
            folder = "accel" if match[2].startswith("accel") else "dri"
            links[f"/dev/{folder}/{match[2]}"] = f"/dev/{folder}/by-path/{match[1]}"
    return links


def _cut(rows: list[str]) -> dict[str, float]:
    """Source: Linux 6.12 drivers/regulator/core.c, ``regulator_late_cleanup``: "NAME: disabling"."""
    cut_at_s = {}
    for row in rows:
        if match := re.search(r"(?:\[ *([\d.]+)\] )?(\S+): disabling$", row):
            cut_at_s[match[2]] = float(match[1] or 0)
    return cut_at_s


def _mounts(rows: list[str]) -> dict[str, tuple[str, int]]:
    """Mount point to its disk and the number of its partition."""
    mounts = {}
    for row in rows:
        device, place = [*row.split(), ""][:2]
        match = re.fullmatch(r"/dev/((?:mmcblk|nvme\d+n|loop)\d+)p(\d+)|/dev/([a-z]+)(\d+)", device)
        if match:
            mounts[place] = (match[1] or match[3], int(match[2] or match[4]))
    return mounts


def _boot_file(words: list[str], mounts: dict[str, tuple[str, int]]) -> BootFile:
    path, changed_s, owner = words
    holders = [place for place in mounts if path.startswith(place.rstrip("/") + "/")]
    disk, partition = mounts[max(holders, key=len)] if holders else ("", 0)
    return BootFile(path, int(changed_s), owner == "ours", disk, partition)
