# SPDX-License-Identifier: MIT
"""Times on silicon, estimated from what was published, and how far off that is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from bsp.base.project import PROJECT
from userspace.npu.model.estimate import (
    Calibration,
    Estimate,
    Point,
    calibration_of,
    costs,
    estimate,
    left_out,
    merged,
)
from userspace.npu.model.trial.run import CPU, CRASHES, RIGHT, OperationRun, Run

FILES = sorted((PROJECT / "userspace/npu/model/calibration").glob("*.json"))


def point(jobs: int, macs: int, *ms: float) -> Point:
    return Point(model=f"{jobs} jobs", jobs=jobs, macs=macs, bytes=1, ms=ms, source="a test")


def run(jobs: int, macs: int, npu: str = "imx8mp") -> Run:
    operation = OperationRun(0, "CONV_2D", RIGHT, macs=macs)
    return Run(npu, "25.0.7", RIGHT, values=1, nn_jobs=jobs, operations=(operation,))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_each_calibration_says_what_it_rests_on(file: Path) -> None:
    found = msgspec.json.decode(file.read_bytes(), type=Calibration)
    assert found.format == 1
    assert len({each.model for each in found.points}) == len(found.points) >= 1
    for each in found.points:
        assert min(each.jobs, each.macs, *each.ms) > 0
        assert each.source


@pytest.mark.parametrize(("npu", "worst"), [("a311d", 0.43), ("imx8mp", 0.07), ("rk3588", 0.24)])
def test_the_errors_that_the_documentation_has(npu: str, worst: float) -> None:
    known = calibration_of(npu)
    assert known
    assert max(abs(each.error) for each in left_out(known.points)) <= worst
    text = (PROJECT / "docs/model-report.md").read_text(encoding="utf-8")
    for each in left_out(known.points):
        assert f"| {each.estimated_ms:.1f} | {each.error:+.0%} |".replace("%", " %") in text


@pytest.mark.parametrize("npu", ["a311d", "imx8mp", "rk3588"])
def test_published_are_three_models(npu: str) -> None:
    known = calibration_of(npu)
    assert known
    assert len(known.points) >= 3


def test_what_several_boards_measured_is_one_calibration() -> None:
    def known(where: str, *points: Point) -> Calibration:
        return Calibration(format=1, npu="x", counted_with=where, points=points)

    one, two = point(10, 10**6, 4.0), point(10, 10**6, 6.0)
    found = merged([known("a", one, point(20, 10**6, 7.0)), known("b", two)])
    assert found
    assert [each.ms for each in found.points] == [(4.0, 6.0), (7.0,)]
    assert found.points[0].likely_ms == 5.0
    assert found.counted_with == "a; b"
    assert merged([]) is None


def test_costs_are_found_where_times_follow_them() -> None:
    points = [point(j, m, 0.1 * j + 1e-8 * m) for j, m in ((10, 10**8), (50, 10**8), (30, 10**9))]
    assert costs(points) == pytest.approx((0.1, 1e-8), rel=0.03)
    assert [each.error for each in left_out(points)] == pytest.approx([0, 0, 0], abs=0.12)


def test_what_points_cannot_tell_apart_is_divided() -> None:
    """As MobileNet V1 and MobileDet on the RK3588: as many multiplications a job."""
    a_job, a_mac = costs([point(42, 42 * 10**7, 15.0), point(113, 113 * 10**7, 48.0)])
    assert a_job == pytest.approx(a_mac * 10**7, rel=0.01)


def test_no_cost_is_negative() -> None:
    a_job, a_mac = costs([point(10, 10**9, 10.0), point(100, 10**9, 9.0), point(50, 10**9, 9.5)])
    assert a_job == 0
    assert a_mac > 0


def test_the_median_counts() -> None:
    assert point(1, 1, 9.0, 1.0, 2.0).likely_ms == 2.0


def test_an_estimate_is_never_a_bare_number() -> None:
    found = estimate(run(40, 600_000_000))
    assert isinstance(found, Estimate)
    assert found.low_ms <= found.likely_ms * 0.81
    assert found.high_ms >= found.likely_ms * 1.19
    assert "off by" in found.how


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (run(40, 600_000_000, npu="s905d3"), "no times of an s905d3"),
        (run(1, 1000), "too far"),
        (run(5000, 600_000_000), "too far"),
        (replace(run(40, 600_000_000), status=CRASHES), "not run to its end"),
    ],
)
def test_without_a_calibration_there_is_no_estimate(asked: Run, why: str) -> None:
    found = estimate(asked)
    assert isinstance(found, str)
    assert why in found


def test_what_the_cpu_computes_is_no_part_of_it() -> None:
    asked = run(40, 600_000_000)
    more = replace(
        asked, operations=(*asked.operations, OperationRun(1, "CONV_2D", CPU, macs=10**12))
    )
    assert estimate(more) == estimate(asked)
