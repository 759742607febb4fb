# SPDX-License-Identifier: MIT
"""A board with somebody else's system, made of files: what the survey's collector reads of one."""

from __future__ import annotations

import struct
import uuid
import zlib
from pathlib import Path

from bsp.boot_survey.collect import Collector
from bsp.boot_survey.facts import facts_of
from bsp.boot_survey.survey import Survey, survey_of
from bsp.uboot import Trial, uboot_named

ESP = uuid.UUID("C12A7328-F81F-11D2-BA4B-00A0C93EC93B").bytes_le
LINUX = uuid.UUID("0FC63DAF-8483-4772-8E79-3D69D8477DE4").bytes_le
SCRIPT = b"\x27\x05\x19\x56" + bytes(60) + b"\0\0\0\x05\0\0\0\0echo\n"
VERSION = "Linux version 6.12.10 (b@h) #1\n"
KNOWN = Trial("fat", "its upstream configuration")
MAGICS = {"vfat": (82, b"FAT32   "), "ext4": (1080, b"\x53\xef"), "btrfs": (65600, b"_BHRfS_M")}


class Machine:
    """A board's root, made of files below a folder; all it says goes through the collector."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lines: list[str] = []
        for name in (
            "proc/self",
            "proc/1",
            "sys/class/block",
            "dev",
            "etc",
            "var/lib",
            "usr/local/lib",
        ):
            (root / name).mkdir(parents=True)
        (root / "etc/systemd/system").mkdir(parents=True)
        (root / "run/systemd/system").mkdir(parents=True)
        self.file("proc/version", VERSION)
        self.file("proc/sys/kernel/osrelease", "6.12.10\n")

    def file(self, path: str, content: str | bytes = b"") -> None:
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content.encode() if isinstance(content, str) else content)

    def mount(self, source: str, place: str, kind: str, options: str = "rw") -> None:
        self.lines.append(f"{source} {place} {kind} {options} 0 0\n")
        (self.root / place.lstrip("/")).mkdir(parents=True, exist_ok=True)
        self.file("proc/self/mounts", "".join(self.lines))

    def disk(
        self,
        name: str,
        kinds: list[str],
        *,
        esp: int = 0,
        marked: tuple[int, ...] = (),
        loader: bytes = b"",
    ) -> None:
        """A disk with a GPT and partitions of these file systems; the loader lies before the first one."""
        head = bytearray(1 << 17)
        head[510:512] = b"\x55\xaa"
        head[512:520] = b"EFI PART"
        struct.pack_into("<II", head, 592, 128, 128)
        head[65536 : 65536 + len(loader)] = loader
        folder = self.root / "sys/devices" / name
        for number, kind in enumerate(["", *kinds]):
            device = f"{name}p{number}" if number else name
            at = 1024 + 128 * (number - 1)
            if number:
                head[at : at + 16] = ESP if number == esp else LINUX
                head[at + 48] = 4 if number in marked else 0
                content = bytearray(66 << 10)
                where, magic = MAGICS[kind]
                content[where : where + len(magic)] = magic
                self.file(f"dev/{device}", bytes(content))
            place = folder / device if number else folder
            place.mkdir(parents=True)
            (place / "start").write_text(f"{number * 32768}\n")
            (place / "size").write_text("32768\n")
            if number:
                (place / "partition").write_text(f"{number}\n")
            (self.root / "sys/class/block" / device).symlink_to(place)
        self.file(f"dev/{name}", bytes(head))

    def environment(self, **variables: str) -> None:
        text = "".join(f"{name}={value}\0" for name, value in variables.items()) + "\0"
        data = text.encode().ljust(8188, b"\xff")
        self.file("dev/environment", struct.pack("<I", zlib.crc32(data)) + data)
        self.file("etc/fw_env.config", "/dev/environment 0 0x2000\n")

    def surveyed(self, uboot: str = "", trial: Trial = KNOWN) -> Survey:
        facts = facts_of(Collector(str(self.root)).facts())
        return survey_of(facts, uboot_named(uboot) if uboot else None, trial=trial)
