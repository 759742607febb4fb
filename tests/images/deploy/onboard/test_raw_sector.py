# SPDX-License-Identifier: MIT
"""Where trial.env lies on its disk: asked of the kernel, and held against what the disk has there."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from images.deploy.boot import state
from images.deploy.onboard import raw_sector
from images.deploy.onboard.board import Board
from images.deploy.onboard.frames import RefusedError
from images.deploy.onboard.script_image import script_text

PHYSICAL, START = 7 * 4096, 2048


def answer(*extents: tuple[int, int, int]) -> bytes:
    """FIEMAP's answer: logical and physical offset and flags of each extent."""
    parts = [
        struct.pack("=QQQQQIIII", logical, at, 4096, 0, 0, flags, 0, 0, 0)
        for logical, at, flags in extents
    ]
    return struct.pack("=QQIIII", 0, 512, 1, len(extents), 2, 0) + b"".join(parts)


def test_one_extent_that_stays_where_it_is() -> None:
    assert raw_sector.offset_in(answer((0, PHYSICAL, 1)), "f") == PHYSICAL


# Linux include/uapi/linux/fiemap.h
@pytest.mark.parametrize(
    "found",
    [
        answer(),
        answer((0, PHYSICAL, 0), (4096, 2 * PHYSICAL, 1)),
        answer((0, PHYSICAL, 1 | 0x2)),  # place unknown
        answer((0, PHYSICAL, 1 | 0x4)),  # delayed allocation
        answer((0, PHYSICAL, 1 | 0x8)),  # compressed or encrypted
        answer((0, PHYSICAL, 1 | 0x200)),  # inside the inode
        answer((0, PHYSICAL, 1 | 0x800)),  # not written yet
        answer((0, PHYSICAL, 1 | 0x2000)),  # shared with another file
        answer((0, PHYSICAL + 8, 1)),
        answer((0, 0, 1)),
        answer((512, PHYSICAL, 1)),
    ],
)
def test_everything_else_is_refused(found: bytes) -> None:
    with pytest.raises(RefusedError):
        raw_sector.offset_in(found, "f")


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Board:
    """A board whose file system is on the first partition of a disk, which is a sparse file."""
    root = tmp_path
    (root / "boot/npu-bsp").mkdir(parents=True)
    (root / "proc").mkdir()
    (root / "proc/mounts").write_text("/dev/sda1 / ext4 rw 0 0\n")
    partition = root / "sys/devices/sda/sda1"
    partition.mkdir(parents=True)
    (partition / "start").write_text(f"{START}\n")
    (root / "sys/devices/sda/queue").mkdir()
    (root / "sys/devices/sda/queue/logical_block_size").write_text("512\n")
    file = root / "boot/npu-bsp/trial.env"
    file.write_bytes(os.urandom(512))
    number = file.stat().st_dev
    (root / "sys/dev/block").mkdir(parents=True)
    link = root / f"sys/dev/block/{os.major(number)}:{os.minor(number)}"
    link.symlink_to(partition)
    (root / "dev").mkdir()
    with (root / "dev/sda").open("wb") as disk:
        disk.seek(START * 512 + PHYSICAL)
        disk.write(file.read_bytes())
    monkeypatch.setattr(raw_sector, "_extents", lambda _: answer((0, PHYSICAL, 1)))
    return Board(str(root), "/boot/firmware")


def trial_env(board: Board) -> str:
    return f"{board.own}/trial.env"


def test_the_boot_files_of_an_ext4_board_are_below_boot(board: Board) -> None:
    assert (board.kind, board.on_ext, board.boot_root) == ("ext4", True, "/boot")
    assert board.fat == board.at("boot")


def test_the_trial_says_which_sector_it_is(board: Board) -> None:
    sector = raw_sector.with_sector(board, trial_env(board), state.render_trial("a" * 12))
    assert len(sector) == state.SECTOR_BYTES
    assert f"setenv npu_sector {START + PHYSICAL // 512:x}\n" in (script_text(sector) or "")
    assert state.parse_trial(sector) == "a" * 12


def test_a_disk_that_has_something_else_there_is_refused(board: Board) -> None:
    Path(trial_env(board)).write_bytes(os.urandom(512))
    with pytest.raises(RefusedError, match="it lies elsewhere"):
        raw_sector.sector_of(board, trial_env(board))


@pytest.mark.parametrize(
    ("change", "says"), [("start", "not a partition"), ("sectors", "expected 512")]
)
def test_disks_whose_sectors_u_boot_counts_otherwise_are_refused(
    board: Board, change: str, says: str
) -> None:
    if change == "start":
        Path(board.at("sys/devices/sda/sda1/start")).unlink()
    else:
        Path(board.at("sys/devices/sda/queue/logical_block_size")).write_text("4096\n")
    with pytest.raises(RefusedError, match=says):
        raw_sector.sector_of(board, trial_env(board))
