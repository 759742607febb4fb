# SPDX-License-Identifier: MIT
"""Boards that cannot be taken over or deployed to with a way back: one error, and nothing changed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from bsp.base.errors import UserError
from bsp.base.process import run
from images.deploy.adopt import adopt, undo
from images.deploy.deploy import deploy
from tests.images.deploy.test_adopt import files_of, stock
from tests.support.fake_board import BOARD_MARKS, FakeBoard, make_bundle

__all__ = ["stock"]  # a fixture

pytestmark = [
    *BOARD_MARKS,
    pytest.mark.slow,
    pytest.mark.parametrize("stock", ["extlinux"], indirect=True),
]

_OURS = ("run/", "var/lib/npu-bsp/log")
"""Who had the board, and what he asked for: not how it boots."""


def mounts(root: Path, *lines: str) -> None:
    (root / "proc/mounts").write_text("".join(f"/dev/{line} 0 0\n" for line in lines))


def block(root: Path, name: str, *, disk: str = "", on: tuple[str, ...] = (), dm: str = "") -> None:
    """A block device as sysfs has it: the first partition of a disk, or one that is stacked."""
    folder = root / "sys/devices" / disk / name
    folder.mkdir(parents=True)
    if disk:
        (folder / "partition").write_text("1\n")
    for each in on:
        (folder / "slaves" / each).mkdir(parents=True)
    if dm:
        (folder / "dm").mkdir()
        (folder / "dm/uuid").write_text(f"{dm}\n")
    elif on:
        (folder / "md/rd0").mkdir(parents=True)
    (root / "sys/class/block").mkdir(parents=True, exist_ok=True)
    (root / "sys/class/block" / name).symlink_to(folder)


def refused(fake: FakeBoard, says: str) -> None:
    def lasting() -> dict[str, bytes]:
        files = files_of(fake.root)
        return {name: content for name, content in files.items() if not name.startswith(_OURS)}

    before = lasting()
    with pytest.raises(UserError, match=says) as raised:
        adopt(fake.target(), board=None)
    assert raised.value.hint
    assert lasting() == before


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["sda1 /boot/firmware vfat ro"], r"/boot/firmware \(sda1\) is mounted read-only"),
        (
            ["sda1 /boot/firmware vfat rw", "sda1 /mnt vfat rw"],
            "sda1 is mounted at /boot/firmware and /mnt",
        ),
        (
            ["sdb1 / ext4 rw", "sda1 /boot/firmware vfat rw"],
            "on the disk sda and the root file system on sdb",
        ),
    ],
    ids=["read-only", "mounted-twice", "another-disk"],
)
def test_a_fat_partition_that_will_not_do(stock: FakeBoard, lines: list[str], says: str) -> None:
    for name in ("sda", "sdb"):
        block(stock.root, f"{name}1", disk=name)
    mounts(stock.root, *lines)
    refused(stock, says)


def test_two_disks_that_both_could_have_booted_it(stock: FakeBoard) -> None:
    """An SD card and an eMMC, each with an MBR that marks its first partition."""
    (stock.root / "dev").mkdir()
    for name in ("sda", "sdb"):
        block(stock.root, f"{name}1", disk=name)
        table = bytearray(512)
        table[446], table[510:] = 0x80, b"\x55\xaa"
        (stock.root / "dev" / name).write_bytes(table)
    refused(stock, "the disks sda and sdb both have a partition that is marked as bootable")


def test_armbian_with_its_device_tree_elsewhere(stock: FakeBoard) -> None:
    shutil.rmtree(stock.fat / "extlinux")
    (stock.fat / "boot.scr").write_bytes(b"a boot script of Armbian's")
    (stock.fat / "armbianEnv.txt").write_text("verbosity=1\nfdtfile=amlogic/none-such.dtb\n")
    refused(stock, r"fdtfile=amlogic/none-such\.dtb of /boot/firmware/armbianEnv\.txt is not below")


def test_an_extlinux_conf_of_windows_with_several_labels_is_taken_over(stock: FakeBoard) -> None:
    """What runs becomes the generation, whichever label it was; the file comes back as it was."""
    conf = stock.fat / "extlinux/extlinux.conf"
    conf.write_bytes(b"default two\r\ninclude more.conf\r\nlabel one\r\nlabel two\r\n")
    before = conf.read_bytes()
    assert adopt(stock.target(), board=None).outcome == "confirmed"
    assert not conf.exists()
    undo(stock.target())
    assert conf.read_bytes() == before


def _on_btrfs(root: Path) -> None:
    mounts(root, "sda1 / btrfs rw")


def _on_f2fs(root: Path) -> None:
    mounts(root, "sda1 / f2fs rw")


def _with_journaled_data(root: Path) -> None:
    block(root, "sda1", disk="sda")
    mounts(root, "sda1 / ext4 rw,data=journal")


def _on_lvm(root: Path) -> None:
    block(root, "dm-0", on=("sda2",), dm="LVM-a1b2")
    mounts(root, "dm-0 / ext4 rw")


def _on_verity(root: Path) -> None:
    block(root, "dm-0", on=("sda2", "sda3"), dm="CRYPT-VERITY-a1b2-root")
    mounts(root, "dm-0 / ext4 ro")


def _on_raid(root: Path) -> None:
    block(root, "md0", on=("sda2", "sdb2"))
    mounts(root, "md0 / ext4 rw")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_on_btrfs, r"is on btrfs \(sda1\), whose blocks do not keep their places"),
        (_on_f2fs, r"is on f2fs \(sda1\)"),
        (_with_journaled_data, "data=journal"),
        (_on_lvm, "is on LVM: dm-0 consists of sda2"),
        (_on_verity, "is on dm-verity: dm-0 consists of sda2, sda3"),
        (_on_raid, "is on RAID: md0 consists of sda2, sdb2"),
    ],
)
def test_a_boot_folder_whose_sectors_move(
    stock: FakeBoard, change: Callable[[Path], None], says: str
) -> None:
    for path in sorted(stock.fat.iterdir()):
        shutil.move(path, stock.root / "boot" / path.name)
    shutil.rmtree(stock.fat)
    change(stock.root)
    refused(stock, says)


def test_a_ram_disk_that_cannot_reach_the_root(stock: FakeBoard, tmp_path: Path) -> None:
    """The root is on a disk whose driver the new kernel has as a module, and its RAM disk has not."""
    root = stock.root
    assert adopt(stock.target(), board=None).outcome == "confirmed"
    number = root.stat().st_dev
    disk = root / "sys/devices/soc/card/mmc0/mmcblk0"
    disk.mkdir(parents=True)
    for folder, driver in ((disk.parent, "mmc_block"), (disk.parent.parent, "meson-gx-mmc")):
        (root / "sys/bus" / driver).mkdir(parents=True)
        (root / "sys/bus" / driver / "module").symlink_to(f"/sys/module/{driver.replace('-', '_')}")
        (folder / "driver").symlink_to(root / "sys/bus" / driver)
    (root / "sys/dev/block").mkdir(parents=True)
    (root / f"sys/dev/block/{os.major(number)}:{os.minor(number)}").symlink_to(disk)

    drivers = {f"kernel/drivers/{name}.ko": b"module" for name in ("mmc_block", "meson-gx-mmc")}
    for inside, works in (
        (["000-mmc_block"], False),
        (["000-mmc_block", "001-meson_gx_mmc"], True),
    ):
        tree = tmp_path / f"tree-{works}"
        (tree / "modules").mkdir(parents=True)
        for name in inside:
            (tree / f"modules/{name}.ko").write_bytes(b"a module")
        names = "".join(f"{path.relative_to(tree)}\n" for path in sorted(tree.rglob("*")))
        cpio = ["cpio", "--quiet", "-o", "-H", "newc", "-D", str(tree)]
        ram_disk = run(cpio, stdin=names.encode()).stdout
        bundle = make_bundle(tmp_path / f"bundle-{works}", modules=drivers, initrd=ram_disk)
        if works:
            result = deploy(stock.target(), bundle=bundle, board=None, dry_run=True)
            assert result.plan
            assert result.plan.steps
            continue
        before = files_of(stock.fat)
        with pytest.raises(
            UserError, match="has no meson_gx_mmc: the root file system of fake"
        ) as raised:
            deploy(stock.target(), bundle=bundle, board=None)
        assert "initrd_modules" in raised.value.hint
        assert files_of(stock.fat) == before
