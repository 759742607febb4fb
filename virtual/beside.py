# SPDX-License-Identifier: MIT
"""Work that runs beside other work: processes of our own that fill the cache, and end with the block.

They are processes and not threads, so that each uses a core of its own, and so that Ctrl-C ends them and
what they started as it ends any command. What they make is locked, and complete or not there at all
(``make_once``); whoever needs it waits for them, or makes it, and says what is wrong where that cannot be.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from bsp.base.progress import say, step
from bsp.base.project import PROJECT

_END_S = 10
# What progress.step prints at the end of a step: name, note in brackets, seconds.
_ENDED = re.compile(r".*: (?:failed |interrupted )?\d+\.\d s")


@dataclass
class _Job:
    name: str
    process: subprocess.Popen[bytes]
    last_line: str = ""

    def follow(self) -> None:
        """Tell each step that ends; remember the last line, for who waits."""
        for raw in self.process.stderr or ():
            line = raw.decode(errors="replace").rstrip()
            self.last_line = line.strip().removesuffix(" ...")
            if _ENDED.fullmatch(line) and not line.startswith(" "):
                say(f"beside: {line}")


class Beside:
    """Jobs that run; made by ``beside``."""

    def __init__(self, jobs: Mapping[str, str]) -> None:
        self._jobs: list[_Job] = []
        self._readers: list[threading.Thread] = []
        environment = {**os.environ, "PYTHONPATH": str(PROJECT), "NO_COLOR": "1"}
        for name, program in jobs.items():
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", _GUARD + program],
                cwd=PROJECT, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE, start_new_session=True,
            )  # fmt: skip
            job = _Job(name, process)
            self._jobs.append(job)
            self._readers.append(threading.Thread(target=job.follow, daemon=True))
            self._readers[-1].start()

    def wait(self, name: str) -> None:
        """Wait until a job has ended, and say meanwhile how far it is; how it ended is no matter here."""
        for job in self._jobs:
            if job.name != name or job.process.poll() is not None:
                continue
            with step(f"{name} (begun beside)") as now:
                while True:
                    now.note(job.last_line)
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        job.process.wait(timeout=0.5)
                        break

    def end(self) -> None:
        """End what still runs: asked first, so that nothing half-made stays."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            for job in self._jobs:
                if job.process.poll() is None:
                    os.kill(job.process.pid, number)
            for job in self._jobs:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    job.process.wait(timeout=_END_S)
        for job, reader in zip(self._jobs, self._readers, strict=True):
            reader.join(timeout=_END_S)
            if job.process.stderr:
                job.process.stderr.close()


# Ends as on Ctrl-C, so that clean-up runs; what went wrong is told by who needs what was to be made.
_GUARD = """\
import signal, sys
def _end(*_):
    raise KeyboardInterrupt
signal.signal(signal.SIGTERM, _end)
sys.excepthook = lambda kind, *rest: None
"""


@contextlib.contextmanager
def beside(jobs: Mapping[str, str]) -> Iterator[Beside]:
    """Run programs beside a block: name to Python's text. They end with it."""
    running = Beside(jobs)
    try:
        yield running
    finally:
        running.end()
