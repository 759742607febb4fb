# SPDX-License-Identifier: MIT
"""Taking over boards that boot by extlinux or by a script of their own; boards made of folders.

The fallback in boot.cmd is tested in a real U-Boot (test_boot_script.py).
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import itertools
import json
import os
import re
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bsp.base.errors import BspError, UserError
from bsp.base.process import run
from bsp.uboot import Trial
from images.bundle import manifest as bundles
from images.deploy import in_place
from images.deploy.adopt import adopt
from images.deploy.boot import slots
from images.deploy.checks.recognise import opened
from images.deploy.command import Content, take_over, undo_all
from images.deploy.deploy import rollback
from images.deploy.onboard import adopt as onboard
from images.deploy.onboard import persist
from images.deploy.onboard.board import Board as OnBoard
from images.deploy.onboard.boot_files import EMPTY_RAM_DISK
from images.deploy.onboard.files import write_whole
from images.deploy.session import session
from images.deploy.show import Shown, status_text
from images.deploy.status import status
from images.deploy.transfer.agent import decompress_fdt
from tests.support.fake_board import BOARD_MARKS, RELEASE, FakeBoard
from tests.support.fake_boot import boot_old_way, compile_dtb, tree_source

pytestmark = BOARD_MARKS

BANNER = f"Linux version {RELEASE} (somebody@somewhere) (gcc 14.2.0) #7 SMP Mon Jan 6"
KERNEL = struct.pack("<IIQQQQQQ4sI", 0, 0, 0, 0, 0, 0, 0, 0, b"ARM\x64", 0) + f"{BANNER}\n".encode()
OLD_SCRIPT = b"a boot script of flash-kernel"


@pytest.fixture(params=["extlinux", "boot.scr"])
def stock(request: pytest.FixtureRequest, factory: bundles.Bundle) -> Iterator[FakeBoard]:
    """A board that knows nothing of us, with its kernel in /boot and a FAT partition that boots it."""
    in_memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=in_memory, prefix="npu-bsp-test-") as folder:
        fake = FakeBoard(Path(folder), factory)
        make_stock(fake, request.param)
        try:
            yield fake
        finally:
            fake.close()


def make_stock(fake: FakeBoard, way: str) -> None:
    root, fat = fake.root, fake.fat
    for path in (fat / "npu-bsp", root / "var/lib/npu-bsp", root / "run/npu-bsp"):
        shutil.rmtree(path)
    (fat / "boot.scr").unlink()
    boot_with(fat, way)
    modules = root / "lib/modules" / RELEASE
    modules.unlink()
    modules.mkdir()
    (root / f"boot/vmlinuz-{RELEASE}").write_bytes(KERNEL)
    (root / f"boot/initrd.img-{RELEASE}").write_bytes(b"ram disk")
    (root / "proc/version").write_text(f"{BANNER}\n")
    (root / "proc/mounts").write_text(f"/dev/sda1 {Path('/boot/firmware')} vfat rw 0 0\n")
    compile_dtb(tree_source(), root / "boot/old.dtb")
    assert boot_old_way(root) == "old"


def boot_with(fat: Path, way: str) -> None:
    """What a distribution puts on a partition that U-Boot boots."""
    if way == "extlinux":
        (fat / "extlinux").mkdir()
        (fat / "extlinux/extlinux.conf").write_text("default l0\n")
    else:
        (fat / "boot.scr").write_bytes(OLD_SCRIPT)


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def boot_files(fake: FakeBoard) -> dict[str, bytes]:
    """What U-Boot finds on the partition, our own folder left out."""
    return {
        name: content
        for name, content in files_of(fake.fat).items()
        if not name.startswith("npu-bsp/")
    }


@pytest.mark.slow
def test_what_runs_becomes_the_good_generation_and_is_given_back(
    stock: FakeBoard, tmp_path: Path
) -> None:
    before = boot_files(stock)
    planned = adopt(stock.target(), board=None, dry_run=True)
    assert planned.outcome == "planned"
    assert "install npu-bsp's boot script" in str(planned.plan)
    assert boot_files(stock) == before
    assert not (stock.fat / "npu-bsp").exists()

    result = adopt(stock.target(), board=None)
    assert result.outcome == "confirmed", result.problem
    assert result.before is None
    assert result.running_dtb_matches
    cmdline = (stock.root / "proc/cmdline").read_text()
    assert "root=LABEL=old console=ttyAMA0 panic=10" in cmdline
    assert "BOOT_IMAGE" not in cmdline
    good = stock.good()
    assert good is not None
    assert good.good == result.to
    assert status(stock.target())["boots_through_npu_bsp"]
    assert adopt(stock.target(), board=None).outcome == "unchanged"

    # The same kernel, another tree: what taking over is for.
    dtb = compile_dtb(tree_source(extra='status = "okay";'), tmp_path / "new.dtb")
    tried = in_place.deploy_dtb(stock.target(), board=None, dtb=dtb)
    assert tried.outcome == "confirmed", tried.problem
    assert tried.sent.sent_files == 1

    returned = undo_all(stock.target())
    assert files_of(stock.fat) == before
    assert set(returned) <= set(before)
    with pytest.raises(UserError, match="was not adopted"):
        undo_all(stock.target())


@pytest.mark.slow
def test_one_boot_tries_what_runs_with_another_tree(stock: FakeBoard, tmp_path: Path) -> None:
    before = boot_files(stock)
    dtb = compile_dtb(tree_source(extra='status = "okay";'), tmp_path / "new.dtb")
    target, content = stock.target(), Content(dtb=str(dtb))
    planned = take_over(target, content, dtb_only=True, by_kexec=False, dry_run=True)
    assert planned.outcome == "planned"
    assert boot_files(stock) == before

    result = take_over(target, content, dtb_only=True, by_kexec=False, dry_run=False)
    assert result.outcome == "confirmed", result.problem
    assert result.running_dtb_matches
    assert [name for name in (step["name"] for step in result.steps) if "Trial boot" in name] == [
        f"Trial boot of generation {result.to}"
    ]
    good = stock.good()
    assert good is not None
    assert (good.good, good.previous) == (result.to, None)
    assert (stock.root / "sys/firmware/fdt").read_bytes() == dtb.read_bytes()
    with pytest.raises(UserError, match="no generation before") as caught:
        rollback(target)
    assert "--undo has it boot as it did before" in str(caught.value.hint)

    # Where it is adopted already, the tree alone.
    dtb = compile_dtb(tree_source(extra='status = "disabled";'), tmp_path / "newer.dtb")
    later = take_over(target, Content(dtb=str(dtb)), dtb_only=True, by_kexec=False, dry_run=False)
    assert (later.outcome, later.before) == ("confirmed", result.to)
    undo_all(target)
    assert files_of(stock.fat) == before


@pytest.mark.slow
def test_an_adoption_with_a_tree_that_does_not_boot_leaves_the_board_as_it_was(
    stock: FakeBoard, tmp_path: Path
) -> None:
    before = files_of(stock.fat)
    dtb = compile_dtb(tree_source(extra='status = "okay";'), tmp_path / "new.dtb")
    stock.behave("panic")
    target = stock.target(timeout_s=2)
    with pytest.raises(UserError, match="and nothing else"):
        take_over(target, Content(kernel="7.3"), dtb_only=True, by_kexec=False, dry_run=False)
    result = take_over(target, Content(dtb=str(dtb)), dtb_only=True, by_kexec=False, dry_run=False)
    assert result.outcome == "rolled-back", result
    assert "--adopt alone shows whether" in result.hint
    assert files_of(stock.fat) == before
    other = compile_dtb(tree_source("acme,one"), tmp_path / "other.dtb")
    with pytest.raises(UserError, match="is of another board"):
        take_over(target, Content(dtb=str(other)), dtb_only=True, by_kexec=False, dry_run=False)
    assert files_of(stock.fat) == before


@pytest.mark.slow
def test_an_adoption_where_the_distribution_keeps_a_tree_is_undone_first(
    stock: FakeBoard, capsys: pytest.CaptureFixture[str]
) -> None:
    (stock.root / "boot/armbianEnv.txt").write_text("verbosity=1\n")
    before = files_of(stock.fat), files_of(stock.root / "boot")
    overlay = base64.b64encode(b"an overlay").decode()
    keeper = OnBoard(str(stock.root), "/boot", exact=True)
    persist.persist(keeper, {"way": "armbian", "content": overlay})
    kept = files_of(stock.root / "boot")
    words = status_text(status(stock.target()))
    assert re.search(rf"kernel +{re.escape(RELEASE)}, the distribution's\n", words)
    assert re.search(r"next boot +as the distribution boots, with what armbian keeps$", words)
    assert re.search(r"NPU kept by +armbian, for each kernel that it installs", words)
    assert "generation" not in words
    with pytest.raises(UserError, match="does not boot through npu-bsp") as caught:
        in_place.deploy_dtb(stock.target(), board=None, dtb=None)
    assert "armbian keeps a device tree of npu-bsp's there" in str(caught.value.hint)

    assert adopt(stock.target(), board=None).outcome == "confirmed"
    assert "armbian keeps a device tree there, and goes on to" in capsys.readouterr().err
    shown = status(stock.target())
    assert shown["boots_through_npu_bsp"]
    assert shown["kept_by"] == "armbian"
    assert undo_all(stock.target(), dry_run=True) == []
    assert files_of(stock.root / "boot")["armbianEnv.txt"] == kept["armbianEnv.txt"]

    assert "armbianEnv.txt" in " ".join(undo_all(stock.target()))
    assert (files_of(stock.fat), files_of(stock.root / "boot")) == before
    assert status(stock.target())["kept_by"] is None


@pytest.mark.slow
@pytest.mark.parametrize("behaviour", ["panic", "hang", "other-tree"])
def test_a_take_over_that_fails_leaves_the_board_as_it_was(
    stock: FakeBoard, behaviour: str
) -> None:
    before = files_of(stock.fat)
    stock.behave(behaviour)
    result = adopt(stock.target(timeout_s=2), board=None)
    assert result.outcome == "rolled-back", result
    assert "the old system runs" in result.problem
    assert files_of(stock.fat) == before
    assert not files_of(stock.root / "var/lib/npu-bsp/generations")
    assert not list((stock.root / "etc/systemd/system").rglob("npu-bsp*"))
    assert "npu_bsp" not in (stock.root / "proc/cmdline").read_text()


@pytest.mark.slow
def test_the_running_tree_is_read_also_where_no_generation_runs(stock: FakeBoard) -> None:
    with session(stock.target()) as agent:
        _, facts, _ = opened(stock.target().host, agent, stock.target().root, lock=False)
    assert facts.running is None
    assert decompress_fdt(facts.fdt) == (stock.root / "sys/firmware/fdt").read_bytes()


@pytest.mark.slow
def test_a_kernel_update_that_takes_the_boot_back_is_noticed(stock: FakeBoard) -> None:
    assert adopt(stock.target(), board=None).outcome == "confirmed"
    folder = stock.fat / "extlinux"
    folder.mkdir(exist_ok=True)
    (folder / "extlinux.conf").write_text("default new\n")
    with pytest.raises(UserError, match=r"extlinux\.conf .*which U-Boot takes before"):
        in_place.deploy_dtb(stock.target(), board=None, dtb=stock.root / "boot/old.dtb")
    shown = status_text(status(stock.target()))
    assert re.search(
        r"next boot +what extlinux/extlinux\.conf names .*: not generation \w+,", shown
    )
    assert adopt(stock.target(), board=None).outcome == "confirmed"
    assert "extlinux" not in status_text(status(stock.target()))


@pytest.mark.slow
def test_an_update_that_replaces_the_boot_script_is_noticed(stock: FakeBoard) -> None:
    """As packages that hold a boot.scr do; the kernel that was adopted may be gone, too."""
    assert not status(stock.target())["adopted"]
    assert adopt(stock.target(), board=None).outcome == "confirmed"
    (stock.fat / "boot.scr").write_bytes(b"a newer script of the distribution's")
    shown = status(stock.target())
    assert (shown["adopted"], shown["boots_through_npu_bsp"]) == (True, False)
    words = status_text(shown)
    assert re.search(rf"running +{shown['good']} \(good\)", words)
    says = (
        r"next boot +as the distribution boots: npu-bsp's boot\.scr was replaced since .* adopted"
    )
    assert re.search(says, words)
    with pytest.raises(UserError, match=r"lacks the boot script boot\.scr of npu-bsp") as caught:
        in_place.deploy_dtb(stock.target(), board=None, dtb=stock.root / "boot/old.dtb")
    assert "--adopt" in str(caught.value.hint)

    boot_old_way(stock.root)
    assert status(stock.target())["running"] is None
    assert re.search(
        r"running +booted something that is not a generation", status_text(status(stock.target()))
    )
    assert adopt(stock.target(), board=None).outcome == "confirmed"
    assert "was replaced" not in status_text(status(stock.target()))
    undo_all(stock.target())
    assert (stock.fat / "boot.scr").read_bytes() == b"a newer script of the distribution's"


def test_what_cannot_be_taken_over_is_refused(stock: FakeBoard) -> None:
    before = boot_files(stock)
    kernel = stock.root / f"boot/vmlinuz-{RELEASE}"
    kernel.rename(stock.root / "elsewhere")
    with pytest.raises(
        UserError, match=r"none of the files in /boot, /boot/firmware is the kernel"
    ):
        adopt(stock.target(), board=None)
    (stock.root / "elsewhere").rename(kernel)
    (stock.root / "proc/mounts").write_text("/dev/sda1 /boot/firmware ext4 rw 0 0\n")
    with pytest.raises(UserError, match=r"no FAT partition at /boot/firmware \(it is ext4\)"):
        adopt(stock.target(), board=None)
    with pytest.raises(UserError, match="does not boot through npu-bsp") as error:
        in_place.deploy_dtb(stock.target(), board=None, dtb=stock.root / "boot/old.dtb")
    assert "--adopt" in error.value.hint
    assert boot_files(stock) == before


@pytest.mark.slow
def test_another_kernel_under_the_right_name_is_refused(stock: FakeBoard) -> None:
    """The same release, built again: only the number of the build tells it from the one that runs."""
    (stock.root / f"boot/vmlinuz-{RELEASE}").write_bytes(KERNEL.replace(b"#7", b"#8"))
    before = boot_files(stock)
    with pytest.raises(UserError, match=rf"/boot/vmlinuz-{RELEASE} is Linux version .* #8 SMP"):
        adopt(stock.target(), board=None)
    assert boot_files(stock) == before


@pytest.mark.slow
@pytest.mark.parametrize("ram_disk", ["initramfs-{}.img", "initrd.img", None])
def test_other_names_than_debians(stock: FakeBoard, ram_disk: str | None) -> None:
    """A packed Image without a release in its name; dracut's RAM disk, one without a release, or none."""
    root = stock.root
    (root / f"boot/vmlinuz-{RELEASE}").unlink()
    (root / "boot/Image.gz").write_bytes(gzip.compress(KERNEL))
    old = root / f"boot/initrd.img-{RELEASE}"
    if ram_disk:
        old.rename(root / "boot" / ram_disk.format(RELEASE))
    else:
        old.unlink()
    result = adopt(stock.target(), board=None)
    assert result.outcome == "confirmed", result.problem
    manifest = json.loads((root / slots.STORE / stock.running() / "manifest.json").read_bytes())
    contents = {
        each["path"]: (stock.fat / "npu-bsp/files" / each["sha256"][:32]).read_bytes()
        for each in manifest["files"]
        if each["path"].startswith("boot/")
    }
    assert contents["boot/kernel"] == KERNEL
    assert contents["boot/initrd"] == (b"ram disk" if ram_disk else EMPTY_RAM_DISK)


