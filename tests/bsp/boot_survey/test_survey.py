# SPDX-License-Identifier: MIT
"""How boards boot, from facts as such boards have them; and the collector, on folders made here."""

from __future__ import annotations

import gzip
import json
import struct
import subprocess
import sys
import tomllib
import uuid
import zlib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bsp.boot_survey import collect
from bsp.boot_survey.facts import BootFacts, Kexec, Watchdog, facts_of
from bsp.boot_survey.keeping import how_to_keep
from bsp.boot_survey.owners import slot_words
from bsp.boot_survey.survey import Survey, survey_of
from bsp.uboot import Trial, uboot_named

CAPTURED = Path(__file__).parent / "captured"


def board(name: str, **changes: Any) -> BootFacts:
    facts = facts_of(tomllib.loads((CAPTURED / f"{name}.toml").read_text())["facts"])
    return msgspec.structs.replace(facts, **changes)


def surveyed(name: str, **changes: Any) -> Survey:
    return survey_of(board(name, **changes), None)


@pytest.mark.parametrize("path", sorted(CAPTURED.glob("*.toml")), ids=lambda path: path.stem)
def test_each_layout_is_known(path: Path) -> None:
    given = tomllib.loads(path.read_text())
    expected = given["expected"]
    survey = survey_of(facts_of(given["facts"]), None)
    document = json.loads(json.dumps(survey.document()))
    if "note" in expected:
        assert expected.pop("note") in document["notes"]
    system = document["ab_system"]
    assert (system["system"] if system else None) == expected.pop("ab_system", None)
    assert expected.pop("why", "") in document["why"]
    assert {name: document[name] for name in expected} == expected
    assert document["problems"] == [] or not document["way"]
    # Where nothing is taken, each way says why it is not.
    assert all(each["why"] for each in document["ways"])
    text = survey.text()
    assert document["layout"] in text
    assert f"{document['way'] or 'none'}: " in text


def moved(name: str, mount: int, **changes: Any) -> Any:
    mounts = list(board(name).mounts)
    mounts[mount] = msgspec.structs.replace(mounts[mount], **changes)
    return tuple(mounts)


def marked(name: str, partition: int, **changes: Any) -> Any:
    partitions = list(board(name).partitions)
    partitions[partition] = msgspec.structs.replace(partitions[partition], **changes)
    return tuple(partitions)


def test_what_speaks_against_changing_anything_is_said() -> None:
    found = surveyed("fenix", mounts=moved("fenix", 1, options="ro", writable=False))
    assert found.way == ""
    assert "/boot (mmcblk2p1) is mounted read-only" in found.problems[0]

    twice = board("fenix").mounts[1]
    both = (*board("fenix").mounts, msgspec.structs.replace(twice, place="/mnt"))
    assert "mounted at /boot and /mnt" in surveyed("fenix", mounts=both).problems[0]

    other = (*marked("fenix", 0, disk="mmcblk0"),)
    assert (
        "which of them U-Boot started from is not known" in surveyed("fenix", partitions=other).why
    )

    full = surveyed("fenix", space={"/boot": 0})
    assert full.problems == ("/boot (mmcblk2p1) is full",)

    second = msgspec.structs.replace(
        board("toradex").partitions[0], name="mmcblk1p1", disk="mmcblk1"
    )
    two = (*board("toradex").partitions, second)
    assert "the disks mmcblk1 and mmcblk2 both have" in surveyed("toradex", partitions=two).why
    # The bootloader's own word settles it.
    named = (*marked("toradex", 0, partuuid="12ab-01"), second)
    cmdline = "root=/dev/mmcblk2p2 ubootpart=12ab-01"
    assert surveyed("toradex", partitions=named, cmdline=cmdline).way == "fat"

    elsewhere = surveyed("armbian-vim3", there=())
    assert "fdtfile=amlogic/meson-g12b-a311d-khadas-vim3.dtb" in elsewhere.problems[0]


@pytest.mark.parametrize("kind", ["btrfs", "f2fs", "xfs"])
def test_file_systems_whose_blocks_move(kind: str) -> None:
    found = surveyed("armbian-rk3588", mounts=moved("armbian-rk3588", 0, kind=kind))
    assert found.way == ""
    assert kind in found.why


