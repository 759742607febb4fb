# SPDX-License-Identifier: MIT
"""armbianEnv.txt with our overlay and without it again; U-Boot takes the last ``user_overlays=``."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from images.deploy.onboard import persist
from images.deploy.onboard.board import Board
from images.deploy.onboard.frames import RefusedError

# As armbian/build writes it, with what armbian-add-overlay adds.
ENV = b"verbosity=1\nbootlogo=false\nfdtfile=amlogic/meson-g12b-a311d-khadas-vim3.dtb\nrootfstype=ext4\n"


@pytest.mark.parametrize(
    ("before", "line"),
    [
        (ENV, b"user_overlays=npu-bsp"),
        (ENV + b"user_overlays=can i2c\n", b"user_overlays=can i2c npu-bsp"),
        (ENV + b"user_overlays=\n", b"user_overlays=npu-bsp"),
        (ENV + b"user_overlays=old\nuser_overlays=can\n", b"user_overlays=can npu-bsp"),
        (ENV[:-1], b"user_overlays=npu-bsp"),
    ],
)
def test_the_overlay_is_named_and_taken_out_again(before: bytes, line: bytes) -> None:
    named = persist.with_overlay(before)
    assert [each for each in named.split(b"\n") if each.startswith(b"user_overlays=")][-1] == line
    assert set(before.split(b"\n")) - set(named.split(b"\n")) <= {
        each for each in before.split(b"\n") if each.startswith(b"user_overlays=")
    }
    assert persist.with_overlay(named) == named
    kept = before if b"user_overlays=\n" not in before else ENV
    assert persist.without_overlay(named).rstrip(b"\n") == kept.rstrip(b"\n")


def test_what_somebody_added_since_stays() -> None:
    named = persist.with_overlay(ENV).replace(b"=npu-bsp\n", b"=npu-bsp can\n")
    assert persist.without_overlay(named) == ENV + b"user_overlays=can\n"


@pytest.fixture
def board(tmp_path: Path) -> Board:
    (tmp_path / "boot/overlay-user").mkdir(parents=True)
    (tmp_path / "boot/armbianEnv.txt").write_bytes(ENV)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/mounts").write_text("/dev/mmcblk1p1 / ext4 rw 0 0\n")
    return Board(str(tmp_path), "/boot", exact=True)


def boot_files(board: Board) -> dict[str, bytes]:
    folder = Path(board.fat)
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_armbian_keeps_an_overlay_and_gives_it_back(board: Board) -> None:
    before = boot_files(board)
    content = base64.b64encode(b"an overlay").decode()
    persist.persist(board, {"way": "armbian", "content": content})
    assert persist.kept_by(board) == "armbian"
    changed = boot_files(board)
    assert changed["overlay-user/npu-bsp.dtbo"] == b"an overlay"
    assert changed["armbianEnv.txt"] == ENV + b"user_overlays=npu-bsp\n"
    assert set(changed) == {*before, "overlay-user/npu-bsp.dtbo"}
    with pytest.raises(RefusedError, match="kept by armbian already"):
        persist.persist(board, {"way": "u-boot-menu", "content": content})

    persist.unpersist(board)
    assert boot_files(board) == before
    assert persist.kept_by(board) == ""


def test_a_board_without_armbians_file_is_left_as_it_is(board: Board) -> None:
    Path(board.fat, "armbianEnv.txt").unlink()
    before = boot_files(board)
    with pytest.raises(RefusedError, match=r"armbianEnv\.txt"):
        persist.persist(board, {"way": "armbian", "content": ""})
    assert boot_files(board) == before
    assert persist.kept_by(board) == ""
