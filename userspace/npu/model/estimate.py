# SPDX-License-Identifier: MIT
"""How long an inference may take on silicon, from the jobs of a run and from published figures.

The files in ``calibration/`` have the models whose time on a board is known, with their jobs,
multiplications and bytes: ``NPU.json`` what was published, others what was measured on a board
(``model-report --host``). Time is taken as so much a job and so much a multiplication; neither is less than
nothing. Bytes, too, were tried, and are further off (docs/model-report.md). How far off an estimate is
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
FORMAT = 1
_LEAST_POINTS = 3
_LEAST_BAND = 0.2
"""Low and high are at least so far from likely: three models are few, and boards' clocks differ."""
_RIDGE = 0.01
"""How much it counts that costs are small; the relative error of each point counts 1."""
_RANGE = 4.0
"""What would take less than this part of the shortest known time, or more than so often the longest, is
not estimated."""


class OperationPoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An operation whose time on a board was measured; nothing is estimated from it yet.

    Attributes:
        operation: kind, as TFLite names it.
        jobs: number of the NPU's jobs in an inference.
        macs: multiplications.
        ms: milliseconds on the NPU.
    """

    operation: str
    jobs: int
    macs: int
    ms: float


class Point(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A model whose time on boards is known; jobs and bytes are one inference's.

    Attributes:
        model: the model's name.
        jobs: number of the NPU's jobs.
        macs: multiplications of the operations that the NPU runs.
        bytes: read and written by jobs; 0 where nobody counted.
        ms: milliseconds that were published or measured; their median counts.
        source: where each is from.
        operations: each that the NPU ran, where a profile has their times.
    """

    model: str
    jobs: int
    macs: int
    bytes: int = 0
    ms: tuple[float, ...]
    source: str
    operations: tuple[OperationPoint, ...] = ()

    @property
    def likely_ms(self) -> float:
        """The median of what was measured."""
        return statistics.median(self.ms)


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is known of an NPU's times: one JSON file.

    Attributes:
        format: version of this file's format.
        npu: name of the SoC.
        counted_with: how jobs were counted, or on which board and with what they were measured.
        points: models whose time is known.
    """

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
    """Return what all files know of an NPU's times; None where nothing is."""
    calibrations = [
        msgspec.json.decode(file.read_bytes(), type=Calibration)
        for file in sorted(_FOLDER.glob("*.json"))
    ]
    return merged([each for each in calibrations if each.npu == npu])


def merged(calibrations: Sequence[Calibration]) -> Calibration | None:
    """Return several calibrations of one NPU as one; None without any.

    A model that became the same jobs is one point, whoever measured it; with another Mesa it is another.
    """
    points: dict[tuple[str, int, int], Point] = {}
    for each in (point for calibration in calibrations for point in calibration.points):
        key = (each.model, each.jobs, each.macs)
        before = points.get(key)
        points[key] = (
            each
            if before is None
            else msgspec.structs.replace(
                before, ms=before.ms + each.ms, source=f"{before.source}; {each.source}"
            )
        )
    if not calibrations:
        return None
    counted = "; ".join(each.counted_with for each in calibrations)
    return Calibration(
        format=FORMAT, npu=calibrations[0].npu, counted_with=counted, points=tuple(points.values())
    )


def costs(points: Sequence[Point]) -> tuple[float, float]:
    """Return milliseconds a job and a multiplication, with the least relative errors; none is below 0.

    Where the points cannot tell jobs from multiplications, since all have as many of one as of the other,
    time is divided between the two (ridge regression, both costs in parts of an average point's time).
    """
    times = np.array([point.likely_ms for point in points])
    rows = np.array([[point.jobs, point.macs] for point in points], float) / times[:, None]
    units = rows.mean(axis=0)
    rows = rows / units
    best: tuple[float, tuple[float, float]] | None = None
    for kept in ((0, 1), (0,), (1,)):
        some = rows[:, kept]
        squares = some.T @ some + _RIDGE * np.eye(len(kept))
        solved = np.linalg.solve(squares, some.sum(axis=0))
        if (solved < 0).any():
            continue
        solution = np.zeros(2)
        solution[list(kept)] = solved
        error = float(np.square(rows @ solution - 1).sum() + _RIDGE * np.square(solution).sum())
        if best is None or error < best[0] - 1e-12:
            best = (error, (float(solution[0] / units[0]), float(solution[1] / units[1])))
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
    known_times = calibration_of(run.npu)
    if known_times is None or len(known_times.points) < _LEAST_POINTS:
        return f"no times of an {run.npu} are known"
    likely = _time(costs(known_times.points), run.jobs, run.macs)
    shortest = min(point.likely_ms for point in known_times.points)
    longest = max(point.likely_ms for point in known_times.points)
    if not shortest / _RANGE <= likely <= longest * _RANGE:
        return (
            f"{run.jobs} jobs and {run.macs / 1e6:.0f} million multiplications are too far from the models "
            f"whose time on the {run.npu} is known ({shortest:g} to {longest:g} ms)"
        )
    cross_checks = left_out(known_times.points)
    ratios = [each.point.likely_ms / each.estimated_ms for each in cross_checks]
    errors = ", ".join(f"{each.point.model} {each.error:+.0%}" for each in cross_checks)
    low, high = min(*ratios, 1 - _LEAST_BAND), max(*ratios, 1 + _LEAST_BAND)
    how = (
        f"{run.jobs} jobs and {run.macs / 1e6:.0f} million multiplications, calibrated on "
        f"{len(known_times.points)} known times of the {run.npu}; each, estimated from the others, was "
        f"off by {errors}"
    )
    return Estimate(
        low_ms=round(likely * low, 1),
        likely_ms=round(likely, 1),
        high_ms=round(likely * high, 1),
        how=how,
    )


def _time(cost: tuple[float, float], jobs: int, macs: int) -> float:
    return cost[0] * jobs + cost[1] * macs
