# SPDX-License-Identifier: MIT
"""This board: the paths on it, what runs, what earlier deployments left. Reads only."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import zlib

from .files import (
    PARTIAL,
    SECTOR_BYTES,
    checkpoint,
    flush_filesystem,
    intact,
    is_generation,
    link_of,
    names_in,
    on_fat,
    read,
    read_text,
    sha256_of,
)
from .frames import RefusedError, Zlib, Zstd, codec, ranges
from .root_disk import root_modules

TYPE_CHECKING = False  # see frames.py
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .files import Entry

    Record = dict[str, Any]

_STORE = "var/lib/npu-bsp/generations"
_NO_LIMIT = 1 << 31
TAKEN_OVER = "taken-over"
"""Marks a partition whose board booted in another way before; see adopt.py."""
KEPT_BY = "var/lib/npu-bsp/kept-by"
"""Holds which way of the distribution keeps a device tree here; see persist.py."""
KEPT_OF = "var/lib/npu-bsp/kept-of"
"""Holds which kernel's tree that is, where a whole one is kept."""
BOOT = "/boot"
"""Where boot files lie on a board whose U-Boot reads ext4."""
EXT = ("ext2", "ext3", "ext4")
USUAL_MOUNTS = ("/boot/firmware", "/boot", "/boot/efi", "/efi", "/flash")
"""Where distributions mount the partition that U-Boot starts from, beside /run/media/..."""
SCRIPT_2 = b"npu-bsp boot script 2"
"""What only a boot script has that reads its state as script images (images/deploy/boot/state.py)."""
RIVALS = ("extlinux/extlinux.conf", "boot/extlinux/extlinux.conf", "boot.scr.uimg")
"""What U-Boot takes before our boot.scr (include/config_distro_bootcmd.h: boot_extlinux, boot_scripts)."""


_FILE = re.compile(r"/npu-bsp/files/([0-9a-f]{32})")
"""A boot file, as arguments name it."""


def _is_whole(arguments: bytes) -> bool:
    """Return whether U-Boot accepts a generation's arguments: a script by checksum, a text by its end."""
    if arguments[:4] != b"\x27\x05\x19\x56":
        return b"npu_args_end=1" in arguments.split(b"\n")
    size, checksum = (int.from_bytes(arguments[at : at + 4], "big") for at in (12, 24))
    data = arguments[64 : 64 + size]
    return len(data) == size and zlib.crc32(data) == checksum


def mounted(mounts: str) -> dict[str, str]:
    """Return the mounted file systems: mount point to kind."""
    lines = (line.split() for line in read_text(mounts).split("\n"))
    return {words[1]: words[2] for words in lines if len(words) > 2}


def _boot_place(mounts: dict[str, str], profile_mount: str, *, adopted: bool) -> str:
    """Return the mount point of the boot files: the profile's, else the one usual place with a FAT.

    Args:
        adopted: whether npu-bsp's folder is in /boot.
    """
    fat = [place for place, kind in mounts.items() if kind == "vfat"]
    usual = [place for place in fat if place in USUAL_MOUNTS or place.startswith("/run/media/")]
    if profile_mount in fat:
        return profile_mount
    if adopted and BOOT not in fat:
        return BOOT
    return usual[0] if len(usual) == 1 else profile_mount


