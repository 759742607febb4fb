# SPDX-License-Identifier: MIT
"""Times things against each other in one run: medians, spread, and how much of it is noise.

The arms are run in turn, in an order that rotates each round; the first is the reference. One arm should be
the reference again (an A/A arm): what its ratio differs from 1 is what this machine cannot tell.
"""

from __future__ import annotations

import argparse
import dataclasses
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from bsp.base.output import print_json, print_text, table


@dataclass(frozen=True)
class Arm:
    """One thing to time.

    Attributes:
        run: does it once; raises if it did not work, which voids the measurement.
        prepare: brings about the state it starts from; not timed.
        check: looks at what ``run`` has done, and raises if that is wrong; not timed.
        target: what its ratio to the reference is to be at most; negative: at least.
    """

    name: str
    run: Callable[[], object]
    prepare: Callable[[], object] | None = None
    target: float | None = None
    check: Callable[[], object] | None = None


@dataclass(frozen=True)
class Timing:
    """What one arm took, in milliseconds; ``ratio`` is the median over the rounds.

    Attributes:
        cpu_ms: median of the processor time of this process and of what it started and waited for: the
            client's, where a server runs beside.
        cpu_ratio: median of its ratios to the reference's.
    """

    name: str
    median_ms: float
    min_ms: float
    max_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float
    target: float | None
    rounds: int
    cpu_ms: float
    cpu_ratio: float

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None where there is none."""
        if self.target is None:
            return None
        return self.ratio >= -self.target if self.target < 0 else self.ratio <= self.target


def measure(arms: Sequence[Arm], *, rounds: int, warm_up: int = 1) -> list[Timing]:
    """Time the arms; ratios are to the first, round by round, with their quartiles."""
    taken_ms: dict[str, list[float]] = {arm.name: [] for arm in arms}
    used_ms: dict[str, list[float]] = {arm.name: [] for arm in arms}
    for number in range(-warm_up, rounds):
        shift = number % len(arms)
        for arm in [*arms[shift:], *arms[:shift]]:
            if arm.prepare:
                arm.prepare()
            started, used_before_s = time.perf_counter(), _cpu_s()
            arm.run()
            if number >= 0:
                taken_ms[arm.name].append((time.perf_counter() - started) * 1e3)
                used_ms[arm.name].append(max(_cpu_s() - used_before_s, 1e-6) * 1e3)
            if arm.check:
                arm.check()
    reference, reference_used = taken_ms[arms[0].name], used_ms[arms[0].name]
    timings = []
    for arm in arms:
        mine = taken_ms[arm.name]
        ratios = sorted(own / other for own, other in zip(mine, reference, strict=True))
        quarter = len(ratios) // 4
        timings.append(
            Timing(
                arm.name,
                statistics.median(mine),
                min(mine),
                max(mine),
                statistics.median(ratios),
                ratios[quarter],
                ratios[-1 - quarter],
                arm.target,
                rounds,
                statistics.median(used_ms[arm.name]),
                statistics.median(
                    own / other
                    for own, other in zip(used_ms[arm.name], reference_used, strict=True)
                ),
            )
        )
    return timings


def _cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def shown(title: str, timings: Sequence[Timing]) -> str:
    """Return a table of timings."""
    rows = []
    for timing in timings:
        goal = ""
        if timing.target is not None:
            sign, limit = (
                ("at least", -timing.target) if timing.target < 0 else ("at most", timing.target)
            )
            goal = f"{sign} {limit:g}: {'met' if timing.met else 'MISSED'}"
        rows.append(
            [
                timing.name,
                f"{timing.median_ms:.1f}",
                f"{timing.min_ms:.1f}-{timing.max_ms:.1f}",
                f"{timing.ratio:.2f}",
                f"{timing.ratio_low:.2f}-{timing.ratio_high:.2f}",
                f"{timing.cpu_ms:.0f}",
                f"{timing.cpu_ratio:.2f}",
                goal,
            ]
        )
    header = ["", "median ms", "min-max", "ratio", "quartiles", "cpu ms", "ratio", "target"]
    return f"{title} ({timings[0].rounds} rounds)\n{table(header, rows, width=130)}"


def arguments(description: str, *, rounds: int) -> argparse.Namespace:
    """Read a benchmark's command line: ``--rounds`` and ``--json``."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=rounds, help="how often each arm is run")
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    return parser.parse_args()


def report(results: dict[str, list[Timing]], *, as_json: bool) -> None:
    """Print all tables, or one JSON document."""
    if as_json:
        document: dict[str, Any] = {
            title: [{**dataclasses.asdict(timing), "met": timing.met} for timing in timings]
            for title, timings in results.items()
        }
        print_json(document)
    else:
        print_text("\n\n".join(shown(title, result) for title, result in results.items()))
