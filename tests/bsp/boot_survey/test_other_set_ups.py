# SPDX-License-Identifier: MIT
"""How other people's boards boot, as file trees with the names that they have there."""

from __future__ import annotations

import struct
import time
import uuid
import zlib
from pathlib import Path

import pytest

from bsp.boot_survey.collect import Collector
from bsp.boot_survey.facts import facts_of
from bsp.boot_survey.keeping import how_to_keep
from bsp.boot_survey.survey import Survey
from bsp.uboot import Trial
from tests.support.foreign_board import SCRIPT, Machine


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "root")


def one_ext4(machine: Machine) -> None:
    """As Armbian's images: a table, one ext4 with /boot in it."""
    machine.disk("mmcblk1", ["ext4"])
    machine.mount("/dev/mmcblk1p1", "/", "ext4", "rw,noatime")


def fat_and_ext4(machine: Machine, place: str = "/boot") -> None:
    machine.disk("mmcblk1", ["vfat", "ext4"])
    machine.mount("/dev/mmcblk1p2", "/", "ext4")
    machine.mount("/dev/mmcblk1p1", place, "vfat")


def why(survey: Survey, way: str) -> str:
    found = next(each for each in survey.ways if each.name == way)
    assert not found.works
    return found.why


# --- what would leave a board that nothing boots


def test_a_boot_script_that_is_a_fit_is_not_replaced_by_one_of_the_older_form(
    machine: Machine,
) -> None:
    """A U-Boot that checks signatures runs FITs only: ours would end in 'wrong image format'."""
    fat_and_ext4(machine)
    machine.file("boot/boot.scr", b"\xd0\x0d\xfe\xed\0\0\x04\0" + bytes(56) + b"images\0script\0")
    survey = machine.surveyed()
    assert survey.layout.first == "/boot/boot.scr"
    assert survey.way == ""
    assert "/boot/boot.scr is a FIT" in why(survey, "fat")

    machine.file("boot/boot.scr", SCRIPT)
    assert machine.surveyed().way == "fat"


@pytest.mark.parametrize("kind", ["vfat", "ext4"])
def test_a_script_in_a_folder_of_the_boot_partition_is_not_hidden_by_ours(
    machine: Machine, kind: str
) -> None:
    """bootflow scan takes one script of a partition: after ours, which fails, the old one is not tried."""
    machine.disk("mmcblk1", [kind, "ext4"])
    machine.mount("/dev/mmcblk1p2", "/", "ext4")
    machine.mount("/dev/mmcblk1p1", "/boot", kind)
    machine.file("boot/boot/boot.scr", SCRIPT)
    survey = machine.surveyed()
    assert survey.layout.first == "/boot/boot/boot.scr"
    assert survey.way == ""
    assert "the only one that `bootflow scan` looks at" in why(survey, "fat")


def test_extlinux_conf_keeps_its_name_where_bootcmd_names_it(machine: Machine) -> None:
    """bootcmd of the environment starts extlinux.conf by name: without it nothing would boot."""
    fat_and_ext4(machine)
    machine.file("boot/extlinux/extlinux.conf", "label l0\n linux /Image\n")
    by_name = "sysboot mmc 1:1 any ${scriptaddr} /extlinux/extlinux.conf"
    machine.environment(bootcmd=by_name, boot_scripts="boot.scr.uimg boot.scr")
    survey = machine.surveyed()
    assert survey.runs_scripts == ""
    assert any(by_name in note for note in survey.notes)

    machine.environment(bootcmd="run start", start="run by_name", by_name=by_name, boot_scripts="x")
    assert machine.surveyed().runs_scripts == ""
    no_scripts = "run scan_dev_for_extlinux; "
    machine.environment(
        bootcmd="run distro_bootcmd", scan_dev_for_boot=no_scripts, boot_scripts="x"
    )
    assert machine.surveyed().runs_scripts == ""


@pytest.mark.parametrize(
    "bootcmd",
    ["run distro_bootcmd", "bootflow scan -lb", "run setup; run start", "mmc rescan; run start"],
)
def test_the_standard_boot_is_known_behind_a_command_of_the_makers(
    machine: Machine, bootcmd: str
) -> None:
    fat_and_ext4(machine)
    machine.file("boot/extlinux/extlinux.conf", "label l0\n linux /Image\n")
    machine.environment(bootcmd=bootcmd, setup="setenv x y", start="run distro_bootcmd; reset")
    survey = machine.surveyed()
    assert survey.runs_scripts
    assert not any("command of its maker's" in note for note in survey.notes)


