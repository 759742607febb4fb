# SPDX-License-Identifier: MIT
"""board --check: each fault of a profile that is written by hand is named, with what to write instead."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bsp.base.errors import InfrastructureError, UserError
from bsp.base.project import PROJECT
from bsp.catalog import board_names, load_board, nearest_soc, read_board
from bsp.profile_check import check_profile, missing_text

from ..support.fake_boot import compile_dtb
from ..support.kernel_tree import make_kernel

pytestmark = [
    pytest.mark.usefixtures("own_profiles"),
    pytest.mark.skipif(shutil.which("dtc") is None, reason="dtc is not installed"),
]

GOOD = """\
format = 1
name = "mine"
title = "Mine"
soc = "a311d"
dts = "meson-g12b-a311d-khadas-vim3"
compatible = ["khadas,vim3", "amlogic,a311d", "amlogic,g12b"]
kernel = "path:LINUX"

[expect]
"6.12" = "enable"

[npu]
rates_hz = { core = 800_000_000 }

[boot]
fat_mount = "/boot/firmware"
initrd_modules = ["meson-gx-mmc", "mmc_block", "ext4", "crc32c_generic?"]
"""


@pytest.fixture
def linux(tmp_path: Path) -> Path:
    tree = make_kernel(tmp_path / "linux")
    freescale = tree / "arch/arm64/boot/dts/freescale"
    freescale.mkdir()
    source = '/dts-v1/;\n/ { compatible = "fsl,imx8mp-evk", "fsl,imx8mp"; };\n'
    (freescale / "imx8mp-evk.dts").write_text(source)
    return tree


def written(linux: Path, change: str = "", by: str = "", name: str = "mine") -> Path:
    assert change in GOOD, change
    file = linux.parent / f"{name}.toml"
    file.write_text(GOOD.replace(change, by, 1).replace("LINUX", str(linux)))
    read_board.cache_clear()
    return file


def found(file: Path) -> dict[str, tuple[str, str]]:
    """What is missing by its key: why, and what to do."""
    return {each.key: (each.why, each.next) for each in check_profile(str(file)).missing}


def test_a_good_profile_lacks_nothing(linux: Path) -> None:
    checked = check_profile(str(written(linux)))
    assert checked.missing == ()
    assert checked.unchecked == ()
    assert checked.exit_code == 0
    assert checked.text() == "nothing is missing in the profile of mine"


DTS = 'dts = "meson-g12b-a311d-khadas-vim3"'
MODULES = '"meson-gx-mmc", "mmc_block"'


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "by", "key", "why", "step"),
    [
        # the device tree's source
        (DTS, 'dts = "amlogic/meson-g12b-a311d-khadas-vim3.dts"', "dts", "without folder",
         'dts = "meson-g12b-a311d-khadas-vim3"'),
        (DTS, 'dts = "meson-g12b-a311d-khadas-vim3.dtb"', "dts", "without suffix"[8:],
         'dts = "meson-g12b-a311d-khadas-vim3"'),
        (DTS, 'dts = "imx8mp-evk"', "dts", "is in freescale/", "SoC that the board has"),
        (DTS, 'dts = "meson-g12b-a311d-khadas-vim4"', "dts", "did you mean", "kernel"),
        (DTS, 'dts = "other-board"', "compatible", "another board's source", "dtb ="),
        (DTS, 'dtb = "mine.dtb"', "dtb", "there is no file", "device tree there"),
        (DTS, f'{DTS}\ndtb = "mine.dtb"', "dtb", "one of them counts", "remove one"),
        (DTS, 'dtb = "mine.dts"', "dtb", "not compiled", "dtc"),
        (DTS, "", "dts", "no device tree to build on", "dts"),
        # which board it is
        ('"khadas,vim3", "amlogic,a311d", ', "", "compatible", "names no board", "unknown,mine"),
        ('["khadas,vim3", ', "[", "compatible", "names no board", "of the board's own"),
        ('["khadas,vim3", ', '["khadas vim3", ', "compatible", "expected VENDOR,BOARD", "compatible"),
        ('["khadas,vim3", ', '["khadas,vim3 ", ', "compatible", "without blanks", "compatible"),
        ('["khadas,vim3", ', '["amlogic, g12b", ', "compatible", "names no board", "own"),
        ('"khadas,vim3", "amlogic,a311d", "amlogic,g12b"', '"fsl,imx8mp-evk", "fsl,imx8mp"',
         "compatible", "NXP i.MX 8M Plus EVK, a reference board", "models"),
        ('"amlogic,a311d", "amlogic,g12b"', '"fsl,imx8mp"', "soc", "a string of imx8mp",
         'soc = "imx8mp"'),
        ("kernel =", 'identity = { runs_as = "fsl,imx8mp" }\nkernel =', "identity.models",
         "only together with its model", "/proc/device-tree/model"),
        ('name = "mine"', 'name = "other"', "name", "the file is 'mine.toml'", "agree"),
        ('soc = "a311d"', 'soc = "A311D"', "soc", "did you mean 'a311d'", "SoC"),
        ('soc = "a311d"', 'soc = "Amlogic A311D"', "soc", "did you mean 'a311d'", "SoC"),
        ('soc = "a311d"', 'soc = "i.MX 8M Plus"', "soc", "did you mean 'imx8mp'", "SoC"),
        ('soc = "a311d"', "soc = 311", "soc", "Expected `str`", "correct"),
        # the kernel
        ("path:LINUX", "6.12.y", "kernel", "did you mean '6.12'", 'kernel = "6.12"'),
        ("path:LINUX", "v6.12", "kernel", "unknown kernel", 'kernel = "6.12"'),
        ("path:LINUX", "7.2", "kernel", "the distribution has 6.1, 6.12", "tarball:"),
        ("path:LINUX", "path:/no/such/folder", "kernel", "there is no folder", "kernel"),
        ("path:LINUX", "git:https://example.org/linux.git", "kernel", "names no ref", "tag"),
        ("path:LINUX", "tarball:linux.tar.xz", "kernel", "has no hash", "sha256sum"),
        ("path:LINUX", "tarball:linux.tar.xz#sha256=12", "kernel", "not a SHA-256", "sha256sum"),
        ("path:LINUX", "tar:linux.tar.xz", "kernel", "did you mean 'tarball'", "tarball:"),
        ('kernel = "path:LINUX"', "kernel = 6.12", "kernel", 'quote it: kernel = "6.12"', "correct"),
        ('kernel = "path:LINUX"', "kernel = 7", "kernel", 'quote it: kernel = "7"', "correct"),
        # what it is expected to do
        ('"6.12" = "enable"', '6.12 = "enable"', "expect.6.12", '"6.12" = "enable": quote it',
         "correct"),
        ('"6.12" = "enable"', '"6.12.y" = "enable"', "expect.6.12.y", 'write "6.12"', "correct"),
        ('"6.12" = "enable"', '6 = "enable"', "expect.6", "not a kernel series", "correct"),
        ('"6.12" = "enable"', '"6.12" = "enabled"', "expect.6.12", "did you mean 'enable'",
         "correct"),
        ('"6.12" = "enable"', '"6.12" = "works"', "expect.6.12", "needs changes",
         '"6.12" = "enable"'),
        # values of another kind
        ('["khadas,vim3", "amlogic,a311d", "amlogic,g12b"]', '"khadas,vim3"', "compatible",
         'compatible = ["khadas,vim3"]', "correct"),
        ("800_000_000", '"800MHz"', "npu.rates_hz", "as a number", "correct"),
        ("800_000_000", "8.0e8", "npu.rates_hz", "without point and exponent: 800_000_000", "correct"),
        ("[boot]", "[[boot]]", "boot", "in single brackets: [boot]", "correct"),
        ("rates_hz =", 'enabled = "no"\nrates_hz =', "npu.enabled", "true or false", "correct"),
        # how it boots
        ("/boot/firmware", "/dev/mmcblk1p1", "boot.fat_mount", "a device file", "/boot/firmware"),
        ("/boot/firmware", "boot", "boot.fat_mount", "not an absolute path", "/boot/firmware"),
        ("/boot/firmware", "/", "boot.fat_mount", "no such place", "/boot/firmware"),
        ("/boot/firmware", "/sys/firmware", "boot.fat_mount", "no such place", "/boot/firmware"),
        ("/boot/firmware", "/boot/../efi", "boot.fat_mount", "not written plainly", "findmnt"),
        ("/boot/firmware", "/boot/", "boot.fat_mount", "not written plainly", "findmnt"),
        ("/boot/firmware", "", "boot.fat_mount", "not an absolute path", "findmnt"),
        (MODULES, '"meson-gx-mmc.ko"', "boot.initrd_modules", "no suffix", '"meson-gx-mmc"'),
        (MODULES, '"ext4.ko.xz?"', "boot.initrd_modules", "no suffix", '"ext4?"'),
        (MODULES, '"kernel/fs/ext4/ext4.ko"', "boot.initrd_modules", "no folder", '"ext4"'),
        (MODULES, '"mmc block"', "boot.initrd_modules", "not a name of a module", "lsmod"),
        ('["meson-gx-mmc", "mmc_block", "ext4", "crc32c_generic?"]', "[]", "boot.initrd_modules",
         "may not reach", "lsmod"),
        ("fat_mount =", 'cmdline = "console=ttyAML0"\nfat_mount =', "boot.cmdline", "no root=",
         "remove cmdline"),
        ("[boot]", '[health]\nservices = ["my service"]\n[boot]', "health.services",
         "not a name of a systemd unit", "systemctl"),
        # the NPU
        ("800_000_000", "700_000_000", "npu.rates_hz", "no parent clock reaches", "666_666_666"),
        ("800_000_000", "800", "npu.rates_hz", "rates are in Hz", "core = 800_000_000"),
        ("core =", "cor =", "npu.rates_hz", "did you mean 'core'", "core, bus"),
        # keys
        ("title =", "titel =", "titel", "did you mean 'title'", "correct"),
        ("fat_mount =", "fat_mnt =", "boot.fat_mnt", "did you mean 'fat_mount'", "correct"),
        ('title = "Mine"\n', "", "title", "is missing", "correct"),
    ],
)  # fmt: skip
def test_each_fault_is_named_with_what_to_write(
    linux: Path, change: str, by: str, key: str, why: str, step: str
) -> None:
    lacks = found(written(linux, change, by))
    assert key in lacks, lacks
    assert why in lacks[key][0]
    assert step in lacks[key][1]
    # And it fits a terminal, but for paths and addresses, which stay in one piece.
    text = check_profile(str(linux.parent / "mine.toml")).text()
    long = [line for line in text.splitlines() if len(line) > 80]
    assert all(max(map(len, line.split())) > 40 for line in long), long


def test_all_faults_are_named_at_once(linux: Path) -> None:
    text = GOOD.replace('soc = "a311d"', 'soc = "A311D"').replace("LINUX", str(linux))
    text = text.replace("path:", "paths:").replace("/boot/firmware", "/dev/sda1")
    text = text.replace('"6.12" = "enable"', '6.12 = "enable"\n7.3 = "works"')
    text = text.replace("[boot]", "[boot]\nfat = 1\n")
    file = linux.parent / "mine.toml"
    file.write_text(text)
    checked = check_profile(str(file))
    keys = [each.key for each in checked.missing]
    assert keys == ["expect.6.12", "expect.7.3", "boot.fat", "soc", "kernel", "boot.fat_mount"]
    assert checked.exit_code == 4
    assert checked.document()["board"] == "mine"
    assert [each["key"] for each in checked.document()["missing"]] == keys


def test_faults_behind_a_value_in_a_table_are_named_too(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        'format = 1\nname = "mine"\ntitle = "A"\nsoc = "RK-3588"\ncompatible = ["acme,x"]\n'
        'kernel = "6.12"\n'
        '[npu]\nrates_hz = { core = "800MHz" }\n'
    )
    keys = [each.key for each in check_profile(str(file)).missing]
    assert {"npu.rates_hz", "soc", "dts"} <= set(keys)
    # A wrong SoC is named where the SoC's file would say how the board boots.
    file.write_text(file.read_text().replace("[npu]", 'dts = "acme"\n[npu]'))
    found = {each.key: each.why for each in check_profile(str(file)).missing}
    assert "did you mean 'rk3588'" in found["soc"]


@pytest.mark.parametrize(
    ("word", "soc"),
    [
        ("IMX8MP", "imx8mp"),
        ("i.MX8MP", "imx8mp"),
        ("imx8m-plus", "imx8mp"),
        ("NXP i.MX 8M Plus", "imx8mp"),
        ("iMX93", "imx93"),
        ("A331D", "a311d"),
        ("S905D3", "s905d3"),
        ("T527", "a523"),
        ("RK3588S", "rk3588"),
        ("stm32mp257", "stm32mp25"),
        ("xyz", None),
        ("", None),
    ],
)
def test_the_nearest_soc_is_found_in_any_spelling(word: str, soc: str | None) -> None:
    assert nearest_soc(word) == (f"; did you mean {soc!r}?" if soc else "")


def test_a_profile_with_its_own_tree_is_compared_with_it(linux: Path) -> None:
    file = written(linux, DTS, 'dtb = "mine.dtb"')
    dtb = linux.parent / "mine.dtb"
    dtb.write_text("a device tree, I promise")
    assert "not a device tree blob" in found(file)["dtb"][0]
    compile_dtb('/dts-v1/; / { compatible = "acme,one"; };', dtb)
    assert "of another board" in found(file)["dtb"][0]
    compile_dtb('/dts-v1/; / { compatible = "khadas,vim3", "amlogic,a311d"; };', dtb)
    assert "has no NPU at /npu@ff100000" in found(file)["dtb"][0]


def test_a_default_kernel_without_the_npu_is_named_unless_that_is_expected(tmp_path: Path) -> None:
    old = make_kernel(tmp_path / "linux", release="6.1", npu=False, driver=False)
    file = written(old, '"6.12" = "enable"', '"6.12" = "enable"\n"6.1" = "no node"')
    assert found(file) == {}
    file = written(old)
    assert "has no NPU at /npu@ff100000" in found(file)["kernel"][0]
    assert "--kernel" in found(file)["kernel"][1]


def test_what_cannot_be_looked_at_is_said(linux: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> None:
        raise InfrastructureError("the mirror does not answer")

    monkeypatch.setattr("bsp.profile_tree_check.kernel_tree", fail)
    checked = check_profile(str(written(linux)))
    assert checked.missing == ()
    assert "the mirror does not answer" in checked.unchecked[0]
    assert "not checked: dts" in checked.text()
    git = written(linux, "path:LINUX", "git:https://example.org/linux.git@v6.12")
    assert "would have to be fetched" in check_profile(str(git)).unchecked[0]


def test_a_second_own_profile_for_the_same_board_is_named(own_profiles: Path, linux: Path) -> None:
    text = GOOD.replace("LINUX", str(linux))
    (own_profiles / "mine.toml").write_text(text)
    assert check_profile("mine").missing == ()  # it wins over the shipped one
    (own_profiles / "other.toml").write_text(text.replace('"mine"', '"other"'))
    why = {each.key: each.why for each in check_profile("mine").missing}["compatible"]
    assert "other claims 'khadas,vim3', too" in why


def test_what_is_no_profile_at_all_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "cut.toml").write_text('name = "cut')
    for name, why in (
        (str(tmp_path / "none.toml"), "cannot read"),
        (str(tmp_path / "cut.toml"), "not valid TOML"),
        ("vim33", "unknown board 'vim33'"),
    ):
        with pytest.raises(UserError, match=why):
            check_profile(name)


@pytest.mark.network
def test_shipped_profiles_are_right() -> None:
    """As far as one kernel tells; none of them says how a board is deployed to, but for a few."""
    for name in ("vim3", "imx8mp-evk", "vim3l", "rk3588-rock-5b", "avaota-a1", "virtual-a311d"):
        assert {each.key for each in check_profile(name).missing} <= {"boot"}, name


@pytest.mark.slow
@pytest.mark.network
def test_all_shipped_profiles_are_right() -> None:
    for name in board_names():
        expected = {"soc"} if load_board(name).soc == "qemu-virt" else {"boot"}
        checked = check_profile(name)
        assert {each.key for each in checked.missing} <= expected, missing_text(
            name, checked.missing
        )


def test_the_command_ends_with_4_and_prints_a_document(linux: Path) -> None:
    file = written(linux, "/boot/firmware", "/dev/mmcblk1p1")
    command = [sys.executable, "-m", "invoke", "board", str(file), "--check", "--json"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 4, done.stderr
    document = json.loads(done.stdout)
    assert [each["key"] for each in document["missing"]] == ["boot.fat_mount"]
    assert document["unchecked"] == []
