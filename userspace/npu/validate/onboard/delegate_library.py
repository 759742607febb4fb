# SPDX-License-Identifier: MIT
"""Says why the library of a TFLite delegate cannot be loaded, and what to do about it.

The TFLite runtimes hide the dynamic linker's message behind an exception of their own, and glibc answers
"No such file or directory" for a library of another CPU. Shipped to boards beside ``runner.py``: the
standard library only.

Sources: System V ABI, ELF header and program header; messages of glibc ``elf/dl-load.c``,
``elf/dl-lookup.c`` and ``elf/dl-version.c``, and of musl ``ldso/dynlink.c``.
"""

from __future__ import annotations

import ctypes
import re
import struct
import sys
from pathlib import Path

# TensorFlow tensorflow/lite/delegates/external/external_delegate_interface.h
SYMBOLS = ("tflite_plugin_create_delegate", "tflite_plugin_destroy_delegate")

_HEADER_BYTES = 64
# e_machine
_MACHINES = {
    3: "x86 (32 bits)", 8: "MIPS", 20: "PowerPC", 21: "PowerPC 64", 22: "s390", 40: "Arm (32 bits)",
    62: "x86-64", 183: "arm64", 243: "RISC-V", 258: "LoongArch",
}  # fmt: skip
# What the dynamic linker says, and what helps.
_ADVICE = (
    (r"version [`'](GLIBC|GLIBCXX|CXXABI|GCC)_[\w.]+' not found",
     "it was built for a newer system; take the build for this system's release, or compile it here"),
    (r"undefined symbol|symbol not found",
     "the library that has this symbol is missing or of another version; install the one that it was "
     "built with, and name its folder with --env LD_LIBRARY_PATH=FOLDER"),
    (r"static TLS block", "load it before all others: --env LD_PRELOAD={path}"),
    (r"failed to map segment|[Oo]peration not permitted",
     "its file system is perhaps mounted with noexec; copy it elsewhere"),
)  # fmt: skip
_MISSING = re.compile(
    r"^(?P<name>[^/:\s]+): cannot open shared object file: No such file"
    r"|Error loading shared library (?P<other>[^:]+): No such file"
)


class LibraryError(Exception):
    """The library cannot be loaded; the message says why, and what to do."""


def load(path: str) -> None:
    """Load a delegate's library into this process, as the TFLite runtime will.

    Raises:
        LibraryError: it is not a library for this machine or not a delegate, or a part of it is missing.
    """
    _check_file(Path(path))
    try:
        library = ctypes.PyDLL(path)
    except OSError as error:
        raise LibraryError(_with_advice(path, str(error))) from error
    missing = [name for name in SYMBOLS if not hasattr(library, name)]
    if missing:
        raise LibraryError(
            f"{path} is not a TFLite external delegate: undefined symbol: {' and '.join(missing)}; give "
            "the path of a delegate's library"
        )


def of_opened(name: str) -> str:
    """Return why a library that a delegate itself opens does not load; "" if it does, or is absent."""
    try:
        ctypes.CDLL(name)
    except OSError as error:
        absent = _MISSING.search(str(error))
        if absent and name in (absent["name"], absent["other"]):
            return ""
        return f"{name} does not load: {_with_advice(name, str(error))}"
    return ""


def _with_advice(path: str, words: str) -> str:
    """Return the dynamic linker's words, and what to do about them where that is known."""
    absent = _MISSING.search(words)
    if absent:
        name = absent["name"] or absent["other"]
        return (
            f"{words}: {path} needs {name}; install the package that has it, or name its folder with "
            "--env LD_LIBRARY_PATH=FOLDER"
        )
    for pattern, advice in _ADVICE:
        if re.search(pattern, words):
            return f"{words}: {advice.format(path=path)}"
    return words


def _check_file(path: Path) -> None:
    """Raise a LibraryError for what the dynamic linker would misname, or crash on."""
    if path.is_dir():
        raise LibraryError(f"{path} is a folder; give the path of the library in it")
    if not path.is_file():
        raise LibraryError(f"{path} is not a regular file; give the path of a delegate's library")
    try:
        with path.open("rb") as file:
            head = file.read(_HEADER_BYTES)
            size_bytes = path.stat().st_size
            if not head:
                raise LibraryError(f"{path} is an empty file (file too short); copy it again")
            if head[:4] != b"\x7fELF":
                raise LibraryError(
                    f"{path} is not a shared library (invalid ELF header: it starts with {head[:4]!r})"
                )
            needed_bytes = _needed_bytes(file.read(1 << 16), head)
    except OSError as error:
        raise LibraryError(f"{path} cannot be read: {error.strerror}") from error
    own_header = _own_header()
    if len(head) == _HEADER_BYTES and own_header and _kind(head) != _kind(own_header):
        wrong = "wrong ELF class" if head[4] != own_header[4] else "wrong machine in its ELF header"
        raise LibraryError(
            f"{path} is for {_cpu(head)}, and this Python is for {_cpu(own_header)} ({wrong}); take the "
            f"library that was built for {_cpu(own_header)}"
        )
    if size_bytes < needed_bytes or len(head) < _HEADER_BYTES:
        raise LibraryError(
            f"{path} is cut short (file too short): {size_bytes} bytes of at least "
            f"{max(needed_bytes, _HEADER_BYTES)} are there; copy it again"
        )


def _needed_bytes(rest: bytes, head: bytes) -> int:
    """Return how long the file has to be for its loadable segments; 0 where that cannot be told."""
    content = head + rest
    if len(content) < _HEADER_BYTES or head[4] not in (1, 2):
        return 0
    order = ">" if head[5] == 2 else "<"
    wide = head[4] == 2
    (table,) = struct.unpack_from(f"{order}{'Q' if wide else 'I'}", head, 32 if wide else 28)
    size, count = struct.unpack_from(f"{order}2H", head, 54 if wide else 42)
    ends = [table + size * count]
    for number in range(count):
        place = table + size * number
        if place + size > len(content) or size < (56 if wide else 32):
            break
        # p_type, then p_offset and p_filesz.
        (kind,) = struct.unpack_from(f"{order}I", content, place)
        layout = f"{order}{'Q' if wide else 'I'}"
        (offset,) = struct.unpack_from(layout, content, place + (8 if wide else 4))
        (length,) = struct.unpack_from(layout, content, place + (32 if wide else 16))
        if kind == 1:
            ends.append(offset + length)
    return int(max(ends))


def _own_header() -> bytes:
    """Return the ELF header of the Python that runs; empty where it cannot be read."""
    try:
        with Path(sys.executable).open("rb") as file:
            head = file.read(_HEADER_BYTES)
    except OSError:
        return b""
    return head if head[:4] == b"\x7fELF" and len(head) == _HEADER_BYTES else b""


def _kind(head: bytes) -> tuple[int, int, int]:
    """Class (32 or 64 bits), byte order and machine of an ELF header."""
    (machine,) = struct.unpack_from(">H" if head[5] == 2 else "<H", head, 18)
    return head[4], head[5], int(machine)


def _cpu(head: bytes) -> str:
    machine = _kind(head)[2]
    return _MACHINES.get(machine, f"the CPU with the ELF number {machine}")