def test_extlinux_conf_on_ext4_where_u_boot_may_have_no_sysboot(machine: Machine) -> None:
    """Nothing that is unknown of a U-Boot may be what the way back is made of."""
    asked = Trial("asked", "nobody knows it")
    machine.disk("mmcblk1", ["ext4"], loader=b"\0boot.scr.uimg\0")  # as `bootflow scan` has it, too
    machine.mount("/dev/mmcblk1p1", "/", "ext4")
    machine.file("boot/extlinux/extlinux.conf", "label l0\n linux /boot/vmlinuz\n")
    assert "whether its U-Boot has sysboot is not known" in why(
        machine.surveyed(trial=asked), "raw"
    )
    assert machine.surveyed("khadas-vim3", trial=asked).way == "raw"
    assert "has no sysboot" in why(machine.surveyed("rock5b-rk3588", trial=asked), "raw")

    machine.environment(bootcmd="bootflow scan -lb", boot_extlinux="sysboot x")
    assert machine.surveyed(trial=asked).way == ""
    machine.environment(bootcmd="run distro_bootcmd", boot_extlinux="sysboot x")
    assert machine.surveyed(trial=asked).way == "raw"
    (machine.root / "etc/fw_env.config").unlink()
    disk = machine.root / "dev/mmcblk1"
    disk.write_bytes(disk.read_bytes()[:65536] + b"\0scan_dev_for_scripts=x\0".ljust(65536, b"\0"))
    assert machine.surveyed(trial=asked).way == "raw"


def test_image_by_name_where_a_boot_script_may_take_its_place(machine: Machine) -> None:
    """`if run loadbootscript; then run bootscript; else ...`, by names that our script does not know."""
    asked = Trial("asked", "nobody knows it")
    fat_and_ext4(machine, "/run/media/boot-mmcblk1p1")
    machine.file("run/media/boot-mmcblk1p1/Image", b"")
    machine.file("run/media/boot-mmcblk1p1/board.dtb", b"")
    survey = machine.surveyed(trial=asked)
    assert survey.layout.name == "yocto"
    assert "which of its commands load Image is not known" in why(survey, "fat")
    assert machine.surveyed("imx8mp_evk").way == "fat"
    assert "load Image is not known" in why(machine.surveyed("verdin-imx8mp"), "fat")
    machine.environment(bootcmd="run bsp_bootcmd", loadimage="x", mmcboot="y")
    assert machine.surveyed(trial=asked).way == "fat"
    (machine.root / "etc/fw_env.config").unlink()
    disk = machine.root / "dev/mmcblk1"
    disk.write_bytes(disk.read_bytes()[:65536] + b"\0loadimage=x\0mmcboot=y\0".ljust(65536, b"\0"))
    assert machine.surveyed(trial=asked).way == "fat"


def test_a_boot_partition_that_says_nothing_is_no_way(machine: Machine) -> None:
    """Kernels on ext4, by commands of the maker's: a boot.scr on FAT could be the end of them."""
    fat_and_ext4(machine, "/boot/firmware")
    machine.file("boot/firmware/uEnv.txt", "fdt_file=board.dtb\n")
    machine.file("boot/Image", b"")
    survey = machine.surveyed()
    assert survey.layout.name == "unknown"
    assert "what boots this board is not known" in why(survey, "fat")


def test_core_elec_is_no_yocto(machine: Machine) -> None:
    """Amlogic's own U-Boot of 2015 runs cfgload, an Android image behind it."""
    fat_and_ext4(machine, "/flash")
    for name in ("KERNEL", "SYSTEM", "dtb.img", "cfgload", "aml_autoscript", "config.ini"):
        machine.file(f"flash/{name}")
    survey = machine.surveyed()
    assert survey.layout.name == "unknown"
    assert "/flash/cfgload is for a maker's own U-Boot" in why(survey, "fat")


