# SPDX-License-Identifier: MIT
"""Time by operation: whose job is whose, what adds up, and what is said where it cannot be told."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.models.small_nets import Net
from userspace.npu.model.graph import Model, read_model
from userspace.npu.profile import shown
from userspace.npu.profile.attribute import Submit, owners
from userspace.npu.profile.profile import profile
from userspace.npu.validate.records import ProfileRecord

NN, TP = Submit(1, 0), Submit(0, 1)
_MS = 1_000_000


def small() -> Model:
    """Two convolutions and their sum."""
    net = Net(8)
    first = net.conv(0, 8)
    second = net.conv(first, 8)
    return read_model(net.model([net.add(first, second)]))


def raw(*runs: list[tuple[int, int | None, int, int]], length: int = 100) -> Any:
    """A runner's answer; each event: begin, end in ms from its run's start, NN jobs, TP jobs."""
    return {
        "one_job_a_submit": True,
        "runs": [[n * 1000 * _MS, (n * 1000 + length) * _MS] for n in range(len(runs))],
        "events": [
            ((n * 1000 + b) * _MS, None if e is None else (n * 1000 + e) * _MS, nn, tp, 0)
            for n, events in enumerate(runs)
            for b, e, nn, tp in events
        ],
    }


ONE_RUN: list[tuple[int, int | None, int, int]] = [
    (5, 15, 0, 2),  # transposes
    (6, 40, 1, 0),  # waits for the first
    (50, 60, 1, 0),  # the NPU had nothing to do before it
    (51, 70, 1, 0),
    (52, 75, 0, 1),
    (80, 81, 0, 0),  # no job in it
]


def of(document: Any, taken: tuple[int, ...] = (0, 1, 2), **changes: Any) -> ProfileRecord:
    known: dict[str, Any] = {"driver": "etnaviv", "plain_ms": 80.0} | changes
    return profile(document, small(), taken, **known)


def test_a_job_lasts_from_the_end_of_the_one_before_it() -> None:
    found = of(raw(ONE_RUN))
    times = {each["operations"][0]: each["ms"] for each in found["operations"]}
    assert times == {0: 10 + 25, 1: 10, 2: 10 + 5}
    assert (found["before_ms"], found["between_ms"], found["after_ms"]) == (5, 10, 25)
    assert (found["nn_jobs"], found["tp_jobs"]) == (3, 3)
    assert found["overhead"] == 0.25


def test_all_of_it_adds_up_to_the_inference() -> None:
    runs = []
    for extra in (0, 1, 3, 20):  # one was disturbed
        moved = [(b + extra, e + extra if e else e, nn, tp) for b, e, nn, tp in ONE_RUN]
        runs.append(moved)
    found = of(raw(*runs))
    parts = [each["ms"] for each in found["operations"]]
    parts += [found["before_ms"], found["between_ms"], found["after_ms"]]
    assert sum(parts) == pytest.approx(found["inference_ms"])
    assert found["before_ms"] == 5 + 2  # the mean of the middle two


def test_a_job_whose_end_was_stamped_late_ended_with_its_inference() -> None:
    found = of(raw([(5, 60, 1, 0), (60, 103, 0, 1)]), taken=(0,))
    assert [each["ms"] for each in found["operations"]] == [pytest.approx(95)]
    assert (found["between_ms"], found["after_ms"]) == (0, 0)
    assert found["npu_ms"] + found["before_ms"] == pytest.approx(found["inference_ms"])


@pytest.mark.parametrize(
    "runs",
    [
        [[]],
        [[(5, None, 1, 0)]],
        [ONE_RUN, ONE_RUN[:2], ONE_RUN[:1], ONE_RUN[:3]],
    ],
    ids=["no jobs", "no end", "never the same"],
)
def test_what_cannot_be_told_is_an_error(runs: Any) -> None:
    found = of(raw(*runs))
    assert "jobs" in found["error"]
    assert "no time by operation" in shown.text("t", found, emulated=False)
    assert "No time by operation" in shown.bars(found, emulated=False)


def test_the_runners_error_is_the_profiles() -> None:
    found = of({"error": {"stage": "profile", "message": "npu_profile.so is not <loaded>"}})
    assert found == {"error": "npu_profile.so is not <loaded>"}
    assert "&lt;loaded&gt;" in shown.bars(found, emulated=False)


def test_jobs_that_fit_no_rule_have_no_operation() -> None:
    found = of(raw(ONE_RUN[:2]))  # one NN job for three operations
    assert [each["operations"] for each in found["operations"]] == [[], []]
    assert sum(each["ms"] for each in found["operations"]) == found["npu_ms"]
    assert "cannot be told" in shown.summary(found, emulated=False)


def test_a_driver_that_submits_all_at_once_has_a_row_for_each_partition() -> None:
    document = raw([(5, 90, 3, 5)]) | {"one_job_a_submit": False}
    found = of(document)
    (row,) = found["operations"]
    assert (row["operations"], row["ms"]) == ([0, 1, 2], 85)
    assert "no time for each" in shown.summary(found, emulated=False)
    assert "partition of 3 operations, 0 to 2" in shown.text("t", found, emulated=False)


def test_rockets_jobs_are_told_apart_by_what_they_write() -> None:
    model = small()
    jobs = [Submit(1, 0, 7), Submit(1, 0, 7), Submit(1, 0, 9)]
    assert owners("rocket", jobs, model, (0, 1, 2), one_job=True) == ((0,), (0,), (1,))
    assert owners("rocket", jobs[:2], model, (0, 1, 2), one_job=True) is None


def test_moves_belong_to_what_they_are_for() -> None:
    net = Net(8)
    first = net.conv(0, 8)
    pooled = net.tanh(first)  # on the CPU
    model = read_model(net.model([net.conv(pooled, 8, kernel=1)]))
    submits = [TP, TP, NN, TP, NN, TP]
    assert owners("etnaviv", submits, model, (0, 2), one_job=True) == (
        (0,), (0,), (0,), (2,), (2,), (2,),
    )  # fmt: skip


def test_the_table_is_80_columns_wide_and_says_emulated() -> None:
    text = shown.text("time by operation, teflon", of(raw(ONE_RUN)), emulated=True)
    assert max(map(len, text.splitlines())) <= 80
    assert "emulated: they say nothing about a board" in text.replace("\n", " ")
    assert "25% longer than without" in text.replace("\n", " ")
