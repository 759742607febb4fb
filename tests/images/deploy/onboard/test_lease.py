# SPDX-License-Identifier: MIT
"""Two deployments to one board: a lease with an owner, an end, and a way to take it, over real SSH."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from bsp.base.errors import InfrastructureError, UserError
from images.bundle import manifest as bundles
from images.deploy.claim import Claim, _client, claim_of
from images.deploy.deploy import deploy
from images.deploy.onboard import lease
from images.deploy.session import Target, session
from images.deploy.status import status
from images.deploy.transfer.agent import Agent, HeldError
from tests.support.fake_board import BOARD_MARKS, FakeBoard, make_bundle

pytestmark = BOARD_MARKS


@pytest.fixture(scope="module")
def update(tmp_path_factory: pytest.TempPathFactory) -> bundles.Bundle:
    return make_bundle(tmp_path_factory.mktemp("update") / "update", kernel=b"another kernel")


@contextmanager
def held(target: Target) -> Iterator[Agent]:
    with session(target) as agent:
        agent.open(None, fat_mount="/boot/firmware", lock=True)
        yield agent


def log_of(board: FakeBoard) -> str:
    return (board.root / lease.LOG).read_text()


def written_lease(board: FakeBoard, **changes: Any) -> dict[str, Any]:
    """Change the lease as time, a reboot or another machine would."""
    file = board.root / lease.HERE
    document = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps(document))
    return document


@pytest.mark.slow
def test_the_second_one_is_told_who_has_the_board(board: FakeBoard, update: bundles.Bundle) -> None:
    before = board.snapshot()
    with held(board.target()):
        with pytest.raises(
            HeldError, match=r"is running: deploy of .*@.*; its lease ends in"
        ) as caught:
            deploy(board.target(), bundle=update, board=None)
        assert "--steal" in caught.value.hint
        assert caught.value.exit_code == 2
        assert board.snapshot() == before
        lease = status(board.target())["lease"]
        assert lease is not None
        assert lease["purpose"] == "deploy"
        assert 0 < lease["left_s"] <= 600
    assert deploy(board.target(), bundle=update, board=None).outcome == "confirmed"
    assert status(board.target())["lease"] is None


def test_stealing_ends_the_other_session_and_stands_in_the_log(
    board: FakeBoard, update: bundles.Bundle
) -> None:
    with held(board.target()) as first:
        target = replace(board.target(), claim=Claim("their machine is gone"))
        assert deploy(target, bundle=update, board=None).outcome == "confirmed"
        with pytest.raises(InfrastructureError):
            first.ask({"do": "discard", "keep": [], "resume": None})
    assert "stole the lease: from " in log_of(board)
    assert ": their machine is gone\n" in log_of(board)
    assert f"arms a trial: {update.generation}" in log_of(board)
    assert any(update.generation in line for line in status(board.target())["log"])


def test_two_at_once_one_wins(
    board: FakeBoard, factory: bundles.Bundle, update: bundles.Bundle
) -> None:
    """Started together; the board ends whole, with what the one that got through brought."""
    outcomes: list[str] = []

    def attempt() -> None:
        try:
            outcomes.append(deploy(board.target(), bundle=update, board=None).outcome)
        except HeldError:
            outcomes.append("held")

    threads = [threading.Thread(target=attempt) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert "confirmed" in outcomes
    assert set(outcomes) <= {"confirmed", "unchanged", "held"}
    assert board.running() == update.generation
    assert deploy(board.target(), bundle=update, board=None).outcome == "unchanged"


def test_a_change_without_the_lease_is_refused(board: FakeBoard) -> None:
    requests: list[dict[str, Any]] = [
        {"do": "discard", "keep": [], "resume": None},
        {"do": "arm", "generation": "0" * 12},
        {"do": "commit", "generation": "0" * 12},
    ]
    for request in requests:
        before = board.snapshot()
        with session(board.target()) as agent:
            agent.open(None, fat_mount="/boot/firmware", lock=False)
            with pytest.raises(InfrastructureError, match="has not taken the board's lease"):
                agent.ask(request)
        assert board.snapshot() == before


def left_armed(board: FakeBoard, target: Target, **client: Any) -> None:
    """The lease as it is on the disk after a trial was armed, and the board has rebooted."""
    (board.root / "proc/uptime").write_text("30.0 10.0\n")
    with held(target):
        document = written_lease(board)
    deadline = time.monotonic() + 5
    while (board.root / lease.HERE).exists() and time.monotonic() < deadline:
        time.sleep(0.02)  # the session gives back its own
    document = {**document, "armed_s": 100.0, "client": client}
    (board.root / lease.OVER_REBOOT).write_text(json.dumps(document))
    (board.root / "proc/sys/kernel/random/boot_id").write_text("the next boot\n")


@pytest.mark.slow
def test_a_lease_over_a_trial_outlives_its_session(
    board: FakeBoard, update: bundles.Bundle
) -> None:
    """Armed, rebooted, and the one that was to confirm has not come yet: the board is still theirs."""
    first = replace(board.target(), claim=Claim())
    left_armed(board, first, machine="another", pid=1)
    with pytest.raises(HeldError, match="its lease ends in 70 s"):
        deploy(board.target(), bundle=update, board=None)
    with held(first):
        pass  # the same deployment comes back: it is let in, and gives the lease back
    assert deploy(board.target(), bundle=update, board=None).outcome == "confirmed"


def test_a_lease_over_a_trial_ends_by_itself(board: FakeBoard, update: bundles.Bundle) -> None:
    left_armed(board, board.target(), machine="another", pid=1)
    (board.root / "proc/uptime").write_text("101.0 10.0\n")
    assert deploy(board.target(), bundle=update, board=None).outcome == "confirmed"


def test_a_session_that_is_silent_loses_the_board(board: FakeBoard, update: bundles.Bundle) -> None:
    """A link that broke without a word: the board's half still waits for what never comes."""
    with held(board.target()) as silent:
        document = json.loads((board.root / lease.HERE).read_text())
        written_lease(board, renewed_s=document["renewed_s"] - 601)
        assert deploy(board.target(), bundle=update, board=None).outcome == "confirmed"
        with pytest.raises(InfrastructureError):
            silent.ask({"do": "discard", "keep": [], "resume": None})


def test_a_process_of_this_machine_that_has_ended_is_not_waited_for(
    board: FakeBoard, update: bundles.Bundle
) -> None:
    left_armed(board, board.target(), **{**_client(os.getpid()), "started": "1"})
    assert deploy(board.target(), bundle=update, board=None).outcome == "confirmed"
    assert "the process that had it has ended" in log_of(board)


def test_the_log_does_not_grow_for_ever(board: FakeBoard) -> None:
    log = board.root / lease.LOG
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("line\n" * 20_000)
    with held(board.target()):
        pass
    deadline = time.monotonic() + 5
    while "gave the lease back" not in log.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert log.stat().st_size < 64 << 10
    assert log.read_text().startswith("line\n")


def test_steal_wants_a_reason() -> None:
    with pytest.raises(UserError, match="say why"):
        claim_of(steal=True, reason=" ")
    with pytest.raises(UserError, match="--reason"):
        claim_of(steal=False, reason="x")
    assert claim_of(steal=True, reason="a\nb").steal == "a b"
    assert not claim_of(steal=False, reason="").steal