@pytest.mark.parametrize(
    ("path", "content", "says"),
    [
        ("proc/device-tree/chosen/barebox-version", b"2025.09.0\0", "barebox starts this board"),
        ("proc/device-tree/chosen/u-boot,version", b"2017.09\0", "in the root folder only"),
        ("proc/1/comm", b"openrc-init\n", "systemd does not run this system"),
    ],
)
def test_a_board_that_would_not_boot_our_way_is_refused(
    stock: FakeBoard, path: str, content: bytes, says: str
) -> None:
    before = files_of(stock.fat)
    (stock.root / path).parent.mkdir(parents=True, exist_ok=True)
    (stock.root / path).write_bytes(content)
    with pytest.raises(UserError, match=says) as error:
        adopt(stock.target(), board=None)
    assert error.value.hint
    planned = adopt(stock.target(), board=None, dry_run=True)
    assert (planned.outcome, planned.plan) == ("refused", None)
    assert files_of(stock.fat) == before


def test_the_partition_that_u_boot_reads_is_the_one_that_is_written_to(stock: FakeBoard) -> None:
    """The image mounts its boot partition at a place of its own, and another FAT at a usual one."""
    fat = stock.root / "mnt/flash"
    shutil.copytree(stock.fat, fat)
    partition = stock.root / "sys/devices/disk/sda"
    for number in (1, 2):
        (partition / f"sda{number}").mkdir(parents=True)
        (partition / f"sda{number}/partition").write_text(f"{number}\n")
        (stock.root / "sys/class/block").mkdir(parents=True, exist_ok=True)
        (stock.root / f"sys/class/block/sda{number}").symlink_to(partition / f"sda{number}")
    (stock.root / "proc/mounts").write_text(
        "/dev/sda1 /mnt/flash vfat rw 0 0\n/dev/sda2 /boot/firmware vfat rw 0 0\n"
    )
    before = files_of(stock.fat), files_of(fat)
    with pytest.raises(UserError, match="U-Boot reads /mnt/flash/") as error:
        adopt(stock.target(), board=None)
    assert 'fat_mount = "/mnt/flash"' in error.value.hint
    assert (files_of(stock.fat), files_of(fat)) == before


