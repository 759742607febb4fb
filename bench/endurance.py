# SPDX-License-Identifier: MIT
"""Deployments in a row to one board: neither time, nor memory here, nor the board's disk may grow.

    .venv/bin/python -m bench.endurance [--rounds 1000] [--json]

The board is a folder behind a real OpenSSH server; three generations take turns, so that each deployment
sends files, is tried, confirmed, and lets go of the oldest. All run in this process, whose memory, open
files and threads are watched. Compared are the first and the last tenth; the first few are left out.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bsp.base.output import print_json
from bsp.base.progress import redirect_progress
from bsp.remote import ssh
from images.deploy.deploy import deploy
from tests.support.fake_board import FakeBoard, make_bundle

_WARM_UP = 6


@dataclass(frozen=True)
class After:
    """What there was after one deployment."""

    seconds: float
    memory_kb: int
    files: int
    threads: int
    board_kb: int
    board_files: int
    state_files: int


def look(board: FakeBoard, state: Path, seconds: float) -> After:
    sizes = [path.lstat() for path in board.root.rglob("*")]
    inodes = {each.st_ino: each.st_blocks for each in sizes}
    return After(
        seconds,
        int(Path("/proc/self/statm").read_text().split()[1]) * (os.sysconf("SC_PAGE_SIZE") // 1024),
        len(os.listdir("/proc/self/fd")),  # noqa: PTH208
        threading.active_count(),
        sum(inodes.values()) // 2,
        len(sizes),
        sum(1 for _ in state.rglob("*")),
    )


def main() -> None:
    """Deploy, and print how the first and the last ones differ."""
    parser = argparse.ArgumentParser(description="Deploys again and again.")
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    in_memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    ssh._RETRY_EVERY_S = 0.05
    states: list[After] = []
    with tempfile.TemporaryDirectory(prefix="npu-bsp-bench-", dir=in_memory) as name:
        work = Path(name)
        os.environ["NPU_BSP_STATE"] = f"{name}/state"
        os.environ["NPU_BSP_CACHE"] = f"{name}/cache"
        bundles = [
            make_bundle(
                work / f"bundle-{number}",
                kernel=os.urandom(2_000_000),
                modules={f"kernel/m{each}.ko": os.urandom(20_000) for each in range(30)},
            )
            for number in range(3)
        ]
        board = FakeBoard(work / "board", bundles[2])
        with contextlib.closing(board):
            for number in range(options.rounds):
                began = time.monotonic()
                with redirect_progress(lambda _: None):
                    result = deploy(
                        board.target(timeout_s=60), bundle=bundles[number % 3], board=None
                    )
                assert result.outcome == "confirmed", (number, result)
                states.append(look(board, work / "state", time.monotonic() - began))
                if number % 50 == 0:
                    sys.stderr.write(f"{number}: {states[-1]}\n")
    measured = states[_WARM_UP:]
    tenth = max(len(measured) // 10, 1)
    document = {"count": options.rounds}
    for key in After.__dataclass_fields__:
        first, last = (
            statistics.median(getattr(each, key) for each in part)
            for part in (measured[:tenth], measured[-tenth:])
        )
        document[key] = {"first": first, "last": last, "ratio": last / first}
    if options.json:
        print_json(document)
    else:
        for key, value in document.items():
            print(key, value)


if __name__ == "__main__":
    main()
