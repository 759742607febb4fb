# SPDX-License-Identifier: MIT
"""Deployments with one fault each, over real SSH: the board is whole then, and the next one works.

``./inv test`` takes a sample, ``./inv faults`` hundreds: it writes docs/faults.md.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bsp.base.errors import BspError
from bsp.base.project import PROJECT
from bsp.remote import ssh
from images.bundle.manifest import Bundle
from images.deploy import trial
from images.deploy.boot import slots, state
from images.deploy.deploy import deploy
from images.deploy.onboard import lease
from images.deploy.session import Target
from images.deploy.transfer import agent as transfer
from tests.support import local_sshd
from tests.support.fake_board import BOARD_MARKS, FakeBoard, make_bundle
from tests.support.faults import Row, table
from tests.support.relay import Relay

pytestmark = BOARD_MARKS
FULL = pytest.mark.full
_MODULES, _MODULE_BYTES = 40, 20_000
_ROWS: list[Row] = []


@pytest.fixture(scope="module", autouse=True)
def written_table() -> Iterator[None]:
    """The table, where ``NPU_BSP_FAULT_TABLE`` says."""
    _ROWS.clear()
    yield
    target = os.environ.get("NPU_BSP_FAULT_TABLE")
    if target:
        Path(target).write_text(table(_ROWS))


@pytest.fixture(scope="module")
def update(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    modules = {f"kernel/new{number}.ko": os.urandom(_MODULE_BYTES) for number in range(_MODULES)}
    return make_bundle(
        tmp_path_factory.mktemp("update") / "update", modules=modules, kernel=os.urandom(30_000)
    )


@contextmanager
def new_board(factory: Bundle) -> Iterator[FakeBoard]:
    """Many in one test: one for each fault."""
    with tempfile.TemporaryDirectory(
        dir="/dev/shm" if Path("/dev/shm").is_dir() else None,
        prefix="npu-bsp-faults-",
        ignore_cleanup_errors=True,
    ) as folder:
        board = FakeBoard(Path(folder), factory)
        try:
            yield board
        finally:
            board.close()


def settle(board: FakeBoard) -> None:
    """Wait for the board's half of broken sessions to end."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            held = json.loads((board.root / lease.HERE).read_text())
        except (OSError, ValueError):
            return
        if not lease._started(held["pid"]):
            return
        time.sleep(0.02)


def held_bytes(board: FakeBoard, bundle: Bundle) -> int:
    """How much of the bundle the board holds whole in an interrupted transfer, or finished."""
    found = 0
    for entry in bundle.manifest.files:
        for name in (f"{bundle.generation}.partial", bundle.generation):
            place = board.root / slots.STORE / name / entry.path
            if slots.on_fat(entry):
                place = board.fat / slots.fat_path(entry.sha256).lstrip("/")
            with suppress(OSError):
                if hashlib.sha256(place.read_bytes()).hexdigest() == entry.sha256:
                    found += entry.size_bytes
                    break
    return found


def check_whole(board: FakeBoard) -> None:
    """What can boot is complete, whatever it is."""
    good = board.good()
    assert good is not None, "neither copy of the boot state can be read"
    armed = board.trial()
    for generation in {good.good, armed} - {None}:
        args = state.parse_args((board.fat / f"npu-bsp/{generation}/args.env").read_bytes())
        assert args, f"{generation} has no args.env"
        folder = board.root / slots.STORE / str(generation)
        for entry in json.loads((folder / "manifest.json").read_bytes())["files"]:
            place = folder / entry["path"]
            if entry["path"].startswith("boot/"):
                place = board.fat / slots.fat_path(entry["sha256"]).lstrip("/")
            if entry.get("link"):
                assert str(place.readlink()) == entry["link"]
            else:
                assert hashlib.sha256(place.read_bytes()).hexdigest() == entry["sha256"], place


def code_of(attempt: Callable[[], Any]) -> int:
    """The exit code that the program would end with."""
    try:
        return int(attempt().exit_code)
    except BspError as error:
        return error.exit_code