def test_fat_beside_the_one_that_u_boot_looks_at(machine: Machine) -> None:
    machine.disk("mmcblk1", ["vfat", "vfat", "ext4"])
    machine.mount("/dev/mmcblk1p3", "/", "ext4")
    machine.mount("/dev/mmcblk1p1", "/config", "vfat")
    machine.mount("/dev/mmcblk1p2", "/boot", "vfat")
    machine.file("boot/boot.scr", SCRIPT)
    assert "does not look at /boot" in why(machine.surveyed(), "fat")


def test_armbians_fdtfile_without_its_makers_folder(machine: Machine) -> None:
    one_ext4(machine)
    machine.file("boot/boot.scr", SCRIPT)
    machine.file("boot/armbianEnv.txt", "fdtfile=sun55i-t527-orangepi-4a.dtb\n")
    machine.file("boot/dtb/other/board.dtb")
    assert "it is elsewhere" in machine.surveyed().problems[0]
    machine.file("boot/dtb/allwinner/sun55i-t527-orangepi-4a.dtb")
    survey = machine.surveyed()
    assert survey.problems == ()
    assert survey.way == "raw"


@pytest.mark.parametrize("name", ["orangepiEnv.txt", "dietpiEnv.txt", "BoardEnv.txt"])
def test_scripts_like_armbians(machine: Machine, name: str) -> None:
    one_ext4(machine)
    machine.file("boot/boot.scr", SCRIPT)
    settings = (
        "fdtfile=rockchip/a.dtb\noverlay_prefix=rk3588\noverlays=i2c1-m2\nuser_overlays=can\n"
    )
    machine.file(f"boot/{name}", settings)
    machine.file("boot/uEnv.txt", "fdtfile=b.dtb\n")
    survey = machine.surveyed()
    assert survey.layout.name == "script-ext4"
    assert survey.way == "raw"
    assert survey.dtb == f"rockchip/a.dtb (fdtfile of {name})"
    assert survey.overlays == ("i2c1-m2", "can")
    said = how_to_keep(survey.layout, "desk")
    assert "user_overlays=npu, if boot.cmd restores the tree" in said


RESTORES = b"""if test "${overlay_error}" = "true"; then
\techo "Error applying DT overlays, restoring original DT"
\tload ${devtype} ${devnum} ${fdt_addr_r} ${prefix}dtb/${fdtfile}
"""


@pytest.mark.parametrize(
    ("name", "keeper"), [("armbian", "armbian"), ("dietpi", "dietpi"), ("orangepi", "")]
)
@pytest.mark.parametrize(
    "script", [RESTORES, RESTORES.replace(b"if", b"#if", 1), b"booti ${kernel_addr_r}\n"]
)
def test_an_overlay_is_kept_where_one_that_fails_does_no_harm(
    machine: Machine, name: str, keeper: str, script: bytes
) -> None:
    """`fdt apply` leaves a broken tree; with that nothing boots, as the script for A733 goes on."""
    one_ext4(machine)
    machine.file(f"boot/{name}Env.txt", "user_overlays=\n")
    machine.file("boot/boot.scr", SCRIPT + script)
    assert machine.surveyed().keeper == (keeper if script == RESTORES else "")


def test_dietpi_says_which_disk_it_was(machine: Machine) -> None:
    for disk in ("mmcblk0", "mmcblk1"):
        machine.disk(disk, ["ext4"], marked=(1,))
    machine.mount("/dev/mmcblk1p1", "/", "ext4")
    machine.file("boot/boot.scr", SCRIPT)
    said = "which one U-Boot started from is not known"
    assert said in machine.surveyed().problems[0]
    name = "00000000-0000-0000-0000-00000000abcd"
    machine.file("proc/cmdline", f"root=UUID=1 rootwait partuuid={name}\n")
    named = machine.root / "dev/mmcblk1"
    head = bytearray(named.read_bytes())
    head[1024 + 16 : 1024 + 32] = uuid.UUID(name).bytes_le
    named.write_bytes(head)
    assert machine.surveyed().problems == ()
    # A card that was copied to the eMMC, its identifiers with it.
    (machine.root / "dev/mmcblk0").write_bytes(head)
    assert machine.surveyed().problems[0].startswith("mmcblk0p1 has the identifier of mmcblk1p1")
    for disk in ("mmcblk0", "mmcblk1"):  # also where neither is marked
        head[1024 + 48] = 0
        (machine.root / "dev" / disk).write_bytes(head)
    assert machine.surveyed().problems[0].startswith("mmcblk0p1 has the identifier of mmcblk1p1")