def test_two_kernels_that_could_both_be_it(stock: FakeBoard) -> None:
    (stock.fat / "Image").write_bytes(KERNEL + b"another")
    said = r"/boot/vmlinuz-\S+ and /boot/firmware/Image both have"
    with pytest.raises(UserError, match=said):
        adopt(stock.target(), board=None)
    result = adopt(stock.target(), board=None, dry_run=True)
    assert (result.outcome, result.exit_code, result.plan) == ("refused", 2, None)
    assert re.search(said, result.problem)
    assert result.survey
    assert re.search(said, result.survey.kernel)


def test_how_it_boots_is_said_before_anything_is_written(stock: FakeBoard) -> None:
    before = files_of(stock.root)
    result = adopt(stock.target(), board=None, dry_run=True)
    assert files_of(stock.root) == before
    shown = Shown(result)
    survey = shown.document()["survey"]
    assert survey["kernel"] == f"/boot/vmlinuz-{RELEASE}"
    assert survey["initrd"] == f"/boot/initrd.img-{RELEASE}"
    assert survey["layout"] == (
        "extlinux-fat" if (stock.fat / "extlinux").exists() else "script-fat"
    )
    assert survey["way"] == "fat"
    assert "root=LABEL=old" in survey["cmdline"]
    assert "way of trial" in shown.text()
    assert "install npu-bsp's boot script" in shown.text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("word", "system"),
    [("rauc.slot=A", "RAUC"), ("ostree=/ostree/boot.1/x/y/0", "OSTree"), ("mender.x=1", "")],
)
def test_a_system_with_two_copies_is_left_alone(
    stock: FakeBoard, word: str, system: str, tmp_path: Path
) -> None:
    cmdline = stock.root / "proc/cmdline"
    cmdline.write_text(f"{cmdline.read_text().strip()} {word}\n")
    before = boot_files(stock)
    if system:
        with pytest.raises(UserError, match=f"{system} decides what fake boots") as error:
            adopt(stock.target(), board=None)
        assert error.value.hint
        planned = adopt(stock.target(), board=None, dry_run=True)
        assert planned.outcome == "refused"
        assert Shown(planned).complaint().startswith("error: ")
    else:  # a mark that is not known as a system's: the word is still not copied
        with pytest.raises(UserError, match=re.escape(word)):
            adopt(stock.target(), board=None)
    assert boot_files(stock) == before


