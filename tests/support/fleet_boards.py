# SPDX-License-Identifier: MIT
"""Many boards made of folders, each with a real SSH server, keys and a root of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from images.bundle.manifest import Bundle
from images.deploy.session import Target
from images.deploy.transfer.shared import Shared

from .fake_board import FakeBoard


class FleetBoards:
    """``names`` in their order; ``boards`` by name."""

    def __init__(self, folder: Path, factory: Bundle, count: int) -> None:
        self.names = [f"b{number:02}" for number in range(count)]

        def make(name: str) -> FakeBoard:
            board = FakeBoard(folder / name, factory)
            board.host = replace(board.host, name=name)
            return board

        with ThreadPoolExecutor(4) as pool:
            self.boards = dict(zip(self.names, pool.map(make, self.names), strict=True))

    def targets(self, *, timeout_s: float = 20, shared: Shared | None = None) -> dict[str, Target]:
        """The targets of all boards, by name, as ``deploy`` wants them."""
        one = shared or Shared()
        return {
            name: replace(board.target(timeout_s=timeout_s), shared=one)
            for name, board in self.boards.items()
        }

    def running(self) -> list[str]:
        """What each board runs, in the order of their names."""
        return [board.running() for board in self.boards.values()]

    def close(self) -> None:
        for board in self.boards.values():
            board.close()


@contextlib.contextmanager
def boards(folder: Path, factory: Bundle, count: int) -> Iterator[FleetBoards]:
    fleet = FleetBoards(folder, factory, count)
    with contextlib.closing(fleet):
        yield fleet
