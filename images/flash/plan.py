# SPDX-License-Identifier: MIT
"""The plan of a flash, and the reasons against it: pure functions of the facts about the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from bsp.base.errors import UserError
from bsp.catalog import board_names, load_board, runs_as
from bsp.identify import Machine, doubt_error, find
from bsp.profile import Board
from images.disk.bmap import Map
from images.disk.image import Description

from .records import ImagePart, Opened, PlanDocument, RunningBoard, SourceRecord

_MIB = 1 << 20


@dataclass(frozen=True)
class WriteRequest:
    """The image to write, and the device to write it to.

    Attributes:
        host: name of the board; None for this machine.
        description: the description beside the image; None if there is none.
        board: the profile that the user gave for the board; None if not given.
        any_device: accept devices that are not removable, and plain files.
        sector_bytes: in which the image's partition table counts; 0: it does not tell.
    """

    device: str
    host: str | None
    map: Map
    description: Description | None
    board: Board | None
    any_device: bool
    sector_bytes: int = 0


def check(request: WriteRequest, facts: Opened) -> None:
    """Refuse to write where that would do harm.

    Raises:
        UserError: the device is in use, too small, of another kind than requested, or on the wrong board.
    """
    device, where = facts["device"], f" on {request.host}" if request.host else ""
    name = f"{device['path']}{where}"
    if request.host:
        _check_board(request, facts["board"])
    if device["holds_root"]:
        raise UserError(
            f"{name} holds the running root file system",
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
        who = "RAID, LVM or dm-crypt" if device["is_block"] else "a loop device, a virtual machine"
        raise UserError(f"{name} is used by {', '.join(device['holders'])} ({who})")
    if device["read_only"]:
        raise UserError(f"{name} is read-only", hint="look for a write-protect switch")
    if device["is_partition"]:
        raise UserError(
            f"{name} is a partition; an image brings its own partition table",
            hint="give the whole device, such as /dev/mmcblk1 or /dev/sdb",
        )
    if not device["is_block"] and not request.any_device:
        raise UserError(f"{name} is not a block device", hint="--any-device permits a plain file")
    if not request.host and not device["removable"] and not request.any_device:
        raise UserError(
            f"{name} ({device['model'] or 'no name'}, {device['size_bytes'] // _MIB} MiB) cannot be "
            "removed from this machine",
            hint="--any-device writes to it nevertheless",
        )
    if device["size_bytes"] < request.map.image_bytes:
        raise UserError(
            f"{name} is too small: it has {device['size_bytes']} bytes, the image "
            f"{request.map.image_bytes}",
            hint="use a larger device, or ./inv build-image --size",
        )

    sectors = device["sector_bytes"]
    if request.sector_bytes and sectors and request.sector_bytes != sectors:
        raise UserError(
            f"the image's partition table counts in sectors of {request.sector_bytes} bytes, {name} has "
            f"sectors of {sectors}: its partitions would not be found",
            hint="take the image for such a device (UFS and some NVMe have 4096); --raw writes this one "
            "all the same",
        )


def _check_board(request: WriteRequest, board: RunningBoard) -> None:
    description = request.description
    expected = description.compatible[0] if description else None
    if request.board is not None:
        if description and description.compatible[0] != request.board.compatible[0]:
            raise UserError(
                f"the image is for {description.board} ({expected}), --board says "
                f"{request.board.name} ({request.board.compatible[0]})"
            )
        expected = request.board.compatible[0]
    image_board = description.board if description else None
    profile = request.board or (load_board(image_board) if image_board in board_names() else None)
    machine = Machine(tuple(board["compatible"]), board["model"])
    if profile is not None and runs_as(profile, machine.compatible, board["model"]):
        return  # this board has no compatible string of its own yet
    if profile is not None and request.board is None:  # without --board, identify it
        doubts = find(machine, boards=[profile]).doubts
        if doubts:
            raise doubt_error(profile, doubts, str(request.host))
    if expected and expected not in board["compatible"]:
        actual = ", ".join(board["compatible"]) or "no device tree"
        raise UserError(
            f"the image is for another board: expected {expected}, {request.host} is {actual}",
            hint="check --host and --image",
        )


def document(
    request: WriteRequest, facts: Opened, image: str, source: SourceRecord
) -> PlanDocument:
    """Return what would be written where, for ``--dry-run`` and for the question before writing."""
    device = facts["device"]
    described = request.description
    return {
        "host": request.host,
        "device": device["path"],
        "model": device["model"],
        "device_bytes": device["size_bytes"],
        "partitions_there": device["partitions"],
        "board": facts["board"] if request.host else None,
        "image": image,
        "image_board": described.board if described else None,
        "image_bytes": request.map.image_bytes,
        "mapped_bytes": request.map.mapped_bytes,
        "ranges": [
            {"from_byte": start, "to_byte": end - 1}
            for start, end in _merged([request.map.span(mapped) for mapped in request.map.ranges])
        ],
        "partitions": [cast(ImagePart, each) for each in described.partitions] if described else [],
        "resumes_at_chunk": facts["done_chunks"],
        **source,
    }


def _merged(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, end in spans:
        if merged and merged[-1][1] == start:
            merged[-1] = (merged[-1][0], end)
        else:
            merged.append((start, end))
    return merged
