# SPDX-License-Identifier: MIT
"""Whole deployments to a board made of a folder, through a real SSH server."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bsp.base.errors import InfrastructureError, UserError
from bsp.base.project import PROJECT
from bsp.catalog import load_board
from bsp.remote import ssh
from images.bundle import manifest as bundles
from images.deploy import session
from images.deploy.boot import slots, state
from images.deploy.deploy import deploy, rollback
from images.deploy.plan import Space
from images.deploy.status import status
from images.deploy.transfer.agent import Agent
from tests.support import fake_board, local_sshd
from tests.support.fake_board import BOARD_MARKS, FakeBoard, make_bundle
from tests.support.relay import Relay

pytestmark = BOARD_MARKS


@pytest.fixture(scope="module")
def update(tmp_path_factory: pytest.TempPathFactory) -> bundles.Bundle:
    """Another DTB, one changed module, one new module; the rest as in the factory."""
    modules = {f"kernel/drivers/m{number}.ko": b"module %d" % number * 50 for number in range(20)}
    modules["kernel/drivers/m3.ko"] = b"changed"
    modules["kernel/drivers/new.ko"] = os.urandom(70_000)
    return make_bundle(
        tmp_path_factory.mktemp("update") / "update", modules=modules, dtb_extra='status = "okay";'
    )


def test_deploy_confirms_and_a_second_one_sends_nothing(
    board: FakeBoard, factory: bundles.Bundle, update: bundles.Bundle
) -> None:
    result = deploy(board.target(), bundle=update, board=None)
    assert result.outcome == "confirmed", result.problem
    assert result.exit_code == 0
    # DTB, two modules; modules.dep is empty in both, and everything else is linked.
    assert result.sent.sent_files == 3
    assert result.running_dtb_matches
    assert board.running() == update.generation
    assert board.good() == state.Good(update.generation, factory.generation)
    assert board.trial() is None
    one, other = (
        board.root
        / slots.STORE
        / bundle.generation
        / "modules"
        / fake_board.RELEASE
        / "kernel/drivers/m5.ko"
        for bundle in (factory, update)
    )
    assert one.stat().st_ino == other.stat().st_ino

    before = board.snapshot()
    boot_id = (board.root / "proc/sys/kernel/random/boot_id").read_text()
    again = deploy(board.target(), bundle=update, board=None)
    assert again.outcome == "unchanged"
    assert again.document()["bytes_sent"] == again.document()["files_sent"] == 0
    assert again.running_dtb_matches
    assert board.snapshot() == before
    assert (board.root / "proc/sys/kernel/random/boot_id").read_text() == boot_id


def test_document_has_the_promised_fields(board: FakeBoard, update: bundles.Bundle) -> None:
    document = json.loads(json.dumps(deploy(board.target(), bundle=update, board=None).document()))
    assert document["outcome"] == "confirmed"
    promised = (
        "host board from to outcome bytes_sent files_sent bytes_total steps running_dtb_matches"
    )
    assert set(promised.split()) <= set(document)
    assert all(step["seconds"] >= 0 for step in document["steps"])


def test_dry_run_shows_the_plan_and_changes_nothing(
    board: FakeBoard, update: bundles.Bundle
) -> None:
    before = board.snapshot()
    result = deploy(board.target(), bundle=update, board=None, dry_run=True)
    assert result.outcome == "planned"
    assert "send 3 files" in str(result.plan)
    assert board.snapshot() == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("behaviour", "why"),
    [
        ("panic", "crashed during the trial"),
        ("other-tree", "device tree: /npu@1000 status"),
        ("no-activate", "npu-bsp-activate.service did not run"),
        ("stay", "did not reboot"),
        ("hang", "did not answer"),
    ],
)
def test_a_failed_trial_ends_in_the_old_generation(
    board: FakeBoard, factory: bundles.Bundle, update: bundles.Bundle, behaviour: str, why: str
) -> None:
    board.behave(behaviour)
    result = deploy(board.target(timeout_s=2), bundle=update, board=None)
    assert result.outcome == "rolled-back", result
    assert result.exit_code == 5
    assert why in result.problem
    assert board.running() == factory.generation
    assert board.good() == state.Good(factory.generation)
    assert board.trial() is None
    # The next one, of a version that works, is not hindered, and has nothing left to send.
    board.behave("ok")
    again = deploy(board.target(), bundle=update, board=None)
    assert again.outcome == "confirmed"
    assert again.sent.sent_files == 0


@pytest.mark.slow
def test_a_board_that_never_returns_is_unknown(board: FakeBoard, update: bundles.Bundle) -> None:
    board.behave("hang")
    result = deploy(board.target(timeout_s=0.8, power=()), bundle=update, board=None)
    assert result.outcome == "unknown"
    assert result.exit_code == 6
    assert "does not answer" in result.problem


@pytest.mark.slow
def test_rollback_goes_back_and_forth(
    board: FakeBoard, factory: bundles.Bundle, update: bundles.Bundle
) -> None:
    with pytest.raises(UserError, match="no generation before"):
        rollback(board.target())
    deploy(board.target(), bundle=update, board=None)
    result = rollback(board.target())
    assert result.outcome == "confirmed", result.problem
    assert board.running() == factory.generation
    assert board.good() == state.Good(factory.generation, update.generation)
    assert rollback(board.target()).outcome == "confirmed"
    assert board.running() == update.generation


def test_status(board: FakeBoard, factory: bundles.Bundle, update: bundles.Bundle) -> None:
    deploy(board.target(), bundle=update, board=None)
    found = status(board.target())
    assert found["running"] == found["good"] == update.generation
    assert found["previous"] == factory.generation
    assert found["trial"] is None
    assert found["kernel"] == fake_board.RELEASE
    assert found["kernel_matches"]
    assert found["running_dtb_matches"]
    assert not found["userspace"]


@pytest.mark.slow
def test_two_generations_are_kept(board: FakeBoard, update: bundles.Bundle, tmp_path: Path) -> None:
    deploy(board.target(), bundle=update, board=None)
    third = make_bundle(
        tmp_path / "third", kernel=b"third kernel", userspace={"bin/run": b"#!/bin/sh"}
    )
    assert deploy(board.target(), bundle=third, board=None).outcome == "confirmed"
    kept = {path.name for path in (board.root / slots.STORE).iterdir()}
    assert kept == {update.generation, third.generation}
    used = {slots.fat_path(e.sha256).rpartition("/")[2] for b in (update, third) for e in b.manifest.files
            if slots.on_fat(e)}  # fmt: skip
    assert {path.name for path in (board.fat / "npu-bsp/files").iterdir()} == used
    assert status(board.target())["userspace"]


def test_damage_on_the_board_is_seen_and_mended(
    board: FakeBoard, factory: bundles.Bundle, update: bundles.Bundle
) -> None:
    deploy(board.target(), bundle=update, board=None)
    victim = board.root / slots.STORE / update.generation / "modules" / fake_board.RELEASE
    (victim / "kernel/drivers/m7.ko").write_bytes(b"somebody was here")
    (victim / "kernel/drivers/new.ko").unlink()
    result = deploy(board.target(), bundle=update, board=None)
    assert result.sent.sent_files == 2
    assert (victim / "kernel/drivers/m7.ko").read_bytes() == b"module 7" * 50
    assert deploy(board.target(), bundle=update, board=None).outcome == "unchanged"


def test_state_sectors_torn_on_the_board_are_written_anew(
    board: FakeBoard, factory: bundles.Bundle, update: bundles.Bundle
) -> None:
    own = board.fat / "npu-bsp"
    (own / "good.env").write_bytes((own / "good.env").read_bytes()[:20] + bytes(492))
    (own / "trial.env").unlink()
    assert deploy(board.target(), bundle=update, board=None).outcome == "confirmed"
    assert state.parse_good((own / "good.env").read_bytes()) == state.Good(
        update.generation, factory.generation
    )


def untouched(board: FakeBoard, before: dict[str, bytes | str]) -> bool:
    """Whether all is there as before; boot files that no generation names (yet) may have come."""
    after = board.snapshot()
    new = [path for path in after if path not in before]
    return before.items() <= after.items() and all("/npu-bsp/files/" in path for path in new)


# --- bad input: one clear error, and the board as it was -----------------------------------------


def refused(
    board: FakeBoard, bundle: bundles.Bundle | None, match: str, **changes: object
) -> UserError:
    before = board.snapshot()
    if "record" in changes:
        changes["board"] = changes.pop("record")
    with pytest.raises(UserError, match=match) as caught:
        deploy(board.target(**changes), bundle=bundle, board=None)  # type: ignore[arg-type]
    assert board.snapshot() == before
    assert caught.value.hint
    return caught.value


def test_another_board_is_refused(board: FakeBoard, update: bundles.Bundle) -> None:
    (board.root / "proc/device-tree/compatible").write_bytes(b"khadas,vim3\0amlogic,a311d\0")
    error = refused(
        board, update, "expected root compatible 'linux,dummy-virt', found 'khadas,vim3'"
    )
    assert "nothing was written" in error.hint


def test_an_exchanged_board_is_refused(board: FakeBoard, update: bundles.Bundle) -> None:
    serial = board.root / "proc/device-tree/serial-number"
    serial.write_bytes(b"0001\0")
    deploy(board.target(), bundle=update, board=None, dry_run=True)
    serial.write_bytes(b"0002\0")
    refused(board, update, "expected serial number 0001, found 0002")


def test_a_bundle_for_another_board_is_refused(board: FakeBoard, tmp_path: Path) -> None:
    profile = load_board("vim3")
    bundle = make_bundle(tmp_path / "vim3", board=profile)
    with pytest.raises(UserError, match="found 'linux,dummy-virt'"):
        deploy(board.target(board=None), bundle=bundle, board=None)
    with pytest.raises(UserError, match="is for vim3, not for virtual"):
        deploy(board.target(), bundle=bundle, board=load_board("virtual"))


def test_a_board_without_our_boot_script_is_refused(
    board: FakeBoard, update: bundles.Bundle
) -> None:
    (board.fat / "boot.scr").unlink()
    refused(board, update, "lacks the boot script")


def test_a_virtual_board_without_boot_loader_is_refused(board: FakeBoard, tmp_path: Path) -> None:
    bundle = make_bundle(
        tmp_path / "other", board=load_board("imx8mp-evk"), cmdline="console=ttymxc1"
    )
    refused(board, bundle, "no boot loader there", record="imx8mp-evk")


def test_a_full_boot_partition_is_refused_beforehand(
    board: FakeBoard, update: bundles.Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent_says = Agent.open

    def nearly_full(self: Agent, generation: str | None, *, fat_mount: str, lock: bool) -> object:
        import msgspec

        facts = agent_says(self, generation, fat_mount=fat_mount, lock=lock)
        space = {**facts.space, "fat": Space(bytes=300_000, files=1 << 31)}
        return msgspec.structs.replace(facts, space=space)

    monkeypatch.setattr(Agent, "open", nearly_full)
    error = refused(board, update, "boot partition of fake is full")
    assert "Nothing was written" in error.hint


def test_a_partition_that_fills_up_on_the_way_leaves_the_board_as_it_was(
    board: FakeBoard, factory: bundles.Bundle, tmp_path: Path
) -> None:
    """A boot partition that is a real, small file system."""
    if os.getuid() != 0:
        pytest.skip("mounting a small file system needs root")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "none", str(board.fat / "npu-bsp/files")],
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip("mounting is not allowed here")
    try:
        for entry in factory.manifest.files:
            if slots.on_fat(entry):
                shutil.copy(
                    factory.file(entry), board.fat / slots.fat_path(entry.sha256).lstrip("/")
                )
        big = make_bundle(tmp_path / "big", kernel=os.urandom(9_000_000))
        refused(board, big, "fake is full")
        assert board.running() == factory.generation
        left = [path.name for path in (board.fat / "npu-bsp/files").iterdir()]
        assert not [name for name in left if name.endswith(".partial")]
    finally:
        subprocess.run(["umount", str(board.fat / "npu-bsp/files")], check=True)


def test_wrong_host_key(board: FakeBoard, update: bundles.Bundle, tmp_path: Path) -> None:
    other = local_sshd.make_key(tmp_path / "other_key")
    known = tmp_path / "known"
    key = " ".join(other.with_suffix(".pub").read_text().split()[:2])
    known.write_text(f"[127.0.0.1]:{board.host.port} {key}\n")
    error = refused(board, update, "is not the remembered one", known_hosts=known)
    assert "ssh-keygen" in error.hint


def test_unknown_host_key_asks_and_is_remembered(
    board: FakeBoard, update: bundles.Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = tmp_path / "new" / "known"
    monkeypatch.setattr(sys, "stdin", open(os.devnull))  # noqa: SIM115
    error = refused(board, update, "is not known yet: ssh-ed25519 SHA256:", known_hosts=known)
    assert "--accept-new-key" in error.hint
    host = board.target(known_hosts=known).host
    with ssh.connect(host, accept_new_key=True) as connection:
        assert connection.run(["echo", "a b"]).text == "a b\n"
    assert deploy(board.target(known_hosts=known), bundle=update, board=None, dry_run=True).plan


def test_nobody_lets_us_in(board: FakeBoard, update: bundles.Bundle, tmp_path: Path) -> None:
    key = local_sshd.make_key(tmp_path / "stranger")
    refused(board, update, "accepts none of our keys", identity_file=key)


def test_unreachable(board: FakeBoard, update: bundles.Bundle) -> None:
    with pytest.raises(InfrastructureError, match=r"cannot reach fake at 127\.0\.0\.1"):
        deploy(board.target(port=local_sshd.free_port()), bundle=update, board=None)


@pytest.mark.slow
def test_a_second_deployment_at_the_same_time_is_refused(
    board: FakeBoard, update: bundles.Bundle
) -> None:
    target = board.target()
    with (
        ssh.connect(target.host) as connection,
        Agent(connection, root=target.root, timeout_s=20) as agent,
    ):
        agent.open(None, fat_mount="/boot/firmware", lock=True)
        refused(board, update, "another deployment to this board is running")
    deadline = time.monotonic() + 5  # the server ends the first agent in its own time
    while True:
        try:
            assert deploy(target, bundle=update, board=None).outcome == "confirmed"
            return
        except UserError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def test_a_broken_bundle_is_refused(
    board: FakeBoard, factory: bundles.Bundle, update: bundles.Bundle, tmp_path: Path
) -> None:
    shutil.copytree(update.path, tmp_path / "copy", symlinks=True)
    update = bundles.load(tmp_path / "copy")
    with pytest.raises(UserError, match=r"no manifest\.json"):
        bundles.load(tmp_path / "state")
    file = update.path / "boot/initrd"
    content = file.read_bytes()
    file.unlink()
    with pytest.raises(UserError, match="boot/initrd is missing"):
        deploy(board.target(), bundle=update.path, board=None)
    # Of the right size, but other content: the board notices.
    file.write_bytes(bytes(len(content)))
    before = board.snapshot()
    with pytest.raises(InfrastructureError, match="did not arrive as the manifest says"):
        deploy(board.target(), bundle=make_stale(update), board=None)
    assert untouched(board, before)
    # What did arrive is used, or removed, by the next one.
    deploy(board.target(), bundle=factory, board=None)
    (update.path / "manifest.json").write_bytes(bundles.encode(update.manifest))
    assert deploy(board.target(), bundle=update, board=None, dry_run=True).plan
    assert board.snapshot() == before


def make_stale(bundle: bundles.Bundle) -> bundles.Bundle:
    """A bundle whose kernel file was written over after it was made."""
    file = bundle.path / "boot/kernel"
    size = file.stat().st_size
    file.unlink()
    file.write_bytes(bytes(size))
    manifest_kernel = bundle.manifest.entry("boot/kernel")
    import msgspec

    files = tuple(
        msgspec.structs.replace(entry, sha256="ab" * 32) if entry == manifest_kernel else entry
        for entry in bundle.manifest.files
    )
    manifest = msgspec.structs.replace(bundle.manifest, files=files)
    manifest = msgspec.structs.replace(manifest, generation=bundles.generation_of(manifest))
    (bundle.path / "manifest.json").write_bytes(bundles.encode(manifest))
    return bundles.Bundle(bundle.path, manifest)


# --- broken links ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("cut_after_bytes", [1_500_000])
def test_link_cut_in_the_transfer(
    board: FakeBoard, factory: bundles.Bundle, tmp_path: Path, cut_after_bytes: int
) -> None:
    modules = {f"kernel/new{number}.ko": os.urandom(40_000) for number in range(50)}
    bundle = make_bundle(tmp_path / "big", modules=modules)
    before = board.snapshot()
    # Slow enough for the board to keep up: what is in flight when the link breaks is lost.
    with Relay(board.host.port, cut_after_bytes=cut_after_bytes, bytes_per_s=4e6) as relay:
        target = board.target(port=relay.port, host_key_alias=board.host.key_name)
        with pytest.raises(InfrastructureError):
            deploy(target, bundle=bundle, board=None)
        assert relay.was_cut
    assert untouched(board, before)
    assert board.running() == factory.generation
    deadline = time.monotonic() + 10
    while True:
        try:
            result = deploy(board.target(), bundle=bundle, board=None)
            break
        except UserError:  # the first agent has not noticed yet
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
    assert result.outcome == "confirmed"
    if cut_after_bytes > 1_000_000:
        assert 0 < result.sent.sent_bytes < 0.6 * 50 * 40_000, "it did not go on where it was cut"


@pytest.mark.slow
def test_ctrl_c_in_the_transfer(board: FakeBoard, factory: bundles.Bundle, tmp_path: Path) -> None:
    """The whole program, interrupted as a person does it."""
    bundle = make_bundle(tmp_path / "big", modules={"kernel/big.ko": os.urandom(8_000_000)})
    before = board.snapshot()
    with Relay(board.host.port, bytes_per_s=2_000_000) as relay:
        target = board.target(port=relay.port, host_key_alias=board.host.key_name)
        program = (
            "import pathlib, sys\n"
            "from bsp.remote.inventory import Host\n"
            "from images.bundle import manifest as bundle\n"
            "from images.deploy.claim import Claim\n"
            "from images.deploy.deploy import Target, deploy\n"
            f"from pathlib import PosixPath\n"
            f"target = {target!r}\n"
            f"deploy(target, bundle=bundle.load(pathlib.Path({str(bundle.path)!r})), board=None)\n"
        )
        child = subprocess.Popen(
            [sys.executable, "-c", program], cwd=PROJECT, stderr=subprocess.PIPE
        )
        while relay.passed_bytes < 1_500_000:
            assert child.poll() is None
            time.sleep(0.01)
        child.send_signal(signal.SIGINT)
        child.communicate(timeout=10)
        assert child.returncode != 0
    assert untouched(board, before)
    assert board.running() == factory.generation
    assert board.trial() is None


def test_a_board_without_python_says_so(
    board: FakeBoard, update: bundles.Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = ssh.Connection.start

    def without(self: ssh.Connection, argv: object, *, timeout_s: float = 30) -> ssh.Process:
        words = [str(word).replace("python3", "python3-is-not-here") for word in list(argv)]  # type: ignore[call-overload]
        return started(self, words, timeout_s=timeout_s)

    monkeypatch.setattr(ssh.Connection, "start", without)
    refused(board, update, "has no python3")


def test_it_is_confirmed_over_the_connection_that_the_boot_was_seen_over(
    board: FakeBoard, update: bundles.Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, logged_in = ssh.connect, []

    def counted(*args: Any, **options: Any) -> ssh.Connection:
        logged_in.append(real(*args, **options))
        return logged_in[-1]

    monkeypatch.setattr(session, "connect", counted)
    target = board.target()
    assert deploy(target, bundle=update, board=None).outcome == "confirmed"
    assert len(logged_in) == 1, "the session that plans and sends"
    assert target.spare.take() is None

    target.spare.put(ssh.connect(board.host))
    seen = target.spare.take()
    assert seen is not None
    seen.close()  # as a board that falls after its boot was seen
    target.spare.put(seen)
    assert target.spare.take() is None


def test_a_connection_that_broke_before_the_agent_starts_is_lost(board: FakeBoard) -> None:
    connection = ssh.connect(board.host)
    connection.close()
    deadline = time.monotonic() + 10
    while connection.transport.is_alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    with pytest.raises(ssh.ConnectionLostError, match="broke"):
        Agent(connection, root="", timeout_s=5)