def after(kind: str, board: FakeBoard, factory: Bundle, update: Bundle, code: int) -> Row:
    """What is asked after each fault; see docs/faults.md."""
    settle(board)
    check_whole(board)
    good = board.good()
    assert good
    if code == 0:
        assert board.running() == good.good == update.generation
    elif code in (2, 3, 5):
        assert board.running() == good.good == factory.generation
        assert board.trial() is None
    else:
        assert code in (6, 130, -signal.SIGKILL), code
    board.behave("ok")
    needed = update.manifest.total_bytes - held_at_first(factory, update)
    lacking = update.manifest.total_bytes - held_bytes(board, update) - shared(factory, update)
    result = deploy(board.target(), bundle=update, board=None)
    assert result.exit_code == 0, result.problem
    assert board.running() == update.generation
    sent = result.sent.sent_bytes
    assert sent == max(lacking, 0), f"{sent} bytes were sent, {lacking} were lacking"
    check_whole(board)
    row = Row(kind, code, needed, sent)
    _ROWS.append(row)
    return row


def shared(factory: Bundle, update: Bundle) -> int:
    """Bytes of files outside the boot partition that the factory's generation has already."""
    have = {entry.sha256 for entry in factory.manifest.files if not slots.on_fat(entry)}
    return sum(
        e.size_bytes for e in update.manifest.files if e.sha256 in have and not slots.on_fat(e)
    )


def held_at_first(factory: Bundle, update: Bundle) -> int:
    """Bytes that need never be sent."""
    have = {entry.sha256 for entry in factory.manifest.files}
    return sum(entry.size_bytes for entry in update.manifest.files if entry.sha256 in have)


def through(board: FakeBoard, relay: Relay, **changes: Any) -> Target:
    return replace(
        board.target(timeout_s=5, port=relay.port, host_key_alias=board.host.key_name), **changes
    )


# --- the link ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def totals(
    factory: Bundle, update: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> tuple[int, int]:
    """Bytes that a whole deployment takes, with trial and confirmation: there, and back."""
    folder = tmp_path_factory.mktemp("totals")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NPU_BSP_STATE", str(folder / "state"))
        patch.setenv("NPU_BSP_INVENTORY", str(folder / "none.toml"))
        patch.setenv("NPU_BSP_SSH_CONFIG", str(folder / "none"))
        patch.setattr(ssh, "_RETRY_EVERY_S", 0.05)
        with new_board(factory) as board, Relay(board.host.port) as relay:
            assert deploy(through(board, relay), bundle=update, board=None).outcome == "confirmed"
            return relay.passed_bytes, relay.passed_back_bytes


@pytest.mark.slow
@pytest.mark.parametrize("points", [1, pytest.param(100, marks=FULL)])
@pytest.mark.parametrize("direction", ["cut-out", "cut-back"])
def test_link_cut(
    direction: str, points: int, totals: tuple[int, int], factory: Bundle, update: Bundle
) -> None:
    total = totals[direction == "cut-back"]
    again = []
    for number in range(points):
        at = total * (2 * number + 1) // (2 * points)
        cut: dict[str, Any] = (
            {"cut_after_bytes": (at,), "bytes_per_s": 2e7}
            if direction == "cut-out"
            else {"cut_back_after_bytes": at}
        )
        with new_board(factory) as board, Relay(board.host.port, **cut) as relay:
            code = code_of(lambda: deploy(through(board, relay), bundle=update, board=None))
            # Late bytes are those of waiting and confirming: how many there are differs a little.
            assert relay.was_cut or number >= points * 0.8
            row = after(direction, board, factory, update, code)
            again.append(row.sent_again_bytes)
    assert points == 1 or 0 == min(again) < max(again), (
        "the later the cut, the less is left to send"
    )