class Board:
    """The paths and state of a board; all lie below ``root``: empty on a board, a folder in the tests."""

    def __init__(self, root: str, fat_mount: str, *, exact: bool = False) -> None:
        self.root = root.rstrip("/")
        mounts = mounted(self.at("proc/mounts"))
        waiting = [where for where in USUAL_MOUNTS if mounts.get(where) == "autofs"]
        for where in waiting:
            names_in(self.at(where))  # mounted by systemd when it is looked at
        if waiting:
            mounts = mounted(self.at("proc/mounts"))
        adopted = os.path.isdir(self.at(f"{BOOT}/npu-bsp"))
        place = fat_mount if exact else _boot_place(mounts, fat_mount, adopted=adopted)
        self.fat = self.at(place)
        below = [where for where in mounts if f"{place}/".startswith(f"{where.rstrip('/')}/")]
        self._file_system = max(below, key=len, default="/")
        self.kind = mounts.get(self._file_system, "")
        """Of the file system that the boot files are on: they are said to be on FAT also on ext4."""
        self.own = os.path.join(self.fat, "npu-bsp")
        self.files = os.path.join(self.own, "files")
        self.store = self.at(_STORE)
        self._manifests: dict[str, tuple[bytes, list[Entry]]] = {}
        self._hashes: dict[tuple[int, int], str] = {}
        self.thorough = False
        """Whether files are re-hashed instead of trusting their size and time."""
        self.checked: dict[str, set[str]] = {}
        """Generations that this session has looked at, with the paths of their damaged files."""

    def at(self, path: str) -> str:
        """Return a path of the board."""
        return f"{self.root}/{path.lstrip('/')}"

    def fat_file(self, entry: Entry) -> str:
        """Return the path of a boot file: named by content, so that generations share it."""
        return os.path.join(self.files, str(entry["sha256"])[:32])

    def place(self, folder: str, entry: Entry) -> str:
        """Return the path of an entry of the generation in ``folder``."""
        return self.fat_file(entry) if on_fat(entry) else f"{folder}/{entry['path']}"

    def generations(self) -> list[str]:
        """Return the names of the generations that are complete."""
        return [
            name
            for name in names_in(self.store)
            if is_generation(name) and os.path.exists(f"{self.store}/{name}/manifest.json")
        ]

    def manifest(self, generation: str) -> tuple[bytes, list[Entry]]:
        """Return the manifest of a generation: its bytes, and its files."""
        if generation in self._manifests:
            return self._manifests[generation]
        content = read(f"{self.store}/{generation}/manifest.json")
        try:
            content_and_files = content, json.loads(content)["files"]
            if is_generation(generation):  # one that is being made still changes
                self._manifests[generation] = content_and_files
            return content_and_files
        except (ValueError, KeyError, TypeError):
            raise RefusedError(
                f"the manifest of generation {generation} is missing or broken"
            ) from None

    def forget(self, generation: str) -> None:
        """Drop a generation's manifest from the cache."""
        self._manifests.pop(generation, None)

    def release(self) -> str:
        """The running kernel's release, as ``uname -r`` prints it."""
        return read_text(self.at("proc/sys/kernel/osrelease"))

    @property
    def on_ext(self) -> bool:
        """Whether U-Boot reads boot files from ext4, which it cannot write to."""
        return self.kind in EXT

    @property
    def boot_root(self) -> str:
        """The folder of the partition that boot files lie in: nothing, or ``/boot``."""
        place = self.fat[len(self.root) :]
        return "" if self._file_system == place else place[len(self._file_system.rstrip("/")) :]

    def settle(self) -> None:
        """Flush the boot partition, so that U-Boot reads what was written."""
        flush_filesystem(self.fat)
        if self.on_ext and not self.root:
            checkpoint(self.fat)

    @property
    def form(self) -> str:
        """The form of state that its boot script reads: "script", or "text" before script 2."""
        script = read(f"{self.fat}/boot.scr")
        return "text" if b"npu-bsp" in script and SCRIPT_2 not in script else "script"

    def facts(self, request: Record) -> Record:
        """Return what runs and what is stored on this board; the host plans from it."""
        self.thorough = bool(request.get("thorough"))
        cmdline = read_text(self.at("proc/cmdline"))
        options = dict(word.partition("=")[::2] for word in cmdline.split())
        generation = request.get("generation")
        running = options.get("npu_bsp.generation")
        return {
            "compatible": self._strings("compatible"),
            "model": "".join(self._strings("model")[:1]),
            "serial": "".join(self._strings("serial-number")[:1]),
            "boot_id": read_text(self.at("proc/sys/kernel/random/boot_id")),
            "release": self.release(),
            "cmdline": cmdline,
            "running": running,
            "slot": options.get("npu_bsp.slot"),
            "sectors": {
                name: base64.b64encode(read(f"{self.own}/{name}.env")[:SECTOR_BYTES]).decode()
                for name in ("good", "good-copy", "trial")
            },
            "boot_script": b"npu-bsp" in read(f"{self.fat}/boot.scr"),
            "rivals": [name for name in RIVALS if os.path.exists(f"{self.fat}/{name}")],
            "adopted": os.path.exists(f"{self.own}/{TAKEN_OVER}"),
            "kept_by": read_text(self.at(KEPT_BY)),
            "kept_of": read_text(self.at(KEPT_OF)),
            "root_uuid": self._root_uuid(),
            "root_modules": root_modules(self.root, mounted(self.at("proc/mounts")).get("/", "")),
            "boot_kind": self.kind,
            "boot_root": self.boot_root,
            "boot_place": self.fat[len(self.root) :],
            "fat_mounted": bool(self.root)
            or os.path.ismount(self.fat)
            or (self.on_ext and os.path.isdir(self.fat)),
            "writable": {
                "fat": os.access(self.fat, os.W_OK),
                "root": os.access(self.at("var/lib"), os.W_OK),
            },
            "space": {"fat": self._space(self.fat), "root": self._space(self.at("var/lib"))},
            "fat_files": self._fat_files(),
            "generations": self._checked_generations(generation),
            "made": {name: self._made(name) for name in self.generations()},
            "manifests": self._manifest_hashes() if self.thorough else {},
            "resumable": self._resumable(generation) if generation else [],
            "leftovers": self._leftovers(generation),
            "codecs": _codecs(far=request["far"]),
            "hash_bytes_per_s": _hash_rate() if request["far"] else 0.0,
            "onboard": {name: sha256_of(self.at(name)) for name in request.get("onboard", ())},
            "fdt": _packed(read(self.at("sys/firmware/fdt"))) if request.get("tree") else None,
            "dtb": None,
            **(
                self._trees(running)
                if running is not None and generation in (None, running)
                else {}
            ),
        }

    def _trees(self, generation: str) -> Record:
        """Return the running device tree, and the one that was sent for this generation."""
        sent = None
        with contextlib.suppress(RefusedError):
            for entry in self.manifest(generation)[1]:
                if entry["path"] == "boot/board.dtb":
                    sent = _packed(read(self.fat_file(entry)))
        return {"fdt": _packed(read(self.at("sys/firmware/fdt"))), "dtb": sent}

    def _root_uuid(self) -> str:
        """The UUID of the root file system, as udev names it; "" if it does not."""
        folder = self.at("dev/disk/by-uuid")
        with contextlib.suppress(OSError):
            device = os.stat(self.at("/")).st_dev
            for name in names_in(folder):
                if os.stat(f"{folder}/{name}").st_rdev == device:
                    return name
        return ""

    def _strings(self, name: str) -> list[str]:
        content = read(self.at(f"proc/device-tree/{name}"))
        return [part.decode(errors="replace") for part in content.split(b"\0") if part]

    def _space(self, path: str) -> Record:
        try:
            room = os.statvfs(path)
        except OSError:
            return {"bytes": 0, "files": 0}
        # FAT counts no files and says 0 of 0.
        files = room.f_favail if room.f_files else _NO_LIMIT
        return {"bytes": room.f_bavail * room.f_frsize, "files": min(files, _NO_LIMIT)}

    def _fat_files(self) -> dict[str, int]:
        """Return the sizes of the boot files, by name; a thorough check leaves out changed ones."""
        sizes = {}
        for name in names_in(self.files):
            path = f"{self.files}/{name}"
            if not name.endswith(PARTIAL) and (
                not self.thorough or self.sha256(path).startswith(name)
            ):
                sizes[name] = os.stat(path).st_size
        return sizes

    def _made(self, generation: str) -> float:
        """Return when a generation was made, by this board's clock."""
        return os.stat(f"{self.store}/{generation}/manifest.json").st_mtime

    def _manifest_hashes(self) -> dict[str, str]:
        return {
            name: sha256_of(f"{self.store}/{name}/manifest.json") for name in self.generations()
        }

    def sha256(self, path: str) -> str:
        """Return ``sha256_of`` a file; files that generations share are read once."""
        try:
            status = os.stat(path)
        except OSError:
            return ""
        key = status.st_dev, status.st_ino
        if key not in self._hashes:
            self._hashes[key] = sha256_of(path)
        return self._hashes[key]

    def _leftovers(self, generation: str | None) -> list[str]:
        """Return the names of what an interrupted deployment of another generation left."""
        folders = [name for name in names_in(self.store) if name.endswith(PARTIAL)]
        used = self.used_files(self.generations(), generation)
        unused = [name for name in names_in(self.files) if name not in used]
        return [name for name in folders if name != f"{generation}{PARTIAL}"] + unused

    def used_files(self, generations: list[str], resumed: str | None) -> set[str]:
        """Return the names of the boot files that generations, or an interrupted transfer, need."""
        used: set[str] = set()
        for name in generations:  # what the boot script would load, whatever the manifest says
            used.update(_FILE.findall(read(f"{self.own}/{name}/args.env").decode(errors="replace")))
        with contextlib.suppress(RefusedError):
            files = self.manifest(f"{resumed}{PARTIAL}")[1]
            used.update(entry["sha256"][:32] for entry in files if on_fat(entry))
        return used

    def _checked_generations(self, generation: str | None) -> dict[str, list[str]]:
        """Return generations with their damaged files; only this one is checked where it is complete."""
        names = self.generations()
        whole = generation in names and generation is not None and not self._damaged(generation)
        if whole and not self.thorough:
            return {name: [] for name in names}
        return {name: self._damaged(name) for name in names}

    def _damaged(self, generation: str) -> list[str]:
        """Return the paths of a generation's files that are not as they were made."""
        try:
            files = self.manifest(generation)[1]
        except RefusedError:
            return ["manifest.json"]
        folder = f"{self.store}/{generation}"
        sizes = self._fat_files()
        result = [
            entry["path"]
            for entry in files
            if not (
                sizes.get(entry["sha256"][:32]) == entry["size_bytes"]
                if on_fat(entry)
                else intact(f"{folder}/{entry['path']}", entry)
            )
        ]
        if self.thorough:
            result += self._changed(folder, [e for e in files if e["path"] not in set(result)])
        if not self._has_arguments(generation, files):
            result.append("args.env")
        self.checked[generation] = set(result)
        return result

    def _changed(self, folder: str, files: list[Entry]) -> list[str]:
        """Return those of the files that look unchanged whose content or mode is another."""
        own = [entry for entry in files if not on_fat(entry)]
        places = {entry["path"]: f"{folder}/{entry['path']}" for entry in own}
        changed = set(_wrong(own, places, self.sha256))
        changed.update(
            entry["path"]
            for entry in own
            if entry.get("link") is None
            and os.stat(places[entry["path"]]).st_mode & 0o7777 != entry.get("mode", 0o644)
        )
        return sorted(changed)

    def _has_arguments(self, generation: str, files: list[Entry]) -> bool:
        """Return whether the boot script finds what a generation boots; a thorough check reads it."""
        path = f"{self.own}/{generation}/args.env"
        if not self.thorough:
            return os.path.exists(path)
        arguments = read(path)
        text = arguments.decode(errors="replace")
        names = {entry["sha256"][:32] for entry in files if on_fat(entry)}
        return (
            _is_whole(arguments)
            and f"npu_bsp.generation={generation}" in re.split(r"[\s']", text)
            and set(_FILE.findall(text)) == names
        )

    def _resumable(self, generation: str) -> list[list[int]]:
        """Return the indexes of the complete files of an interrupted transfer: all are hashed."""
        folder = f"{self.store}/{generation}{PARTIAL}"
        try:
            files = self.manifest(generation + PARTIAL)[1]
        except RefusedError:
            return []
        whole = []
        for index, entry in enumerate(files):
            path = f"{folder}/{entry['path']}"
            if not on_fat(entry) and intact(path, entry):
                if entry.get("link") is not None or sha256_of(path) == entry["sha256"]:
                    whole.append(index)
                else:
                    os.unlink(path)
        return ranges(whole)

    def verify(self, request: Record) -> Record:
        """Return what runs; hashes each file of the generation, and each module where it is loaded from."""
        generation = request["generation"]
        release = self.release()
        modules = f"modules/{release}/"
        files = self.manifest(generation)[1]
        places = {}
        for entry in files:
            path = entry["path"]
            place = self.place(f"{self.store}/{generation}", entry)
            places[path] = self.at(f"lib/{path}") if path.startswith(modules) else place
        wrong = _wrong(files, places, sha256_of)
        current = link_of(self.at("run/npu-bsp/current"))
        return {
            "release": release,
            "checked": len(files),
            "wrong": wrong[:20],
            "wrong_count": len(wrong),
            "current": os.path.basename(current) if current else None,
            **self._trees(generation),
        }


