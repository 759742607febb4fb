# SPDX-License-Identifier: MIT
"""Userspace: the offline payload of a board, and delegates that are packaged nowhere."""

from __future__ import annotations

from invoke.context import Context

from bsp.base.result import Answer, Result

from .face.command import command
from .face.flags import BOARD


@command(
    help={
        "board": BOARD,
        "distribution": "Debian release on the board (default: the profile's)",
        "python": "the board's Python, such as 3.13 (default: the distribution's)",
        "output": "put the tree there (default: the cache)",
        "dry-run": "only say what it would be made of",
    }
)
def build_userspace(
    _: Context,
    board: str,
    distribution: str = "",
    python: str = "",
    output: str = "",
    dry_run: bool = False,
) -> Result:
    """Build the offline userspace for a board. Example: ./inv build-userspace --board vim3."""
    from pathlib import Path

    from bsp.profile import load_board
    from userspace.payload import payload

    chosen = distribution or load_board(board).userspace.distribution
    if dry_run:
        return payload.plan_payload(chosen, python or None)
    return payload.build_payload(
        distribution=chosen, python=python or None, target=Path(output) if output else None
    )


@command(
    name="build-delegate",
    help={
        "name": "opencl",
        "jobs": "compilers at once (default: one a core)",
        "dry-run": "only say what would be built, and whether it is there",
    },
    positional=["name"],
)
def build_delegate(_: Context, name: str, jobs: int = 0, dry_run: bool = False) -> Result:
    """Build a delegate that is packaged nowhere. Example: ./inv build-delegate opencl."""
    from userspace.npu.opencl import build

    build.check_name(name)
    if dry_run:
        planned = build.plan()
        return Answer(planned, build.plan_text(planned))
    return build.build(jobs=jobs or None)