# --- what starts the board is no U-Boot, or an old one


def test_barebox_runs_no_boot_script(machine: Machine) -> None:
    fat_and_ext4(machine)
    machine.file("boot/loader/entries/linux.conf", "linux /Image\ndevicetree /board.dtb\n")
    machine.file("proc/device-tree/chosen/barebox-version", b"2025.09.0\0")
    survey = machine.surveyed()
    assert survey.uboot == "barebox 2025.09.0"
    assert "barebox" in why(survey, "fat")
    assert "barebox" in why(survey, "raw")


@pytest.mark.parametrize(("firmware", "runs"), [("EDK II", False), ("U-Boot", True), ("", True)])
def test_efi_firmware_that_is_no_u_boot(machine: Machine, firmware: str, runs: bool) -> None:
    machine.disk("nvme0n1", ["vfat", "ext4"], esp=1)
    machine.mount("/dev/nvme0n1p2", "/", "ext4")
    machine.mount("/dev/nvme0n1p1", "/boot/efi", "vfat")
    machine.file("boot/efi/EFI/BOOT/BOOTAA64.EFI", b"MZ")
    machine.file("boot/grub/grub.cfg", "menuentry x {\n linux /vmlinuz\n}\n")
    (machine.root / "sys/firmware/efi").mkdir(parents=True)
    machine.file("sys/class/dmi/id/bios_vendor", f"{firmware}\n")
    survey = machine.surveyed()
    assert survey.layout.name == "grub-efi"
    assert (survey.way == "fat") is runs
    if not runs:
        assert "EDK II" in why(survey, "fat")
        # A board whose U-Boot has its maker's name there.
        machine.file("proc/device-tree/chosen/u-boot,version", b"2025.01\0")
        assert machine.surveyed().way == "fat"


@pytest.mark.parametrize(
    ("flags", "newest"),
    [((3, 4), "b"), ((4, 3), "a"), ((255, 0), "b"), ((0, 255), "a"), ((1, 0), "a")],
)
def test_of_two_copies_of_u_boots_variables_the_newest_counts(
    machine: Machine, flags: tuple[int, int], newest: str
) -> None:
    for name, flag in zip("ab", flags, strict=True):
        data = f"bootcmd={name}\0\0".encode().ljust(4091, b"\xff")
        machine.file(f"dev/env-{name}", struct.pack("<IB", zlib.crc32(data), flag) + data)
    machine.file("etc/fw_env.config", "/dev/env-a 0 0x1000\n/dev/env-b 0 0x1000\n")
    facts = facts_of(Collector(str(machine.root)).facts())
    assert facts.variables == {"bootcmd": newest}


def test_a_chromebook(machine: Machine) -> None:
    fat_and_ext4(machine)
    machine.file("boot/extlinux/extlinux.conf", "label l0\n linux /Image\n")
    machine.file("proc/cmdline", "cros_secure root=PARTUUID=1/PARTNROFF=1\n")
    assert "depthcharge" in why(machine.surveyed(), "fat")


def test_u_boots_that_write_to_fat_in_the_root_folder_only(machine: Machine) -> None:
    """Rockchip's own, on Orange Pi's and Radxa's images: trial.env, in a folder, would stay armed."""
    loader = b"\0U-Boot SPL 2017.09-g1 (May 2023)\0\0U-Boot 2017.09-orangepi (May 2023)\0"
    machine.disk("mmcblk1", ["vfat", "ext4"], loader=loader)
    machine.mount("/dev/mmcblk1p2", "/", "ext4")
    machine.mount("/dev/mmcblk1p1", "/boot", "vfat")
    machine.file("boot/boot.scr", SCRIPT)
    machine.file("boot/orangepiEnv.txt", "fdtfile=rockchip/rk3588s-orangepi-5.dtb\n")
    survey = machine.surveyed()
    assert survey.layout.name == "script-fat"
    assert why(survey, "fat").startswith("U-Boot 2017.09 writes to FAT in the root folder only")
    assert survey.uboot == "2017.09, by its text on the disk"
    # Two of them there: which one started is not known.
    both = loader + b"U-Boot 2024.07-armbian\0"
    disk = machine.root / "dev/mmcblk1"
    disk.write_bytes(disk.read_bytes()[: 1 << 16] + both.ljust(1 << 16, b"\0"))
    assert machine.surveyed().way == "fat"
    disk.write_bytes(disk.read_bytes()[: 1 << 16] + loader.ljust(1 << 16, b"\0"))
    # What U-Boot says of itself counts.
    machine.file("proc/device-tree/chosen/u-boot,version", b"2025.01\0")
    assert machine.surveyed().way == "fat"


