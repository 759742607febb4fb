# SPDX-License-Identifier: MIT
"""Private keys stay in their files: in no process's arguments, nor in what is printed, sent or kept."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from images.bundle import manifest as bundles
from images.bundle import sign
from images.deploy.deploy import deploy
from images.deploy.status import status
from tests.support.fake_board import BOARD_MARKS, FakeBoard, make_bundle
from tests.support.local_sshd import make_key

pytestmark = BOARD_MARKS


@contextmanager
def arguments_seen() -> Iterator[set[bytes]]:
    """All that stands in the arguments and environments of processes meanwhile."""
    seen: set[bytes] = set()
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            for place in (
                *Path("/proc").glob("[0-9]*/cmdline"),
                *Path("/proc").glob("[0-9]*/environ"),
            ):
                with suppress(OSError):
                    seen.add(place.read_bytes())
            time.sleep(0.01)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


def secrets_of(key: Path) -> list[bytes]:
    """The lines of a private key that are not frame around it, and none that all such keys share."""
    lines = key.read_bytes().splitlines()
    return [line for line in lines if b"-----" not in line][1:]


def files_below(*folders: Path) -> Iterator[Path]:
    for folder in folders:
        yield from (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


@pytest.mark.slow
def test_no_key_gets_out(
    board: FakeBoard,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    signing = make_key(tmp_path / "signing")
    login = board.host.identity_file
    assert login
    wanted = [*secrets_of(signing), *secrets_of(login)]
    assert len(wanted) >= 6
    bundle = make_bundle(tmp_path / "signed", kernel=b"signed kernel")
    deadline = time.monotonic() + 30
    with arguments_seen() as seen:
        while not any(
            b"ssh-keygen" in each and str(signing).encode() in each for each in seen.copy()
        ):
            sign.sign(bundle, signing).rename(
                tmp_path / "kept"
            )  # anew until the other thread saw it
            assert time.monotonic() < deadline
        sign.sign(bundle, signing)
        result = deploy(board.target(), bundle=bundles.load(bundle.path), board=None)
        found = status(board.target())
    assert result.outcome == "confirmed"
    # It did look where it should: the agent's start is among the arguments, as the signing was.
    assert any(b".main(i)" in each for each in seen)

    said = capfd.readouterr()
    printed = [said.out, said.err, json.dumps(result.document()), json.dumps(found)]
    places = {"arguments": b"\n".join(seen), "output": "\n".join(printed).encode()}
    for path in files_below(bundle.path, board.root, tmp_path / "state"):
        places[str(path)] = path.read_bytes()
    assert len(places) > 20
    leaks = [place for place, content in places.items() for each in wanted if each in content]
    assert not leaks
