# SPDX-License-Identifier: MIT
"""One run of the power-cut test: record, judge each point, boot some, say what was found."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed, wait
from dataclasses import dataclass, field
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

from bsp.base.errors import ValidationError
from bsp.base.output import table
from bsp.base.progress import say, step
from bsp.base.result import FAILED_VALIDATION, Result
from bsp.base.words import counted

from .booted import boot_problem
from .points import Point, Tally, judge_points, plan, trial_sectors
from .record import Recording, recording
from .resume_cache import Known
from .subject import Recorded, recorded
from .variants import variant_named
from .writelog import WriteLog

_MEMORY = Path("/dev/shm")  # noqa: S108 - a folder of our own is made in it
_NEEDED_BYTES = 3 << 30
_BOOT_S = 600.0


@dataclass
class CrashReport(Result):
    """What a run found; ``document()`` is its JSON.

    Attributes:
        judged_seconds: what judging the states took, in this run or in the one that it goes on from.
    """

    layout: str
    variant: str
    tally: Tally
    writes: int
    phases: list[dict[str, Any]]
    judged_seconds: float = 0.0
    seconds: float = 0.0
    seed: int = 0
    booted: int = 0
    boot_failures: list[tuple[Point, str]] = field(default_factory=list)

    @property
    def unbootable(self) -> int:
        """Points that do not boot, by verdict or by trying."""
        return self.tally.unbootable + len(self.boot_failures)

    @property
    def exit_code(self) -> int:
        """4 where a state does not boot."""
        return FAILED_VALIDATION if self.unbootable else 0

    def document(self) -> dict[str, Any]:
        """The report as others may rely on it."""
        failures = [*self.tally.failures, *self.boot_failures]
        return {
            "points": sum(self.tally.kinds.values()),
            "booted": self.booted,
            "unbootable": self.unbootable,
            "seconds": round(self.seconds, 1),
            "judged_seconds": round(self.judged_seconds, 1),
            "layout": self.layout,
            "broken": self.variant or None,
            "writes": self.writes,
            "kinds": dict(self.tally.kinds),
            "slots": dict(self.tally.slots),
            "evaluated": self.tally.evaluated,
            "writes_outside": self.tally.outside,
            "phases": self.phases,
            "seed": self.seed,
            "failures": [{"point": str(point), "why": why} for point, why in failures],
        }

    def text(self) -> str:
        """The report as a person reads it."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.tally.kinds.items()))
        slots = ", ".join(f"{count} {slot}" for slot, count in sorted(self.tally.slots.items()))
        lines = [
            f"{counted(sum(self.tally.kinds.values()), 'state')} after a power cut ({kinds}), from "
            f"{self.writes} writes",
            f"they boot: {slots or 'none'}",
            f"really booted to SSH: {self.booted}",
            f"unbootable: {self.unbootable}",
        ]
        failures = [*self.tally.failures, *self.boot_failures]
        if failures:
            rows = [[str(point), why] for point, why in failures[:8]]
            lines += ["", table(["state", "why"], rows)]
        return "\n".join(lines)

    def raise_for(self) -> None:
        """Raise the error that the report is.

        Raises:
            ValidationError: a state does not boot.
        """
        if self.unbootable:
            raise ValidationError(
                f"{self.unbootable} of {sum(self.tally.kinds.values())} states do not boot",
                hint="--broken was caught" if self.variant else "the states are listed above",
            )


def crash_test(
    *,
    points: int,
    boot: int,
    broken: str = "",
    layout: str = "",
    uboot: str = "",
    seed: int = 1,
    keep: Path | None = None,
) -> CrashReport:
    """Run the power-cut test on the virtual board.

    Args:
        layout: whose images its disk is laid out like (virtual/layouts); default: ours.
        uboot: what boots it: ``like:BOARD``; default: the layout's.
        points: how many states to judge; all prefixes of the record come first.
        boot: how many of them to boot really.
        broken: a variant of virtual/crash/variants.py.
        keep: folder for the recording; one that is there is used again, with what was judged and booted
            of the same points before: a run that was interrupted goes on where it was.

    Raises:
        UserError: no such variant, or a tool is missing.
        InfrastructureError: the recording could not be made.
    """
    variant = variant_named(broken, layout)
    started = time.monotonic()
    subject = recorded(layout, uboot)
    with tempfile.TemporaryDirectory(prefix="npu-bsp-crash-", dir=_fast_folder()) as name:
        work = Path(name)
        earlier = Known(keep, points, seed) if keep else None
        recorded_run = recording(subject, keep or work / "recording", variant)
        with WriteLog(recorded_run.log) as log:
            count = len(log.writes)
            chosen = plan(log.writes, points, seed, subject.places, trial_sectors(log))
        judged = earlier.judged() if earlier else None
        if judged is None:
            begun = time.monotonic()
            judged = _judged(subject, recorded_run, chosen, work), time.monotonic() - begun
            if earlier:
                earlier.judge(*judged)
        tally, judged_seconds = judged
        phases = [
            {"name": each.name, "requests": each.requests, "outcome": each.outcome}
            for each in recorded_run.facts.phases
        ]
        report = CrashReport(subject.name, broken, tally, count, phases, judged_seconds, seed=seed)
        _boot(subject, recorded_run, chosen, work, report, boot, earlier)
    report.seconds = time.monotonic() - started
    return report


