# SPDX-License-Identifier: MIT
"""Lock files: recorded answers are given back, hashes are checked, changes are shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bsp.base.errors import InfrastructureError, UserError
from bsp.base.packages import pins
from bsp.catalog import load_board
from images.bundle import lock as locks

BOARD = load_board("virtual")


def test_what_was_recorded_is_what_is_answered(tmp_path: Path) -> None:
    file = tmp_path / "busybox_1%3a1.37_arm64.deb"
    file.write_bytes(b"one")
    recorder = pins.recorder(fresh=False)
    assert recorder.answer("version busybox", lambda: ["1.37"]) == ["1.37"]
    recorder.check(file)
    follower = pins.Pins(where="lock", answers=recorder.answers, files=recorder.files)
    assert follower.answer("version busybox", lambda: pytest.fail("asked")) == ["1.37"]
    assert follower.answer("another question", lambda: ["asked"]) == ["asked"]
    follower.check(file)
    file.write_bytes(b"two")
    with pytest.raises(InfrastructureError, match="is not the file that lock names"):
        follower.check(file)
    assert "no longer has busybox" in follower.gone("busybox_1.37").message


def test_pins_are_in_force_for_a_block_only() -> None:
    with pins.using(pins.Pins()):
        assert pins.current() is not None
    assert pins.current() is None


def lock_file(folder: Path, **changes: object) -> Path:
    content = {
        "format": 1, "board": "virtual", "kernel": "6.12", "answers": {"q": ["a"]}, "files": {},
        "inputs": [{"kind": "package", "name": "zlib1g", "version": "1.3", "sha256": "ab" * 32}],
        **changes,
    }  # fmt: skip
    path = folder / "lock.json"
    path.write_text(json.dumps(content))
    return path


def test_a_lock_is_followed(tmp_path: Path) -> None:
    with locks.followed(BOARD, lock_file(tmp_path)) as path:
        chosen = pins.current()
        assert path is not None
        assert chosen is not None
        assert chosen.knows("q")
    with locks.followed(BOARD, tmp_path / "none") as nothing:
        assert nothing is None
        assert pins.current() is None


def test_locks_that_cannot_be_followed(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match="is the lock file of vim3, not of virtual"),
        locks.followed(BOARD, lock_file(tmp_path, board="vim3")),
    ):
        pass
    inputs = [
        {
            "kind": "model list",
            "name": "userspace/npu/validate/models.toml",
            "version": "",
            "sha256": "0",
        }
    ]
    with (
        pytest.raises(
            UserError, match=r"for another version of userspace/npu/validate/models\.toml"
        ),
        locks.followed(BOARD, lock_file(tmp_path, inputs=inputs)),
    ):
        pass
    with pytest.raises(UserError, match="format is 2"):
        locks.read(lock_file(tmp_path, format=2))
    (tmp_path / "lock.json").write_text("{")
    with pytest.raises(UserError, match="is not a lock file"):
        locks.read(tmp_path / "lock.json")


def test_a_lock_that_is_there_stays(tmp_path: Path) -> None:
    path = lock_file(tmp_path)
    before = path.read_bytes()
    found = locks.lock(BOARD, kernel=None, file=str(path))
    assert not found.written
    assert "--update" in found.text()
    assert path.read_bytes() == before


@pytest.mark.network
@pytest.mark.slow
def test_writing_following_and_updating(tmp_path: Path) -> None:
    path = tmp_path / "new.json"
    written = locks.lock(BOARD, kernel=None, file=str(path))
    kinds = {each.kind for each in written.content.inputs}
    assert kinds >= {"package", "wheel", "model", "wheel list", "model list"}
    assert written.written
    content = json.loads(path.read_text())
    for each in content["inputs"]:
        if each["name"] == "busybox-static":
            each["version"], each["sha256"] = "1:1.0", "00" * 32
    path.write_text(json.dumps(content))
    updated = locks.lock(BOARD, kernel=None, file=str(path), update=True)
    assert [change[0] for change in updated.changes] == ["package busybox-static"]
    assert updated.changes[0][1].startswith("1:1.0")
    assert "1:1.0" in updated.text()
