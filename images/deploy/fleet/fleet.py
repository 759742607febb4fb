# SPDX-License-Identifier: MIT
"""Deployments to many boards: waves, a canary first, a gate between waves, and runs that can be resumed.

waves.py decides what to start next. Each board is deployed to by ``deploy``, as a single one would be, in
a thread of its own. Each result is written to the file of the run at once, so that an interrupted or
killed run continues when the same command is given again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import msgspec

from bsp.base import progress
from bsp.base.at_once import at_once
from bsp.base.cache import state_dir, write_atomically
from bsp.base.errors import BspError, InfrastructureError, UserError
from bsp.base.terminal.live_table import LiveTable

from .waves import Rules, Wave, decide_next, plan_waves

FORMAT = 1
GOOD = ("confirmed", "unchanged", "planned")
_INTERRUPTED = 130
_ALIVE_S = 1.0


class HostRecord(msgspec.Struct, omit_defaults=True):
    """The result of one board.

    Attributes:
        generation: the generation to deploy.
        outcome: waiting | running | confirmed | unchanged | planned | rolled-back | unknown | failed |
            interrupted.
        document: the JSON of its deployment, if that ended.
    """

    generation: str
    outcome: str = "waiting"
    wave: str = ""
    exit_code: int = 0
    problem: str = ""
    hint: str = ""
    seconds: float = 0.0
    document: dict[str, Any] = {}

    @property
    def well(self) -> bool:
        """Whether the board runs its new generation."""
        return self.outcome in GOOD


class Run(msgspec.Struct, kw_only=True):
    """The file of a run.

    Attributes:
        id: a hash over the boards and their generations: the same command finds the same run.
        started: seconds since 1970.
        ended: whether it is complete; a complete run is not resumed.
        stopped: why the remaining boards were not started.
    """

    format: int = FORMAT
    id: str
    started: float
    ended: bool = False
    stopped: str = ""
    hosts: dict[str, HostRecord]

    @property
    def file(self) -> Path:
        """Path of the file."""
        return state_dir() / "fleets" / f"{self.id}.json"

    def save(self) -> None:
        """Write the file atomically."""
        write_atomically(self.file, msgspec.json.format(msgspec.json.encode(self), indent=1))


class Outcome(Protocol):
    """The result of a deployment to one board; ``Deployment`` is one."""

    outcome: str
    problem: str
    hint: str

    @property
    def exit_code(self) -> int:
        """0, or the exit code of the error."""

    def document(self) -> dict[str, Any]:
        """The result as JSON."""


@dataclass
class FleetReport:
    """The result of a run; ``exit_code`` is the worst of its boards'."""

    run: Run
    waves: tuple[Wave, ...]
    seconds: float = 0.0
    interrupted: bool = False
    resumed: tuple[str, ...] = field(default=())

    @property
    def exit_code(self) -> int:
        """The worst exit code of all boards; 130 after Ctrl-C."""
        if self.interrupted:
            return _INTERRUPTED
        return max((record.exit_code for record in self.run.hosts.values()), default=0)

    def counts(self) -> dict[str, int]:
        """Return the number of boards for each outcome."""
        by_outcome: dict[str, int] = {}
        for record in self.run.hosts.values():
            by_outcome[record.outcome] = by_outcome.get(record.outcome, 0) + 1
        return dict(sorted(by_outcome.items()))

    def document(self) -> dict[str, Any]:
        """The report as JSON."""
        hosts = [
            {
                **record.document,
                "host": name,
                "to": record.generation,
                "wave": record.wave,
                "outcome": record.outcome,
                "exit_code": record.exit_code,
                "problem": record.problem,
                "hint": record.hint,
                "seconds": round(record.seconds, 3),
            }
            for name, record in self.run.hosts.items()
        ]
        return {
            "run": self.run.id,
            "file": str(self.run.file),
            "exit_code": self.exit_code,
            "outcomes": self.counts(),
            "stopped": self.run.stopped,
            "interrupted": self.interrupted,
            "resumed": list(self.resumed),
            "waves": [{"name": wave.name, "hosts": list(wave.hosts)} for wave in self.waves],
            "seconds": round(self.seconds, 3),
            "bytes_on_wire": sum(int(host.get("bytes_on_wire", 0)) for host in hosts),
            "hosts": hosts,
        }


def deploy_fleet(
    generations: Mapping[str, str],
    deploy_one: Callable[[str], Outcome],
    rules: Rules,
    *,
    fresh: bool = False,
    keep: bool = True,
) -> FleetReport:
    """Deploy to many boards.

    Args:
        generations: name of each board -> the generation to deploy; in the order of the waves.
        deploy_one: deploys to the board of that name; called in a thread of its own.
        fresh: start over even if such a run was interrupted.
        keep: write the run's file; false for ``--dry-run``.

    Raises:
        UserError: the same run is active already.
    """
    run = Run(
        id=run_id(generations),
        started=time.time(),
        hosts={name: HostRecord(generation) for name, generation in generations.items()},
    )
    with _alone(run) if keep else contextlib.nullcontext():
        before = None if fresh or not keep else _interrupted_run(run)
        done = [name for name, record in before.hosts.items() if record.well] if before else []
        waves = plan_waves(tuple(generations), rules, done=done)
        if before:
            progress.say(
                f"continuing an interrupted run: {len(done)} of {len(generations)} boards were done "
                "and are only verified"
            )
        return _Runner(run, waves, deploy_one, rules, keep=keep).run_all(tuple(done))


def run_id(generations: Mapping[str, str]) -> str:
    """Return the id of the run that brings these generations to these boards."""
    lines = "".join(f"{name} {generation}\n" for name, generation in sorted(generations.items()))
    return hashlib.sha256(lines.encode()).hexdigest()[:12]


