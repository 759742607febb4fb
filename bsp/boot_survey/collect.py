# SPDX-License-Identifier: MIT
"""Runs on the board, by its Python and nothing else: prints how it boots, as one JSON document.

It only reads. Nothing is mounted, no program is started: the variables of U-Boot are read from where
``/etc/fw_env.config`` says that they are, tables of partitions and kinds of file systems from the disks.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import struct
import sys
import zlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

_LARGEST_TEXT = 64 << 10
_MOST_NAMES = 400
_MOST_MAKERS = 20
_HEAD_BYTES = 66 << 10
_VIRTUAL = [
    "autofs",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "efivarfs",
    "fusectl",
    "hugetlbfs",
    "mqueue",
    "proc",
    "pstore",
    "ramfs",
    "securityfs",
    "sysfs",
    "tmpfs",
    "tracefs",
    "rpc_pipefs",
    "binfmt_misc",
]
_BOOT_FOLDERS = ("/boot", "/boot/firmware", "/boot/efi", "/efi", "/flash", "/mnt/boot")
_BELOW = (
    "",
    "extlinux",
    "boot",
    "boot/extlinux",
    "EFI/BOOT",
    "EFI/boot",
    "grub",
    "grub2",
    "loader",
    "loader/entries",
    "overlays",
)
_TEXTS = re.compile(
    r"(\w*Env|overlays|cmdline|config)\.txt|extlinux\.conf|grub\.cfg|loader\.conf|boot\.scr"
    r"(\.uimg)?|fixup\.scr|[\w.+~-]+\.conf|custom\.cfg",
    re.I,
)
_BOOTLOADER_BYTES = 16 << 20
_SCRIPT_WORDS = (b"boot_scripts=", b"scan_dev_for_scripts", b"boot.scr.uimg")
_IMAGE_WORDS = (b"\0loadimage=", b"\0mmcboot=")
_VERSION = re.compile(rb"U-Boot 20\d\d\.\d\d")
_IN_ROOT = ("boot.scr", "boot.scr.uimg")
_OWN_PLACES = ("/var/lib", "/etc/systemd/system", "/usr/local/lib")
"""Where a deployment writes, beside the boot partition."""
_SETTINGS = (
    "/etc/os-release",
    "/usr/lib/os-release",
    "/etc/armbian-release",
    "/etc/default/u-boot",
    "/etc/default/flash-kernel",
    "/etc/default/grub",
    "/etc/rauc/system.conf",
    "/usr/lib/rauc/system.conf",
    "/run/rauc/system.conf",
    "/etc/mender/mender.conf",
    "/etc/swupdate.cfg",
    "/etc/fw_env.config",
    "/etc/fstab",
)
_PROGRAMS = [
    "rauc",
    "mender",
    "mender-update",
    "ostree",
    "swupdate",
    "flash-kernel",
    "u-boot-update",
    "update-grub",
    "armbian-add-overlay",
    "kexec",
    "hassos",
]
_ESP = bytes.fromhex("28732ac11ff8d211ba4b00a0c93ec93b")
"""The type of an EFI partition in a GPT: U-Boot takes it as marked (disk/part_efi.c, part_dos.c)."""
_MAGICS = (
    ("ext4", 1080, b"\x53\xef"),
    ("btrfs", 65600, b"_BHRfS_M"),
    ("f2fs", 1024, b"\x10\x20\xf5\xf2"),
    ("xfs", 0, b"XFSB"),
    ("squashfs", 0, b"hsqs"),
    ("erofs", 1024, b"\xe2\xe1\xf5\xe0"),
    ("LUKS", 0, b"LUKS\xba\xbe"),
    ("LVM", 536, b"LVM2 001"),
    ("RAID", 4096, b"\xfc\x4e\x2b\xa9"),
    ("verity", 0, b"verity\0\0"),
    ("vfat", 82, b"FAT32   "),
    ("vfat", 54, b"FAT16   "),
    ("vfat", 54, b"FAT12   "),
    ("vfat", 54, b"FAT     "),
)


class Collector:
    """Everything lies below ``root``: empty on a board, a folder in the tests."""

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")

    def at(self, path: str) -> str:
        """A path of the board."""
        return f"{self.root}/{path.lstrip('/')}"

    def read(self, path: str, most: int = _LARGEST_TEXT) -> bytes:
        """The beginning of a file; empty where it cannot be read."""
        try:
            with open(self.at(path), "rb") as file:
                return file.read(most)
        except OSError:
            return b""

    def text(self, path: str, most: int = _LARGEST_TEXT) -> str:
        """A small text; empty where it cannot be read."""
        return self.read(path, most).decode(errors="replace").strip("\0\n")

    def names(self, path: str) -> list[str]:
        """The names in a folder; none where there is no such folder."""
        try:
            return sorted(os.listdir(self.at(path)))[:_MOST_NAMES]
        except OSError:
            return []

    def facts(self) -> dict[str, Any]:
        """All of it."""
        for place in _BOOT_FOLDERS:
            self.names(place)  # what systemd mounts when it is looked at
        mounts = list(self._mounts())
        folders = self._folders(mounts)
        files = self._texts(folders)
        release = self.text("/proc/sys/kernel/osrelease")
        settings = {path: text for path in _SETTINGS if (text := self.text(path))}
        words, versions, loads_image = self._bootloaders(mounts)
        return {
            "compatible": [
                part for part in self.text("/proc/device-tree/compatible").split("\0") if part
            ],
            "model": self.text("/proc/device-tree/model"),
            "release": release,
            "banner": self.text("/proc/version"),
            "cmdline": self.text("/proc/cmdline"),
            "chosen": self._chosen(),
            "efi": os.path.isdir(self.at("/sys/firmware/efi")),
            "mounts": mounts,
            "partitions": list(self._partitions()),
            "folders": folders,
            "files": files,
            "there": self._named(files),
            "unkept": dict(self._unkept()),
            "settings": settings,
            "variables": self._variables(settings.get("/etc/fw_env.config", "")),
            "bootloader_words": words,
            "bootloader_versions": versions,
            "bootloader_loads_image": loads_image,
            "firmware": self.text("/sys/class/dmi/id/bios_vendor"),
            "systemd": self._systemd(),
            "programs": [name for name in _PROGRAMS if self._program(name)],
            "ostree": os.path.isdir(self.at("/ostree")),
            "watchdogs": list(self._watchdogs()),
            "kexec": self._kexec(release),
            "cores": sorted(set(re.findall(r"CPU part\s*: (\w+)", self.text("/proc/cpuinfo")))),
            "space": {place: self._space(place) for place in {*folders, "/"}},
        }

    def _mount_lines(self) -> list[list[str]]:
        """The words of the lines of the mounts: source, place, kind, options."""
        text = self.text("/proc/self/mounts") or self.text("/proc/mounts")
        return [words for line in text.split("\n") if len(words := line.split()) > 3]

    def _unkept(self) -> Iterator[tuple[str, str]]:
        """Places that a deployment writes to, and why what is written there does not last."""
        lines = self._mount_lines()
        root = os.path.realpath(self.root or "/").rstrip("/")
        for place in _OWN_PLACES:
            line = _mount_of(os.path.realpath(self.at(place))[len(root) :], lines)
            if line and (why := _why_unkept(line, lines)):
                yield place, why

    def _systemd(self) -> bool | None:
        """Whether systemd runs this system."""
        if os.path.isdir(self.at("/run/systemd/system")):
            return True
        first = self.text("/proc/1/comm")
        return first == "systemd" if first else None

    def _mounts(self) -> Iterator[dict[str, Any]]:
        for words in self._mount_lines():
            if words[2] not in _VIRTUAL:
                place = words[1].replace("\\040", " ")
                yield {
                    "device": self._device(words[0], place),
                    "place": place,
                    "kind": words[2],
                    "options": words[3],
                    "writable": "ro" not in words[3].split(",")
                    and os.access(self.at(place), os.W_OK),
                }

    def _device(self, source: str, place: str) -> str:
        """The name of the disk or partition that is mounted: also where it was mounted by another name."""
        if not self.root and source == "/dev/root":
            try:
                number = os.stat(place).st_dev
                link = os.readlink(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
                return os.path.basename(link)
            except OSError:
                return source
        real = os.path.realpath(self.at(source)) if source.startswith("/dev/") else source
        return os.path.basename(real) if source.startswith("/dev/") else source

    def _folders(self, mounts: list[dict[str, Any]]) -> dict[str, list[str]]:
        """The names below the places that a bootloader may look at, by folder."""
        places = [
            each["place"] for each in mounts if each["kind"] == "vfat" or "/boot" in each["place"]
        ]
        names_by_folder = {}
        for place in dict.fromkeys(["/", *_BOOT_FOLDERS, *places]):
            for below in _BELOW:
                if place == "/" and below == "boot":
                    continue  # one of the others
                folder = os.path.join(place, below).rstrip("/") or "/"
                names = self.names(folder)
                if folder == "/":  # of the whole system only what U-Boot looks for
                    names = [name for name in names if name in _IN_ROOT]
                if names:
                    names_by_folder[folder] = names
        return names_by_folder

    def _texts(self, folders: dict[str, list[str]]) -> dict[str, str]:
        texts = {}
        for folder, names in folders.items():
            for name in names:
                path = f"{folder.rstrip('/')}/{name}"
                if _TEXTS.fullmatch(name) and os.path.isfile(self.at(path)):
                    texts[path] = self.read(path).decode(errors="replace").replace("\0", "")
        return texts

    def _named(self, files: dict[str, str]) -> list[str]:
        """Which of the paths that boot files name exist: below their folder, /, /boot or /boot/dtb."""
        existing = set()
        for path, text in files.items():
            if os.path.basename(path).startswith("boot.scr"):
                continue
            named = re.findall(r"(?<![\w./+~-])[\w./+~-]+\.dtbo?\b", text)
            named += re.findall(
                r"(?im)^\s*(?:linux|kernel|initrd|fdt|devicetree|devicetree-overlay|fdtdir)\s+(\S+)",
                text,
            )
            for name in named:
                trees = f"{os.path.dirname(path)}/dtb"
                for folder in (
                    os.path.dirname(path),
                    os.path.dirname(os.path.dirname(path)),
                    "",
                    "/boot",
                    "/boot/dtb",
                    trees,
                    # Armbian's script for sunxi adds the maker's folder.
                    *(f"{trees}/{maker}" for maker in self.names(trees)[:_MOST_MAKERS]),
                ):
                    full = os.path.normpath(f"{folder}/{name}")
                    if os.path.exists(self.at(full)):
                        existing.add(full)
        return sorted(existing)

    def _chosen(self) -> dict[str, Any]:
        folder = "/proc/device-tree/chosen"
        start, end = (self.read(f"{folder}/linux,initrd-{which}") for which in ("start", "end"))
        bytes_ = (
            int.from_bytes(end, "big") - int.from_bytes(start, "big") if start and end else None
        )
        return {
            "initrd_bytes": bytes_,
            "uboot": self.text(f"{folder}/u-boot,version"),
            "barebox": self.text(f"{folder}/barebox-version"),
        }

    def _partitions(self) -> Iterator[dict[str, Any]]:
        folder, by_uuid = "/sys/class/block", "/dev/disk/by-partuuid"
        uuids = {
            os.path.basename(os.path.realpath(self.at(f"{by_uuid}/{name}"))): name
            for name in self.names(by_uuid)
        }
        tables: dict[str, dict[str, Any]] = {}
        for name in self.names(folder):
            real = os.path.realpath(self.at(f"{folder}/{name}"))
            number = self.text(f"{folder}/{name}/partition")
            disk = os.path.basename(os.path.dirname(real)) if number else ""
            stacked = self.names(f"{folder}/{name}/slaves")
            if not number and not stacked:
                continue
            if disk and disk not in tables:
                tables[disk] = _table(self.read(f"/dev/{disk}", 34 * 512))
            table = tables.get(disk, {})
            yield {
                "name": name,
                "disk": disk,
                "number": int(number or 0),
                "start_bytes": 512 * int(self.text(f"{folder}/{name}/start") or 0),
                "size_bytes": 512 * int(self.text(f"{folder}/{name}/size") or 0),
                "kind": _kind(self.read(f"/dev/{name}", _HEAD_BYTES)),
                "table": table.get("table", ""),
                "bootable": int(number or 0) in table.get("bootable", ()),
                "removable": self.text(f"{folder}/{disk}/removable") == "1",
                "partuuid": table.get("uuids", {}).get(int(number or 0)) or uuids.get(name, ""),
                "on": stacked,
                "stack": self._stack(f"{folder}/{name}"),
            }

    def _stack(self, folder: str) -> str:
        """What a device is stacked by, as its maker's identifier begins (cryptsetup, LVM, mdadm)."""
        uuid = self.text(f"{folder}/dm/uuid")
        if uuid.startswith("CRYPT-VERITY-"):
            return "dm-verity"
        return uuid.split("-")[0] or ("RAID" if self.names(f"{folder}/md") else "")

    def _variables(self, config: str) -> dict[str, str] | None:
        """U-Boot's variables, from the newest whole copy where they are said to be; None: none is."""
        copies = []
        for line in config.split("\n"):
            words = line.partition("#")[0].split()
            if len(words) < 3:
                continue
            try:
                offset, size = int(words[1], 0), int(words[2], 0)
                with open(self.at(words[0]), "rb") as file:
                    file.seek(offset, os.SEEK_END if offset < 0 else os.SEEK_SET)
                    data = file.read(min(size, 1 << 20))
            except (OSError, ValueError):
                continue
            for head in (4, 5):  # with a byte of flags where there are two copies
                if len(data) > head and zlib.crc32(data[head:]) == int.from_bytes(
                    data[:4], "little"
                ):
                    copies.append((data[4] if head == 5 else -1, data[head:]))
                    break
        if not copies:
            return None
        # The flags count copies, modulo 256 (U-Boot env/common.c, env_import_redund).
        wrapped = {0, 255} <= {flags for flags, _ in copies}
        newest = max(copies, key=lambda copy: 256 if wrapped and copy[0] == 0 else copy[0])[1]
        entries = newest.partition(b"\0\0")[0].split(b"\0")
        pairs = (entry.decode(errors="replace").partition("=") for entry in entries)
        return {name: value for name, equals, value in pairs if equals}

    def _bootloaders(self, mounts: list[dict[str, Any]]) -> tuple[list[str], list[str], bool]:
        """What bootloaders on the disk say: that they run scripts, their versions, that they load Image."""
        words: set[str] = set()
        loads_image = False
        versions: set[str] = set()
        folder = "/sys/class/block"
        for device in {each["device"] for each in mounts}:
            real = os.path.realpath(self.at(f"{folder}/{device}"))
            if not self.text(f"{folder}/{device}/partition"):
                continue
            disk = os.path.basename(os.path.dirname(real))
            numbers = [
                self.text(f"{folder}/{name}/start") for name in self.names(f"{folder}/{disk}")
            ]
            starts = [512 * int(number) for number in numbers if number.isdigit()]
            # Up to the first partition, whose files may have the same words in them.
            for name, most in ((disk, min([*starts, _BOOTLOADER_BYTES])), *_boot_areas(disk)):
                data = self.read(f"/dev/{name}", most)
                words.update(word.decode() for word in _SCRIPT_WORDS if word in data)
                versions.update(version.decode() for version in _VERSION.findall(data))
                loads_image |= all(word in data for word in _IMAGE_WORDS)
        return sorted(words), sorted(versions), loads_image

    def _program(self, name: str) -> bool:
        return any(
            os.path.exists(self.at(f"{folder}/{name}"))
            for folder in ("/usr/bin", "/usr/sbin", "/bin", "/sbin", "/run/current-system/sw/bin")
        )

    def _watchdogs(self) -> Iterator[dict[str, str]]:
        for name in self.names("/sys/class/watchdog"):
            folder = f"/sys/class/watchdog/{name}"
            yield {
                "name": name,
                **{
                    what: self.text(f"{folder}/{what}")
                    for what in ("identity", "state", "timeout", "nowayout")
                },
            }

    def _kexec(self, release: str) -> dict[str, Any]:
        config = self.text(f"/boot/config-{release}", 1 << 20)
        if packed := self.read("/proc/config.gz", 1 << 20):
            with contextlib.suppress(zlib.error):
                config = zlib.decompressobj(31).decompress(packed).decode(errors="replace")
        there = os.path.exists(self.at("/sys/kernel/kexec_loaded"))
        return {
            "load": "CONFIG_KEXEC=y" in config.split("\n")
            if config
            else (None if there else False),
            "disabled": self.text("/proc/sys/kernel/kexec_load_disabled") == "1",
            "lockdown": (
                re.findall(r"\[(\w+)\]", self.text("/sys/kernel/security/lockdown")) or [""]
            )[0],
            "wide_addresses": self._wide_addresses(config),
        }

    def _wide_addresses(self, config: str) -> bool | None:
        """Whether the kernel has 52-bit addresses: its linear map then begins below 0xffff << 48.

        Source: Linux arch/arm64/include/asm/memory.h, PAGE_OFFSET; /proc/kcore has that map as segments. A
        kernel without that file cannot have them where its configuration says 48 bits or fewer.
        """
        most_bits = re.search(r"^CONFIG_ARM64_VA_BITS=(\d+)$", config, re.MULTILINE)
        if most_bits and int(most_bits[1]) < 52:
            return False
        head = self.read("/proc/kcore", 1 << 16)
        if head[:5] != b"\x7fELF\x02":
            return None
        at, size, count = (
            struct.unpack_from("<Q", head, 32)[0],
            *struct.unpack_from("<HH", head, 54),
        )
        starts = [
            struct.unpack_from("<Q", head, at + number * size + 16)[0]
            for number in range(count)
            if at + (number + 1) * size <= len(head)
            and struct.unpack_from("<I", head, at + number * size)[0] == 1
        ]
        return any(0xFFF0 << 48 <= start < 0xFFFF << 48 for start in starts) if starts else None

    def _space(self, place: str) -> int:
        try:
            stats = os.statvfs(self.at(place))
        except OSError:
            return 0
        return stats.f_bavail * stats.f_frsize


