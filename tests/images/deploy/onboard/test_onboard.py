# SPDX-License-Identifier: MIT
"""The shell scripts that run on a board, alone, on a folder in place of its root."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from images.deploy.boot.slots import ONBOARD_DIR
from images.deploy.onboard.board import Board

GENERATION = "0123456789ab"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "proc/sys/kernel").mkdir(parents=True)
    (tmp_path / "proc/cmdline").write_text(
        f"console=ttyAMA0 npu_bsp.generation={GENERATION} npu_bsp.slot=trial npu_bsp.deadline=0\n"
    )
    (tmp_path / "proc/sys/kernel/osrelease").write_text("6.12.1\n")
    (tmp_path / f"var/lib/npu-bsp/generations/{GENERATION}/modules/6.12.1").mkdir(parents=True)
    # mount(8) wants root: what it is asked to do is what counts here.
    (tmp_path / "bin").mkdir()
    mount = tmp_path / "bin/mount"
    mount.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/mounted\n')
    mount.chmod(0o755)
    return tmp_path


def script(name: str, root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", str(ONBOARD_DIR / name), str(root)],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": f"{root}/bin:{os.environ['PATH']}"},
    )


def test_activate_mounts_the_running_generations_modules(root: Path) -> None:
    done = script("activate", root)
    assert done.returncode == 0, done.stderr
    store = f"/var/lib/npu-bsp/generations/{GENERATION}"
    assert str((root / "run/npu-bsp/current").readlink()) == store
    assert (
        root / "mounted"
    ).read_text() == f"--bind {root}{store}/modules/6.12.1 {root}/lib/modules/6.12.1\n"
    assert script("activate", root).returncode == 0


def test_activate_leaves_other_kernels_alone(root: Path) -> None:
    for cmdline in ("console=ttyAMA0", "npu_bsp.generation=../../evil", "npu_bsp.generation="):
        (root / "proc/cmdline").write_text(cmdline)
        assert script("activate", root).returncode == 0
        assert not (root / "mounted").exists()


def test_activate_says_what_is_missing(root: Path) -> None:
    (root / "proc/sys/kernel/osrelease").write_text("6.12.2\n")
    done = script("activate", root)
    assert done.returncode == 1
    assert "has no modules for kernel 6.12.2" in done.stderr


def test_a_trial_that_nobody_confirms_is_ended(root: Path) -> None:
    done = script("watch-trial", root)
    assert done.stdout == "reboot\n"
    assert "was not confirmed within 0 s" in done.stderr
    (root / "run/npu-bsp").mkdir(parents=True)
    (root / f"run/npu-bsp/confirmed-{GENERATION}").touch()
    assert script("watch-trial", root).stdout == ""


@pytest.mark.parametrize(
    ("mounts", "place"),
    [
        (
            "/dev/mmcblk1p1 /boot/firmware vfat rw 0 0\n/dev/mmcblk1p2 /boot vfat rw 0 0",
            "/boot/firmware",
        ),
        ("/dev/mmcblk1p1 /boot vfat rw 0 0\n/dev/mmcblk1p2 / ext4 rw 0 0", "/boot"),
        ("/dev/mmcblk1p1 /run/media/boot-mmcblk1p1 vfat rw 0 0", "/run/media/boot-mmcblk1p1"),
        ("/dev/mmcblk1p1 /boot/efi vfat rw 0 0\n/dev/sda1 /mnt/stick vfat rw 0 0", "/boot/efi"),
        ("/dev/mmcblk1p1 /boot vfat rw 0 0\n/dev/mmcblk2p1 /efi vfat rw 0 0", "/boot/firmware"),
        ("/dev/sda1 /mnt/stick vfat rw 0 0", "/boot/firmware"),
        ("", "/boot/firmware"),
    ],
)
def test_the_boot_partition_is_where_the_profile_says_or_in_the_one_usual_place(
    mounts: str, place: str, tmp_path: Path
) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/mounts").write_text(mounts + "\n")
    assert Board(str(tmp_path), "/boot/firmware").fat == f"{tmp_path}{place}"
