# SPDX-License-Identifier: MIT
"""The shell scripts that run on a board, alone, on a folder in place of its root."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from images.deploy import onboard
from images.deploy.boot.slots import ONBOARD_DIR
from images.deploy.onboard import files
from images.deploy.onboard.board import Board
from images.deploy.onboard.frames import RefusedError
from images.deploy.onboard.kept_modules import KEPT, Keeping, discard_modules
from images.deploy.transfer.agent import ONBOARD_MODULES

GENERATION = "0123456789ab"


def test_the_folder_says_what_each_of_its_files_serves() -> None:
    named = re.findall(r"``([\w.-]+)``", onboard.__doc__ or "")
    files_there = {
        path.stem if path.suffix == ".py" else path.name
        for path in ONBOARD_DIR.iterdir()
        if path.is_file() and path.name != "__init__.py"
    }
    assert files_there - set(named) == set()
    assert {f"{name}.py" for name in ONBOARD_MODULES} <= {
        path.name for path in ONBOARD_DIR.iterdir()
    }


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


def adopted(root: Path) -> Path:
    """A generation of the system's own kernel, whose modules are kept; returns the system's own."""
    shutil.rmtree(root / f"var/lib/npu-bsp/generations/{GENERATION}/modules")
    (root / "proc/version").write_text("Linux version 6.12.1 (x@y) #1\n")
    own = root / "lib/modules/6.12.1"
    (own / "kernel").mkdir(parents=True)
    for name in ("modules.order", "modules.builtin", "kernel/m.ko"):
        (own / name).write_text(f"content of {name}")
    (own / "build").symlink_to("/usr/src/linux")
    board = Board(str(root), "/boot/firmware")
    for _ in range(2):  # the second time they are there already
        with Keeping(board) as modules:
            modules.kernel_sha256 = "ab" * 32
    return own


def kept(root: Path) -> Path:
    (folder,) = (root / KEPT).iterdir()
    return folder / "6.12.1"


def test_modules_that_cannot_be_kept_leave_nothing(root: Path) -> None:
    own = root / "lib/modules/6.12.1"
    (own / "kernel").mkdir(parents=True)
    (own / "kernel/m.ko").write_text("content")
    (root / "proc/version").write_text("Linux version 6.12.1 (x@y) #1\n")
    board = Board(str(root), "/boot/firmware")
    with pytest.raises(OSError, match="no room"), Keeping(board):
        raise OSError("no room for the kernel")
    assert list((root / KEPT).iterdir()) == []
    (root / KEPT).rmdir()
    (root / KEPT).write_text("in its way")
    with pytest.raises(RefusedError, match=r"modules of 6\.12\.1 cannot be kept"), Keeping(board):
        pass


def test_modules_of_an_adopted_kernel_outlive_an_upgrade(root: Path) -> None:
    own = adopted(root)
    assert (kept(root) / "kernel/m.ko").samefile(own / "kernel/m.ko")
    assert not (kept(root) / "build").is_symlink()
    assert script("activate", root).returncode == 0
    assert not (root / "mounted").exists()
    # The package is installed anew, under the same release: other files under the old names.
    (own / "modules.order").unlink()
    (own / "modules.order").write_text("content of a new build")
    done = script("activate", root)
    assert done.returncode == 0, done.stderr
    mounted = (kept(root).parent / "mounted").resolve()
    assert (root / "mounted").read_text() == f"--bind {mounted} {own}\n"
    # What dpkg then does there is done to links of their own.
    shutil.rmtree(mounted)
    assert (kept(root) / "kernel/m.ko").read_text() == "content of kernel/m.ko"


def test_modules_that_were_removed_come_back_at_the_next_boot(root: Path) -> None:
    own = adopted(root)
    shutil.rmtree(own)
    assert script("activate", root).returncode == 0
    assert (root / "mounted").exists()
    (root / "proc/version").write_text("Linux version 6.12.1 (x@y) #2\n")  # another kernel's
    (root / "mounted").unlink()
    assert script("activate", root).returncode == 0
    assert not (root / "mounted").exists()


def test_modules_on_another_file_system_are_copied(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    own = adopted(root)
    assert not (kept(root) / "kernel/m.ko").samefile(own / "kernel/m.ko")
    assert script("activate", root).returncode == 0
    assert not (root / "mounted").exists()


def test_kept_modules_go_with_the_last_generation_of_their_kernel(root: Path) -> None:
    adopted(root)
    board = Board(str(root), "/boot/firmware")
    manifest = root / f"var/lib/npu-bsp/generations/{GENERATION}/manifest.json"
    manifest.write_text(json.dumps({"files": [{"path": "boot/kernel", "sha256": "ab" * 32}]}))
    discard_modules(board, [GENERATION])
    assert kept(root).is_dir()
    manifest.write_text("torn")
    discard_modules(Board(str(root), "/boot/firmware"), [GENERATION])
    assert kept(root).is_dir()
    discard_modules(board, [])
    assert not list((root / KEPT).iterdir())


def test_a_flush_of_a_file_system_ends_with_the_folders_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On FAT only that asks the disk to write its cache; crash-test --layout extlinux-fat shows it."""
    flushed: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda handle: flushed.append(os.fstat(handle).st_ino))
    files.flush_filesystem(str(tmp_path))
    assert flushed == [tmp_path.stat().st_ino]


def test_what_is_replaced_is_held_until_the_new_file_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAT would free its space before; crash-test --layout toradex shows it."""
    path = tmp_path / "boot.scr"
    path.write_bytes(b"old")
    old = path.stat().st_ino
    is_held: list[bool] = []

    def fsync(_: int) -> None:
        if path.read_bytes() == b"new":
            is_held.append(old in {_inode(link) for link in Path("/proc/self/fd").iterdir()})

    monkeypatch.setattr(os, "fsync", fsync)
    files.write_whole(str(path), b"new")
    assert is_held == [True, True]


def _inode(link: Path) -> int:
    """The inode of an open file, also of one that has no name any more."""
    try:
        return link.stat().st_ino
    except FileNotFoundError:  # that of the listing itself
        return 0


def test_a_boot_partition_that_is_mounted_when_it_is_looked_at(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As systemd does with an EFI partition that fstab does not name."""
    mounts = root / "proc/mounts"
    mounts.parent.mkdir(exist_ok=True)
    mounts.write_text("systemd-1 /efi autofs rw 0 0\n")

    def names_in(path: str) -> list[str]:
        if path.endswith("/efi"):
            mounts.write_text("systemd-1 /efi autofs rw 0 0\n/dev/sda1 /efi vfat rw 0 0\n")
        return []

    monkeypatch.setattr("images.deploy.onboard.board.names_in", names_in)
    board = Board(str(root), "/boot/firmware")
    assert (board.fat, board.kind) == (str(root / "efi"), "vfat")
