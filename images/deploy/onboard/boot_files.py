# SPDX-License-Identifier: MIT
"""Finds the files of the running kernel and RAM disk, whose names differ from system to system.

A kernel is known by its banner, which has to be ``/proc/version`` to the last letter: release, builder,
compiler, number and time of the build. A RAM disk says little of itself: it is known by the release in its
name, by the size of the one that was booted, or by the modules in it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import zlib

from .files import read
from .frames import RefusedError

TYPE_CHECKING = False  # see frames.py
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from .board import Board

    Found = tuple[Any, bytes]

_MOST_BYTES = 256 << 20  # no kernel is larger
_DEPTH = 2  # boot-loader entries have folders: MACHINE/RELEASE/linux
_RAM_DISK = re.compile(r"initrd|initramfs|ramdisk", re.I)
_SPARE = re.compile(r"kdump|rescue|fallback|\.old|\.bak|\.dpkg-|~$|\.partial$", re.I)
_SUFFIXES = r"(?:\.(?:img|cpio|gz|xz|bz2|zst|lz4|lzma|uimg|u-boot))*"
_UIMAGE = b"\x27\x05\x19\x56"
_UIMAGE_BYTES = 64
_PACKED = (
    (b"\x1f\x8b", "gzip"),
    (b"\xfd7zXZ\0", "xz"),
    (b"BZh", "bzip2"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"\x02\x21\x4c\x18", "lz4"),
    (b"\x89LZO", "lzop"),
    (b"\x5d\0\0", "lzma"),
)
_NO_KERNELS = ((b"ANDROID!", "an Android boot image"), (b"\xd0\x0d\xfe\xed", "a FIT image"))
_HEAD_BYTES = 4096
_FIT_IMAGES = b"\0\0\0\1images\0"
"""The node that a FIT has, whatever its name (mkimage), and a device tree has not."""
_UKI = "an EFI program with a kernel in it (UKI)"
_UKI_SECTION = b".linux\0\0"
EMPTY_RAM_DISK = (
    b"070701" + b"0" * 32 + b"00000001" + b"0" * 48 + b"0000000B" + b"0" * 8 + b"TRAILER!!!\0"
).ljust(512, b"\0")
"""An archive without a file in it (cpio, newc): the kernel goes on to mount ``root=`` itself."""

_found: dict[tuple[object, ...], Found] = {}
"""What was found in the same files before: a session asks up to three times, and unpacking takes long."""


class Boot:
    """The files of ``/boot``, of our partition and of the other FAT partitions."""

    def __init__(self, board: Board, fat_mounts: list[str]) -> None:
        self._board = board
        self.release = board.release()
        self.banner = read(board.at("proc/version")).strip()
        places = [board.at("boot"), board.fat, *map(board.at, fat_mounts)]
        self.folders = list(dict.fromkeys(os.path.realpath(place) for place in places))
        self._files = list(self._walk())

    def shown(self, path: str) -> str:
        """Return a path as the board has it."""
        return path[len(os.path.realpath(self._board.root or "/").rstrip("/")) :]

    def kernel(self) -> tuple[str, bytes]:
        """Return the path of the running kernel, and the kernel unpacked.

        Raises:
            RefusedError: there is none, or several that differ; says what there is.
        """
        return self._once("kernel", self._find_kernel)

    def _find_kernel(self) -> tuple[str, bytes]:
        kernels: dict[bytes, tuple[str, bytes]] = {}
        others = []
        for path in sorted(self._files, key=lambda path: not self._is_named(path)):
            if _RAM_DISK.search(os.path.basename(path)):
                continue
            try:
                content = plain_kernel(path)
            except RefusedError as error:
                others.append(f"{self.shown(path)} {error}")
                continue
            if content and self.banner and self.banner + b"\n" in content:
                kernels.setdefault(hashlib.sha256(content).digest(), (path, content))
            elif content:
                named = re.search(rb"Linux version [^\0\n]{1,300}", content)
                text = named[0].decode(errors="replace") if named else "a kernel without a banner"
                others.append(f"{self.shown(path)} is {text}")
        if len(kernels) > 1:
            names = " and ".join(self.shown(path) for path, _ in kernels.values())
            raise RefusedError(
                f"{names} both have the banner of the kernel that runs, and differ: which of them was "
                "booted cannot be told"
            )
        if not kernels:
            raise RefusedError(
                f"none of the files in {self._places()} is the kernel that runs "
                f"({self.banner.decode(errors='replace') or 'it has no /proc/version'})"
                + "".join(f"\n  {other}" for other in others)
            )
        return next(iter(kernels.values()))

    def ram_disk(self) -> tuple[str | None, bytes]:
        """Return the path of the RAM disk, and its content; no path: this board was booted without one.

        Raises:
            RefusedError: it is not there, or there are several that differ; says what there is.
        """
        return self._once("ram disk", self._find_ram_disk)

    def _find_ram_disk(self) -> tuple[str | None, bytes]:
        there = [path for path in self._files if _RAM_DISK.search(os.path.basename(path))]
        there = [path for path in there if not _SPARE.search(os.path.basename(path))]
        booted_bytes = self._booted_bytes()
        named = [path for path in there if self._is_named(path)]
        pool = {
            path: without_header(read(path))
            for path in named or [path for path in there if not self._is_of_another(path)]
        }
        same_size = {path: data for path, data in pool.items() if len(data) == booted_bytes}
        if same_size:
            pool = same_size
        elif not named:
            pool = self._by_modules(pool, booted_bytes)
        different = {hashlib.sha256(data).digest(): path for path, data in reversed(pool.items())}
        if len(different) == 1:
            path = next(iter(different.values()))
            return path, pool[path]
        if not there and booted_bytes is None and not os.path.exists(self._efi()):
            return None, EMPTY_RAM_DISK
        shown = ", ".join(self.shown(path) for path in (pool or there)) or "there is none"
        if different:
            raise RefusedError(f"several RAM disks could be the one of {self.release}: {shown}")
        raise RefusedError(
            f"none of the RAM disks in {self._places()} is of {self.release}: {shown}"
        )

    def _once(self, what: str, find: Callable[[], Found]) -> Found:
        """Return what ``find`` does; what it did before, as long as no file has changed since."""
        files = [(path, *_state_of(path)) for path in self._files]
        key = (what, self.release, self.banner, self._booted_bytes(), *files)
        if key not in _found:
            _found[key] = find()
        return _found[key]

    def _places(self) -> str:
        return ", ".join(self.shown(folder) for folder in self.folders)

    def _efi(self) -> str:
        return self._board.at("sys/firmware/efi")

    def _walk(self) -> Iterator[str]:
        """Yield each file once: a file with several names by one, and none of our own copies."""
        visited = {os.path.realpath(self._board.own)}
        waiting = [(folder, 0) for folder in self.folders]
        while waiting:
            folder, depth = waiting.pop(0)
            names: list[str] = []
            with contextlib.suppress(OSError):
                names = sorted(os.listdir(folder))
            for name in names:
                path = os.path.realpath(f"{folder}/{name}")
                if path in visited:
                    continue
                visited.add(path)
                if os.path.isfile(path):
                    yield path
                elif os.path.isdir(path) and depth < _DEPTH:
                    waiting.append((path, depth + 1))

    def _is_named(self, path: str) -> bool:
        """Return whether the name of a file or of its folder ends with the release."""
        release = rf"(?:^|[-_.]){re.escape(self.release)}"
        folder, name = os.path.split(path)
        if os.path.basename(folder) == self.release:
            return True
        return bool(re.search(f"{release}{_SUFFIXES}$", name))

    def _is_of_another(self, path: str) -> bool:
        """Return whether a file or its folder has another release in its name."""
        last_two = "/".join(path.split("/")[-2:])
        return bool(re.search(r"\d+\.\d+", last_two)) and not self._is_named(path)

    def _booted_bytes(self) -> int | None:
        """Return the size of the RAM disk that was handed over (``/chosen``); None if unknown."""
        chosen = self._board.at("proc/device-tree/chosen")
        start, end = (read(f"{chosen}/linux,initrd-{which}") for which in ("start", "end"))
        if not start or not end:
            return None
        return int.from_bytes(end, "big") - int.from_bytes(start, "big")

    def _by_modules(self, pool: dict[str, bytes], booted_bytes: int | None) -> dict[str, bytes]:
        """Return those with modules of this release; else those with none, where the size is unknown."""
        releases = {path: modules_in(data) for path, data in pool.items()}
        of_release = {path: data for path, data in pool.items() if self.release in releases[path]}
        if of_release or booted_bytes is not None:
            return of_release
        return {path: data for path, data in pool.items() if not releases[path]}


def _state_of(path: str) -> tuple[int, ...]:
    try:
        now = os.stat(path)
    except OSError:
        return ()
    return now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns


def plain_kernel(path: str) -> bytes:
    """Return the arm64 kernel in a file, unpacked; nothing if the file is something else.

    Raises:
        RefusedError: it may be one, and cannot be looked into.
    """
    with contextlib.suppress(OSError), open(path, "rb") as file:
        head = file.read(_UIMAGE_BYTES + 64)
        packed = _format_of(without_header(head)) or head[4:8] == b"zimg"
        kind = next((what for magic, what in _NO_KERNELS if head.startswith(magic)), None)
        if kind == "a FIT image" and not _is_fit(path, head + file.read(_HEAD_BYTES)):
            return b""  # a device tree
        if kind is None and head.startswith(b"MZ") and not packed:
            head += file.read(_HEAD_BYTES)
            kind = _UKI if _UKI_SECTION in head else None
        if kind:
            raise RefusedError(f"is {kind}, which is not searched")
        if not packed and without_header(head)[56:60] != b"ARM\x64":
            return b""
        if os.fstat(file.fileno()).st_size > _MOST_BYTES:
            return b""
        data = head + file.read()
        try:
            return plain_image(data)
        except RefusedError:
            if _format_of(without_header(head)) and not _is_maybe_kernel(path):
                return b""  # some other packed file
            raise
    return b""


def _is_fit(path: str, head: bytes) -> bool:
    return bool(re.search(r"fit|\.itb$", os.path.basename(path), re.I)) or _FIT_IMAGES in head


def _is_maybe_kernel(path: str) -> bool:
    return bool(re.search(r"image|linu[xz]|kernel|boot", os.path.basename(path), re.I))


def plain_image(data: bytes) -> bytes:
    """Return a kernel as booti takes it: uncompressed, no U-Boot header, no EFI zboot (zboot-header.S).

    Raises:
        RefusedError: it is not an arm64 kernel, or packed in a way that nothing here can undo.
    """
    data = without_header(data)
    if data[:2] == b"MZ" and data[4:8] == b"zimg":
        start, size = (int.from_bytes(data[at : at + 4], "little") for at in (8, 12))
        data = data[start : start + size]
    kind = _format_of(data)
    if kind:
        data = unpack(data, kind)
    if data[56:60] != b"ARM\x64":
        raise RefusedError("is not an arm64 Image")
    return data


def without_header(data: bytes) -> bytes:
    """Return a file without the header of U-Boot's old images (uImage, uInitrd)."""
    return data[_UIMAGE_BYTES:] if data.startswith(_UIMAGE) else data


