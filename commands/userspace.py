# SPDX-License-Identifier: MIT
"""Userspace: the offline payload of a board, and delegates that no distribution packages."""

from __future__ import annotations

from invoke.context import Context

from bsp.base.result import Answer, Result

from .face.command import command
from .face.flags import BOARD, MESA


@command(
    help={
        "board": BOARD,
        "distribution": "Debian release on the board (default: the profile's)",
        "python": "the board's Python, such as 3.13 (default: the distribution's)",
        "mesa": MESA,
        "output": "folder for the result (default: the cache)",
        "dry-run": "only say what it would be made of",
    }
)
def build_userspace(
    _: Context,
    board: str,
    distribution: str = "",
    python: str = "",
    mesa: str = "",
    output: str = "",
    dry_run: bool = False,
) -> Result:
    """Build the offline userspace for a board. Example: ./inv build-userspace --board vim3."""
    from pathlib import Path

    from bsp.catalog import load_board
    from userspace.npu.mesa.manifest import named_mesa
    from userspace.payload.payload import build_payload
    from userspace.payload.plan import plan_payload

    chosen = distribution or load_board(board).userspace.distribution
    if dry_run:
        return plan_payload(chosen, python or None, named_mesa(mesa))
    return build_payload(
        distribution=chosen,
        python=python or None,
        target=Path(output) if output else None,
        mesa=named_mesa(mesa),
    )


@command(
    name="build-delegate",
    help={
        "name": "which delegate: opencl",
        "jobs": "compilers at once (default: one a core)",
        "dry-run": "only say what would be built, and whether it is there",
    },
    positional=["name"],
)
def build_delegate(_: Context, name: str, jobs: int = 0, dry_run: bool = False) -> Result:
    """Build a delegate that no distribution packages. Example: ./inv build-delegate opencl."""
    from userspace.npu.opencl import build

    build.check_name(name)
    if dry_run:
        planned = build.plan()
        return Answer(planned, build.plan_text(planned))
    return build.build(jobs=jobs or None)


@command(
    help={
        "source": "distribution:SUITE, tarball:URL#sha256=..., git:URL@ref or path:DIR (default: "
        "distribution:trixie)",
        "patches": "series of our patches by name, or none (default: the one for the source's version)",
        "drivers": "NPU drivers that are built in: etnaviv, rocket, ethosu; several with commas",
        "distribution": "Debian suite whose libraries it is built against",
        "opencl": "build rusticl, Mesa's OpenCL driver, too: takes some minutes and 2 GB more",
        "jobs": "compilers at once (default: one a core)",
        "output": "folder that gets a copy of the result",
        "dry-run": "check the arguments, and say what would be built; fetches nothing",
    },
)
def build_mesa(
    _: Context,
    source: str = "",
    patches: str = "",
    drivers: str = "etnaviv",
    distribution: str = "trixie",
    opencl: bool = False,
    jobs: int = 0,
    output: str = "",
    dry_run: bool = False,
) -> Result:
    """Build Mesa's NPU delegate with our patches, for --mesa. Example: ./inv build-mesa."""
    from pathlib import Path

    from userspace.npu.mesa import build

    request = build.request_for(
        source=source,
        patches=patches,
        drivers=drivers,
        suite=distribution,
        jobs=jobs,
        opencl=opencl,
    )
    if dry_run:
        planned = build.plan(request)
        return Answer(planned, build.plan_text(planned))
    return build.build_mesa(request, output=Path(output) if output else None)
