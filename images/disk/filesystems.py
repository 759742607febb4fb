# SPDX-License-Identifier: MIT
"""The two file systems of a disk, written into its image reproducibly, without root and without mounts.

mtools and mke2fs take the time from SOURCE_DATE_EPOCH and the identifiers from the layout. mke2fs is that
of Debian trixie, unpacked into a folder of its own: from 1.47.1 on it reads a tar stream, so that owners
need neither root nor fakeroot, and no time of the host gets into an inode.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import re
import threading
from pathlib import Path

from bsp.base.errors import InfrastructureError, UserError
from bsp.base.packages.apt import Archive, unpacked_program
from bsp.base.packages.host_system import host_architecture
from bsp.base.process import ToolFailedError, run

from .layout import MIB, SECTOR_BYTES, Layout
from .tree import Tree

FAT_LABEL = "NPU-BOOT"
ROOT_LABEL = "npu-root"

_E2FSPROGS_SUITE = "trixie"
_JOURNAL_MIB = 16
_PIPE_BYTES = 1 << 20  # what an ordinary user may have: /proc/sys/fs/pipe-max-size
BLOCK_BYTES = 4096
_FULL = ("Could not allocate", "No free space", "no free", "No space left")


def fill_fat(
    image: Path, layout: Layout, tree: Path, *, epoch_s: int, label: str = FAT_LABEL, bits: int = 32
) -> None:
    """Make the FAT file system from the files of ``tree``.

    Args:
        bits: 32, or 16.

    Raises:
        UserError: they do not fit.
    """
    at = f"{image}@@{layout.fat_start_bytes}"
    sectors = str(layout.fat_size_bytes // SECTOR_BYTES)
    env = {"SOURCE_DATE_EPOCH": str(epoch_s), "TZ": "UTC", "MTOOLS_SKIP_CHECK": "1"}
    run(
        ["mformat", "-i", at, *(["-F"] if bits == 32 else []), "-v", label,
         "-N", f"{layout.fat_serial:08x}", "-T", sectors, "-h", "64", "-s", "32", "::"],
        env=env,
    )  # fmt: skip
    # Folder by folder in alphabetical order: mcopy -s would follow the order of the host's directories.
    for root, folders, files in os.walk(tree):
        folders.sort()
        below = "::" + "".join(f"{part}/" for part in Path(root).relative_to(tree).parts)
        names = [str(Path(root) / name) for name in sorted(files)]
        try:
            if names:
                run(["mcopy", "-i", at, "-Q", *names, below], env=env)
            if folders:
                run(["mmd", "-i", at, *(below + name for name in folders)], env=env)
        except ToolFailedError as error:
            if "full" not in error.message.lower():
                raise
            size_mib = layout.fat_size_bytes // MIB
            raise UserError(f"the boot partition of {size_mib} MiB is too small") from error


def fill_root(image: Path, layout: Layout, tree: Tree, *, label: str = ROOT_LABEL) -> None:
    """Make the root file system from the files of ``tree``.

    Raises:
        UserError: they do not fit.
    """
    reader, writer = os.pipe()
    # A large pipe: on a busy machine each switch between the two processes costs a time slice.
    with contextlib.suppress(OSError):
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    failed: list[BaseException] = []

    def feed() -> None:
        try:
            with os.fdopen(writer, "wb", buffering=1 << 20) as sink:
                tree.write_tar(sink)
        except BrokenPipeError:
            pass  # mke2fs reports the reason
        except BaseException as error:  # raised again in the waiting thread
            failed.append(error)

    feeder = threading.Thread(target=feed, daemon=True)
    feeder.start()
    seed = layout.identifier("directory hash")
    try:
        with os.fdopen(reader, "rb") as source:
            run(
                [*_e2fs("mke2fs"), "-q", "-t", "ext4", "-F", "-L", label, "-m", "0",
                 "-b", str(BLOCK_BYTES),
                 "-U", str(layout.root_uuid), "-J", f"size={_JOURNAL_MIB}",
                 "-E", f"offset={layout.root_start_bytes},hash_seed={seed},lazy_itable_init=1",
                 "-d", "-", image, f"{layout.root_size_bytes // 1024}k"],
                env={"SOURCE_DATE_EPOCH": str(tree.epoch_s), "TZ": "UTC"},
                stdin=source,
            )  # fmt: skip
    except ToolFailedError as error:
        if any(words in error.message for words in _FULL):
            raise UserError(
                f"the files do not fit into a root partition of {layout.root_size_bytes // MIB} MiB",
                hint="--size makes the disk larger",
            ) from error
        raise
    finally:
        feeder.join(timeout=10)
    if failed:
        raise InfrastructureError(f"the root file system cannot be read: {failed[0]}")


def journal_blocks(image: Path, layout: Layout) -> list[tuple[int, int]]:
    """Return the extents of the root file system's journal: first and last blocks of 4 KiB of the image."""
    at = f"{image}?offset={layout.root_start_bytes}"
    listing = run([*_e2fs("debugfs"), "-R", "stat <8>", at]).text
    base = layout.root_start_bytes // BLOCK_BYTES
    # (0-4095):98304-102399, (4096):... in the last line
    extents = re.findall(r"\((?:\d+)(?:-\d+)?\):(\d+)(?:-(\d+))?", listing.partition("EXTENTS:")[2])
    if not extents:
        raise InfrastructureError(f"debugfs lists no extents of the journal:\n{listing[-400:]}")
    return [(base + int(first), base + int(last or first)) for first, last in extents]


def _e2fs(program: str) -> list[str]:
    return unpacked_program(mke2fs_folder(), f"usr/sbin/{program}")


@functools.cache
def mke2fs_folder() -> Path:
    """Return where mke2fs is unpacked; its name is that of the packages' versions."""
    host = host_architecture()
    # mke2fs loads libarchive by itself and does not depend on it.
    packages = ["e2fsprogs", "libarchive13t64"]
    return Archive(_E2FSPROGS_SUITE, host).unpacked(packages, with_dependencies=True)
