# SPDX-License-Identifier: MIT
"""Which board is at the other end, and whether it is the one that something was made for."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence

from bsp.base.cache import state_dir, write_atomically
from bsp.base.errors import UserError
from bsp.catalog import board_names, load_board, names_no_board, runs_as
from bsp.dts.tree import read_tree
from bsp.identify import Machine, Match, doubt_error, find, identify, machine_of
from bsp.profile import Board
from bsp.remote.facts import read_fdt
from bsp.remote.inventory import Host

from ..plan import Facts
from ..transfer.agent import Agent, decompress_fdt

_FAT_MOUNT = "/boot/firmware"  # where Debian mounts it; profiles may say otherwise


def profile_named(name: str | None) -> Board | None:
    """The profile of that name; None if there is none."""
    return load_board(name) if name is not None and name in board_names() else None


def fat_mount_of(board: Board | None) -> str:
    """Where a board's boot partition is mounted; Debian's place for a board that is not known yet."""
    return board.boot.fat_mount if board and board.boot else _FAT_MOUNT


def machine_at(agent: Agent, facts: Facts, root: str) -> Machine:
    """Return what a board says that it is, with what its device tree says, where that can be read."""
    with contextlib.suppress(UserError):
        blob = decompress_fdt(facts.fdt) or read_fdt(agent.connection, root=root)
        machine = machine_of(read_tree(blob, facts.model))
        if machine.compatible == facts.compatible:
            return machine
    return Machine(facts.compatible, facts.model)


def board_at(agent: Agent, facts: Facts, host: Host, root: str) -> Board:
    """Return the profile of the board at the other end.

    Raises:
        UserError: no profile is for it, several are, or what it says contradicts its name.
    """
    return identify(machine_at(agent, facts, root), what=host.name)


def refuse_doubtful(agent: Agent, facts: Facts, host: Host, board: Board, root: str) -> None:
    """Refuse a board that has a reference board's string and is another, where nobody said which it is.

    Args:
        board: the one that is to be there, by its string; not one that the user named for this host.

    Raises:
        UserError: what else it says contradicts its string.
    """
    if not board.identity.models:
        return
    match = find(machine_at(agent, facts, root), boards=[board])
    if match.doubts:
        raise doubt_error(board, match.doubts, host.name)


def check_identity(
    facts: Facts, compatible: Sequence[str], *, host: str, what: str, board: Board | None = None
) -> None:
    """Refuse a board that is another than the one that something was made for.

    Args:
        compatible: of what was made, the board's own string first.
        board: its profile; it may know the board by its maker's string.

    Raises:
        UserError: the first root ``compatible`` string is another.
    """
    if names_no_board(compatible[0]):
        raise UserError(
            f"{what} is for {compatible[0]!r}, which names a chip or a module, not a board",
            hint="./inv new-board NAME --like BOARD --from-host HOST writes a profile with a string of its "
            "own; nothing was written",
        )
    if facts.compatible[:1] == tuple(compatible[:1]):
        return
    if board is not None and runs_as(board, facts.compatible, facts.model):
        return
    model = f" ({facts.model})" if facts.model else ""
    names = ", ".join(map(repr, facts.compatible)) or "none"
    hint = "check --host and --board"
    if facts.compatible and names_no_board(facts.compatible[0]):
        names += (
            ", the name of a chip: such a tree (often a vendor's) does not say which board it is"
        )
        hint = (
            f"./inv new-board NAME --like BOARD --from-host {host} writes a profile that knows it"
        )
    elif compatible[0] in facts.compatible:
        names += ": a board that was derived from it, whose device tree would be replaced"
        hint = f"./inv new-board NAME --like BOARD --from-host {host} writes a profile of its own"
    raise UserError(
        f"{host} is another board than {what} is for: expected root compatible {compatible[0]!r}, "
        f"found {names}{model}",
        hint=f"{hint}; nothing was written",
    )


def check_serial(host: Host, facts: Facts) -> None:
    """Refuse a machine that is not the one that had this name before, as far as it has a serial number.

    Raises:
        UserError: the serial number is another.
    """
    if not facts.serial:
        return
    file = state_dir() / "boards" / f"{host.name.replace('/', '_')}.json"
    try:
        remembered = json.loads(file.read_text())["serial"]
    except (OSError, ValueError, KeyError):
        write_atomically(file, json.dumps({"serial": facts.serial}).encode() + b"\n")
        return
    if remembered != facts.serial:
        raise UserError(
            f"{host.name} is another board than last time: expected serial number {remembered}, "
            f"found {facts.serial}",
            hint=f"if the board was exchanged: rm {file}. Nothing was written",
        )


def refuse_exchanged(
    before: Facts, after: Facts, host: Host, compatible: Sequence[str], board: Board | None
) -> None:
    """Refuse to confirm on a machine that took the board's place while it was away.

    The board's first string may change with its tree: from its maker's to its own, and back.

    Args:
        compatible: of what was deployed.
        board: its profile.

    Raises:
        UserError: another board answers.
    """
    names = (before.compatible[:1], tuple(compatible[:1]))
    maker = board is not None and runs_as(board, after.compatible, after.model)
    if (after.compatible[:1] in names or maker) and before.serial == after.serial:
        return
    raise UserError(
        f"{host.name} came back as another board: expected {' '.join(before.compatible[:1])} "
        f"{before.serial}, found {' '.join(after.compatible[:1])} {after.serial}",
        hint="look which board answers at that address; nothing was changed on this one",
    )


def refuse_without_boot(host: Host, board: Board) -> None:
    """Refuse boards whose kernel and device tree do not come from a boot partition.

    Raises:
        UserError: the profile has no ``[boot]``, or the virtual board is started without a boot loader.
    """
    handed = board.qemu is not None and not board.qemu.bootloader and host.board == board.name
    if handed:
        raise UserError(
            f"{host.name} is {board.title} in QEMU, which has no boot loader there: QEMU is handed kernel "
            "and DTB, so deploy cannot replace them",
            hint=f"start it with another kernel or DTB: ./inv virtual.up --board {board.name}; or deploy "
            "to a board that boots by itself: ./inv virtual.up",
        )
    if board.boot is None:
        raise UserError(
            f"the profile of {board.name} has no [boot], so deploy does not know its boot partition",
            hint=f"add [boot] with fat_mount to the profile of {board.name}, and prepare the board as "
            "docs/deploy.md says",
        )


def recognised(
    host: Host, agent: Agent, board: Board | None, root: str, *, lock: bool
) -> tuple[Board, str, Facts]:
    """Return which board this is, where its boot partition is mounted, and what it says of itself.

    Args:
        board: profile; None: the host record's, or the one that the board is.
        root: prefix of all paths on the board.

    Raises:
        UserError: no profile is for it, it is another board, or it is started without a boot loader.
    """
    board = board or profile_named(host.board)
    assumed_mount = fat_mount_of(board)
    facts = agent.open(None, fat_mount=assumed_mount, lock=lock)
    board = board or board_at(agent, facts, host, root)
    what = f"the profile {board.name}"
    check_identity(facts, board.compatible, host=host.name, what=what, board=board)
    refuse_without_boot(host, board)
    fat_mount = fat_mount_of(board)
    if fat_mount != assumed_mount:
        facts = agent.open(None, fat_mount=fat_mount, lock=False)
    return board, fat_mount, facts


def opened(host: Host, agent: Agent, root: str, *, lock: bool) -> tuple[str, Facts, Match]:
    """Return where the boot partition is mounted, what the board says, and which profile fits it.

    With the running device tree, also where no generation runs. For what has to go on with a board that
    no profile fits.

    Raises:
        UserError: the host record names no profile, or one whose board boots in another way.
    """
    if host.board is not None:
        board = load_board(host.board)
        refuse_without_boot(host, board)
        fat_mount = fat_mount_of(board)
        facts = agent.open(None, fat_mount=fat_mount, lock=lock, tree=True)
        return fat_mount, facts, Match(board)
    facts = agent.open(None, fat_mount=_FAT_MOUNT, lock=lock, tree=True)
    match = find(machine_at(agent, facts, root))
    fat_mount = fat_mount_of(match.board)
    if fat_mount != _FAT_MOUNT:
        facts = agent.open(None, fat_mount=fat_mount, lock=False, tree=True)
    return fat_mount, facts, match


def problem_of(match: Match) -> str | None:
    """Say why it is not certain which profile a board has; None: it is, or there is none."""
    if match.tied:
        return (
            f"the profiles {' and '.join(each.name for each in match.tied)} both claim this board"
        )
    if match.board is not None and match.doubts:
        return f"it has the string of {match.board.name}, but {'; '.join(match.doubts)}"
    return None
