# SPDX-License-Identifier: MIT
"""What the writer answers about a device, and the plan of a flash, as they are in JSON."""

from __future__ import annotations

from typing import TypedDict


class DeviceRecord(TypedDict):
    """The device, as ``Device.facts`` in onboard/writer.py says.

    Attributes:
        sector_bytes: 0 for a plain file.
        model: its name, as sysfs has it; may be empty.
        partitions: names of those that are there.
        mounted: where it, or a part of it, is mounted.
        holders: who else uses it: RAID, a loop device, a program that has locked it.
    """

    path: str
    is_block: bool
    is_partition: bool
    size_bytes: int
    sector_bytes: int
    read_only: bool
    removable: bool
    model: str
    partitions: list[str]
    mounted: list[str]
    holds_root: bool
    swap: bool
    holders: list[str]


class RunningBoard(TypedDict):
    """Which board the writer runs on, by its device tree."""

    compatible: list[str]
    model: str


class Opened(TypedDict):
    """The answer to ``open``: ``done_chunks`` of this image are on the device already."""

    device: DeviceRecord
    board: RunningBoard
    done_chunks: int
    zstd: bool


class Written(TypedDict):
    """The answer to ``write``: chunks that differed when read back, and the hash of all."""

    need: list[int]
    digest: str


class Span(TypedDict):
    """Bytes of the device that are written."""

    from_byte: int
    to_byte: int


class ImagePart(TypedDict):
    """A partition of the image, as its description has it."""

    name: str
    type: str
    start_bytes: int
    size_bytes: int


class SourceRecord(TypedDict):
    """The image's file: how it is compressed, its partition table, its block map."""

    packed: str | None
    table: str | None
    bmap: str | None
    ignored_bmaps: dict[str, str]


class PlanDocument(SourceRecord):
    """What is written where, as ``flash --dry-run --json`` prints it."""

    host: str | None
    device: str
    model: str
    device_bytes: int
    partitions_there: list[str]
    board: RunningBoard | None
    image: str
    image_board: str | None
    image_bytes: int
    mapped_bytes: int
    ranges: list[Span]
    partitions: list[ImagePart]
    resumes_at_chunk: int
