# SPDX-License-Identifier: MIT
"""Fleets: which hosts are meant, waves as a pure function, and whole runs against real SSH servers."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bsp.base.errors import UserError
from bsp.base.project import PROJECT
from bsp.base.terminal.live_table import LiveTable
from bsp.remote.groups import is_multi_host, resolve_all
from images.bundle import manifest as bundles
from images.deploy.fleet.command import deploy_bundles, plans_text, report_text, status_text
from images.deploy.fleet.fleet import GOOD, Outcome, deploy_fleet, over_all, run_id
from images.deploy.fleet.waves import Rules, Wave, decide_next, plan_waves
from images.deploy.status import status
from images.deploy.transfer.shared import Shared
from tests.support.fake_board import BOARD_MARKS, make_bundle
from tests.support.fleet_boards import FleetBoards, boards
from tests.support.npu.vfio_client import wait_until

INVENTORY = """
[hosts.one]
address = "10.0.0.1"
tags = ["vim3", "desk"]
[hosts.two]
address = "10.0.0.2"
tags = ["vim3"]
board = "vim3"
power = ["cycle", "two"]
[hosts.three]
address = "10.0.0.3"
[groups]
bench = ["three", "tag:desk"]
all = ["group:bench", "tag:vim3"]
circle = ["group:round"]
round = ["group:circle"]
"""

# --- which hosts are meant ----------------------------------------------------------------------------


@pytest.fixture
def inventory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "inventory.toml"
    file.write_text(INVENTORY)
    monkeypatch.setenv("NPU_BSP_INVENTORY", str(file))
    monkeypatch.setenv("NPU_BSP_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("NPU_BSP_SSH_CONFIG", str(tmp_path / "none"))
    return file


@pytest.mark.usefixtures("inventory")
@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("one", ["one"]),
        ("two,one", ["two", "one"]),
        ("tag:vim3", ["one", "two"]),
        ("group:bench", ["three", "one"]),
        ("group:all", ["three", "one", "two"]),
        ("tag:vim3, root@10.0.0.9:2200,one", ["one", "two", "root@10.0.0.9:2200"]),
    ],
)
def test_what_a_host_flag_means(text: str, names: list[str]) -> None:
    assert [host.name for host in resolve_all(text)] == names


@pytest.mark.usefixtures("inventory")
@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("tag:vim4", "has the tag 'vim4'; did you mean 'vim3'"),
        ("group:bensh", "no group 'bensh' in .*did you mean 'bench'"),
        ("group:circle", "contains itself: circle > round > circle"),
        ("one,,two", "empty name"),
        ("one,nobody", "unknown host 'nobody'"),
    ],
)
def test_what_is_meant_by_nothing(text: str, why: str) -> None:
    with pytest.raises(UserError, match=why):
        resolve_all(text)


def test_broken_groups_and_tags(inventory: Path) -> None:
    for text, why in (
        ('[hosts.a]\ntags = "vim3"', "tags is 'vim3', expected a list of words"),
        ('[hosts.a]\ntags = ["a b"]', "expected a list of words"),
        ('[groups]\nx = "one"', "x is 'one', expected a list of hosts"),
        ('[groups]\n"a,b" = ["one"]', "not a name for a group"),
        ("[group]", "unknown key 'group' in the top level; did you mean 'groups'"),
    ):
        inventory.write_text(text)
        with pytest.raises(UserError, match=why):
            resolve_all("tag:vim3" if "hosts" in text else "group:x")


def test_a_group_or_a_tag_without_its_word_is_told_how_to_be_written(inventory: Path) -> None:
    inventory.write_text(
        '[hosts.one]\ntags = ["red"]\n[groups]\nouter = ["inner"]\ninner = ["one"]\n'
    )
    for text, hint in (
        ("inner", "group:inner"),
        ("group:outer", "group:inner"),
        ("red", "tag:red"),
    ):
        with pytest.raises(UserError, match="is no host but a") as error:
            resolve_all(text)
        assert error.value.hint == f"write {hint}"


def test_what_is_one_host_stays_one() -> None:
    assert not any(map(is_multi_host, ("vim3", "root@10.0.0.1:22", "lab:board=vim3", "virtual")))
    assert all(map(is_multi_host, ("tag:x", "group:x", "a,b")))


# --- waves: pure ---------------------------------------------------------------------------------------


def test_waves_of_a_fleet() -> None:
    hosts = [f"h{number}" for number in range(10)]
    assert plan_waves(hosts, Rules(canary=2, wave_size=5)) == (
        Wave("canary", ("h0", "h1"), gate=True),
        Wave("wave 1", ("h2", "h3", "h4", "h5", "h6")),
        Wave("wave 2", ("h7", "h8", "h9")),
    )
    assert [len(wave.hosts) for wave in plan_waves(hosts, Rules())] == [1, 4, 4, 1]
    assert [len(wave.hosts) for wave in plan_waves(hosts, Rules(canary=0))] == [4, 4, 2]
    # Interrupted after the canary and one more: the rest of their wave goes first.
    resumed = plan_waves(hosts, Rules(), done=["h0", "h2"])
    assert [(wave.name, len(wave.hosts)) for wave in resumed] == [
        ("done before", 2), ("wave 1", 3), ("wave 2", 4), ("wave 3", 1),
    ]  # fmt: skip
    with pytest.raises(UserError, match="--jobs is 0, expected 1"):
        Rules(jobs=0)


RULES = st.builds(
    Rules,
    canary=st.integers(0, 4),
    wave_size=st.integers(0, 6),
    max_failures=st.integers(0, 5),
    jobs=st.integers(1, 9),
)


@given(
    RULES,
    st.lists(st.sampled_from([True] * 5 + [False]), max_size=30),
    st.sets(st.integers(0, 29)),
    st.randoms(use_true_random=False),
)
@settings(max_examples=300, deadline=None)
def test_any_run_keeps_the_rules(
    rules: Rules, fates: list[bool], done_numbers: set[int], order: object
) -> None:
    hosts = [f"h{number}" for number in range(len(fates))]
    fate = dict(zip(hosts, fates, strict=True))
    done = {f"h{number}" for number in done_numbers} & set(hosts)
    waves = plan_waves(hosts, rules, done=done)
    assert sorted(name for wave in waves for name in wave.hosts) == sorted(hosts)
    number_of = {name: number for number, wave in enumerate(waves) for name in wave.hosts}
    ended: dict[str, bool] = {}
    running: list[str] = []
    while True:
        following = decide_next(waves, ended, running, rules)
        failures = sum(not well for well in ended.values())
        for name in following.start:
            assert name not in ended
            assert name not in running
            # All of the waves before are decided, and the failures are within what is allowed.
            assert all(each in ended for each in hosts if number_of[each] < number_of[name])
            assert failures <= rules.max_failures
            assert all(ended.get(each, True) for wave in waves if wave.gate for each in wave.hosts)
            running.append(name)
        assert len(running) <= rules.jobs
        assert bool(following.stopped) == (
            failures > rules.max_failures
            or any(ended.get(each) is False for wave in waves if wave.gate for each in wave.hosts)
        )
        if not running:
            break
        name = running.pop(order.randrange(len(running)))  # type: ignore[attr-defined]
        ended[name] = fate[name]
    if not following.stopped:
        assert set(ended) == set(hosts)  # nobody is forgotten


# --- whole runs ----------------------------------------------------------------------------------------

real = [pytest.mark.usefixtures("own_state"), *BOARD_MARKS]


@pytest.fixture(scope="module")
def update(tmp_path_factory: pytest.TempPathFactory) -> bundles.Bundle:
    modules = {f"kernel/drivers/m{number}.ko": b"module %d" % number * 50 for number in range(20)}
    modules["kernel/drivers/new.ko"] = os.urandom(70_000)
    return make_bundle(
        tmp_path_factory.mktemp("fleet") / "update", modules=modules, kernel=b"new kernel" * 9999
    )


@pytest.fixture
def eight(tmp_path: Path, factory: bundles.Bundle) -> Iterator[FleetBoards]:
    with boards(tmp_path / "fleet", factory, 8) as fleet:
        yield fleet


def everywhere(fleet: FleetBoards, bundle: bundles.Bundle) -> dict[str, bundles.Bundle]:
    return dict.fromkeys(fleet.names, bundle)


def with_marks(test: object) -> object:
    for mark in real:
        test = mark(test)
    return test


@pytest.mark.slow
@with_marks
def test_a_fleet_is_deployed_to_stops_and_goes_on(
    eight: FleetBoards, factory: bundles.Bundle, update: bundles.Bundle
) -> None:
    wanted = everywhere(eight, update)
    # The canary falls: no other board is touched.
    eight.boards["b00"].behave("panic")
    others = [board for name, board in eight.boards.items() if name != "b00"]
    before = [board.snapshot() for board in others]
    report = deploy_bundles(eight.targets(timeout_s=5), wanted, rules=Rules())
    assert report.exit_code == 5
    assert report.counts() == {"rolled-back": 1, "waiting": 7}
    assert "the canary failed: b00" in report.run.stopped
    assert before == [board.snapshot() for board in others]

    # It is mended; now one of the first wave falls, and its wave is brought to its end.
    eight.boards["b00"].behave("ok")
    eight.boards["b02"].behave("other-tree")
    shared = Shared()
    targets = eight.targets(shared=shared)
    report = deploy_bundles(targets, wanted, rules=Rules(wave_size=3, jobs=3))
    assert report.exit_code == 5
    assert report.counts() == {"confirmed": 3, "rolled-back": 1, "waiting": 4}
    assert "1 failed, 0 may: b02" in report.run.stopped
    assert shared.made == 1  # compressed once, sent four times
    assert "rolled-back" in report_text(report)
    assert "continues with the boards that are not done" in report_text(report)

    # Again, one failure allowed: those that are done are only looked at.
    ids = {name: boot_id(eight, name) for name in eight.names}
    report = deploy_bundles(targets, wanted, rules=Rules(wave_size=3, jobs=3, max_failures=1))
    assert report.counts() == {"confirmed": 4, "rolled-back": 1, "unchanged": 3}
    assert sorted(report.resumed) == ["b00", "b01", "b03"]
    assert all(ids[name] == boot_id(eight, name) for name in report.resumed)
    document = json.loads(json.dumps(report.document()))
    assert [each["host"] for each in document["hosts"]] == eight.names
    assert document["exit_code"] == 5
    assert document["waves"][0] == {"name": "done before", "hosts": ["b00", "b01", "b03"]}
    running = dict(zip(eight.names, eight.running(), strict=True))
    assert running.pop("b02") == factory.generation
    assert set(running.values()) == {update.generation}

    found = over_all([*eight.names], lambda name: status(targets[name]), jobs=4)
    assert status_text(list(found.values())).count(update.generation) == 7


def boot_id(fleet: FleetBoards, name: str) -> str:
    return (fleet.boards[name].root / "proc/sys/kernel/random/boot_id").read_text()


def bound(holder: socket.socket, port: int) -> bool:
    with contextlib.suppress(OSError):
        holder.bind(("127.0.0.1", port))
    return bool(holder.getsockname()[1] == port)


@with_marks
def test_a_board_that_cannot_be_reached_is_one_row(
    tmp_path: Path, factory: bundles.Bundle, update: bundles.Bundle
) -> None:
    with boards(tmp_path / "fleet", factory, 3) as fleet, socket.socket() as held:
        fleet.boards["b00"].sshd.stop()
        # Held, so that no server of another test comes to listen there; once all of sshd has ended.
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        wait_until(lambda: bound(held, fleet.boards["b00"].host.port), 10)
        rules = Rules(max_failures=1)
        looked = deploy_bundles(
            fleet.targets(), everywhere(fleet, update), rules=rules, dry_run=True
        )
        assert looked.counts() == {"failed": 1, "planned": 2}  # the canary is not a gate here
        text = plans_text(looked, rules)
        assert "canary: b00" in text
        assert "b00: cannot reach" in text
        assert "b01: send " in text
        assert set(fleet.running()) == {factory.generation}
        report = deploy_bundles(
            fleet.targets(), everywhere(fleet, update), rules=Rules(canary=0, max_failures=1)
        )
    assert report.counts() == {"confirmed": 2, "failed": 1}
    assert report.exit_code == 3
    assert "cannot reach b00" in report.run.hosts["b00"].problem


def test_ctrl_c_while_a_board_is_started_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread never ran, so that there is nothing to wait for."""

    def interrupted(_: LiveTable, name: str, __: str) -> None:
        if name == "b":
            raise KeyboardInterrupt

    def never(name: str) -> Outcome:
        raise UserError(f"{name} is not to be reached")

    monkeypatch.setenv("NPU_BSP_STATE", str(tmp_path))
    monkeypatch.setattr(LiveTable, "show", interrupted)
    rules = Rules(canary=0, wave_size=2, max_failures=2)
    report = deploy_fleet({"a": "0" * 12, "b": "0" * 12}, never, rules)
    assert (report.interrupted, report.exit_code) == (True, 130)
    assert report.counts() == {"failed": 1, "interrupted": 1}


