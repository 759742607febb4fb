# SPDX-License-Identifier: MIT
"""How long an inference may take on silicon, from the jobs of a run and from published figures.

``calibration/NPU.json`` has the models whose time on a board is known, with their jobs, multiplications and
bytes. Time is taken as so much a job and so much a multiplication; neither is less than nothing. Bytes in
place of multiplications were tried, and are further off (docs/model-report.md). How far off an estimate is
shows when each model is left out and estimated from the others: as far off are ``low`` and ``high``. Pure.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from .trial.run import GOOD, WRONG, Run

_FOLDER = Path(__file__).with_name("calibration")
_LEAST_POINTS = 3
_LEAST_BAND = 0.2
"""Low and high are at least so far from likely: three models are few, and boards' clocks differ."""
_RANGE = 4.0
"""What would take less than this part of the shortest known time, or more than so often the longest, is
not estimated."""


class Point(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A model whose time on boards is known; jobs and bytes are one inference's.

    Attributes:
        macs: of the operations that the NPU runs, as ``Run.macs``.
        bytes: read and written by jobs, as ``Run.moved_bytes``; 0 where nobody counted.
        ms: what was published or measured; their median counts.
        source: where each is from.
    """

    model: str
    jobs: int
    macs: int
    bytes: int = 0
    ms: tuple[float, ...]
    source: str

    @property
    def likely_ms(self) -> float:
        """The median of what was measured."""
        return statistics.median(self.ms)


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is known of an NPU's times."""

    format: int
    npu: str
    counted_with: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class LeftOut:
    """A known model, as it is estimated from the others."""

    point: Point
    estimated_ms: float

    @property
    def error(self) -> float:
        """By which part of the truth the estimate is off."""
        return self.estimated_ms / self.point.likely_ms - 1


@dataclass(frozen=True)
class Estimate:
    """Milliseconds of an inference; ``how`` says what they rest on, and how far off that was."""

    low_ms: float
    likely_ms: float
    high_ms: float
    how: str

    def document(self) -> dict[str, float]:
        """The three numbers, as plain data."""
        return {"low": self.low_ms, "likely": self.likely_ms, "high": self.high_ms}


@functools.cache
def calibration_of(npu: str) -> Calibration | None:
    """Return what is known of an NPU's times; None where nothing is."""
    file = _FOLDER / f"{npu}.json"
    if not file.exists():
        return None
    return msgspec.json.decode(file.read_bytes(), type=Calibration)


def costs(points: Sequence[Point]) -> tuple[float, float]:
    """Return milliseconds a job and a multiplication, with the least relative errors; none is below 0."""
    sizes = np.array([[point.jobs, point.macs] for point in points], float)
    times = np.array([point.likely_ms for point in points])
    rows = sizes / times[:, None]
    best: tuple[float, tuple[float, float]] | None = None
    for kept in ((0, 1), (0,), (1,)):
        solved = np.linalg.lstsq(rows[:, kept], np.ones(len(points)), rcond=None)[0]
        if (solved < 0).any():
            continue
        found = np.zeros(2)
        found[list(kept)] = solved
        error = float(np.square(rows @ found - 1).sum())
        if best is None or error < best[0] - 1e-12:
            best = (error, (float(found[0]), float(found[1])))
    if best is None:  # one column of positive numbers has a positive solution
        raise RuntimeError("no column of the measurements has a positive solution")
    return best[1]


def left_out(points: Sequence[Point]) -> list[LeftOut]:
    """Return each model, estimated from all the others."""
    return [
        LeftOut(
            point, _time(costs([*points[:place], *points[place + 1 :]]), point.jobs, point.macs)
        )
        for place, point in enumerate(points)
    ]


def estimate(run: Run) -> Estimate | str:
    """Return how long an inference may take on silicon, or why nobody can tell."""
    if run.status not in (*GOOD, WRONG) or not run.values:
        return "it did not run to its end"
    known = calibration_of(run.npu)
    if known is None or len(known.points) < _LEAST_POINTS:
        return f"no times of an {run.npu} are known"
    likely = _time(costs(known.points), run.jobs, run.macs)
    shortest = min(point.likely_ms for point in known.points)
    longest = max(point.likely_ms for point in known.points)
    if not shortest / _RANGE <= likely <= longest * _RANGE:
        return (
            f"{run.jobs} jobs and {run.macs / 1e6:.0f} million multiplications are too far from the models "
            f"whose time on the {run.npu} is known ({shortest:g} to {longest:g} ms)"
        )
    seen = left_out(known.points)
    ratios = [each.point.likely_ms / each.estimated_ms for each in seen]
    errors = ", ".join(f"{each.point.model} {each.error:+.0%}" for each in seen)
    low, high = min(*ratios, 1 - _LEAST_BAND), max(*ratios, 1 + _LEAST_BAND)
    how = (
        f"{run.jobs} jobs and {run.macs / 1e6:.0f} million multiplications, calibrated on "
        f"{len(known.points)} published times of the {run.npu}; estimated from the others, these were off "
        f"by {errors}"
    )
    return Estimate(
        low_ms=round(likely * low, 1),
        likely_ms=round(likely, 1),
        high_ms=round(likely * high, 1),
        how=how,
    )


def _time(cost: tuple[float, float], jobs: int, macs: int) -> float:
    return cost[0] * jobs + cost[1] * macs