def test_nothing_makes_way_for_a_script_that_may_not_run(
    stock: FakeBoard, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not (stock.fat / "extlinux").exists():
        pytest.skip("this board boots by a script")
    monkeypatch.setattr("images.deploy.adopt.trial_of", lambda _: Trial("asked", "not known"))
    before = files_of(stock.fat)
    with pytest.raises(UserError, match="whether its U-Boot runs boot scripts is not known"):
        adopt(stock.target(), board=None)
    assert files_of(stock.fat) == before


def test_an_adoption_that_fails_in_the_middle_leaves_nothing(
    stock: FakeBoard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The boot partition fills up while the kernel is copied, then while the generation is made."""
    before = files_of(stock.fat)
    for module, name in (("adopt", "take_in"), ("stage", "_finish")):
        broken = (
            f"\n_real = {name}\n"
            f"def {name}(*words):\n"
            "    import errno, os\n"
            "    os.makedirs(words[0].files, exist_ok=True)\n"
            "    open(words[0].files + '/0123.partial', 'wb').close()\n"
            "    raise OSError(errno.ENOSPC, 'No space left on device')\n"
        )
        target = replace(stock.target(), additions={module: broken})
        with pytest.raises(BspError, match=r"No space left|is full"):
            adopt(target, board=None)
        assert files_of(stock.fat) == before
        assert not (stock.fat / "npu-bsp").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stock", "broken"),
    [
        ("extlinux", "move"),
        ("extlinux", "_reboot"),
        ("boot.scr", "replace"),
        ("boot.scr", "_reboot"),
    ],
    indirect=["stock"],
)
def test_an_adoption_that_fails_once_our_script_is_being_installed_is_taken_back(
    stock: FakeBoard, broken: str
) -> None:
    """Its boot partition cannot be written to any more, or the board has nothing to reboot with."""
    before = files_of(stock.fat)
    within = "_arm" if broken == "_reboot" else "take_over"
    code = (
        f"\n_real, _within, _busy = {broken}, {within}, []\n"
        f"def {broken}(*words):\n"
        "    if _busy:\n"
        "        raise RefusedError('broken on purpose')\n"
        "    return _real(*words)\n"
        f"def {within}(*words):\n"
        "    _busy.append(True)\n"
        "    return _within(*words)\n"
    )
    module = "agent" if broken == "_reboot" else "adopt"
    with pytest.raises(BspError, match="broken on purpose"):
        adopt(replace(stock.target(), additions={module: code}), board=None)
    assert files_of(stock.fat) == before
    assert not (stock.fat / "npu-bsp").exists()


class CutError(Exception):
    """The power is gone."""


@pytest.mark.parametrize("way", ["extlinux", "boot.scr"])
def test_a_power_cut_at_any_step_leaves_a_board_that_boots(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each change to the partition is one of these calls; the power goes before the STOPth of them."""
    import base64

    from tests.support.fake_boot import boot

    script = slots.boot_script("virtual")
    request = {"script": base64.b64encode(script).decode()}
    for stop in itertools.count(1):
        root = tmp_path / str(stop)
        fat = root / "boot/firmware"
        (root / "proc/sys/kernel/random").mkdir(parents=True)
        (root / "sys/firmware").mkdir(parents=True)
        fat.mkdir(parents=True)
        boot_with(fat, way)
        (root / "behaviour").write_text("ok")
        (root / "boot/old.dtb").write_bytes(b"tree")
        before = files_of(fat)
        calls = 0

        def counted(real: Callable[..., object], last: int = stop) -> Callable[..., object]:
            def call(*words: object) -> object:
                nonlocal calls
                calls += 1
                if calls >= last:
                    raise CutError
                return real(*words)

            return call

        with monkeypatch.context() as patch:
            patch.setattr(onboard, "write_whole", counted(write_whole))
            patch.setattr(os, "rename", counted(os.rename))
            with contextlib.suppress(CutError):
                onboard.take_over(OnBoard(str(root), "/boot/firmware"), request)
        assert boot(root) == "old", stop
        if (fat / "npu-bsp/taken-over").exists():  # undoing brings everything back
            onboard.give_back(OnBoard(str(root), "/boot/firmware"))
            ours = ("npu-bsp", ".partial")
            left = {
                name: each
                for name, each in files_of(fat).items()
                if not any(word in name for word in ours)
            }
            assert left == before
        if calls < stop:  # this round was not cut
            break
    assert stop > 4


def test_activate_leaves_the_systems_own_modules_alone(tmp_path: Path) -> None:
    generation = "0" * 12
    (tmp_path / "proc/sys/kernel").mkdir(parents=True)
    (tmp_path / "proc/cmdline").write_text(f"npu_bsp.generation={generation}")
    (tmp_path / "proc/sys/kernel/osrelease").write_text("6.12.1")
    (tmp_path / slots.STORE / generation).mkdir(parents=True)
    said = run([slots.ONBOARD_DIR / "activate", tmp_path]).text
    assert "with its own modules" in said
    assert (tmp_path / "run/npu-bsp/current").readlink().name == generation


def test_the_kept_extlinux_conf_has_a_copy_that_hands_on_what_is_told(tmp_path: Path) -> None:
    import base64

    fat = tmp_path / "boot/firmware"
    (fat / "extlinux").mkdir(parents=True)
    conf = (
        b"LABEL a\r\n\tAPPEND root=a quiet\r\nlabel b\n append root=b\nlabel c\n linux /append x\n"
    )
    (fat / "extlinux/extlinux.conf").write_bytes(conf)
    before = files_of(fat)
    board = OnBoard(str(tmp_path), "/boot/firmware")
    onboard.take_over(board, {"script": base64.b64encode(slots.boot_script("virtual")).decode()})
    assert (fat / "extlinux/before-npu-bsp.conf").read_bytes() == conf
    assert (fat / "extlinux/told-npu-bsp.conf").read_bytes() == (
        b"LABEL a\r\n\tAPPEND root=a quiet${npu_told}\r\nlabel b\n append root=b${npu_told}\n"
        b"label c\n linux /append x\n"
    )
    onboard.give_back(board)
    assert files_of(fat) == before


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        ("empty", "vfat"),
        ("empty", "ext4"),
        ("read-only", "vfat"),
        ("read-only", "ext4"),
        ("a link", "ext4"),
        ("a link to nothing", "ext4"),
        ("a folder that is a link", "ext4"),
    ],
)
def test_whatever_booted_it_comes_back_as_it_was(tmp_path: Path, shape: str, kind: str) -> None:
    boot = tmp_path / "boot"
    boot.mkdir()
    script = boot / "boot.scr"
    if shape == "a folder that is a link":
        (boot / "menu").mkdir()
        (boot / "menu/extlinux.conf").write_text("label a\n")
        (boot / "extlinux").symlink_to("menu")
    elif shape.startswith("a link"):
        script.symlink_to("boot-board.scr")
        if shape == "a link":
            (boot / "boot-board.scr").write_bytes(OLD_SCRIPT)
    else:
        script.write_bytes(b"" if shape == "empty" else OLD_SCRIPT)
        script.chmod(0o444)
    (tmp_path / "proc").mkdir()
    mounts = "/dev/sda2 / ext4 rw 0 0\n" + (
        "/dev/sda1 /boot vfat rw 0 0\n" if kind == "vfat" else ""
    )
    (tmp_path / "proc/mounts").write_text(mounts)

    def state_of() -> dict[str, tuple[str, bytes]]:
        paths = [path for path in boot.rglob("*") if path.is_symlink() or path.is_file()]
        return {
            str(path.relative_to(boot)): (
                str(path.readlink()) if path.is_symlink() else oct(path.stat().st_mode),
                path.read_bytes() if path.exists() and path.is_file() else b"",
            )
            for path in paths
        }

    before = state_of()
    board = OnBoard(str(tmp_path), "/boot", exact=True)
    Path(board.files).mkdir(parents=True)
    onboard.take_over(board, {"script": base64.b64encode(slots.boot_script("virtual")).decode()})
    assert b"npu-bsp" in script.read_bytes()
    onboard.give_back(board)
    after = state_of()
    if kind == "vfat":  # which has no modes
        before, after = (
            {name: ("", data) for name, (_, data) in each.items()} for each in (before, after)
        )
    assert after == before


