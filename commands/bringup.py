# SPDX-License-Identifier: MIT
"""Bring-up: build, deploy and validate everything on a virtual board."""

from __future__ import annotations

from invoke.context import Context

from bsp.base.result import Result

from .face.command import command
from .face.flags import BOARD, KERNEL, MESA


@command(
    help={
        "board": f"{BOARD}, whose device tree is built",
        "kernel": f"{KERNEL}, for that device tree",
        "virtual-board": "virtual board that the rest runs on",
        "mesa": f"{MESA}; patched: the one that ./inv build-mesa makes, built first",
        "keep": "leave the virtual board running",
    }
)
def bringup(
    _: Context,
    board: str = "vim3",
    kernel: str = "",
    virtual_board: str = "virtual-a311d",
    mesa: str = "",
    keep: bool = False,
) -> Result:
    """Build, deploy and validate everything on a virtual board. Example: ./inv bringup."""
    from virtual import bringup as path

    return path.bringup(
        board=board, kernel=kernel or None, virtual=virtual_board, keep=keep, mesa=mesa
    )
