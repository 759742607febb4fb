# SPDX-License-Identifier: MIT
"""Users' fragments on the distribution's kernel source, which is fetched (150 MB); nothing is compiled."""

from __future__ import annotations

from pathlib import Path

import pytest

from bsp.catalog import load_board
from bsp.kernel import compile as build
from bsp.kernel.config.compare import read_config

pytestmark = [pytest.mark.full, pytest.mark.network, pytest.mark.timeout(3600)]

BOARD = load_board("vim3")


def prepared(folder: Path, text: str, name: str = "user.config") -> build.Prepared:
    (folder / name).write_text(text)
    return build.prepare(build.KernelRequest(BOARD, "6.12", (folder / name,)))


@pytest.mark.parametrize("board", ["vim3", "imx8mp-evk", "virtual-a311d"])
@pytest.mark.parametrize("series", ["6.12", "7.3"])
def test_what_boards_need_comes_out_with_each_series(board: str, series: str) -> None:
    """7.3 renamed PROC_SYSCTL, and the board's network driver depends on what was selected before."""
    result = build.prepare(build.KernelRequest(load_board(board), series, ()))
    assert result.configured.differences == ()


@pytest.mark.parametrize(
    ("line", "gone"),
    [
        ("CONFIG_PREEMPT=y", "PREEMPT_VOLUNTARY"),
        ("CONFIG_HZ_1000=y", "HZ_250"),
        ("CONFIG_DEBUG_INFO_DWARF5=y", "DEBUG_INFO_NONE"),
        ("CONFIG_CMA_SIZE_SEL_PERCENTAGE=y", "CMA_SIZE_SEL_MBYTES"),
        ("# CONFIG_IKCONFIG is not set", "IKCONFIG_PROC"),
        ("CONFIG_STMMAC_ETH=m", "STMMAC_PLATFORM"),
    ],
)
def test_a_choice_of_the_user_wins(tmp_path: Path, line: str, gone: str) -> None:
    result = prepared(tmp_path, line + "\n")
    assert result.configured.differences == ()
    assert gone in {each.asked.symbol for each in result.configured.gave_way}
    symbol, _, value = line.removeprefix("CONFIG_").partition("=")
    if value:
        assert read_config(result.work.config)[symbol] == value


def test_a_defconfig_and_a_config(tmp_path: Path) -> None:
    text = (
        "CONFIG_HIBERNATION=y\nCONFIG_ZSWAP=y\nCONFIG_HID_GENERIC=y\nCONFIG_USB=y\nCONFIG_SOUND=m\n"
    )
    result = prepared(tmp_path, text, "small_defconfig")
    assert result.configured.differences == ()
    # Here not even Kconfig's defaults have it: PERF_EVENTS follows PROFILING, which is off.
    result = prepared(tmp_path, f"{text}CONFIG_CGROUP_PERF=y\n", "small_defconfig")
    result.refuse_differences()
    (missing,) = result.configured.not_had
    assert missing.reasons[0].startswith("depends on PERF_EVENTS, which is n")
    assert read_config(result.work.config)["HID_GENERIC"] == "y"

    # The configuration that came out, as if another compiler had made it.
    config = result.work.config.read_text().replace("CONFIG_GCC_VERSION=", "CONFIG_GCC_VERSION=9")
    again = prepared(tmp_path, config, "dot.config")
    assert again.configured.differences == ()
    assert "GCC_VERSION" in {each.symbol for each in again.configured.left_out}
    assert again.fragments[0]["kind"] == "whole .config"