@pytest.mark.parametrize(("versions", "works"), [("2017.09-g1", False), ("2026.01-armbian", True)])
def test_rockchips_own_u_boot_cannot_see_a_trial(
    machine: Machine, versions: str, works: bool
) -> None:
    """Armbian's vendor branch, one ext4: the script would find no itest, and take no trial."""
    machine.file("proc/device-tree/compatible", b"radxa,rock-5b\0rockchip,rk3588\0")
    machine.disk("mmcblk1", ["ext4"], loader=f"\0U-Boot {versions} (x)\0".encode())
    machine.mount("/dev/mmcblk1p1", "/", "ext4")
    machine.file("boot/boot.scr", SCRIPT)
    survey = machine.surveyed("rock5b-rk3588")
    assert (survey.way == "raw") is works
    if not works:
        assert "Rockchip's own U-Boot, 2017.09, is built without itest" in why(survey, "raw")


# --- which partition U-Boot looks at


def test_an_efi_partition_counts_as_marked(machine: Machine) -> None:
    """Cloud images: the root is p1, the EFI partition p15; U-Boot looks at that one only."""
    machine.disk("mmcblk1", ["ext4", "vfat"], esp=2)
    machine.mount("/dev/mmcblk1p1", "/", "ext4")
    machine.mount("/dev/mmcblk1p2", "/boot/efi", "vfat")
    machine.file("boot/efi/EFI/BOOT/BOOTAA64.EFI", b"MZ")
    machine.file("boot/extlinux/extlinux.conf", "label l0\n linux /boot/vmlinuz\n")
    survey = machine.surveyed()
    assert survey.layout.first == "/boot/efi/EFI/BOOT/BOOTAA64.EFI"
    assert survey.way == "fat"


def test_an_efi_partition_in_a_dos_table_counts_as_marked(machine: Machine) -> None:
    machine.disk("mmcblk1", ["ext4", "vfat"])
    head = bytearray((machine.root / "dev/mmcblk1").read_bytes())
    head[512:520] = bytes(8)
    head[446 + 16 + 4] = 0xEF
    (machine.root / "dev/mmcblk1").write_bytes(head)
    facts = facts_of(Collector(str(machine.root)).facts())
    assert [each.bootable for each in facts.partitions] == [False, True]


def test_ext4_that_u_boot_does_not_look_at(machine: Machine) -> None:
    """A second partition that is not marked: something else than the standard boot reads its boot.scr."""
    machine.disk("mmcblk1", ["ext4", "ext4"])
    machine.mount("/dev/mmcblk1p2", "/", "ext4")
    machine.mount("/dev/mmcblk1p1", "/data", "ext4")
    machine.file("boot/boot.scr", SCRIPT)
    assert "does not look at mmcblk1p2" in why(machine.surveyed(), "raw")


@pytest.mark.parametrize(
    ("release", "works"),
    [
        ("5.10.160-legacy-rk35xx", False),
        ("5.13.19", False),
        ("5.14.0", True),
        ("6.1.75-vendor", True),
    ],
)
def test_kernels_that_cannot_write_ext4s_journal_back(
    machine: Machine, release: str, works: bool
) -> None:
    one_ext4(machine)
    machine.file("boot/boot.scr", SCRIPT)
    machine.file("proc/sys/kernel/osrelease", f"{release}\n")
    survey = machine.surveyed()
    assert (survey.way == "raw") is works
    if not works:
        assert "cannot have ext4 write its journal back" in why(survey, "raw")