@pytest.mark.parametrize("stack", ["LVM", "RAID", "CRYPT"])
def test_stacked_devices(stack: str) -> None:
    stacked = marked("armbian-rk3588", 0, disk="", number=0, on=("sda1",), stack=stack)
    found = surveyed("armbian-rk3588", partitions=stacked)
    assert found.way == ""
    assert f"is on {stack}" in found.why
    journal = moved("armbian-rk3588", 0, options="rw,data=journal")
    assert "data=journal" in surveyed("armbian-rk3588", mounts=journal).ways[1].why


def test_what_uboot_does_not_look_at_is_no_way() -> None:
    """FAT on the second partition, the first one marked: a script there would never run."""
    partitions = (
        *marked("armbian-rk3588", 0, bootable=True),
        msgspec.structs.replace(
            board("fenix").partitions[0], name="nvme0n1p2", disk="nvme0n1", number=2
        ),
    )
    mounts = (
        *board("armbian-rk3588").mounts,
        msgspec.structs.replace(board("fenix").mounts[1], device="nvme0n1p2"),
    )
    folders = {"/boot": (), "/boot/extlinux": ("extlinux.conf",)}
    found = surveyed("armbian-rk3588", partitions=partitions, mounts=mounts, folders=folders)
    assert not found.ways[0].works
    assert "U-Boot does not look at /boot" in found.ways[0].why


@pytest.mark.parametrize(
    ("name", "lacks", "barred"),
    [
        ("armbian-rk3588", "cmp", {"raw"}),
        ("armbian-rk3588", "mmc-write", {"raw"}),
        ("armbian-rk3588", "fatwrite", {"fat"}),
        ("toradex", "fatwrite", {"fat"}),
        ("toradex", "itest,cmp", {"fat", "raw"}),
    ],
)
def test_what_u_boot_lacked_at_the_last_boot_bars_ways(
    name: str, lacks: str, barred: set[str]
) -> None:
    before = surveyed(name)
    found = surveyed(name, cmdline=f"{before.cmdline} npu_bsp.lacks={lacks}")
    said = "so npu-bsp's boot script found at the last boot"
    assert {each.name for each in found.ways if said in each.why} == barred
    works = {each.name for each in before.ways if each.works} - barred
    assert {each.name for each in found.ways if each.works} == works


def test_room_is_that_of_what_is_unpacked() -> None:
    found = survey_of(board("toradex"), None, need_bytes=70_000_000)
    assert not found.ways[0].works
    assert "has room for 30 MB, this takes 70 MB" in found.ways[0].why


def test_whether_uboot_runs_scripts() -> None:
    evk = Trial("fat", "upstream's configuration")
    unknown = Trial("asked", "the maker's own")
    assert survey_of(board("fenix"), None, trial=evk).runs_scripts == "upstream's configuration"
    assert survey_of(board("fenix"), None, trial=unknown).runs_scripts == ""
    assert surveyed("armbian-vim3").runs_scripts == "it runs /boot/boot.scr today"
    assert "boot_scripts" in surveyed("fenix", variables={"boot_scripts": "boot.scr"}).runs_scripts
    assert "boot.scr.uimg" in surveyed("fenix", bootloader_words=("boot.scr.uimg",)).runs_scripts


def test_uboots_that_run_no_scripts() -> None:
    phycore = uboot_named("phycore-imx8mp")
    assert phycore is not None
    found = survey_of(board("fenix"), phycore)
    assert found.way == ""
    assert "runs no script images" in found.why


@pytest.mark.parametrize(
    ("kexec", "said"),
    [
        (Kexec(load=False), "has no kexec"),
        (Kexec(load=True, disabled=True), "switched off until the next boot"),
        (Kexec(load=True, lockdown="integrity"), "locked down (integrity)"),
        (Kexec(load=True, lockdown="none", wide_addresses=True), "52-bit addresses"),
        (Kexec(load=True, lockdown="none"), "cannot be seen"),
    ],
)
def test_kexec_is_refused_with_its_reason(kexec: Kexec, said: str) -> None:
    facts = board("armbian-vim3", kexec=kexec, cores=("0xd4f",))
    assert said in survey_of(facts, None).kexec


def test_kexec_is_the_way_where_the_disk_has_to_be_left_alone() -> None:
    found = surveyed("armbian-vim3", mounts=moved("armbian-vim3", 0, kind="btrfs"))
    assert found.way == "kexec"
    assert "btrfs" in found.why
    assert surveyed("armbian-vim3", programs=()).ways[2].why.endswith("(package kexec-tools)")


