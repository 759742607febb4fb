# SPDX-License-Identifier: MIT
"""Fixtures that more than one file of tests uses."""

from __future__ import annotations

import importlib
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bsp.catalog import read_board, user_boards_dir
from bsp.remote import ssh
from images.bundle.manifest import Bundle

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


@pytest.fixture
def own_profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The user's profiles, away from those of whoever runs the tests."""
    monkeypatch.setenv("NPU_BSP_CONFIG", str(tmp_path / "config"))
    folder = user_boards_dir()
    folder.mkdir(parents=True)
    yield folder
    read_board.cache_clear()


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
    monkeypatch.setattr(ssh, "_RETRY_EVERY_S", 0.05)


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