def _fast_folder() -> Path | None:
    """Memory, if there is enough: the tools of ext4 flush what they write."""
    try:
        return _MEMORY if shutil.disk_usage(_MEMORY).free > _NEEDED_BYTES else None
    except OSError:
        return None


def _judged(subject: Recorded, recorded_run: Recording, points: list[Point], work: Path) -> Tally:
    """Judge the points, on all cores: each takes a stretch of the record."""
    jobs = max(1, min(os.cpu_count() or 1, len(points) // 200 + 1))
    size = -(-len(points) // jobs)
    stretches = [points[first : first + size] for first in range(0, len(points), size)]
    done = multiprocessing.Value("l", 0)
    tally = Tally()
    with (
        step(f"Judging {counted(len(points), 'state')}") as now,
        ProcessPoolExecutor(jobs, initializer=_share, initargs=(done,)) as pool,
    ):
        parts = [
            pool.submit(_part, subject, recorded_run, work / f"part-{number}", stretch)
            for number, stretch in enumerate(stretches)
        ]
        while wait(parts, timeout=0.5).not_done:
            now.note(f"{done.value} of {len(points)}")
        for part in parts:
            tally.merge(part.result())
        now.note(f"{tally.evaluated} of them with the tools of ext4")
    return tally


_done: Synchronized[int]
"""How many points all processes have judged; in the processes of a pool."""


def _share(done: Synchronized[int]) -> None:
    global _done
    _done = done


def _count() -> None:
    with _done.get_lock():
        _done.value += 1


def _part(subject: Recorded, recorded_run: Recording, folder: Path, points: list[Point]) -> Tally:
    folder.mkdir()
    tally = Tally()
    judge_points(
        recorded_run.log,
        recorded_run.disk.image,
        folder,
        points,
        tally,
        _count,
        subject.places,
        subject.old,
    )
    shutil.rmtree(folder)
    return tally


def _boot(
    subject: Recorded,
    recorded_run: Recording,
    points: list[Point],
    work: Path,
    report: CrashReport,
    count: int,
    earlier: Known | None,
) -> None:
    chance = random.Random(report.seed)  # noqa: S311 - reproducible, not secret
    # The same first ones whatever the count: a later run may ask for more of them.
    chosen = chance.sample(points, len(points))[:count]
    before = earlier.booted() if earlier else {}
    problems = {point: before[point] for point in chosen if point in before}

    def boot(number: int, point: Point) -> str:
        name = f"crash-boot-{os.getpid()}-{number}"
        return boot_problem(subject, recorded_run.log, point, work, name=name, timeout_s=_BOOT_S)

    # As many at a time as there are cores: a boot waits more than it computes on more than one.
    with (
        step(f"Booting {counted(len(chosen), 'state')}") as now,
        ThreadPoolExecutor(os.cpu_count() or 1) as pool,
    ):
        left = [point for point in chosen if point not in problems]
        boots = {pool.submit(boot, number, point): point for number, point in enumerate(left)}
        try:
            for done in as_completed(boots):
                point = boots[done]
                problems[point] = problem = done.result()
                if earlier:
                    earlier.boot(point, problem)
                say(f"{len(problems)} of {len(chosen)}: {point}: {problem or 'answers over SSH'}")
                now.note(f"{len(problems)} of {len(chosen)}")
        except BaseException:
            pool.shutdown(cancel_futures=True)  # those that run are let end, and taken down
            raise
    for point, problem in problems.items():
        report.booted += not problem
        if problem:
            report.boot_failures.append((point, problem))
