# SPDX-License-Identifier: MIT
"""Our boot script in the U-Boots of boards: it needs nothing that they lack."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from bsp.catalog import load_board
from bsp.qemu.base_dtb import base_dtb
from images.deploy.boot import state
from tests.images.deploy.boot.test_boot_script import CASES, OLD, TRIAL, Disk, boot, lacks_told
from virtual.uboots.build import built
from virtual.uboots.like import memory_mib, uboot_like

pytestmark = [pytest.mark.full, pytest.mark.network, pytest.mark.timeout(1800)]

UBOOTS = ("khadas-vim3", "imx8mp_evk", "rock5b-rk3588", "verdin-imx8mp")


@pytest.mark.parametrize("name", UBOOTS)
@pytest.mark.parametrize("case", ["a trial that lives", "a trial that panics", "good torn"])
def test_a_trial_is_spent_and_the_good_one_comes_back(case: str, name: str, tmp_path: Path) -> None:
    disk, expected = CASES[case]
    disk = replace(disk, show=True)
    uboot = uboot_like(f"like:{name}")
    booted = boot(
        disk,
        tmp_path,
        base_dtb(load_board("virtual")),
        built(uboot),
        memory_mib=memory_mib(uboot, 256),  # all of its addresses are memory
    )
    assert booted.slots == expected, booted.console
    assert booted.trial == state.SPENT
    assert "npu_bsp.lacks" not in booted.console


@pytest.mark.parametrize(
    ("name", "command", "told"),
    [
        ("khadas-vim3", "cmp", "mw"),  # they are built together; on FAT only mw is needed
        ("khadas-vim3", "fatwrite", "fatwrite"),
        ("imx8mp_evk", "itest", "itest"),
    ],
)
def test_what_one_lacks_is_told_and_nothing_is_tried(
    name: str, command: str, told: str, tmp_path: Path
) -> None:
    known = uboot_like(f"like:{name}")
    other = msgspec.structs.replace(
        known, name=f"{name}-without-{command}", lacks=(*known.lacks, command)
    )
    disk = Disk(trial=TRIAL, show=True)
    booted = boot(disk, tmp_path, base_dtb(load_board("virtual")), built(other))
    assert booted.slots == [("good", OLD)], booted.console
    assert booted.trial == TRIAL
    assert set(lacks_told(booted.console)) == {told}
    assert f"Unknown command '{told}'" in booted.console.replace("mw.b", "mw")
