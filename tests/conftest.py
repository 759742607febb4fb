# SPDX-License-Identifier: MIT
"""Fixtures that more than one file of tests uses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bsp.board import inventory
from bsp.board.inventory import Host


@pytest.fixture(scope="session")
def virtual_board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """One virtual board for all slow tests of a session: booted through U-Boot, answers over SSH.

    It has a state folder of its own (``NPU_BSP_STATE``), so that the user's virtual boards are left alone.
    Tests may deploy to it and reset it, and leave it answering.
    """
    from images.virtual import boards

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NPU_BSP_STATE", str(tmp_path_factory.mktemp("state")))
        started = boards.up("virtual")
        assert not started["already_up"]
        # The specification: on two emulated cores, from virtual.up to SSH.
        assert started["seconds"] < 60
        try:
            yield inventory.resolve("virtual")
        finally:
            boards.down("virtual")


@pytest.fixture
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder for one test."""
    folder = tmp_path / "state"
    monkeypatch.setenv("NPU_BSP_STATE", str(folder))
    return folder