class _Runner:
    """Runs the waves; only the thread that calls ``run_all`` changes the run's record."""

    def __init__(
        self,
        run: Run,
        waves: tuple[Wave, ...],
        deploy_one: Callable[[str], Outcome],
        rules: Rules,
        *,
        keep: bool,
    ) -> None:
        self._run = run
        self._waves = waves
        self._deploy_one = deploy_one
        self._rules = rules
        self._keep = keep
        self._ended: dict[str, bool] = {}
        self._running: dict[str, threading.Thread] = {}
        self._news: queue.SimpleQueue[tuple[str, HostRecord]] = queue.SimpleQueue()
        self._table = LiveTable(self._summary)
        for wave in waves:
            for name in wave.hosts:
                run.hosts[name].wave = wave.name

    def run_all(self, resumed: tuple[str, ...]) -> FleetReport:
        report = FleetReport(self._run, self._waves, resumed=resumed)
        began = time.monotonic()
        self._save()
        with self._table:
            try:
                self._go()
                self._run.ended = not self._run.stopped
            except KeyboardInterrupt:
                report.interrupted = True
                self._finish_running()
        for name in self._running:
            self._run.hosts[name].outcome = "interrupted"
        report.seconds = time.monotonic() - began
        self._save()
        return report

    def _go(self) -> None:
        while True:
            following = decide_next(self._waves, self._ended, self._running, self._rules)
            if following.stopped and not self._run.stopped:
                self._run.stopped = following.stopped
                self._table.say(f"no further board is started: {following.stopped}")
            for name in following.start:
                self._start(name)
            if not self._running:
                return
            self._take(self._news.get())

    def _finish_running(self) -> None:
        """Finish the deployments under way after Ctrl-C; a second Ctrl-C leaves them."""
        if self._running:
            self._table.say(
                f"interrupted: waiting for {len(self._running)} under way; Ctrl-C again leaves them: "
                "a board that was not confirmed rolls back at its next reset"
            )
        with contextlib.suppress(KeyboardInterrupt):
            while self._running:
                try:
                    self._take(self._news.get(timeout=_ALIVE_S))
                except (
                    queue.Empty
                ):  # Ctrl-C may have come before a thread was started, or after its news
                    for name, thread in list(self._running.items()):
                        if not thread.is_alive():
                            del self._running[name]
                            self._run.hosts[name].outcome = "interrupted"

    def _start(self, name: str) -> None:
        thread = threading.Thread(target=self._work, args=(name,), daemon=True)
        self._running[name] = thread
        self._run.hosts[name].outcome = "running"
        self._table.show(name, "connecting")
        thread.start()

    def _work(self, name: str) -> None:
        record = self._run.hosts[name]
        began = time.monotonic()
        result_record = HostRecord(record.generation, "failed", record.wave)
        try:
            with progress.redirect_progress(lambda text: self._table.show(name, text)):
                result = self._deploy_one(name)
            result_record.outcome, result_record.exit_code = result.outcome, result.exit_code
            result_record.problem, result_record.hint, result_record.document = (
                result.problem,
                result.hint,
                result.document(),
            )
        except BspError as error:
            result_record.exit_code, result_record.problem, result_record.hint = (
                error.exit_code,
                error.message,
                error.hint,
            )
        except Exception as error:  # a bug in our code must not stop the other boards
            result_record.exit_code = InfrastructureError.exit_code
            result_record.problem = f"{type(error).__name__}: {error}"
            result_record.hint = f"NPU_BSP_DEBUG=1 and --host {name} alone show the traceback"
        result_record.seconds = time.monotonic() - began
        self._news.put((name, result_record))

    def _take(self, news: tuple[str, HostRecord]) -> None:
        name, record = news
        self._run.hosts[name] = record
        self._ended[name] = record.well
        self._running.pop(name, None)
        self._save()
        reason = f": {record.problem.splitlines()[0]}" if record.problem else ""
        count = f"[{len(self._ended)}/{len(self._run.hosts)}]"
        self._table.end(
            name,
            f"{count} {name} ({record.wave}): {record.outcome}, {record.seconds:.1f} s{reason}",
        )

    def _save(self) -> None:
        if self._keep:
            self._run.save()

    def _summary(self) -> str:
        bad = sum(not well for well in self._ended.values())
        waiting = len(self._run.hosts) - len(self._ended) - len(self._running)
        well, running = len(self._ended) - bad, len(self._running)
        return f"{well} well, {bad} failed, {running} under way, {waiting} waiting"


def over_all(
    names: Sequence[str], ask: Callable[[str], Mapping[str, Any]], *, jobs: int
) -> dict[str, dict[str, Any]]:
    """Ask all boards in parallel; ``error`` and ``hint`` replace the answer of a board that failed."""

    def one(name: str) -> dict[str, Any]:
        try:
            with progress.redirect_progress(lambda _: None):
                return dict(ask(name))
        except BspError as error:
            return {
                "host": name,
                "error": error.message,
                "hint": error.hint,
                "exit_code": error.exit_code,
            }

    with at_once(max(min(jobs, len(names)), 1)) as pool:
        return dict(zip(names, pool.map(one, names), strict=True))


def _interrupted_run(run: Run) -> Run | None:
    """Return the record of the same run if it did not end; else None."""
    try:
        earlier = msgspec.json.decode(run.file.read_bytes(), type=Run)
    except (OSError, msgspec.DecodeError):
        return None
    return earlier if earlier.format == FORMAT and not earlier.ended else None


@contextlib.contextmanager
def _alone(run: Run) -> Iterator[None]:
    path = run.file.with_suffix(".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                "the same generations are being deployed to the same boards already",
                hint=f"wait for that run to end; {run.file} shows how far it is",
            ) from None
        yield