def test_ext4_below_boot_is_not_boot(machine: Machine) -> None:
    machine.disk("mmcblk1", ["ext4", "ext4"])
    machine.mount("/dev/mmcblk1p2", "/", "ext4")
    machine.mount("/dev/mmcblk1p1", "/boot/firmware", "ext4")
    machine.file("boot/firmware/boot.scr", SCRIPT)
    survey = machine.surveyed()
    assert survey.layout.first == "/boot/firmware/boot.scr"
    assert "/boot is on another file system" in why(survey, "raw")


def test_a_table_that_could_not_be_read_speaks_against_nothing(machine: Machine) -> None:
    """doctor asks as an ordinary user may: the disks are not to be read then."""
    machine.disk("mmcblk1", ["vfat", "ext4"], marked=(2,))
    machine.mount("/dev/mmcblk1p2", "/", "ext4")
    machine.file("boot/boot.scr", SCRIPT)
    for device in ("mmcblk1", "mmcblk1p1", "mmcblk1p2"):
        (machine.root / "dev" / device).write_bytes(b"")
    survey = machine.surveyed()
    assert survey.layout.first == "/boot/boot.scr"
    assert survey.way == "raw"


def test_a_partition_that_comes_first_and_is_not_mounted(machine: Machine) -> None:
    """Its boot.scr, which nobody sees, is what boots the board."""
    machine.disk("mmcblk1", ["vfat", "ext4"], marked=(1, 2))
    machine.mount("/dev/mmcblk1p2", "/", "ext4")
    machine.file("boot/boot.scr", SCRIPT)
    survey = machine.surveyed()
    assert survey.way == ""
    assert "U-Boot looks at mmcblk1p1 (vfat) before /boot/boot.scr" in survey.problems[0]


def test_a_boot_script_in_the_root_folder_comes_before_the_one_in_boot(machine: Machine) -> None:
    one_ext4(machine)
    machine.file("boot.scr", SCRIPT)
    machine.file("boot/boot.scr", SCRIPT)
    survey = machine.surveyed()
    assert survey.layout.first == "/boot.scr"
    assert "not below /boot" in why(survey, "raw")


def test_fat_does_not_tell_upper_from_lower_case(machine: Machine) -> None:
    fat_and_ext4(machine)
    machine.file("boot/BOOT.SCR", SCRIPT)
    assert machine.surveyed().layout.first == "/boot/BOOT.SCR"


# --- a system that a generation does not fit into


def test_a_root_in_memory(machine: Machine) -> None:
    """Armbian's and Debian's overlayroot: what is written is gone after the next boot."""
    machine.disk("mmcblk1", ["vfat", "ext4"])
    machine.mount(
        "overlayroot", "/", "overlay", "rw,lowerdir=/media/root-ro,upperdir=/media/root-rw/overlay"
    )
    machine.mount("tmpfs-root", "/media/root-rw", "tmpfs")
    machine.mount("/dev/mmcblk1p2", "/media/root-ro", "ext4", "ro")
    machine.mount("/dev/mmcblk1p1", "/boot", "vfat")
    machine.file("boot/boot.scr", SCRIPT)
    survey = machine.surveyed()
    assert survey.way == ""
    assert "/var/lib is in memory (tmpfs)" in survey.problems[0]


def test_an_overlay_on_a_disk_stays(machine: Machine) -> None:
    fat_and_ext4(machine)
    machine.lines = machine.lines[1:]
    machine.mount("overlayfs:/overlay", "/", "overlay", "rw,lowerdir=/,upperdir=/overlay/upper")
    machine.mount("/dev/mmcblk1p2", "/overlay", "ext4")
    machine.file("boot/boot.scr", SCRIPT)
    assert machine.surveyed().problems == ()
    machine.lines.pop()
    machine.mount("/dev/mmcblk1p2", "/somewhere", "ext4")
    assert "upper layer (/overlay/upper) is not mounted" in machine.surveyed().problems[0]


def test_a_root_that_cannot_be_written_to(machine: Machine) -> None:
    """LibreELEC, with /flash mounted for writing."""
    machine.disk("mmcblk0", ["vfat", "ext4"], marked=(1,))
    machine.mount("/dev/loop0", "/", "squashfs", "ro")
    machine.mount("/dev/mmcblk0p1", "/flash", "vfat")
    machine.mount("tmpfs", "/var", "tmpfs")
    machine.mount("/dev/mmcblk0p2", "/storage", "ext4")
    machine.file("flash/extlinux/extlinux.conf", "LABEL LibreELEC\n  LINUX /KERNEL\n")
    problems = machine.surveyed().problems
    assert "/var/lib is in memory (tmpfs)" in problems[0]
    assert "/etc/systemd/system is read-only (squashfs)" in problems[1]


