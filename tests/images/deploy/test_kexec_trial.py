# SPDX-License-Identifier: MIT
"""A device tree tried by kexec, on boards made of folders; their ``kexec`` keeps what it was handed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bsp.base.errors import BspError, UserError
from images.bundle import manifest as bundles
from images.deploy.kexec_trial import command_line, try_dtb
from images.deploy.show import Shown
from tests.images.deploy.test_adopt import KERNEL, files_of, make_stock
from tests.support.fake_board import BOARD_MARKS, FakeBoard
from tests.support.fake_boot import compile_dtb, tree_source

pytestmark = BOARD_MARKS

KEXEC = """#!/bin/sh
root=$(dirname "$(dirname "$(dirname "$0")")")
mkdir -p "$root/loaded"
for word in "$@"; do
    case $word in
        */kernel) cp "$word" "$root/loaded/kernel" ;;
        --dtb=*) cp "${word#*=}" "$root/loaded/dtb" ;;
        --initrd=*) cp "${word#*=}" "$root/loaded/initrd" ;;
        --command-line=*) echo "${word#*=}" > "$root/loaded/cmdline" ;;
    esac
done
"""


@pytest.fixture
def stock(tmp_path: Path, factory: bundles.Bundle) -> Iterator[FakeBoard]:
    """A board whose root file system is btrfs: nothing but kexec is a way there."""
    fake = FakeBoard(tmp_path / "board", factory)
    make_stock(fake, "extlinux")
    root = fake.root
    (root / "proc/mounts").write_text("/dev/sda2 / btrfs rw 0 0\n")
    (root / "usr/sbin").mkdir(parents=True)
    (root / "usr/sbin/kexec").write_text(KEXEC)
    (root / "usr/sbin/kexec").chmod(0o755)
    (root / "sys/kernel").mkdir(parents=True, exist_ok=True)
    (root / "sys/kernel/kexec_loaded").write_text("1\n")
    (root / "proc/cpuinfo").write_text("CPU part\t: 0xd03\n")
    try:
        yield fake
    finally:
        fake.close()


def disk(fake: FakeBoard) -> dict[str, bytes]:
    """All that would outlive a reset."""
    lasting = ("boot", "etc", "var/lib/npu-bsp/generations", "lib")
    return {
        f"{name}/{path}": content
        for name in lasting
        if (fake.root / name).exists()
        for path, content in files_of(fake.root / name).items()
    }


@pytest.fixture
def dtb(tmp_path: Path) -> Path:
    return compile_dtb(tree_source(extra='status = "okay";'), tmp_path / "new.dtb")


def test_a_tree_is_tried_and_the_disk_left_alone(stock: FakeBoard, dtb: Path) -> None:
    before = disk(stock)
    result = try_dtb(stock.target(), board=None, dtb=dtb)
    assert result.outcome == "tried", result.problem
    assert result.running_dtb_matches
    assert disk(stock) == before
    assert (stock.root / "loaded/kernel").read_bytes() == KERNEL
    assert (stock.root / "loaded/initrd").read_bytes() == b"ram disk"
    assert not (stock.root / "run/npu-bsp-kexec").exists()
    cmdline = (stock.root / "proc/cmdline").read_text()
    assert "root=LABEL=old" in cmdline
    assert "BOOT_IMAGE" not in cmdline
    assert "npu_bsp.try=" in cmdline
    shown = Shown(result)
    assert shown.exit_code == 0
    assert "the next reset ends in the system as it was" in shown.text()


@pytest.mark.slow
def test_what_decides_what_boots_there_is_what_keeps_a_tree(stock: FakeBoard, dtb: Path) -> None:
    cmdline = stock.root / "proc/cmdline"
    cmdline.write_text(f"{cmdline.read_text().strip()} rauc.slot=A\n")
    result = try_dtb(stock.target(), board=None, dtb=dtb)
    assert result.outcome == "tried", result.problem
    assert "(RAUC): give device tree and kernel to RAUC" in result.hint
    assert "--adopt" not in result.hint
    with pytest.raises(UserError, match="--persist: nothing") as error:
        try_dtb(stock.target(), board=None, dtb=dtb, persist=True)
    assert "give device tree and kernel to RAUC" in error.value.hint


@pytest.mark.slow
@pytest.mark.parametrize("behaviour", ["panic", "other-tree", "hang"])
def test_a_trial_that_fails(stock: FakeBoard, dtb: Path, behaviour: str) -> None:
    before = disk(stock)
    stock.behave(behaviour)
    result = try_dtb(stock.target(timeout_s=3), board=None, dtb=dtb)
    assert result.outcome == "rolled-back", result
    assert result.exit_code == 5
    assert "nothing on its disk was changed" in result.hint
    assert disk(stock) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("sys/kernel/security/lockdown", "none [integrity] confidentiality", "locked down"),
        ("proc/sys/kernel/kexec_load_disabled", "1", "switched off until the next boot"),
        ("proc/cpuinfo", "CPU part\t: 0xd4f", "52-bit addresses"),
        ("usr/sbin/kexec", None, "kexec-tools"),
        ("proc/version", "Linux version 1 another", "is the kernel that runs"),
        ("proc/meminfo", "MemAvailable: 1000 kB", "of memory to spare"),
    ],
)
def test_what_cannot_be_tried_is_refused(
    stock: FakeBoard, dtb: Path, file: str, text: str | None, said: str
) -> None:
    path = stock.root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    if text:
        path.write_text(f"{text}\n")
    before = disk(stock)
    with pytest.raises(BspError, match=said):
        try_dtb(stock.target(), board=None, dtb=dtb)
    assert disk(stock) == before
    assert not (stock.root / "loaded").exists()


def test_a_tree_without_the_boards_memory_is_refused(stock: FakeBoard, tmp_path: Path) -> None:
    source = tree_source().replace("0x40000000 0 0x40000000>", "0x40000000 0 0>")
    other = compile_dtb(source, tmp_path / "other.dtb")
    with pytest.raises(UserError, match="does not name the memory"):
        try_dtb(stock.target(), board=None, dtb=other)


def test_the_command_line_of_a_trial() -> None:
    made = command_line("root=/dev/x npu_bsp.slot=good BOOT_IMAGE=/v quiet", "0123456789ab").split()
    assert made[:2] == ["root=/dev/x", "quiet"]
    assert "npu_bsp.try=0123456789ab" in made
    assert "panic=10" in made


def test_what_nothing_there_would_keep_is_not_tried(stock: FakeBoard, dtb: Path) -> None:
    before = disk(stock)
    with pytest.raises(UserError, match="known to keep a tree"):
        try_dtb(stock.target(), board=None, dtb=dtb, persist=True)
    assert disk(stock) == before
    assert not (stock.root / "loaded").exists()


@pytest.mark.slow
def test_what_is_not_kept_after_its_trial_is_said_to_run_until_the_next_reset(
    stock: FakeBoard, dtb: Path
) -> None:
    """u-boot-menu is told of the tree, and does not end well."""
    root = stock.root
    (root / "proc/mounts").write_text("/dev/sda2 / ext4 rw 0 0\n")
    conf = root / "boot/extlinux/extlinux.conf"
    conf.parent.mkdir()
    conf.write_text("## use: u-boot-update\ndefault l0\nlabel l0\n    linux /boot/vmlinuz\n")
    (root / "usr/sbin/u-boot-update").write_text("#!/bin/sh\necho no room >&2\nexit 1\n")
    (root / "usr/sbin/u-boot-update").chmod(0o755)
    before = disk(stock)
    result = try_dtb(stock.target(), board=None, dtb=dtb, persist=True)
    assert (result.outcome, result.exit_code) == ("refused", 2), result
    assert "is not kept: " in result.problem
    assert "u-boot-update ended with 1: no room" in result.problem
    assert (
        "it runs with that device tree; the next reset ends in the system as it was" in result.hint
    )
    assert "error: it passed its trial" in Shown(result).complaint()
    assert disk(stock) == before
    assert not (root / "var/lib/npu-bsp/kept-by").exists()
