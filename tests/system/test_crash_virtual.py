# SPDX-License-Identifier: MIT
"""The power-cut test on real deployments to a virtual board: ours holds, the broken ones are caught."""

from __future__ import annotations

from pathlib import Path

import pytest

from virtual.crash.harness import crash_test

pytestmark = [pytest.mark.full, pytest.mark.network]


@pytest.fixture(autouse=True)
def _own_state(own_state: Path) -> None:
    pass


LIKE = dict.fromkeys(("armbian", "extlinux-ext4", "extlinux-fat", "grub-efi"), "like:khadas-vim3")
"""Layouts that are recorded: U-Boot reads ext4, where a trial is a raw sector, or FAT."""


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("layout", "points", "boot"), [("", 3000, 3), *((name, 2000, 0) for name in LIKE)]
)
def test_no_state_is_unbootable(layout: str, points: int, boot: int) -> None:
    report = crash_test(points=points, boot=boot, layout=layout, uboot=LIKE.get(layout, ""))
    assert (report.unbootable, report.booted, report.tally.outside) == (0, boot, 0), report.text()
    assert {"trial", "good", *(["old"] if layout else [])} <= set(report.tally.slots)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("variant", "layout"),
    [
        ("no-fsync", ""),
        ("switch-first", ""),
        ("rename-first", "armbian"),
        ("rename-first", "extlinux-fat"),
        ("no-comparison", "armbian"),
    ],
)
def test_a_broken_deployment_is_caught(variant: str, layout: str) -> None:
    report = crash_test(
        points=2000, boot=0, broken=variant, layout=layout, uboot=LIKE.get(layout, "")
    )
    assert report.unbootable > 0, report.text()