def test_a_system_without_systemd(machine: Machine) -> None:
    """postmarketOS, Alpine, Batocera: nothing would watch the trial."""
    fat_and_ext4(machine)
    machine.file("boot/extlinux/extlinux.conf", "label l0\n linux /vmlinuz\n")
    (machine.root / "run/systemd/system").rmdir()
    machine.file("proc/1/comm", "init\n")
    machine.file("sys/kernel/kexec_loaded", "0\n")
    survey = machine.surveyed()
    assert survey.way == ""
    assert survey.problems[0].startswith("systemd does not run this system")
    assert "systemd" in why(survey, "kexec")


# --- systems that choose what boots themselves


@pytest.mark.parametrize(
    ("system", "path", "content"),
    [
        ("balenaOS", "etc/os-release", 'ID="balena-os"\n'),
        ("Ubuntu Core", "proc/cmdline", "console=ttyS2 snapd_recovery_mode=run\n"),
        ("NixOS", "etc/os-release", "ID=nixos\n"),
        ("Home Assistant OS", "etc/os-release", "ID=hassio-os\n"),
        ("RAUC", "usr/lib/rauc/system.conf", "[system]\ncompatible=x\n"),
    ],
)
def test_who_decides_what_boots(machine: Machine, system: str, path: str, content: str) -> None:
    fat_and_ext4(machine)
    machine.file("boot/boot.scr", SCRIPT)
    machine.file(path, content)
    survey = machine.surveyed()
    assert survey.owner is not None
    assert survey.owner.system == system
    assert survey.way == ""


@pytest.mark.parametrize(
    ("system", "name"), [("SWUpdate", "ustate"), ("RAUC", "BOOT_system0_LEFT")]
)
def test_who_counts_attempts_in_u_boots_variables(machine: Machine, system: str, name: str) -> None:
    fat_and_ext4(machine)
    machine.environment(bootcmd="run distro_bootcmd", **{name: "1"})
    owner = machine.surveyed().owner
    assert owner is not None
    assert owner.system == system


# --- entries below loader/entries


def by_systemd_boot(machine: Machine) -> None:
    machine.disk("mmcblk1", ["vfat", "ext4"], esp=1)
    machine.mount("/dev/mmcblk1p2", "/", "ext4")
    machine.mount("/dev/mmcblk1p1", "/boot", "vfat")
    machine.file("boot/EFI/BOOT/BOOTAA64.EFI", b"MZ")
    machine.file("boot/loader/loader.conf", "default *+deb13*\n")
    machine.file("proc/sys/kernel/osrelease", "6.12.48+deb13-arm64\n")


def test_of_several_entries_the_running_kernels_counts(machine: Machine) -> None:
    by_systemd_boot(machine)
    for number, tries in (("6.12.48", ""), ("6.12.41", "+3-1")):
        machine.file(
            f"boot/loader/entries/debian-{number}+deb13-arm64{tries}.conf",
            f"title Debian\nversion {number}+deb13-arm64\nlinux /debian/{number}+deb13-arm64/linux\n"
            f"devicetree /debian/{number}/board.dtb\n"
            f"devicetree-overlay /debian/{number}/can.dtbo /debian/{number}/i2c.dtbo\n",
        )
    survey = machine.surveyed()
    assert survey.layout.name == "systemd-boot"
    assert survey.dtb == "/debian/6.12.48/board.dtb (devicetree of its entry)"
    assert survey.overlays == ("/debian/6.12.48/can.dtbo", "/debian/6.12.48/i2c.dtbo")
    said = how_to_keep(survey.layout, "desk", overlays=survey.overlays)
    assert "without /debian/6.12.48/can.dtbo /debian/6.12.48/i2c.dtbo" in said
    # Another kernel runs than any entry has.
    machine.file("proc/sys/kernel/osrelease", "6.12.48\n")
    survey = machine.surveyed()
    assert survey.dtb.startswith("as the entry says that was booted")
    assert survey.overlays == ()