def test_notes() -> None:
    text = "default other\r\ninclude more.conf\r\nlabel l0\r\n"
    found = surveyed("fenix", files={"/boot/extlinux/extlinux.conf": text})
    assert len(found.notes) == 3
    running = (
        Watchdog(name="watchdog0", identity="Meson GXBB Watchdog", state="active", timeout="60"),
    )
    assert "runs already (60 s)" in surveyed("fenix", watchdogs=running).notes[0]
    own = surveyed("fenix", variables={"bootcmd": "run my_boot"})
    assert "run my_boot" in own.notes[0]


def test_words_of_one_slot() -> None:
    cmdline = "root=PARTUUID=1 rauc.slot=A quiet ostree=/ostree/boot.0/x mender.slot=2"
    assert slot_words(cmdline) == ["rauc.slot=A", "ostree=/ostree/boot.0/x", "mender.slot=2"]


def make_disk(root: Path) -> None:
    """A disk with an MBR: FAT first and marked, then ext4; sysfs as Linux has it."""
    head = bytearray(1 << 17)
    head[446] = 0x80
    head[4096:4110] = b"boot.scr.uimg\0"
    head[510:512] = b"\x55\xaa"
    fat, ext4 = bytearray(1 << 17), bytearray(1 << 17)
    fat[82:90] = b"FAT32   "
    ext4[1080:1082] = b"\x53\xef"
    (root / "dev").mkdir()
    disk = root / "sys/devices/mmc0/block/mmcblk1"
    (root / "sys/class/block").mkdir(parents=True)
    for name, content, number in (
        ("mmcblk1", head, 0),
        ("mmcblk1p1", fat, 1),
        ("mmcblk1p2", ext4, 2),
    ):
        (root / "dev" / name).write_bytes(content)
        folder = disk / name if number else disk
        folder.mkdir(parents=True)
        (folder / "start").write_text(f"{number * 8192}\n")
        (folder / "size").write_text("8192\n")
        if number:
            (folder / "partition").write_text(f"{number}\n")
        (root / "sys/class/block" / name).symlink_to(folder)


def test_the_collector_reads_a_board(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name in (
        "proc/device-tree/chosen",
        "proc/sys/kernel",
        "boot/extlinux",
        "etc",
        "sys/class/watchdog/watchdog0",
    ):
        (root / name).mkdir(parents=True)
    make_disk(root)
    (root / "proc/self").mkdir()
    (root / "proc/self/mounts").write_text(
        "/dev/mmcblk1p2 / ext4 rw,noatime 0 0\nproc /proc proc rw 0 0\n/dev/mmcblk1p1 /boot vfat ro 0 0\n"
    )
    (root / "proc/device-tree/compatible").write_bytes(b"a,board\0a,soc\0")
    (root / "proc/device-tree/chosen/linux,initrd-start").write_bytes(struct.pack(">Q", 1000))
    (root / "proc/device-tree/chosen/linux,initrd-end").write_bytes(struct.pack(">Q", 6000))
    (root / "boot/extlinux/extlinux.conf").write_text("label x\n linux /Image\n fdt /board.dtb\n")
    (root / "boot/board.dtb").write_bytes(b"tree")
    (root / "sys/class/watchdog/watchdog0/state").write_text("active\n")
    (root / "proc/cpuinfo").write_text("CPU part\t: 0xd03\nCPU part\t: 0xd09\n")
    variables = b"bootcmd=run distro_bootcmd\0fdtfile=x.dtb\0\0".ljust(4092, b"\xff")
    (root / "dev/env").write_bytes(
        bytes(512) + struct.pack("<I", zlib.crc32(variables)) + variables
    )
    (root / "etc/fw_env.config").write_text("# where\n/dev/env 0x200 0x1000\n")
    header = struct.pack(
        "<16sHHIQQQIHHH", b"\x7fELF\x02\x01\x01", 4, 183, 1, 0, 64, 0, 0, 64, 56, 1
    )
    segment = struct.pack("<IIQQQQQQ", 1, 7, 4096, 0xFFFF << 48, 0, 0, 0, 0)
    (root / "proc/kcore").write_bytes(header.ljust(64, b"\0") + segment)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}

    said = subprocess.run(
        [sys.executable, "-I", "-S", collect.__file__, str(root)], capture_output=True, check=True
    )
    facts = facts_of(json.loads(said.stdout))
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    assert facts.compatible == ("a,board", "a,soc")
    assert [(each.device, each.place, each.writable) for each in facts.mounts] == [
        ("mmcblk1p2", "/", True),
        ("mmcblk1p1", "/boot", False),
    ]
    first, second = facts.partitions
    assert (first.kind, first.bootable, first.number, first.disk) == ("vfat", True, 1, "mmcblk1")
    assert (second.kind, second.bootable, second.start_bytes) == ("ext4", False, 2 * 8192 * 512)
    assert facts.chosen.initrd_bytes == 5000
    assert facts.bootloader_words == ("boot.scr.uimg",)
    assert facts.variables == {"bootcmd": "run distro_bootcmd", "fdtfile": "x.dtb"}
    assert facts.there == ("/boot/board.dtb",)
    assert facts.kexec.wide_addresses is False
    assert facts.watchdogs[0].state == "active"
    survey = survey_of(facts, None)
    assert survey.layout.name == "extlinux-fat"
    assert "read-only" in survey.problems[0]


