# SPDX-License-Identifier: MIT
"""A tree that u-boot-menu keeps beside an overlay of the user's, as a U-Boot like a board's hands it on.

The "kernel" writes the tree that it was handed to its console, so that this takes seconds.
"""

from __future__ import annotations

import base64
import shutil
from pathlib import Path

import pytest

from bsp.base.process import run
from images.deploy.checks import running_tree
from images.deploy.onboard import persist
from images.deploy.onboard.board import Board
from tests.images.deploy.onboard.test_persist import OURS, USERS, booted, install, merged
from tests.support.fake_boot import compile_dtb, tree_source
from tests.support.psci_kernel import LIVES, kernel, run_u_boot, told_tree
from virtual.uboots.build import built
from virtual.uboots.like import uboot_like

pytestmark = [
    pytest.mark.full,
    pytest.mark.network,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(shutil.which("unshare") is None, reason="unshare is not installed"),
]

_DISK_BYTES, _START = 64 << 20, 1 << 20
SCRIPT = "sysboot ${devtype} ${devnum}:${distro_bootpart} any 0x4b000000 /boot/menu.conf\n"


def handed_on(board: Board, folder: Path) -> bytes:
    """The tree that a kernel gets from U-Boot with the board's extlinux.conf."""
    folder.mkdir()
    root = folder / "root"
    shutil.copytree(board.root, root, symlinks=True, ignore=shutil.ignore_patterns("dev", "bin"))
    (root / "boot/extlinux/extlinux.conf").rename(root / "boot/menu.conf")
    (folder / "boot.cmd").write_text(SCRIPT)
    script = root / "boot/boot.scr"
    run(["mkimage", "-A", "arm64", "-T", "script", "-d", folder / "boot.cmd", script])
    image = folder / "disk.img"
    with image.open("wb") as file:
        file.truncate(_DISK_BYTES)
    run(["sfdisk", "--quiet", image], stdin=b"label: dos\nstart=2048, type=83, bootable\n")
    size = f"{(_DISK_BYTES - _START) >> 10}k"
    run(["mke2fs", "-q", "-t", "ext4", "-F", "-d", root, "-E", f"offset={_START}", image, size])
    console = run_u_boot(built(uboot_like("like:khadas-vim3")), image, folder, memory_mib=1024)
    assert "Starting kernel" in console, console
    return told_tree(folder)


def test_the_kernel_gets_the_tree_that_was_tried(tmp_path: Path) -> None:
    root = tmp_path / "board"
    for name in ("boot/dtbo", "proc", "tmp"):
        (root / name).mkdir(parents=True)
    (root / "proc/mounts").write_text("/dev/vda1 / ext4 rw 0 0\n")
    board = Board(str(root), "/boot", exact=True)
    program = install(board, "u-boot-menu", "usr/sbin/u-boot-update")
    (root / "boot/vmlinuz-6.12.1-arm64").write_bytes(kernel(LIVES, tells_tree=True))
    (root / "etc/default/u-boot").write_text('U_BOOT_FDT="board.dtb"\nU_BOOT_TIMEOUT="1"\n')
    own = root / "usr/lib/linux-image-6.12.1-arm64/board.dtb"
    compile_dtb(tree_source(extra='status = "disabled";'), own)
    compile_dtb(USERS, root / "boot/dtbo/can.dtbo")
    ours = compile_dtb(OURS, tmp_path / "ours.dtbo")
    run([program])
    runs = booted(board, tmp_path / "runs.dtb")
    assert running_tree.compare(runs.read_bytes(), handed_on(board, tmp_path / "before")) == []

    tried = merged(runs, [ours], tmp_path / "tried.dtb")
    content = base64.b64encode(ours.read_bytes()).decode()
    persist.persist(board, {"way": "u-boot-menu", "content": content, "overlay": True})
    assert running_tree.compare(tried.read_bytes(), handed_on(board, tmp_path / "kept")) == []