def _format_of(data: bytes) -> str:
    return next((kind for magic, kind in _PACKED if data.startswith(magic)), "")


def unpack(data: bytes, kind: str) -> bytes:
    """Decompress; what follows the compressed data is left out.

    Raises:
        RefusedError: it is broken, or neither Python nor a program here can.
    """
    import shutil
    import subprocess

    try:
        if kind == "gzip":
            return zlib.decompressobj(31).decompress(data)
        if kind == "bzip2":
            import bz2

            return bz2.BZ2Decompressor().decompress(data)
        if kind in ("xz", "lzma"):
            import lzma

            return lzma.LZMADecompressor().decompress(data)
    except ImportError:
        pass  # a small Python; perhaps the program is there
    except Exception as error:  # lzma.LZMAError is there only where lzma is
        raise RefusedError(f"is broken {kind}: {error}") from error
    program = shutil.which(kind)
    if program is None:
        raise RefusedError(f"is packed with {kind}, and this board has no program {kind}")
    done = subprocess.run([program, "-dc"], input=data, capture_output=True, check=False)
    if not done.stdout:
        raise RefusedError(
            f"is broken {kind}: {done.stderr.decode(errors='replace').strip()[:200]}"
        )
    return done.stdout


def modules_in(data: bytes) -> set[str]:
    """Return the releases whose modules a RAM disk holds; none also where it cannot be read."""
    names = set()
    while data:
        if data.startswith(b"070701"):  # an archive that is not packed; another may follow it
            end = data.find(b"TRAILER!!!\0")
            part, data = (data, b"") if end < 0 else (data[:end], data[end + 11 :].lstrip(b"\0"))
        else:
            try:
                part = unpack(data, _format_of(data)) if _format_of(data) else b""
            except RefusedError:
                part = b""
            data = b""
        names.update(re.findall(rb"lib/modules/([^/\0\n ]{1,80})[/\0]", part))
    return {name.decode(errors="replace") for name in names}