CHILD = """\
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, where the tests run in the background
from pathlib import Path
from pathlib import PosixPath
from dataclasses import replace
from bsp.remote.inventory import Host
from images.bundle import manifest as bundles
from images.deploy.claim import Claim
from images.deploy.session import Target
from images.deploy.fleet.command import deploy_bundles
from images.deploy.transfer.shared import Shared
from images.deploy.fleet.waves import Rules
shared = Shared()
targets = {{name: replace(each, shared=shared) for name, each in {targets!r}.items()}}
bundle = bundles.load(Path({bundle!r}))
report = deploy_bundles(targets, dict.fromkeys(targets, bundle), rules=Rules(jobs={jobs}))
sys.exit(report.exit_code)
"""


def child(fleet: FleetBoards, bundle: bundles.Bundle, *, jobs: int) -> list[str]:
    from dataclasses import replace

    targets = {name: replace(each, shared=None) for name, each in fleet.targets().items()}
    return [
        sys.executable,
        "-c",
        CHILD.format(targets=targets, bundle=str(bundle.path), jobs=jobs),
    ]


@pytest.mark.slow
@with_marks
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_run_goes_on(
    tmp_path: Path, factory: bundles.Bundle, update: bundles.Bundle, how: signal.Signals
) -> None:
    with boards(tmp_path / "fleet", factory, 4) as fleet:
        process = subprocess.Popen(
            child(fleet, update, jobs=1), cwd=PROJECT, stderr=subprocess.PIPE, text=True
        )
        assert process.stderr
        said = [next(process.stderr), next(process.stderr)]  # two boards are done
        process.send_signal(how)
        code = process.wait(timeout=60)
        process.stderr.close()
        assert code == (130 if how == signal.SIGINT else -signal.SIGKILL)
        assert said[1].startswith("[2/4] b01 (wave 1): confirmed")
        run = run_id(dict.fromkeys(fleet.names, update.generation))
        file = Path(os.environ["NPU_BSP_STATE"]) / "fleets" / f"{run}.json"
        kept = json.loads(file.read_text())
        assert not kept["ended"]
        done = [name for name, each in kept["hosts"].items() if each.get("outcome") in GOOD]
        # Ctrl-C waits for those under way, so that one more may have been done.
        assert done in (["b00", "b01"], ["b00", "b01", "b02"])
        deadline = time.monotonic() + 30  # whoever was cut off may still hold its board
        while True:
            report = deploy_bundles(fleet.targets(), everywhere(fleet, update), rules=Rules())
            if report.exit_code == 0 or time.monotonic() > deadline:
                break
        assert report.exit_code == 0, report_text(report)
        assert {"b00", "b01"} <= set(report.resumed)
        assert all(report.run.hosts[name].outcome == "unchanged" for name in ("b00", "b01"))
        assert set(fleet.running()) == {update.generation}
        assert deploy_bundles(
            fleet.targets(), everywhere(fleet, update), rules=Rules()
        ).resumed == ()  # fmt: skip


