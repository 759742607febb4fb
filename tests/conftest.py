# SPDX-License-Identifier: MIT
"""Fixtures that more than one file of tests uses."""

from __future__ import annotations

import importlib
import os
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bsp.profile import load_board, read_board, user_boards_dir
from bsp.remote import inventory, ssh
from bsp.remote.inventory import Host
from images.bundle.manifest import Bundle
from images.deploy import trial
from images.deploy.deploy import Deployment

from .support.fake_board import FakeBoard, make_bundle

# Where the tests were started in the background of a script, Ctrl-C is ignored, and would be in all that
# they start: some of them press it.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def scope_of(nodeid: str) -> str:
    """Return what one process runs together: all that boots QEMU, for its boards; else a file."""
    return "boards" if nodeid.startswith("tests/system/") else nodeid.partition("::")[0]


@pytest.hookimpl(trylast=True)  # behind the one that says what is slow
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put what takes longest first, so that processes end together."""
    slow = {scope_of(item.nodeid) for item in items if item.get_closest_marker("slow")}
    items.sort(
        key=lambda item: (
            scope_of(item.nodeid) != "boards",
            scope_of(item.nodeid) not in slow,
        )
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Share the tests among processes by ``scope_of``, with ``--dist loadfile``."""
    if config.getvalue("dist") != "loadfile":
        return None
    scheduler = importlib.import_module("xdist.scheduler").LoadScopeScheduling(config, log)
    scheduler._split_scope = scope_of
    return scheduler


@dataclass(frozen=True)
class StartedBoard:
    """A virtual board that was started: how long that took, and how busy this machine was before."""

    host: Host
    seconds: float
    load_before: float


@pytest.fixture
def own_profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The user's profiles, away from those of whoever runs the tests."""
    monkeypatch.setenv("NPU_BSP_CONFIG", str(tmp_path / "config"))
    folder = user_boards_dir()
    folder.mkdir(parents=True)
    yield folder
    read_board.cache_clear()


@pytest.fixture(scope="session")
def boards_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The state folder (``NPU_BSP_STATE``) that the virtual boards of this session share."""
    folder = tmp_path_factory.mktemp("state")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NPU_BSP_STATE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def started_board(boards_state: Path) -> Iterator[StartedBoard]:
    """The virtual board of this session, with what is known about its start."""
    from virtual.boards import boards

    load_before = os.getloadavg()[0]
    started = boards.up("virtual")
    try:
        yield StartedBoard(inventory.resolve("virtual"), started["seconds"], load_before)
    finally:
        boards.down("virtual")


@pytest.fixture(scope="session")
def virtual_board(started_board: StartedBoard) -> Host:
    """One virtual board for all slow tests of a session: booted through U-Boot, answers over SSH.

    Its state folder is the session's, so that the user's virtual boards are left alone.
    Tests may deploy to it and reset it, and leave it answering.
    """
    return started_board.host


@dataclass(frozen=True)
class NpuBoard:
    """A virtual board with an NPU that a deployment switched on; and what it was like before."""

    host: Host
    status_at_birth: str
    dmesg_at_birth: str
    result: Deployment


@pytest.fixture(scope="session")
def npu_board(boards_state: Path) -> Iterator[NpuBoard]:
    """One virtual board with an emulated NPU for all slow tests of a session, our generation running.

    Tests leave it answering, with its NPU on.
    """
    from images.bundle.assemble import bundle_for
    from images.deploy.deploy import Target, deploy
    from virtual.boards import boards

    name = "virtual-a311d"
    boards.up(name)
    try:
        host = inventory.resolve(name)
        with ssh.connect(host, timeout_s=60) as connection:
            node = "/proc/device-tree/npu@10000000/status"
            born = connection.run(["cat", node], timeout_s=60).text
            dmesg = connection.run(["dmesg"], timeout_s=60).text
        result = deploy(Target(host), bundle=bundle_for(load_board(name)), board=None)
        yield NpuBoard(host, born, dmesg, result)
    finally:
        boards.down(name)


@pytest.fixture
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder for one test."""
    folder = tmp_path / "state"
    monkeypatch.setenv("NPU_BSP_STATE", str(folder))
    return folder


@pytest.fixture
def own_hosts(own_state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """State, inventory and SSH configuration for one test, and no waiting between looks at a board."""
    monkeypatch.setenv("NPU_BSP_INVENTORY", str(tmp_path / "inventory.toml"))
    monkeypatch.setenv("NPU_BSP_SSH_CONFIG", str(tmp_path / "ssh_config"))
    monkeypatch.setattr(trial, "_POLL_S", 0.05)


@pytest.fixture(scope="module")
def factory(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """What the boards that are folders are made with."""
    return make_bundle(tmp_path_factory.mktemp("factory") / "factory")


@pytest.fixture
def board(factory: Bundle) -> Iterator[FakeBoard]:
    """A board that is a folder, with a real SSH server."""
    # In memory where possible: a deployment flushes a lot, and the disk here is not what is tested.
    in_memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    # The board's half of a session may still be giving its lease back.
    with tempfile.TemporaryDirectory(
        dir=in_memory, prefix="npu-bsp-test-", ignore_cleanup_errors=True
    ) as folder:
        fake = FakeBoard(Path(folder), factory)
        try:
            yield fake
        finally:
            fake.close()
