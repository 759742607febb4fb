# SPDX-License-Identifier: MIT
"""Checks that what was deployed works: systemd units, and the device node of the NPU's driver."""

from __future__ import annotations

import os

from .board import Board
from .files import names_in

TYPE_CHECKING = False  # see frames.py
if TYPE_CHECKING:
    from .board import Record

_CLASSES = (("drm", "renderD", "dri"), ("accel", "accel", "accel"))
"""Class in sysfs, what its entries' names begin with, folder of their nodes below /dev."""
_ANSWER_S = 20


def health(board: Board, request: Record) -> Record:
    """Check what the host asks for; each answer says what was found."""
    checks = [_unit(name) for name in request["services"]]
    if request["driver"]:
        checks.append(_node(board, request["driver"]))
    return {"checks": checks}


def _unit(name: str) -> Record:
    import subprocess

    try:
        done = subprocess.run(
            ["systemctl", "is-active", "--", name],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_ANSWER_S,
            check=False,
        )
        output = (done.stdout or done.stderr).decode(errors="replace").strip().partition("\n")[0]
        ok = done.returncode == 0
    except (OSError, subprocess.TimeoutExpired) as error:
        output, ok = str(error), False
    return {"name": f"service {name}", "ok": ok, "found": output}


def _node(board: Board, driver: str) -> Record:
    """Check for a device node of a driver, in sysfs and below /dev; name the drivers of the other nodes."""
    mine, others = "", []
    for kind, prefix, folder in _CLASSES:
        for name in names_in(board.at(f"sys/class/{kind}")):
            if not name.startswith(prefix):
                continue
            bound = _driver_of(board.at(f"sys/class/{kind}/{name}/device"))
            node = f"/dev/{folder}/{name}"
            if not mine and bound == driver and os.path.exists(board.at(node)):
                mine = node + _by_path(board, folder, name)
            else:
                others.append(f"{node} of {bound}")
    nodes = ", ".join(others) or "no device node at all"
    if mine:
        nodes = f"{mine}; {', '.join(others)}" if others else mine
    return {"name": f"render node of {driver}", "ok": bool(mine), "found": nodes}


def _driver_of(device: str) -> str:
    """Return a device's driver. Rocket's cores share one without a bound driver (Linux rocket_drv.c)."""
    if os.path.exists(f"{device}/driver"):
        return os.path.basename(os.path.realpath(f"{device}/driver"))
    name = os.path.basename(os.path.realpath(device))
    return "rocket" if name == "rknn" else name


def _by_path(board: Board, folder: str, name: str) -> str:
    """Return udev's by-path name of a node, in brackets; ``""`` without one."""
    place = board.at(f"dev/{folder}/by-path")
    for link in names_in(place):
        if os.path.basename(os.path.realpath(os.path.join(place, link))) == name:
            return f" (by-path/{link})"
    return ""
