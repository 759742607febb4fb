# SPDX-License-Identifier: MIT
"""What a flash will do, and what speaks against it: pure, out of what the device's side says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bsp.base.errors import UserError
from bsp.identify import Machine, doubt_error, find
from bsp.profile import Board, board_names, load_board, runs_as
from images.disk.bmap import Map
from images.disk.image import Description

_MIB = 1 << 20


@dataclass(frozen=True)
class WriteRequest:
    """What the user wants written.

    Attributes:
        host: name of the board; None for this machine.
        description: what lies beside the image; None if nothing does.
        board: the profile that the user says the board has; None if he does not.
        any_device: also what cannot be taken out, and plain files.
    """

    device: str
    host: str | None
    map: Map
    description: Description | None
    board: Board | None
    any_device: bool


def check(wish: WriteRequest, facts: dict[str, Any]) -> None:
    """Refuse what would do harm.

    Raises:
        UserError: the device is in use, too small, of a kind that was not asked for, or on the wrong board.
    """
    device, where = facts["device"], f" on {wish.host}" if wish.host else ""
    name = f"{device['path']}{where}"
    if wish.host:
        _check_board(wish, facts["board"])
    if device["holds_root"]:
        raise UserError(
            f"{name} holds the root file system that runs there",
            hint="choose another device, or boot from another one first; ./inv deploy changes what runs",
        )
    if device["mounted"]:
        raise UserError(
            f"{name} is mounted: {', '.join(device['mounted'])}",
            hint="umount " + " ".join(device["mounted"]),
        )
    if device["swap"]:
        raise UserError(f"{name} is used as swap space", hint="swapoff -a")
    if device["holders"]:
        raise UserError(f"{name} is used by {', '.join(device['holders'])} (RAID, LVM or dm-crypt)")
    if device["read_only"]:
        raise UserError(f"{name} is read-only", hint="look for a write-protect switch")
    if device["is_partition"]:
        raise UserError(
            f"{name} is a partition; an image brings its own partition table",
            hint="give the whole device, such as /dev/mmcblk1 or /dev/sdb",
        )
    if not device["is_block"] and not wish.any_device:
        raise UserError(
            f"{name} is no block device", hint="--any-device writes to a plain file all the same"
        )
    if not wish.host and not device["removable"] and not wish.any_device:
        raise UserError(
            f"{name} ({device['model'] or 'no name'}, {device['size_bytes'] // _MIB} MiB) cannot be "
            "taken out of this machine",
            hint="if it is the right one all the same: --any-device",
        )
    if device["size_bytes"] < wish.map.image_bytes:
        raise UserError(
            f"{name} is too small: it has {device['size_bytes']} bytes, the image "
            f"{wish.map.image_bytes}",
            hint="a larger device, or ./inv build-image --size",
        )


def _check_board(wish: WriteRequest, board: dict[str, Any]) -> None:
    expected = wish.description.compatible[0] if wish.description else None
    if wish.board is not None:
        if expected and expected != wish.board.compatible[0]:
            if not wish.description:
                raise RuntimeError("the image has no description")
            raise UserError(
                f"the image is for {wish.description.board} ({expected}), --board says "
                f"{wish.board.name} ({wish.board.compatible[0]})"
            )
        expected = wish.board.compatible[0]
    named = wish.description.board if wish.description else None
    profile = wish.board or (load_board(named) if named in board_names() else None)
    machine = Machine(tuple(board["compatible"]), board["model"])
    if profile is not None and runs_as(profile, machine.compatible, machine.model):
        return  # it does not have a string of its own yet
    if profile is not None and wish.board is None:  # where nobody said which board it is
        doubts = find(machine, boards=[profile]).doubts
        if doubts:
            raise doubt_error(profile, doubts, str(wish.host))
    if expected and expected not in board["compatible"]:
        found = ", ".join(board["compatible"]) or "no device tree"
        raise UserError(
            f"the image is for another board: expected {expected}, {wish.host} is {found}",
            hint="check --host and --image",
        )


def document(wish: WriteRequest, facts: dict[str, Any], image: str, done: int) -> dict[str, Any]:
    """What would be written where, for ``--dry-run`` and before asking."""
    device = facts["device"]
    described = wish.description
    return {
        "host": wish.host,
        "device": device["path"],
        "model": device["model"],
        "device_bytes": device["size_bytes"],
        "partitions_there": device["partitions"],
        "board": facts["board"] if wish.host else None,
        "image": image,
        "image_board": described.board if described else None,
        "image_bytes": wish.map.image_bytes,
        "mapped_bytes": wish.map.mapped_bytes,
        "ranges": [
            {"from_byte": start, "to_byte": end - 1}
            for start, end in _merged([wish.map.span(each) for each in wish.map.ranges])
        ],
        "partitions": list(described.partitions) if described else [],
        "resumes_at_chunk": done,
    }


def _merged(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for start, end in spans:
        if found and found[-1][1] == start:
            found[-1] = (found[-1][0], end)
        else:
            found.append((start, end))
    return found
