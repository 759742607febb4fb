# SPDX-License-Identifier: MIT
"""The power-cut test on real deployments to a virtual board: ours holds, the broken ones are caught."""

from __future__ import annotations

from pathlib import Path

import pytest

from virtual.crash.harness import crash_test
from virtual.crash.variants import VARIANTS

pytestmark = [pytest.mark.full, pytest.mark.network]


@pytest.fixture(autouse=True)
def _own_state(own_state: Path) -> None:
    pass


def test_no_state_is_unbootable() -> None:
    report = crash_test(points=3000, boot=3)
    assert (report.unbootable, report.booted, report.tally.outside) == (0, 3, 0), report.text()
    assert {"trial", "good"} <= set(report.tally.slots)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_broken_deployment_is_caught(variant: str) -> None:
    report = crash_test(points=2000, boot=0, broken=variant)
    assert report.unbootable > 0, report.text()