@pytest.mark.parametrize(("start", "wide"), [(0xFFF0 << 48, True), (0xFFFF << 48, False)])
def test_52_bit_addresses_are_seen(tmp_path: Path, start: int, wide: bool) -> None:
    (tmp_path / "proc").mkdir()
    header = struct.pack(
        "<16sHHIQQQIHHH", b"\x7fELF\x02\x01\x01", 4, 183, 1, 0, 64, 0, 0, 64, 56, 1
    )
    segment = struct.pack("<IIQQQQQQ", 1, 7, 4096, start, 0, 0, 0, 0)
    (tmp_path / "proc/kcore").write_bytes(header.ljust(64, b"\0") + segment)
    assert collect.Collector(str(tmp_path)).facts()["kexec"]["wide_addresses"] is wide


@pytest.mark.parametrize(("bits", "wide"), [(39, False), (48, False), (52, None)])
def test_a_kernel_without_kcore_has_no_wide_addresses_where_it_is_built_for_fewer(
    bits: int, wide: bool | None, tmp_path: Path
) -> None:
    """As NXP's: no /proc/kcore, but its configuration in /proc/config.gz."""
    (tmp_path / "proc").mkdir()
    text = f"CONFIG_KEXEC=y\nCONFIG_ARM64_VA_BITS_{bits}=y\nCONFIG_ARM64_VA_BITS={bits}\n"
    (tmp_path / "proc/config.gz").write_bytes(gzip.compress(text.encode()))
    kexec = collect.Collector(str(tmp_path)).facts()["kexec"]
    assert (kexec["load"], kexec["wide_addresses"]) == (True, wide)


def test_a_torn_environment_and_a_gpt(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "env").write_bytes(b"\0" * 4096)
    (tmp_path / "etc/fw_env.config").write_text("/env 0 0x1000\nbroken line here\n")
    assert collect.Collector(str(tmp_path)).facts()["variables"] is None
    head = bytearray(34 * 512)
    head[512:520] = b"EFI PART"
    struct.pack_into("<II", head, 512 + 80, 128, 128)
    head[1024 + 128 : 1024 + 144] = b"\x11" * 16
    head[1024 + 128 + 48] = 4
    head[1024 + 144 : 1024 + 160] = uuid.UUID("0e6bb2b1-02ff-4a1b-8c00-112233445566").bytes_le
    assert collect._table(bytes(head)) == {
        "table": "gpt",
        "bootable": [2],
        "uuids": {2: "0e6bb2b1-02ff-4a1b-8c00-112233445566"},
    }


def test_how_a_tree_is_kept_is_the_distributions_way() -> None:
    named = {
        "armbian-vim3": "user_overlays=npu in /boot/armbianEnv.txt",
        "debian-u-boot-menu": "u-boot-update",
        "debian-flash-kernel": "/etc/flash-kernel/dtbs",
        "toradex": "/boot/overlays.txt",
        "grub-efi": "/boot/grub/custom.cfg",
        "yocto-evk": "/run/media/boot-mmcblk2p1",
    }
    for name, words in named.items():
        said = how_to_keep(surveyed(name).layout, "desk")
        assert words in said
        assert "the next reset ends in the system as it was" in said
    assert "--adopt" in how_to_keep(surveyed("toradex").layout, "desk")
    assert "--adopt" not in how_to_keep(surveyed("armbian-vim3").layout, "desk")