def _codecs(*, far: bool) -> list[str]:
    """Return the codecs, best first; for a near host without loading their libraries."""
    zstd = codec(Zstd.kind) is not None if far else any(map(os.path.exists, _zstd_places()))
    kinds = [Zstd.kind] if zstd else []
    return [kind.decode() for kind in (*kinds, Zlib.kind)]


def _zstd_places() -> list[str]:
    import sys

    triplet = getattr(sys.implementation, "_multiarch", "")
    folders = (f"/usr/lib/{triplet}", "/usr/lib64", "/usr/lib")
    return [f"{folder}/libzstd.so.1" for folder in folders]


def _hash_rate() -> float:
    """Measure, in some milliseconds, how many bytes this board hashes per second."""
    import hashlib
    import time

    sample = bytes(1 << 20)
    began = time.perf_counter()
    hashlib.sha256(sample).digest()
    return len(sample) / max(time.perf_counter() - began, 1e-6)


def _wrong(files: list[Entry], places: dict[str, str], hashed: Callable[[str], str]) -> list[str]:
    """Return the paths of the entries whose files have another content than the manifest says."""
    import threading

    wrong: list[str] = []
    rest = iter(files)
    turn = threading.Lock()

    def work() -> None:
        while True:
            with turn:
                entry = next(rest, None)
            if entry is None:
                return
            path, link = entry["path"], entry.get("link")
            place = places[path]
            if (link_of(place) != link) if link is not None else (hashed(place) != entry["sha256"]):
                wrong.append(path)

    # hashlib lets other threads run: as many files at once as there are cores.
    threads = [threading.Thread(target=work) for _ in range(os.cpu_count() or 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(wrong)


def _packed(blob: bytes) -> str | None:
    """Return a device tree, compressed, in base64."""
    return base64.b64encode(zlib.compress(blob, 6)).decode() if blob else None