def _guid(data: bytes) -> str:
    """The text of a GPT's GUID: its first three numbers are stored in little endian."""
    first = "-".join(data[start:end][::-1].hex() for start, end in ((0, 4), (4, 6), (6, 8)))
    return f"{first}-{data[8:10].hex()}-{data[10:].hex()}"


def _mount_of(path: str, lines: list[list[str]]) -> list[str] | None:
    """The line of the file system that a path lies on; the topmost of several."""
    fitting = [
        words
        for words in lines
        if f"{path}/".startswith(f"{words[1].rstrip('/')}/") or words[1] == "/"
    ]
    return max(reversed(fitting), key=lambda words: len(words[1]), default=None)


def _why_unkept(line: list[str], lines: list[list[str]]) -> str:
    """Why what is written to a file system is gone after a reboot, or cannot be written; "" if it stays."""
    kind, options = line[2], line[3].split(",")
    if kind in ("tmpfs", "ramfs", "rootfs"):
        return f"in memory ({kind})"
    if "ro" in options or kind in ("squashfs", "erofs"):
        return f"read-only ({kind})"
    if kind != "overlay":
        return ""
    upper = next((each[9:] for each in options if each.startswith("upperdir=")), "")
    below = _mount_of(upper, [words for words in lines if words is not line and words[1] != "/"])
    if below is None:
        return (
            f"an overlay whose upper layer ({upper or 'none'}) is not mounted where it can be seen"
        )
    return _why_unkept(below, [words for words in lines if words is not line])