def test_fedoras_grub_reads_entries(machine: Machine) -> None:
    machine.disk("mmcblk1", ["vfat", "ext4", "btrfs"], esp=1)
    machine.mount("/dev/mmcblk1p3", "/", "btrfs")
    machine.mount("/dev/mmcblk1p2", "/boot", "ext4")
    machine.mount("/dev/mmcblk1p1", "/boot/efi", "vfat")
    machine.file("boot/efi/EFI/BOOT/BOOTAA64.EFI", b"MZ")
    machine.file("boot/grub2/grub.cfg", "blscfg\nif true; then\n source custom.cfg\nfi\n")
    machine.file("boot/loader/loader.conf", "")
    entry = "boot/loader/entries/0123-6.12.10.conf"
    machine.file(entry, "linux /vmlinuz-6.12.10\ndevicetree /dtb/board.dtb\n")
    survey = machine.surveyed()
    assert survey.layout.name == "grub-efi"
    assert survey.dtb == "/dtb/board.dtb (devicetree of its entry)"
    machine.file(entry, "linux /vmlinuz-6.12.10\n")
    machine.file("boot/grub2/custom.cfg", "devicetree /mine.dtb\n")
    assert machine.surveyed().dtb == "/mine.dtb (devicetree of its menu)"


@pytest.mark.parametrize("word", ["", "rauc.slot=A"])
def test_nothing_is_kept_where_somebody_else_decides(machine: Machine, word: str) -> None:
    """Both copies of the system read overlays.txt, each with a tree of its own."""
    fat_and_ext4(machine)
    machine.file("boot/boot.scr", SCRIPT)
    machine.file("boot/overlays.txt", "fdt_overlays=\n")
    machine.file("boot/Image.gz", b"")
    machine.file("proc/cmdline", f"root=/dev/mmcblk1p2 {word}\n")
    assert machine.surveyed().keeper == ("" if word else "toradex")


def test_toradex_with_a_fit_image_takes_no_overlay_of_ours(machine: Machine) -> None:
    """`bootm ADDRESS#conf-TREE#conf-OVERLAY`: a configuration that is not in it, and nothing boots."""
    fat_and_ext4(machine)
    machine.file("boot/boot.scr", SCRIPT)
    machine.file("boot/overlays.txt", "fdt_overlays=\n")
    machine.file("boot/fitImage", b"\xd0\x0d\xfe\xed")
    assert machine.surveyed().layout.name == "toradex"
    assert machine.surveyed().keeper == ""
    machine.file("boot/Image.gz", b"")  # of an earlier release
    assert machine.surveyed().keeper == ""


def test_a_text_without_blanks_is_read_in_no_time(machine: Machine) -> None:
    """64 kB in one word took seconds: each letter was tried as the beginning of a name."""
    fat_and_ext4(machine)
    machine.file("boot/config.txt", "a" * 65536)
    began = time.process_time()
    machine.surveyed()
    assert time.process_time() - began < 1


# --- extlinux.conf


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        # NixOS' generic-extlinux-compatible, Debian's names with blanks, a default inside of a label.
        ("DEFAULT nixos\nLABEL nixos\n FDT ../a.dtb\nLABEL nixos-41\n FDT ../b\n", "../a.dtb"),
        ("default Debian 13\nlabel Debian 12\n fdt /a.dtb\nlabel Debian 13\n fdt /b.dtb\n", "/b.dtb"),
        ("label a\n fdt /a.dtb\nlabel b\n menu default\n fdt /b.dtb\n", "/b.dtb"),
        ("default a\nlabel a\n fdt /a.dtb\nlabel b\n fdt /b.dtb\nontimeout b\n", "/b.dtb"),
        ("default a\r\nlabel b\r\n fdt /b.dtb\r\nlabel a\r\n fdt /a.dtb\r\n", "/a.dtb"),
    ],
)  # fmt: skip
def test_the_label_that_boots(machine: Machine, text: str, tree: str) -> None:
    fat_and_ext4(machine)
    machine.file("boot/extlinux/extlinux.conf", text)
    assert machine.surveyed().dtb == f"{tree} (fdt of extlinux.conf)"
