# SPDX-License-Identifier: MIT
"""Loads a kernel for kexec: everything is held in memory, nothing on a disk changes."""

from __future__ import annotations

import base64
import os
import re
import zlib

from .boot_files import EMPTY_RAM_DISK, Boot
from .files import names_in, read_text
from .frames import RefusedError

TYPE_CHECKING = False  # see frames.py
if TYPE_CHECKING:
    from .board import Board, Record

_FOLDER = "run/npu-bsp-kexec"
_TOKEN = re.compile(r"[0-9a-f]{12}")
_PLACES = ("usr/sbin", "sbin", "usr/bin", "bin")
_LOAD_S = 120
_SPARE_BYTES = 64 << 20


def kexec_load(board: Board, request: Record) -> Record:
    """Load the running kernel and RAM disk with another device tree; the next ``kexec`` starts them.

    Raises:
        RefusedError: the files that run are not there, memory is short, or the kernel does not take them.
    """
    import shutil
    import subprocess

    if not _TOKEN.fullmatch(request["token"]):
        raise RefusedError(f"{request['token']!r} is not a token")
    program = _program(board)
    boot = Boot(board, request["fat_mounts"])
    files = {
        "kernel": boot.kernel()[1],
        "initrd": boot.ram_disk()[1],
        "dtb": zlib.decompress(base64.b64decode(request["dtb"])),
    }
    need = (
        2 * sum(map(len, files.values())) + _SPARE_BYTES
    )  # here, and once more as the kernel keeps it
    free = _available(board)
    if free is not None and free < need:
        raise RefusedError(
            f"this board has {free / 1e6:.0f} MB of memory to spare; loading takes {need / 1e6:.0f} MB"
        )
    folder = board.at(_FOLDER)
    shutil.rmtree(folder, ignore_errors=True)
    try:
        os.makedirs(folder, mode=0o700)
        for name, content in files.items():
            with open(f"{folder}/{name}", "wb") as file:
                file.write(content)
        command = [program, "-c", "-l", f"{folder}/kernel", f"--dtb={folder}/dtb"]
        if files["initrd"] != EMPTY_RAM_DISK:
            command.append(f"--initrd={folder}/initrd")
        command.append(f"--command-line={request['cmdline']}")
        done = subprocess.run(command, capture_output=True, timeout=_LOAD_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RefusedError(f"kexec -l: {error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if done.returncode or read_text(board.at("sys/kernel/kexec_loaded")) == "0":
        output = (done.stderr or done.stdout).decode(errors="replace").strip()[-300:]
        raise RefusedError(
            f"kexec -l ended with {done.returncode}: {output or 'no kernel was loaded'}"
        )
    return {"kernel_bytes": len(files["kernel"]), "initrd_bytes": len(files["initrd"])}


def _program(board: Board) -> str:
    places = [place for place in _PLACES if "kexec" in names_in(board.at(place))]
    if not places:
        raise RefusedError("this board has no program kexec (package kexec-tools)")
    return board.at(f"{places[0]}/kexec")


def _available(board: Board) -> int | None:
    match = re.search(r"MemAvailable:\s+(\d+) kB", read_text(board.at("proc/meminfo")))
    return int(match[1]) * 1024 if match else None