@pytest.mark.slow
@with_marks
def test_a_terminal_sees_one_table(
    tmp_path: Path, factory: bundles.Bundle, update: bundles.Bundle
) -> None:
    with boards(tmp_path / "fleet", factory, 2) as fleet:
        near, far = pty.openpty()
        environment = {**os.environ, "TERM": "xterm"}
        with subprocess.Popen(
            child(fleet, update, jobs=2), cwd=PROJECT, stderr=far, env=environment
        ) as process:
            os.close(far)
            said = b""
            try:
                while data := os.read(near, 4096):
                    said += data
            except OSError:  # Linux' way to say that the other end is closed
                pass
        os.close(near)
        assert process.returncode == 0, said
    assert re.search(rb"\r\x1b7(\x1b\[K\x1b\[B)+\x1b\[K\x1b8", said), "nothing was drawn over"
    assert b"[2/2] b01 (wave 1): confirmed" in said
    assert b"1 well, 0 failed, 1 under way, 0 waiting" in said


@pytest.mark.full
@with_marks
def test_sixty_four_boards(tmp_path: Path, factory: bundles.Bundle, update: bundles.Bundle) -> None:
    """64 real SSH servers, each with a root of its own; two of them fall."""
    with boards(tmp_path / "fleet", factory, 64) as fleet:
        for name in ("b20", "b50"):
            fleet.boards[name].behave("panic")
        shared = Shared()
        report = deploy_bundles(
            fleet.targets(timeout_s=120, shared=shared),
            everywhere(fleet, update),
            rules=Rules(max_failures=2),
        )
        print(report_text(report))
        assert report.counts() == {"confirmed": 62, "rolled-back": 2}
        assert report.exit_code == 5
        assert shared.made == 1
        again = deploy_bundles(fleet.targets(), everywhere(fleet, update), rules=Rules(jobs=8))
        assert again.exit_code in (0, 5)
