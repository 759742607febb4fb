# SPDX-License-Identifier: MIT
"""Fixtures that more than one file of tests uses."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bsp.board import inventory
from bsp.board.inventory import Host


@dataclass(frozen=True)
class StartedBoard:
    """A virtual board that was started: how long that took, and how busy this machine was before."""

    host: Host
    seconds: float
    load_before: float


@pytest.fixture(scope="session")
def started_board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartedBoard]:
    """The virtual board of this session, with what is known about its start."""
    from images.virtual import boards

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NPU_BSP_STATE", str(tmp_path_factory.mktemp("state")))
        load_before = os.getloadavg()[0]
        started = boards.up("virtual")
        try:
            yield StartedBoard(inventory.resolve("virtual"), started["seconds"], load_before)
        finally:
            boards.down("virtual")


@pytest.fixture(scope="session")
def virtual_board(started_board: StartedBoard) -> Host:
    """One virtual board for all slow tests of a session: booted through U-Boot, answers over SSH.

    It has a state folder of its own (``NPU_BSP_STATE``), so that the user's virtual boards are left alone.
    Tests may deploy to it and reset it, and leave it answering.
    """
    return started_board.host


@pytest.fixture
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder for one test."""
    folder = tmp_path / "state"
    monkeypatch.setenv("NPU_BSP_STATE", str(folder))
    return folder
