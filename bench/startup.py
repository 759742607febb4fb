# SPDX-License-Identifier: MIT
"""How long ``invoke --list`` takes, against a tasks.py that imports nothing but invoke.

.venv/bin/python -m bench.startup [--rounds N] [--json]
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from .measure import Arm, arguments, measure, report

PROJECT = Path(__file__).parents[1]
INVOKE = str(Path(sys.executable).with_name("invoke"))

EMPTY = """\
from invoke import task

@task
def nothing(_):
    "Does nothing."
"""


def main() -> None:
    """Compare the two, and the launcher on top."""
    options = arguments("Times invoke --list.", rounds=40)
    with tempfile.TemporaryDirectory(prefix="npu-bsp-bench-") as empty:
        (Path(empty) / "tasks.py").write_text(EMPTY)

        def listing(folder: str | Path, *command: str) -> None:
            subprocess.run(
                [*command, "--list"], cwd=folder, check=True, stdout=subprocess.DEVNULL,
                env={**os.environ, "PYTHONDONTWRITEBYTECODE": ""},
            )  # fmt: skip

        arms = [
            Arm("invoke --list, empty tasks.py", lambda: listing(empty, INVOKE)),
            Arm("the same again (A/A)", lambda: listing(empty, INVOKE)),
            Arm("invoke --list, ours", lambda: listing(PROJECT, INVOKE), target=1.15),
            Arm("./inv --list", lambda: listing(PROJECT, str(PROJECT / "inv"))),
        ]
        report({"invoke --list": measure(arms, rounds=options.rounds, warm_up=2)},
               as_json=options.json)  # fmt: skip


if __name__ == "__main__":
    main()
