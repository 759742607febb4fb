# SPDX-License-Identifier: MIT
"""boot.cmd on ext4, in the distribution's own U-Boot: a trial is spent by overwriting a sector of the disk.

Only if that sector holds what was read by name: trial.env may have been moved or copied since it was armed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from bsp.base.process import run
from images.deploy.boot import slots, state
from images.deploy.onboard.script_image import script_image, script_text
from tests.support.psci_kernel import LIVES, PANICS, kernel, run_u_boot

from .test_boot_script import NEW, OLD, OLD_WAY, Disk, dtb, firmware, lacks_told, old_script

__all__ = ["dtb"]  # a fixture

pytestmark = [pytest.mark.slow, pytest.mark.network]

_START, _SECTOR = 1 << 20, 512
_DISK_BYTES = 40 << 20
FOREIGN = b"somebody else's block".ljust(_SECTOR, b"\xa5")
TRIAL_ENV = "/boot/npu-bsp/trial.env"


def ext4_disk(disk: Disk, folder: Path, dtb: Path) -> Path:
    """A disk whose only partition is ext4 with the files of ``disk`` below /boot."""
    tree = disk.tree(folder, dtb, root="/boot")
    # mke2fs gives a file of zeros no place on the disk.
    (tree / TRIAL_ENV.lstrip("/")).write_bytes(b"\xee" * _SECTOR)
    (tree / "foreign").write_bytes(FOREIGN)
    (tree / "copy").write_bytes(FOREIGN)
    image = folder / "disk.img"
    with image.open("wb") as file:
        file.truncate(_DISK_BYTES)
    run(["sfdisk", "--quiet", image], stdin=b"label: dos\nstart=2048, type=83, bootable\n")
    blocks = (_DISK_BYTES - _START) >> 10
    run(
        [
            "mke2fs",
            "-q",
            "-t",
            "ext4",
            "-F",
            "-d",
            tree,
            "-E",
            f"offset={_START}",
            image,
            f"{blocks}k",
        ]
    )
    return image


def place(image: Path, path: str) -> int:
    """The sector of the disk that a file begins in."""
    at = f"{image}?offset={_START}"
    block = int(run(["debugfs", "-R", f"blocks {path}", at]).text.split()[0])
    size = int(re.findall(r"Block size:\s+(\d+)", run(["dumpe2fs", "-h", at]).text)[0])
    return (_START + block * size) // _SECTOR


def sector(image: Path, number: int) -> bytes:
    with image.open("rb") as file:
        file.seek(number * _SECTOR)
        return file.read(_SECTOR)


def put(image: Path, number: int, content: bytes) -> None:
    with image.open("r+b") as file:
        file.seek(number * _SECTOR)
        file.write(content)


def armed(number: int, what: bytes = state.render_trial(NEW)) -> bytes:
    """As the agent arms a trial (onboard/raw_sector.py)."""
    text = script_text(what) or ""
    return script_image(f"{text}setenv npu_sector {number:x}\n").ljust(_SECTOR, b"\0")


def boots(image: Path, folder: Path) -> tuple[list[tuple[str, str]], str]:
    console = run_u_boot(firmware("trixie"), image, folder)
    return re.findall(r"npu-bsp: (trial|good|previous) generation ([0-9a-f]{12})", console), console


@pytest.mark.parametrize("what", [LIVES, PANICS])
def test_a_trial_is_booted_once(what: int, tmp_path: Path, dtb: Path) -> None:
    image = ext4_disk(Disk(kernels={**Disk().kernels, NEW: kernel(what)}), tmp_path, dtb)
    number = place(image, TRIAL_ENV)
    put(image, number, armed(number))
    found, console = boots(image, tmp_path)
    assert found == [("trial", NEW), ("good", OLD)][: 1 if what == LIVES else 2], console
    assert sector(image, number) == state.SPENT


def test_a_file_that_was_moved_is_no_trial_and_its_old_sector_is_left_alone(
    tmp_path: Path, dtb: Path
) -> None:
    image = ext4_disk(Disk(show=True), tmp_path, dtb)
    number, other = place(image, TRIAL_ENV), place(image, "/foreign")
    put(image, number, armed(other))
    found, console = boots(image, tmp_path)
    assert found == [("good", OLD)], console
    assert re.search(r"^bootargs=.*npu_bsp\.trial=moved$", console, re.MULTILINE)
    assert "npu_bsp.lacks" not in console
    assert "it was moved, and is left alone" in console
    assert sector(image, other) == FOREIGN
    assert sector(image, number) == armed(other)


def test_a_copy_of_the_file_elsewhere_is_no_trial(tmp_path: Path, dtb: Path) -> None:
    """The sector that is named holds the same: it is overwritten, and the file still says so."""
    image = ext4_disk(Disk(), tmp_path, dtb)
    number, other = place(image, TRIAL_ENV), place(image, "/copy")
    put(image, number, armed(other))
    put(image, other, armed(other))
    found, console = boots(image, tmp_path)
    assert found == [("good", OLD)], console
    assert sector(image, number) == armed(other)


def test_a_file_that_was_cut_short_is_no_trial(tmp_path: Path, dtb: Path) -> None:
    """The sector on the disk is as it was armed; the file that names it ends before that."""
    image = ext4_disk(Disk(), tmp_path, dtb)
    number = place(image, TRIAL_ENV)
    put(image, number, armed(number))
    short = f"set_inode_field {TRIAL_ENV} size 100"
    run(["debugfs", "-w", "-R", short, f"{image}?offset={_START}"])
    found, console = boots(image, tmp_path)
    assert found == [("good", OLD)], console
    assert sector(image, number) == armed(number)


@pytest.mark.parametrize("torn", [
    lambda image: image[:30] + state.SPENT[30:],
    lambda image: image[:100] + state.SPENT[100:],
    lambda image: image[:-300] + b"\xff" * 300,
    lambda _: b"\xff" * _SECTOR,
])  # fmt: skip
def test_a_torn_sector_is_no_trial(
    torn: Callable[[bytes], bytes], tmp_path: Path, dtb: Path
) -> None:
    image = ext4_disk(Disk(show=True), tmp_path, dtb)
    number = place(image, TRIAL_ENV)
    whole = armed(number)
    put(image, number, torn(whole))
    found, console = boots(image, tmp_path)
    assert "npu_bsp.lacks" not in console, console
    assert ("npu_bsp.trial=torn" in console) == (found == [("good", OLD)])
    # What is behind the script's end does not count.
    expected = [("trial", NEW)] if torn(whole)[:200] == whole[:200] else [("good", OLD)]
    assert found == expected, console


@pytest.mark.parametrize(
    ("lacks", "told"),
    [("cmp", "cmp"), ("${devtype} read", "virtio-read"), ("${devtype} write", "virtio-write")],
)
def test_what_u_boot_lacks_for_a_trial_is_told_to_the_good_generation(
    lacks: str, told: str, tmp_path: Path, dtb: Path
) -> None:
    image = ext4_disk(Disk(lacks=(lacks,), show=True), tmp_path, dtb)
    number = place(image, TRIAL_ENV)
    put(image, number, armed(number))
    found, console = boots(image, tmp_path)
    assert found == [("good", OLD)], console
    assert sector(image, number) == armed(number)
    assert lacks_told(console) == [told], console
    assert "was moved" not in console


@pytest.mark.parametrize("lacks", [(), ("cmp",)])
def test_a_probe_is_spent_where_u_boot_can_do_that(
    lacks: tuple[str, ...], tmp_path: Path, dtb: Path
) -> None:
    text = (script_text(old_script(tmp_path)) or "").replace("/old-kernel", "/boot/old-kernel")
    kept = {"boot-before-npu-bsp.scr": script_image(text), "old-kernel": OLD_WAY["old-kernel"]}
    disk = Disk(good=state.SPENT, copy=state.SPENT, kept=kept, lacks=lacks)
    image = ext4_disk(disk, tmp_path, dtb)
    number = place(image, TRIAL_ENV)
    asked = armed(number, state.render_probe())
    put(image, number, asked)
    found, console = boots(image, tmp_path)
    assert found == [], console
    assert console.count("Starting kernel") == 1
    assert sector(image, number) == (asked if lacks else state.SPENT)
    assert ("npu_bsp.lacks=cmp" in console) == bool(lacks), console


def test_without_the_comparison_somebody_elses_block_would_be_lost(
    tmp_path: Path, dtb: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That the tests above can fail: a script that writes without looking."""
    whole = slots.BOOT_CMD.read_text()
    careless = whole.replace("if cmp.b ${npu_buffer} ${npu_at_dtb} 200; then", "if true; then")
    assert careless != whole
    (tmp_path / "boot.cmd").write_text(careless)
    monkeypatch.setattr(slots, "BOOT_CMD", tmp_path / "boot.cmd")
    image = ext4_disk(Disk(), tmp_path, dtb)
    number, other = place(image, TRIAL_ENV), place(image, "/foreign")
    put(image, number, armed(other))
    boots(image, tmp_path)
    assert sector(image, other) == state.SPENT


def test_a_first_trial_that_falls_ends_in_the_old_script(tmp_path: Path, dtb: Path) -> None:
    old = old_script(tmp_path)
    text = (script_text(old) or "").replace("/old-kernel", "/boot/old-kernel")
    kept = {"boot-before-npu-bsp.scr": script_image(text), "old-kernel": OLD_WAY["old-kernel"]}
    disk = Disk(good=state.SPENT, copy=state.SPENT, kernels={NEW: kernel(PANICS)}, kept=kept)
    image = ext4_disk(disk, tmp_path, dtb)
    number = place(image, TRIAL_ENV)
    put(image, number, armed(number))
    found, console = boots(image, tmp_path)
    assert found == [("trial", NEW)], console
    assert "npu-bsp: falling back on boot-before-npu-bsp.scr" in console
    assert console.count("Starting kernel") == 2
