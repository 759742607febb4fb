# SPDX-License-Identifier: MIT
"""Boards of a shared lab: labgrid's own coordinator and exporter, a real SSH server as the board."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bsp.base.errors import InfrastructureError, UserError
from bsp.base.project import PROJECT
from bsp.remote import lab as labs
from bsp.remote import ssh
from bsp.remote.groups import is_multi_host
from bsp.remote.inventory import resolve
from images.bundle.manifest import Bundle
from images.deploy.deploy import deploy, rollback
from images.deploy.session import Target
from images.deploy.status import status
from tests.support.fake_board import BOARD_MARKS, FakeBoard, make_bundle
from tests.support.lab_servers import Lab, PowerSwitch

pytestmark = [*BOARD_MARKS, pytest.mark.network]

needs_lab = pytest.mark.slow  # a coordinator, an exporter, and processes that import labgrid

PLACES = {
    "desk-1": {"board": "virtual", "rack": "one"},
    "desk-2": {"board": "virtual", "rack": "two"},
    "desk-3": {"board": "virtual", "rack": "three"},
    "empty": {"board": "nothing"},
}


@dataclass
class Shelf:
    """A lab with one board behind three places, and its power switch."""

    lab: Lab
    board: FakeBoard
    switch: PowerSwitch

    def target(self, name: str, *, timeout_s: float = 10) -> Target:
        mine = self.board.target(timeout_s=timeout_s)
        return Target(
            resolve(name),
            timeout_s=timeout_s,
            recovery_s=timeout_s,
            root=mine.root,
            reboot=mine.reboot,
        )


@pytest.fixture(scope="module")
def whole_shelf(tmp_path_factory: pytest.TempPathFactory, factory: Bundle) -> Iterator[Shelf]:
    in_memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=in_memory, prefix="npu-bsp-test-") as folder:
        board = FakeBoard(Path(folder), factory)
        switch = PowerSwitch(lambda: subprocess.run(board.power, check=True))
        service = {"address": "127.0.0.1", "port": board.host.port, "username": board.host.user}
        power = {
            "model": "simplerest", "host": f"http://127.0.0.1:{switch.port}/{{index}}/{{value}}",
            "index": 7,
        }  # fmt: skip
        resources: dict[str, object] = {
            name: {"NetworkService": service, "NetworkPowerPort": power} for name in PLACES
        }
        resources["empty"] = {"NetworkPowerPort": power}
        lab = Lab(tmp_path_factory.mktemp("lab") / "lab", PLACES, resources)
        try:
            yield Shelf(lab, board, switch)
        finally:
            lab.close()
            switch.close()
            board.close()


@pytest.fixture
def shelf(
    whole_shelf: Shelf, own_hosts: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Shelf]:
    monkeypatch.setenv("LG_COORDINATOR", whole_shelf.lab.address)
    for name in ("LG_TOKEN", "LG_ENV", "LG_PLACE", "LG_PROXY"):
        monkeypatch.delenv(name, raising=False)
    host = whole_shelf.board.host
    (tmp_path / "ssh_config").write_text(
        f"Host 127.0.0.1\n IdentityFile {host.identity_file}\n UserKnownHostsFile {host.known_hosts}\n"
    )
    labs.lease.cache_clear()
    yield whole_shelf
    labs.lease.cache_clear()


class Client:
    """A process of ours that holds a place, and would go on for a minute."""

    def __init__(self, name: str) -> None:
        code = (
            "import sys, time; from bsp.remote import lab; from bsp.remote.inventory import resolve;"
            f"h = resolve({name!r}); print(h.name, lab.lease({name!r})._keeper.pid, flush=True);"
            "time.sleep(60)"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=PROJECT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def started(self) -> Client:
        assert self.process.stdout
        said = self.process.stdout.readline().split()
        assert said, self.process.communicate()[1]
        self.keeper = int(said[1])
        return self

    def ended(self) -> tuple[int, str]:
        _, err = self.process.communicate(timeout=20)
        return self.process.returncode, err


# --- names -------------------------------------------------------------------------------------------


def test_names(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_multi_host("lab:board=vim3,rack=two")
    assert labs.parse("lab:board=vim3,rack=two") == ({"board": "vim3", "rack": "two"}, "")
    assert labs.parse("lab:+ABC") == ({}, "ABC")
    monkeypatch.setenv("LG_TOKEN", "XYZ")
    assert labs.parse("lab:+") == ({}, "XYZ")
    monkeypatch.delenv("LG_TOKEN")
    with pytest.raises(UserError, match="LG_TOKEN is not set"):
        labs.parse("lab:+")
    for bad in ("lab:", "lab:vim3", "lab:board=", "lab:Board=x", "lab:board=vim3,"):
        with pytest.raises(UserError, match="expected tags as KEY=VALUE"):
            labs.parse(bad)


def test_no_coordinator(own_hosts: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.support.local_sshd import free_port

    monkeypatch.setenv("LG_COORDINATOR", f"127.0.0.1:{free_port()}")
    with pytest.raises(InfrastructureError, match="no labgrid coordinator answers") as caught:
        resolve("lab:board=vim3")
    assert "LG_COORDINATOR" in caught.value.hint


@needs_lab
def test_tags_that_no_place_has(shelf: Shelf) -> None:
    with pytest.raises(UserError, match="no place of the lab has the tags board=virtal") as caught:
        resolve("lab:board=virtal")
    assert caught.value.hint == "did you mean board=virtual?"
    assert "desk-1: board=virtual,rack=one" in caught.value.message
    with pytest.raises(UserError, match="has 0 NetworkServices"):
        resolve("lab:name=empty")
    assert shelf.lab.holder("empty") == "None"


def test_what_the_coordinator_says_is_no_file_content() -> None:
    held = object.__new__(labs.Lease)
    held.wanted = "lab:board=x"
    held.place = {
        "place": "a", "address": "1.2.3.4\n* ssh-ed25519 AAAA", "user": "root", "proxy": None,
    }  # fmt: skip
    with pytest.raises(UserError, match="the address that the lab names"):
        held.host()


# --- the whole way -----------------------------------------------------------------------------------


@needs_lab
def test_deploy_power_rollback_and_release(shelf: Shelf, tmp_path: Path) -> None:
    name = "lab:board=virtual,rack=one"
    target = shelf.target(name)
    host = target.host
    assert (host.name, host.board, host.port) == (
        "lab:name=desk-1", "virtual", shelf.board.host.port,
    )  # fmt: skip
    assert shelf.lab.holder("desk-1") != "None"
    assert shelf.lab.holder("desk-2") == "None"
    before = shelf.board.running()
    bundle = make_bundle(tmp_path / "new", kernel=b"another kernel")
    done = deploy(target, bundle=bundle, board=None)
    assert done.outcome == "confirmed", done.problem
    assert shelf.board.running() == bundle.generation == status(target)["running"]
    assert rollback(target).outcome == "confirmed"
    assert shelf.board.running() == before

    # A trial that hangs: only the power gets the board back, through labgrid's driver.
    shelf.board.behave("hang")
    hangs = make_bundle(tmp_path / "hangs", kernel=b"a kernel that hangs")
    result = deploy(shelf.target(name, timeout_s=3), bundle=hangs, board=None)
    shelf.board.behave("ok")
    assert result.outcome == "rolled-back", result.problem
    assert shelf.switch.switched[-2:] == ["/7/0", "/7/1"]
    assert shelf.board.running() == before

    labs.lease(name).release()
    assert shelf.lab.holder("desk-1") == "None"
    assert shelf.lab.reservations() == 0


@needs_lab
def test_host_keys_are_ours_to_check(shelf: Shelf, tmp_path: Path) -> None:
    config = tmp_path / "ssh_config"
    known = tmp_path / "known"
    config.write_text(config.read_text().replace(str(shelf.board.host.known_hosts), str(known)))
    target = shelf.target("lab:name=desk-1")
    try:
        with pytest.raises(UserError, match="is not known yet"):
            status(target)
        known.write_text(
            f"{target.host.key_name} ssh-ed25519 "
            "AAAAC3NzaC1lZDI1NTE5AAAAIIdNJ2sj4r7cB8TbMRjKvbXVrlD8cOw4ZqfBs5oZyZfI\n"
        )
        with pytest.raises(UserError, match="is not the remembered one"):
            status(target)
    finally:
        labs.lease("lab:name=desk-1").release()


# --- every way to end --------------------------------------------------------------------------------


@needs_lab
def test_a_client_that_ends_in_any_way_releases(shelf: Shelf) -> None:
    ends = {"desk-1": signal.SIGINT, "desk-2": signal.SIGTERM, "desk-3": signal.SIGKILL}
    clients = {place: Client(f"lab:name={place}") for place in ends}
    for place, client in clients.items():
        client.started()
        assert shelf.lab.holder(place) != "None"
    for place, number in ends.items():
        clients[place].process.send_signal(number)
    for place, client in clients.items():
        _, err = client.ended()
        assert ("released" in err) == (place == "desk-1")
    for place in ends:
        shelf.lab.wait_until_free(place)
    assert shelf.lab.reservations() == 0


@needs_lab
def test_a_machine_that_falls_leaves_a_place_that_the_next_run_frees(shelf: Shelf) -> None:
    fallen = Client("lab:name=desk-1").started()
    os.kill(fallen.keeper, signal.SIGKILL)
    fallen.process.kill()
    fallen.ended()
    # labgrid's leases have no end: the coordinator keeps it for a client that is gone.
    assert shelf.lab.holder("desk-1") != "None"
    after = Client("lab:name=desk-1").started()
    after.process.send_signal(signal.SIGINT)
    _, err = after.ended()
    assert "released desk-1, which a killed run of yours had left acquired" in err
    shelf.lab.wait_until_free("desk-1")


@needs_lab
def test_waiting_and_being_thrown_out(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Client("lab:name=desk-2").started()
    monkeypatch.setenv("NPU_BSP_LAB_WAIT", "0.5")
    with pytest.raises(InfrastructureError, match=r"within 0\.5 s: desk-2 is held by \S+/"):
        resolve("lab:rack=two")
    monkeypatch.delenv("NPU_BSP_LAB_WAIT")
    second = Client("lab:rack=two")
    deadline = time.monotonic() + 20
    while shelf.lab.reservations() < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first.process.send_signal(signal.SIGTERM)
    second.started()
    shelf.lab.client("-p", "desk-2", "release", "--kick")
    code, err = second.ended()
    assert "waiting: desk-2 is held by" in err
    assert "desk-2 was taken away from us (released by somebody else); stopping" in err
    assert code != 0
    assert shelf.lab.holder("desk-2") == "None"


@needs_lab
def test_a_reservation_of_ones_own_outlives_commands(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = shelf.lab.client("reserve", "--wait", "--shell", "rack=three")
    token = said.split("LG_TOKEN=")[1].split()[0]
    monkeypatch.setenv("LG_TOKEN", token)
    shelf.lab.client("-p", "+", "acquire")
    assert resolve("lab:+").name == "lab:name=desk-3"
    labs.lease("lab:+").release()
    assert shelf.lab.holder("desk-3") != "None"
    shelf.lab.client("-p", "desk-3", "release")
    shelf.lab.client("cancel-reservation", token)
    with pytest.raises(UserError, match="does not know the reservation"):
        resolve(f"lab:+{token}")


@pytest.mark.full
def test_a_coordinator_that_restarts(
    own_hosts: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = {"address": "127.0.0.1", "port": 22, "username": "root"}
    lab = Lab(
        tmp_path / "lab", {"desk": {"board": "virtual"}}, {"desk": {"NetworkService": service}}
    )
    monkeypatch.setenv("LG_COORDINATOR", lab.address)
    try:
        client = Client("lab:board=virtual").started()
        lab.restart()
        deadline = time.monotonic() + 30
        while "acquired: None" in (shown := lab.client("-p", "desk", "show")):
            assert time.monotonic() < deadline, shown
        client.process.send_signal(signal.SIGINT)
        _, err = client.ended()
        assert "does not answer any more" in err
        assert "the coordinator is back; desk is ours" in err
        assert "released desk" in err
        assert "acquired: None" in lab.client("-p", "desk", "show")
        assert "Reservation" not in lab.client("reservations")
    finally:
        lab.close()


@pytest.mark.full
def test_a_board_behind_its_exporter(
    whole_shelf: Shelf, own_hosts: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sshd = whole_shelf.board.sshd
    service = {"address": "127.0.0.1", "port": sshd.port, "username": sshd.host.user}
    lab = Lab(
        tmp_path / "lab",
        {"hidden": {"board": "virtual"}},
        {"hidden": {"NetworkService": service}},
        isolated=True,
    )
    monkeypatch.setenv("LG_COORDINATOR", lab.address)
    known = tmp_path / "known"
    gate = (
        f"Host {socket.getfqdn()}\n HostName 127.0.0.1\n Port {sshd.port}\n User {sshd.host.user}\n"
    )
    keys = f" IdentityFile {sshd.host.identity_file}\n UserKnownHostsFile {known}\n"
    (tmp_path / "ssh_config").write_text(f"{gate}{keys}Host 127.0.0.1\n{keys}")
    key = (sshd.folder / "host_key.pub").read_text()
    known.write_text(f"[127.0.0.1]:{sshd.port} {key}")
    labs.lease.cache_clear()
    try:
        host = resolve("lab:name=hidden")
        assert (host.proxy_jump, host.host_key_alias) == (socket.getfqdn(), "hidden")
        # Its key stands under the place's name: its address means something there only.
        with pytest.raises(UserError, match=r"key of lab:name=hidden .* is not known yet"):
            ssh.connect(host)
        known.write_text(f"[127.0.0.1]:{sshd.port} {key}hidden {key}")
        with ssh.connect(host) as connection:
            assert connection.run(["echo", "through"]).text == "through\n"
    finally:
        labs.lease("lab:name=hidden").release()
        labs.lease.cache_clear()
        lab.close()