@pytest.mark.parametrize("seed", [pytest.param(seed, marks=FULL) for seed in range(1, 12)])
def test_stalls(seed: int, factory: Bundle, update: Bundle) -> None:
    with (
        new_board(factory) as board,
        Relay(board.host.port, stalls=random.Random(seed)) as relay,
    ):
        code = code_of(
            lambda: deploy(replace(through(board, relay), timeout_s=30), bundle=update, board=None)
        )
        assert code == 0
        after("stalls", board, factory, update, code)


def sessions_of(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, IndexError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found += sessions_of(int(stat.parent.name))
    return found


@pytest.mark.parametrize(
    "share", [0.5, *(pytest.param(n / 24, marks=FULL) for n in range(1, 24) if n != 12)]
)
def test_server_killed(
    share: float, totals: tuple[int, int], factory: Bundle, update: Bundle
) -> None:
    with new_board(factory) as board, Relay(board.host.port, bytes_per_s=8e6) as relay:
        codes: list[int] = []
        thread = threading.Thread(
            target=lambda: codes.append(
                code_of(lambda: deploy(through(board, relay), bundle=update, board=None))
            )
        )
        thread.start()
        while relay.passed_bytes < share * totals[0] and thread.is_alive():
            time.sleep(0.002)
        for pid in sessions_of(board.sshd.process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        board.sshd.process.wait(timeout=10)
        start_again(board)
        thread.join(timeout=60)
        after("server", board, factory, update, codes[0])


def start_again(board: FakeBoard) -> None:
    """Start the SSH server anew, without a reboot."""
    pid = board.folder / "ssh/sshd.pid"
    pid.unlink()
    sshd = local_sshd.find_sshd()
    subprocess.run(
        [str(sshd), "-E", "/dev/null", "-f", f"{board.folder}/ssh/sshd_config"], check=True
    )
    deadline = time.monotonic() + 10
    while not pid.exists() and time.monotonic() < deadline:  # it listens before it writes that
        time.sleep(0.01)


# --- our own process ----------------------------------------------------------------------------------

STEPS = ("open", "stage", "arm", "wait", "verify", "commit")
SAMPLE = (("stage", "ctrl-c"), ("wait", "sigkill"))
_CHILD = """
import sys, time
from pathlib import Path, PosixPath
from bsp.base.errors import BspError
from bsp.remote.inventory import Host
from images.bundle import manifest as bundle
from images.deploy import trial
from images.deploy.transfer import agent as transfer
from images.deploy.claim import Claim
from images.deploy.session import Target
from images.deploy.deploy import deploy
wanted = {step!r}
def at(step):
    if step == wanted:
        print("HERE", flush=True)
        time.sleep(30)
real_write = transfer.Agent._write
def write(self, data):
    at(__import__("json").loads(data).get("do") if data[:1] == b"{{" else None)
    real_write(self, data)
transfer.Agent._write = write
real_stage, real_wait = transfer.Agent.stage, trial.wait_for_boot
def stage(self, *args, **kw):
    at("stage")
    return real_stage(self, *args, **kw)
def wait(*args, **kw):
    at("wait")
    return real_wait(*args, **kw)
transfer.Agent.stage, trial.wait_for_boot = stage, wait
deploy({target!r}, bundle=bundle.load(Path({path!r})), board=None)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "how"),
    [
        pytest.param(step, how, marks=() if (step, how) in SAMPLE else FULL)
        for step in STEPS
        for how in ("sigkill", "ctrl-c")
    ],
)
def test_client_killed(step: str, how: str, factory: Bundle, update: Bundle) -> None:
    with new_board(factory) as board:
        program = _CHILD.format(step=step, target=board.target(), path=str(update.path))
        child = subprocess.Popen(
            [sys.executable, "-c", program],
            cwd=PROJECT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert child.stdout
        line = child.stdout.readline()
        if line != b"HERE\n":
            raise AssertionError(child.communicate()[1].decode())
        if step == "wait":
            time.sleep(1)  # the reboot, which comes by itself
        child.send_signal(signal.SIGKILL if how == "sigkill" else signal.SIGINT)
        child.communicate(timeout=20)
        assert child.returncode
        settle(board)
        running = factory if STEPS.index(step) < STEPS.index("wait") else update
        assert board.running() == running.generation
        assert board.good() == state.Good(factory.generation), "nobody confirmed"
        code = -signal.SIGKILL if how == "sigkill" else 130
        after(how, board, factory, update, code)


# --- file systems --------------------------------------------------------------------------------------


@contextmanager
def small(place: Path, size: str) -> Iterator[Path]:
    """Put what lies in a folder on a small file system of its own."""
    if os.getuid() != 0:
        pytest.skip("mounting a small file system needs root")
    kept = place.with_name(f"{place.name}.kept")
    shutil.move(place, kept)
    place.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(place)], check=False
    ).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        # With times and hard links, which say what is whole.
        subprocess.run(["cp", "-a", f"{kept}/.", str(place)], check=True)
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


_PLACES = {"root": "var/lib/npu-bsp", "fat": "boot/firmware"}


@pytest.mark.slow
@pytest.mark.parametrize("place", _PLACES)
@pytest.mark.parametrize(
    "left",
    [10_000, *(pytest.param(n, marks=FULL) for n in (0, 4096, 40_000, 100_000, 300_000, 700_000))],
)
def test_disk_full(
    place: str, left: int, factory: Bundle, update: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fills up just after the plan was made, which found it large enough."""
    with new_board(factory) as board, small(board.root / _PLACES[place], "40m") as folder:
        real = transfer.Agent.stage
        filler = folder / "filler"

        def stage(self: transfer.Agent, *args: Any, **kw: Any) -> None:
            free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
            filler.write_bytes(bytes(max(free - left, 0)))
            real(self, *args, **kw)

        monkeypatch.setattr(transfer.Agent, "stage", stage)
        code = code_of(lambda: deploy(board.target(), bundle=update, board=None))
        assert code in ((0, 2) if left > 30_000 else (2,))
        monkeypatch.setattr(transfer.Agent, "stage", real)
        filler.unlink()
        after(f"full-{place}", board, factory, update, code)


@pytest.mark.slow
@pytest.mark.parametrize("place", _PLACES)
@pytest.mark.parametrize(
    "step", ["stage", *(pytest.param(step, marks=FULL) for step in ("arm", "commit", "discard"))]
)
def test_read_only(
    place: str, step: str, factory: Bundle, update: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after an error of the file system (errors=remount-ro)."""
    with new_board(factory) as board, small(board.root / _PLACES[place], "40m") as folder:
        real = transfer.Agent._write

        def write(self: transfer.Agent, data: bytes) -> None:
            if json.loads(data if data[:1] == b"{" else b"{}").get("do") == step:
                remount("ro")
            real(self, data)

        def remount(how: str) -> None:
            subprocess.run(["mount", "-o", f"remount,{how}", str(folder)], check=True)

        def stage(self: transfer.Agent, *args: Any, **kw: Any) -> None:
            if step == "stage":
                remount("ro")
            real_stage(self, *args, **kw)

        real_stage = transfer.Agent.stage
        monkeypatch.setattr(transfer.Agent, "_write", write)
        monkeypatch.setattr(transfer.Agent, "stage", stage)
        # A board that boots has its file systems writable again; a folder has to be told.
        power = ("/bin/sh", "-c", f"mount -o remount,rw {folder}; {board.power[2]}")
        target = board.target(timeout_s=3, power=power)
        reboot = ("/bin/sh", "-c", f"mount -o remount,rw {folder}; {board._command('reboot')[2]}")
        code = code_of(lambda: deploy(replace(target, reboot=reboot), bundle=update, board=None))
        monkeypatch.undo()
        monkeypatch.setattr(ssh, "_RETRY_EVERY_S", 0.05)
        remount("rw")
        assert code != 0 or step == "discard" or place == "root"
        after(f"read-only-{place}", board, factory, update, code)


# --- clocks, others, and boards that are not themselves --------------------------------------------------


@pytest.mark.parametrize("seconds", [-1_700_000_000, pytest.param(2_000_000_000, marks=FULL)])
def test_clock_jumps(
    seconds: int, factory: Bundle, update: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    jump = f"""
import time as _time
_count = [0]
_true, _true_gm = _time.time, _time.gmtime
def _jumping():
    _count[0] += 1
    return _true() + ({seconds} if _count[0] % 2 else 0)
_time.time = _jumping
_time.gmtime = lambda at=None: _true_gm(_jumping() if at is None else at)
"""
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + seconds)
    with new_board(factory) as board:
        target = replace(board.target(), additions={"frames": jump})
        code = code_of(lambda: deploy(target, bundle=update, board=None))
        assert code == 0
        after("clock", board, factory, update, code)


@pytest.mark.parametrize("turn", [0, *(pytest.param(turn, marks=FULL) for turn in range(1, 6))])
def test_several_at_once(turn: int, factory: Bundle, update: Bundle) -> None:
    with new_board(factory) as board:
        codes: list[int] = []
        threads = [
            threading.Thread(
                target=lambda: codes.append(
                    code_of(lambda: deploy(board.target(), bundle=update, board=None))
                )
            )
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
            time.sleep(0.05 * turn)
        for thread in threads:
            thread.join(timeout=60)
        assert 0 in codes
        assert set(codes) <= {0, 2}, codes
        after("two", board, factory, update, 0)


@pytest.mark.slow
def test_a_board_that_never_comes_back(factory: Bundle, update: Bundle) -> None:
    with new_board(factory) as board:
        board.behave("hang")
        target = replace(board.target(timeout_s=1, power=()))
        code = code_of(lambda: deploy(target, bundle=update, board=None))
        assert code == 6
        board.behave("ok")
        subprocess.run(board.power, check=True)  # somebody walks to it
        assert board.running() == factory.generation
        after("never", board, factory, update, code)


def test_another_board_comes_back(factory: Bundle, update: Bundle) -> None:
    with new_board(factory) as board:
        serial = board.root / "proc/device-tree/serial-number"
        serial.write_bytes(b"0001\0")
        board.behave("other-board")
        result = deploy(board.target(timeout_s=3), bundle=update, board=None)
        assert result.exit_code == 6
        assert "came back as another board: expected linux,dummy-virt 0001, found" in result.problem
        assert board.good() == state.Good(factory.generation), "it was not confirmed"
        serial.write_bytes(b"0001\0")
        after("other-board", board, factory, update, result.exit_code)


def test_another_host_key_comes_back(
    factory: Bundle, update: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    with new_board(factory) as board:
        known = board.folder / "ssh/known_hosts"
        true = known.read_text()
        other = (
            local_sshd.make_key(board.folder / "other").with_suffix(".pub").read_text().split()[:2]
        )
        real = trial.wait_for_boot

        def changed(*args: Any, **kw: Any) -> Any:
            known.write_text(f"{board.host.key_name} {' '.join(other)}\n")
            return real(*args, **kw)

        monkeypatch.setattr(trial, "wait_for_boot", changed)
        result = deploy(board.target(timeout_s=3), bundle=update, board=None)
        assert result.exit_code == 6
        assert "is not the remembered one" in result.problem
        assert "ssh-keygen" in result.hint
        assert board.good() == state.Good(factory.generation), "it was not confirmed"
        monkeypatch.setattr(trial, "wait_for_boot", real)
        known.write_text(true)
        settle_reboot(board, update)
        after("host-key", board, factory, update, result.exit_code)


def settle_reboot(board: FakeBoard, update: Bundle) -> None:
    deadline = time.monotonic() + 10
    while board.running() != update.generation and time.monotonic() < deadline:
        time.sleep(0.05)


def test_every_fault_has_its_row() -> None:
    """The page is that of a whole run."""
    from tests.support.faults import missing

    assert not missing((PROJECT / "docs/faults.md").read_text())
