# SPDX-License-Identifier: MIT
"""U-Boots that are like a board's: by which names they are found, and how they are configured."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bsp.base.errors import InfrastructureError, UserError
from bsp.uboot import UBoot, uboots
from virtual.uboots import like
from virtual.uboots.build import _compare

BUILDABLE = [each for each in uboots() if each.boots_by != "the maker's own"]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("like:khadas-vim3", "khadas-vim3"),
        ("like:radxa-zero2", "khadas-vim3"),  # alike
        ("like:vim3", "khadas-vim3"),  # a profile
        ("like:imx8mp_evk", "imx8mp_evk"),
        ("like:rk3588-rock-5b", "rock5b-rk3588"),
    ],
)
def test_they_are_found_by_configuration_and_by_profile(text: str, name: str) -> None:
    assert like.uboot_like(text).name == name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("khadas-vim3", "expected like:BOARD"),
        ("like:", "expected like:BOARD"),
        ("like:khadas-vim33", "did you mean 'khadas-vim3'"),
        ("like:imx8mp-frdm", "upstream U-Boot has no configuration for the board imx8mp-frdm"),
        ("like:imx8mp_beacon", "by a command of its maker's"),
    ],
)
def test_what_is_not_known_is_one_error(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        like.uboot_like(text)
    assert raised.value.hint


@pytest.mark.parametrize("uboot", BUILDABLE, ids=lambda each: each.name)
def test_each_is_configured_as_its_file_says(uboot: UBoot) -> None:
    config = like.fragment(uboot)
    for command, symbol in like.SYMBOLS.items():
        assert (f"CONFIG_{symbol}=y\n" in config) == (command not in uboot.lacks)
    assert not any(f"CONFIG_{symbol}=" in config for symbol in like.RARELY_LACKING.values())
    assert ("CONFIG_DISTRO_DEFAULTS=y" in config) == (uboot.boots_by == "distro_bootcmd")
    assert ("distro_bootcmd" in like.header(uboot)) == (uboot.boots_by == "distro_bootcmd")
    variables = dict(re.findall(r"^(\w+_r|scriptaddr)=(0x\w+)$", like.environment(uboot), re.M))
    assert set(variables) == set(uboot.addresses)


@pytest.mark.parametrize("uboot", BUILDABLE, ids=lambda each: each.name)
def test_addresses_lie_in_memory_at_their_distances(uboot: UBoot) -> None:
    moved = like.addresses(uboot)
    top = 0x4000_0000 + (like.memory_mib(uboot, 1024) << 20)
    assert all(0x4000_0000 <= value < top for value in moved.values())
    assert len({moved[name] - value for name, value in uboot.addresses.items()}) == 1


def test_what_kconfig_drops_is_named() -> None:
    vim3 = like.uboot_like("like:vim3")
    as_asked = {symbol: "y" if there else "n" for symbol, there in like.symbols(vim3).items()}
    _compare(as_asked, vim3)
    with pytest.raises(InfrastructureError, match="CONFIG_CMD_IMPORTENV is n, expected y"):
        _compare({**as_asked, "CMD_IMPORTENV": "n"}, vim3)
    with pytest.raises(InfrastructureError, match="CONFIG_CMD_SETEXPR is y, expected n"):
        _compare({**as_asked, "CMD_SETEXPR": "y"}, vim3)


@pytest.mark.full
@pytest.mark.network
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", ["khadas-vim3", "imx8mp_evk", "rock5b-rk3588", "verdin-imx8mp"])
def test_they_build_and_are_what_they_say(name: str) -> None:
    from virtual.uboots.build import built

    uboot = like.uboot_like(f"like:{name}")
    firmware: Path = built(uboot)
    content = firmware.read_bytes()
    # Each command's help begins with its name; env's sub-command has only its usage.
    for command, said in (("sysboot", b"sysboot"), ("setexpr", b"setexpr"), ("ext4write", b"ext4write"),
                          ("env import", b"env import"), ("fdt apply", b"Apply overlay to")):  # fmt: skip
        assert (said in content) == (command not in uboot.lacks), command
    assert f"kernel_addr_r={like.addresses(uboot)['kernel_addr_r']:#010x}".encode() in content
    assert built(uboot) == firmware  # from the cache
