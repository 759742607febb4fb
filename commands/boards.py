# SPDX-License-Identifier: MIT
"""Boards: which there are, what each needs, how to add one."""

from __future__ import annotations

from invoke.context import Context

from bsp.base.result import Answer, Result

from .face.command import command
from .face.flags import BOARD, HOST, KERNEL


@command(
    help={
        "scan": "scan kernel trees: which boards have an NPU with a free driver, or lack little for one",
        "kernel": f"{KERNEL}; may be repeated (default: the distribution's)",
        "fresh": "scan again, ignoring cached answers",
    },
    iterable=["kernel"],
)
def boards(
    _: Context,
    scan: bool = False,
    kernel: list[str] | None = None,
    fresh: bool = False,
) -> Result:
    """List the board profiles, or scan kernels for NPUs. Example: ./inv boards --scan --kernel 7.3."""

    if scan:
        from bsp.scan import show
        from bsp.scan.scan import scan_all

        scans = scan_all(kernel or (), fresh=fresh)
        return Answer(show.document(scans), show.text(scans))
    from bsp import describe
    from bsp.base.errors import UserError
    from bsp.board_record import all_boards, complaint

    if kernel or fresh:
        raise UserError(
            "--kernel and --fresh are for --scan",
            hint="./inv boards --scan --kernel 7.3",
        )
    rows = all_boards()
    problems = complaint(rows)
    code = UserError.exit_code if problems else 0
    return Answer(rows, describe.boards_table(rows), code, problems)


@command(
    help={
        "name": f"{BOARD}, or a profile's file: ./mine.toml",
        "check": "list what is wrong in its profile, and what it still lacks",
    },
    positional=["name"],
)
def board(_: Context, name: str, check: bool = False) -> Result:
    """Explain one board and its NPU. Example: ./inv board vim3."""
    from bsp import describe
    from bsp.board_record import one_board

    if check:
        from bsp.profile_check import check_profile

        return check_profile(name)
    return Answer(one_board(name), describe.board_text(name))


@command(
    help={
        "name": "what to call it: small letters, digits, hyphens",
        "like": f"a board that it resembles: {BOARD}",
        "from-host": f"fill it in from this running board: {HOST}",
        "from-dtb": "fill it in from this device tree (a vendor's, too)",
        "kernel": f"{KERNEL}; it becomes the default, and is searched for the board",
        "output": "folder or file for the profile (default: ~/.config/npu-bsp/boards)",
        "accept-new-key": "on first contact, trust the host's key without asking",
        "dry-run": "show the profile; write nothing",
    },
    positional=["name"],
)
def new_board(
    _: Context,
    name: str,
    like: str = "",
    from_host: str = "",
    from_dtb: str = "",
    kernel: str = "",
    output: str = "",
    accept_new_key: bool = False,
    dry_run: bool = False,
) -> Result:
    """Write a new board's profile. Example: ./inv new-board mine --from-dtb mine.dtb."""
    from pathlib import Path

    from bsp import profile_source as sources
    from bsp.base.flags import refuse_flags
    from bsp.new_board import new_board as make_board

    if from_host:
        refuse_flags({"from-dtb": from_dtb}, "--from-host takes the host's own device tree")
        source = sources.source_of_host(from_host, accept_new_key=accept_new_key)
    elif from_dtb:
        source = sources.source_of_dtb(Path(from_dtb))
    else:
        source = sources.Source("")
    return make_board(name, source, like=like, kernel=kernel, output=output, dry_run=dry_run)