def test_names_of_what_is_kept_are_those_that_the_boot_script_knows() -> None:
    text = slots.BOOT_CMD.read_text()
    for name in (*onboard.RENAMED.values(), *onboard.TOLD.values(), onboard.OLD_SCRIPT):
        assert name.rpartition("/")[2] in text


def test_a_boot_partition_at_another_usual_place_than_the_profiles(stock: FakeBoard) -> None:
    """NXP's Yocto mounts it below /run/media: it is found there."""
    place = stock.root / "run/media/boot-mmcblk2p1"
    shutil.copytree(stock.fat, place)
    (stock.root / "proc/mounts").write_text("/dev/sda1 /run/media/boot-mmcblk2p1 vfat rw 0 0\n")
    planned = adopt(stock.target(), board=None, dry_run=True)
    assert planned.outcome == "planned", planned.problem


def test_status_says_whose_tree_is_kept(stock: FakeBoard) -> None:
    """A whole tree stays as it is, where an update brings a kernel and a tree of its own."""
    store = stock.root / "var/lib/npu-bsp"
    store.mkdir(exist_ok=True)
    (store / "kept-by").write_text("grub\n")
    (store / "kept-of").write_text(f"{RELEASE}\n")
    shown = status(stock.target())
    assert (shown["kept_by"], shown["kept_tree_of"]) == ("grub", RELEASE)
    assert "the tree is that of" not in status_text(shown)
    (store / "kept-of").write_text("6.1.0-old\n")
    words = status_text(status(stock.target()))
    assert "the tree is that of Linux 6.1.0-old: what a later kernel's has is not in it" in words