@pytest.mark.parametrize(
    ("name", "way", "says"),
    [
        ("grub-efi", "fat", "starts EFI programs before it looks for scripts"),
        ("debian-u-boot-menu", "raw", "has no sysboot"),
    ],
)
def test_a_u_boot_that_would_not_come_to_our_script_or_back(name: str, way: str, says: str) -> None:
    evk = uboot_named("imx8mp_evk")
    found = survey_of(board(name), evk)
    refused = next(each for each in found.ways if each.name == way)
    assert not refused.works
    assert says in refused.why


def test_a_tree_is_put_where_extlinux_finds_it_and_overlays_are_not_applied_twice() -> None:
    menu = surveyed("debian-u-boot-menu", programs=("u-boot-update",))
    assert not menu.keeps_overlay
    assert "the tree at /boot/npu.dtb and `fdt /boot/npu.dtb`" in how_to_keep(menu.layout, "desk")
    fenix = surveyed("fenix").layout
    assert "the tree at /boot/npu.dtb and `fdt /npu.dtb`" in how_to_keep(fenix, "desk")

    conf = "/boot/extlinux/extlinux.conf"
    text = board("debian-u-boot-menu").files[conf]
    named = text.replace(
        "label l0r", "    fdtoverlays  /boot/dtbo/can.dtbo /boot/dtbo/i2c.dtbo\nlabel l0r"
    )
    with_overlays = surveyed("debian-u-boot-menu", programs=("u-boot-update",), files={conf: named})
    assert with_overlays.overlays == ("/boot/dtbo/can.dtbo", "/boot/dtbo/i2c.dtbo")
    assert with_overlays.keeps_overlay
    said = how_to_keep(with_overlays.layout, "desk", overlays=with_overlays.overlays)
    assert f"the last name of `fdtoverlays` in {conf}" in said
    assert "/boot/npu.dtb" not in said


def test_of_several_labels_the_one_that_boots_counts() -> None:
    conf = "/boot/extlinux/extlinux.conf"
    text = """default second
label first
    linux /boot/vmlinuz-1
    fdt /boot/first.dtb
    fdtoverlays /boot/first.dtbo
label second
    linux /boot/vmlinuz-2
    FDT /boot/second.dtb
    DEVICETREE-OVERLAY /boot/second.dtbo
"""
    found = surveyed("debian-u-boot-menu", files={conf: text})
    assert found.dtb == "/boot/second.dtb (fdt of extlinux.conf)"
    assert found.overlays == ("/boot/second.dtbo",)
    for default in ("", "default none\n"):  # U-Boot then takes the first
        other = text.replace("default second\n", default)
        found = surveyed("debian-u-boot-menu", files={conf: other})
        assert found.overlays == ("/boot/first.dtbo",)


def test_who_keeps_a_tree() -> None:
    assert surveyed("armbian-vim3").keeper == "armbian"
    menu = surveyed("debian-u-boot-menu", programs=("u-boot-update",))
    assert menu.keeper == "u-boot-menu"
    assert surveyed("debian-u-boot-menu").keeper == ""
    installed = {"programs": ("u-boot-update",)}
    by_hand = {"/boot/extlinux/extlinux.conf": "label l0\n\tfdt /boot/mine.dtb\n"}
    assert surveyed("debian-u-boot-menu", **installed, files=by_hand).keeper == ""
    off = {"/etc/default/u-boot": 'U_BOOT_UPDATE="false"'}
    assert surveyed("debian-u-boot-menu", **installed, settings=off).keeper == ""
    sourced = {"/boot/grub/grub.cfg": "source ${config_directory}/custom.cfg"}
    assert surveyed("grub-efi", files=sourced).keeper == "grub"
    assert surveyed("grub-efi", files={}).keeper == ""
    assert surveyed("debian-flash-kernel").keeper == "flash-kernel"
    assert surveyed("debian-flash-kernel-fat").keeper == ""
    assert surveyed("toradex").keeper == "toradex"
    assert "toradex can keep an overlay: --try --persist" in surveyed("toradex").text()
    assert "u-boot-menu can keep a whole tree: --try --persist" in menu.text()
    assert "nothing that is known keeps a device tree there" in surveyed("yocto-evk").text()
    assert surveyed("yocto-evk").keeper == ""
