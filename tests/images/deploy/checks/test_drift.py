# SPDX-License-Identifier: MIT
"""What was changed on a board behind our back is found, named and repaired; generations that are kept."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from bsp.base.errors import UserError
from images.bundle.manifest import Bundle
from images.deploy.boot import slots, state
from images.deploy.command import Settings, deploy_to
from images.deploy.deploy import deploy, rollback
from images.deploy.show import result_text, status_text
from images.deploy.status import status
from tests.support import fake_board
from tests.support.fake_board import BOARD_MARKS, FakeBoard, make_bundle

pytestmark = BOARD_MARKS

MODULE = f"modules/{fake_board.RELEASE}/kernel/drivers/m5.ko"
OWN_MODULE = f"modules/{fake_board.RELEASE}/kernel/drivers/m3.ko"
WATCHER = "usr/local/lib/npu-bsp/watch-trial"


@pytest.fixture(scope="module")
def update(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """As the factory's, but for one module."""
    modules = {f"kernel/drivers/m{number}.ko": b"module %d" % number * 50 for number in range(20)}
    modules["kernel/drivers/m3.ko"] = b"another one"
    return make_bundle(tmp_path_factory.mktemp("update") / "update", modules=modules)


def file_of(board: FakeBoard, bundle: Bundle, path: str) -> Path:
    return board.root / slots.STORE / bundle.generation / path


def change_quietly(path: Path) -> None:
    """Other content under the same size and time, in place: as a failing disk, or somebody clever."""
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def fat_file(board: FakeBoard, bundle: Bundle, path: str) -> Path:
    return board.fat / slots.fat_path(bundle.manifest.entry(path).sha256).lstrip("/")


def changes(document: Mapping[str, object]) -> list[tuple[object, ...]]:
    drift = document["drift"]
    assert isinstance(drift, list)
    return [(each["generation"], each["path"], each["repaired"]) for each in drift]


@pytest.mark.slow
def test_what_a_fast_deployment_believes_a_thorough_one_finds_and_repairs(
    board: FakeBoard, factory: Bundle, update: Bundle
) -> None:
    deploy(board.target(), bundle=update, board=None)
    before = board.snapshot()
    folder = file_of(board, update, "modules").stat().st_ino
    change_quietly(file_of(board, update, MODULE))  # a hard link: the factory's is changed as well
    change_quietly(file_of(board, update, OWN_MODULE))
    change_quietly(fat_file(board, update, "boot/kernel"))
    (board.root / WATCHER).write_text("#!/bin/sh\nexit 0\n")

    fast = deploy(board.target(), bundle=update, board=None)
    assert (fast.outcome, fast.verified, fast.drift) == ("unchanged", False, [])

    expected = {
        (factory.generation, MODULE),
        (factory.generation, "boot/kernel"),
        (update.generation, MODULE),
        (update.generation, OWN_MODULE),
        (update.generation, "boot/kernel"),
        (None, f"/{WATCHER}"),
    }
    seen = status(replace(board.target(), verify=True))
    assert set(changes(seen)) == {(*each, None) for each in expected}
    assert f"changed: {MODULE} of generation {update.generation}" in status_text(seen)

    changed = board.snapshot()
    planned = deploy(replace(board.target(), verify=True), bundle=update, board=None, dry_run=True)
    assert set(changes(planned.document())) == {(*each, None) for each in expected}
    assert "repair what was changed there" in result_text(planned)
    assert board.snapshot() == changed

    result = deploy(replace(board.target(), verify=True), bundle=update, board=None)
    assert (result.outcome, result.verified) == ("unchanged", True)  # the generation is the same
    assert set(changes(result.document())) == {(*each, True) for each in expected}
    assert result.sent.sent_files == 3  # what nothing on the board has any more
    assert board.snapshot() == before
    assert (board.root / WATCHER).read_bytes() == (slots.ONBOARD_DIR / "watch-trial").read_bytes()
    # Its modules are mounted: the folder stayed, only files in it were replaced.
    assert file_of(board, update, "modules").stat().st_ino == folder
    again = deploy(replace(board.target(), verify=True), bundle=update, board=None)
    assert (again.verified, again.drift, again.sent.sent_files) == (True, [], 0)
    assert "nothing was changed" in result_text(again)


