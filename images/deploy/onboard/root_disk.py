# SPDX-License-Identifier: MIT
"""What the running kernel needs to reach its root file system, as far as that is modules."""

from __future__ import annotations

import os

from .files import link_of


def root_modules(root: str, kind: str) -> list[str]:
    """The drivers of the root's disk and of what that is attached to, and its file system's.

    Args:
        root: of the board.
        kind: of the root file system.
    """
    number = os.stat(f"{root}/").st_dev
    block = f"{root}/sys/dev/block/{os.major(number)}:{os.minor(number)}"
    folder, top = os.path.realpath(block), os.path.realpath(f"{root}/sys/devices")
    modules = []
    while folder.startswith(f"{top}/"):
        # Drivers that are built in have no module there.
        if module := link_of(f"{os.path.realpath(f'{folder}/driver')}/module"):
            modules.append(os.path.basename(module))
        folder = os.path.dirname(folder)
    if os.path.isdir(f"{root}/sys/module/{kind}"):
        modules.append(kind)
    return modules