def _boot_areas(disk: str) -> list[tuple[str, int]]:
    """The boot areas of an eMMC, and how much of them is read."""
    return [(f"{disk}boot{number}", _BOOTLOADER_BYTES) for number in (0, 1)]


def _kind(head: bytes) -> str:
    return next((kind for kind, at, magic in _MAGICS if head[at : at + len(magic)] == magic), "")


def _table(head: bytes) -> dict[str, Any]:
    """The kind of a partition table, and the numbers that it marks as bootable (U-Boot disk/part_*.c)."""
    if head[512:520] == b"EFI PART":
        count, size = struct.unpack_from("<II", head, 512 + 80)
        bootable, uuids = [], {}
        for number in range(min(count, 128)):
            entry = head[1024 + number * size :][:size]
            if len(entry) >= 56 and (
                entry[:16] == _ESP or (entry[:16].strip(b"\0") and entry[48] & 4)
            ):
                bootable.append(number + 1)
            if len(entry) >= 56 and entry[:16].strip(b"\0") and entry[16:32].strip(b"\0"):
                uuids[number + 1] = _guid(entry[16:32])
        return {"table": "gpt", "bootable": bootable, "uuids": uuids}
    if head[510:512] == b"\x55\xaa":
        signature = int.from_bytes(head[440:444], "little")
        return {
            "table": "dos",
            "uuids": {
                number: f"{signature:08x}-{number:02x}" for number in range(1, 64) if signature
            },
            "bootable": [
                number + 1
                for number in range(4)
                if head[446 + 16 * number] == 0x80 or head[450 + 16 * number] == 0xEF
            ],
        }
    return {}


def main(root: str) -> None:
    """Print the facts."""
    json.dump(Collector(root).facts(), sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "")