@pytest.mark.slow
def test_what_only_an_old_generation_had_is_named_and_left(
    board: FakeBoard, factory: Bundle, update: Bundle
) -> None:
    deploy(board.target(), bundle=update, board=None)
    change_quietly(file_of(board, factory, OWN_MODULE))
    (board.fat / "npu-bsp" / factory.generation / "args.env").write_text("npu_args=nothing\n")
    result = deploy(replace(board.target(), verify=True), bundle=update, board=None)
    assert changes(result.document()) == [
        (factory.generation, OWN_MODULE, False),
        (factory.generation, "args.env", True),
    ]
    assert f"NOT repaired: deploy its bundle again: {OWN_MODULE}" in result_text(result)
    back = rollback(board.target())  # what runs is read before it is confirmed
    assert (back.outcome, board.running()) == ("rolled-back", update.generation)
    assert OWN_MODULE in back.problem
    whole = deploy(replace(board.target(), verify=True), bundle=factory, board=None)
    assert whole.outcome == "confirmed", whole.problem
    assert file_of(board, factory, OWN_MODULE).read_bytes() == b"module 3" * 50


def test_a_changed_manifest_is_put_back_and_what_it_hid_is_found(
    board: FakeBoard, factory: Bundle, update: Bundle
) -> None:
    deploy(board.target(), bundle=update, board=None)
    before = board.snapshot()
    changed = file_of(board, update, MODULE)
    changed.unlink()
    manifest = file_of(board, update, "manifest.json")
    document = json.loads(manifest.read_bytes())
    document["files"] = [each for each in document["files"] if each["path"] != MODULE]
    manifest.write_text(json.dumps(document))
    assert status(board.target())["generations"][update.generation] == []
    result = deploy(replace(board.target(), verify=True), bundle=update, board=None)
    assert set(changes(result.document())) == {
        (update.generation, "manifest.json", True),
        (update.generation, MODULE, True),
    }
    assert result.sent.sent_files == 0  # the factory's generation has the same module
    assert board.snapshot() == before


@pytest.mark.slow
def test_every_nth_deployment_looks_thoroughly(board: FakeBoard, update: Bundle) -> None:
    looked = [
        deploy(replace(board.target(), verify_every=3), bundle=update, board=None).verified
        for _ in range(7)
    ]
    assert looked == [False, False, True, False, False, True, False]
    never = replace(board.target(), verify_every=0)
    assert not any(deploy(never, bundle=update, board=None).verified for _ in range(3))
    # What stands in the inventory counts where nothing is said.
    listed = board.target(verify_every=1)
    assert deploy(listed, bundle=update, board=None).verified


@pytest.mark.slow
def test_more_generations_are_kept_on_request_and_the_oldest_goes(
    board: FakeBoard, factory: Bundle, tmp_path: Path
) -> None:
    bundles = [
        make_bundle(tmp_path / f"{number}", initrd=b"initrd %d" % number) for number in range(4)
    ]
    names = [factory.generation, *(each.generation for each in bundles)]
    for bundle in bundles[:3]:
        result = deploy(replace(board.target(), keep=3), bundle=bundle, board=None)
        assert result.outcome == "confirmed", result.problem
    assert set(status(board.target())["generations"]) == set(names[1:4])
    back = rollback(board.target(), to=names[1])
    assert back.outcome == "confirmed", back.problem
    assert board.good() == state.Good(names[1], names[3])
    assert set(status(board.target())["generations"]) == set(names[1:4])  # all stay
    with pytest.raises(UserError, match="is not there") as caught:
        rollback(board.target(), to=names[0])
    assert names[2] in caught.value.hint
    # By default two are kept, with all that the others alone needed gone.
    deploy(board.target(), bundle=bundles[3], board=None)
    assert set(status(board.target())["generations"]) == {names[4], names[1]}
    left = {path.name for path in (board.fat / "npu-bsp/files").iterdir()}
    used = {
        entry.sha256[:32] for bundle in (bundles[0], bundles[3])
        for entry in slots.boot_entries(bundle.manifest)
    }  # fmt: skip
    assert left == used


def test_fewer_than_two_generations_are_refused(board: FakeBoard) -> None:
    with pytest.raises(UserError, match="expected 2 or more"):
        deploy_to("fake", settings=Settings(keep=1))
    with pytest.raises(UserError, match="expected 0"):
        deploy_to("fake", settings=Settings(verify_every=-2))
