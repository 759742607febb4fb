# SPDX-License-Identifier: MIT
"""What is wrong or lacking in a profile, as far as it shows without its board's device tree."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from .base.errors import UserError, nearest
from .catalog import (
    is_own,
    load_soc,
    names_no_board,
    soc_names,
    unknown_soc,
)
from .identify import is_chip_makers, soc_of
from .kernel.distribution import all_series
from .kernel.source import check_source_name
from .profile import Board
from .readable_boards import readable_boards

MARK = "# MISSING: "

_MODULE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*\??")
_MODULE_FILE = re.compile(r"\.ko(\.(xz|gz|zst))?\??$")
_COMPATIBLE = re.compile(r"[^\s,]+,.*[^\s,]")
_UNIT = re.compile(r"[A-Za-z0-9:_.@\\-]+")
_KERNELS_OWN = ("/dev", "/proc", "/sys", "/run")  # mounted there is no boot partition


@dataclass(frozen=True)
class Missing:
    """Something that a profile lacks, or that is wrong in it.

    Attributes:
        key: where in the file it belongs.
        why: what is wrong, or what cannot be done without it.
        next: what to do about it.
    """

    key: str
    why: str
    next: str


def wrong_soc(soc: str) -> Missing:
    """Return that a profile names no SoC that there is."""
    return Missing("soc", unknown_soc(soc), "take the SoC that the board has")


def mistakes(board: Board, text: str = "") -> list[Missing]:
    """Return what is wrong or lacking in a profile, as far as it shows without a device tree.

    Args:
        text: the profile as it is written, for the lines that say MISSING.
    """
    marked = [
        Missing(key, why, "fill it in, and remove the line that says MISSING")
        for key, _, why in (
            line.strip().removeprefix(MARK).partition(": ")
            for line in text.splitlines()
            if line.strip().startswith(MARK)
        )
    ]
    known_soc = board.soc in soc_names()
    missing = [
        *([] if known_soc else [wrong_soc(board.soc)]),
        *_tree_name(board),
        *_strings(board),
        *_kernel(board),
        *(_npu(board) if known_soc else ()),
        *_boot(board),
        *_health(board),
    ]
    keys = {each.key for each in marked}
    return marked + [each for each in missing if each.key not in keys]


def _tree_name(board: Board) -> Iterator[Missing]:
    """Where the device tree is to come from."""
    if board.dts is None and board.dtb is None and board.qemu is None:
        yield Missing("dts", "no device tree to build on", "name its source (dts), or a file (dtb)")
    if board.dts is not None and board.dtb is not None:
        yield Missing(
            "dtb",
            "dts names a source in the kernel, and dtb a file: one of them counts",
            "remove one",
        )
    if board.dts is not None:
        folder, _, name = board.dts.rpartition("/")
        stem = re.sub(r"\.(dtsi?|dtbo?)$", "", name)
        if folder or stem != name:
            own = load_soc(board.soc).dts_directory if board.soc in soc_names() else None
            where = f" below arch/arm64/boot/dts/{own}" if own else ""
            yield Missing(
                "dts",
                f"{board.dts!r} is not a name of a source: it is the file's name{where}, without folder "
                "and without suffix",
                f'write dts = "{stem}"',
            )
    if board.dtb is not None and board.dtb.endswith((".dts", ".dtsi")):
        yield Missing(
            "dtb", f"{Path(board.dtb).name} is a source, not compiled", "compile it with dtc"
        )


def _strings(board: Board) -> Iterator[Missing]:
    """What identifies the board."""
    first, identity = board.compatible[0], board.identity
    shipped = [each for each in readable_boards() if each.compatible[0] == first]
    reference = next((each for each in shipped if each.identity.models and not is_own(each)), None)
    if not _COMPATIBLE.fullmatch(first):
        yield Missing(
            "compatible",
            f"{first!r} is not a compatible string: expected VENDOR,BOARD, without blanks around it",
            "write it as the board does (tr '\\0' '\\n' < /proc/device-tree/compatible)",
        )
    elif names_no_board(first):
        yield Missing(
            "compatible",
            f"{first!r} is the name of a chip or a module, which many boards have: it names no board",
            "put a string of the board's own before it, such as "
            f'"unknown,{board.name}" (./inv new-board NAME --like BOARD --from-host HOST does that)',
        )
    elif reference and not identity.models and is_own(board):
        yield Missing(
            "compatible",
            f"{first!r} is the string of {reference.title}, a reference board: trees of other boards "
            "often keep it, so it does not identify this one",
            "put a string of the board's own before it, or say what model it is: [identity] models = "
            '["..."]',
        )
    elif not identity.models and is_chip_makers(board.compatible):
        yield Missing(
            "identity",
            f"{first!r} is a string of the chip's maker, as reference boards have it: trees of other "
            "boards often keep it, so it does not identify this one",
            'say what model it is: [identity] models = ["..."] (cat /proc/device-tree/model on the board)',
        )
    others = [each.name for each in shipped if is_own(each) and each.name != board.name]
    if others and is_own(board):
        yield Missing(
            "compatible",
            f"the profile {' and '.join(others)} claims {first!r}, too",
            "make the strings differ, or remove one of the profiles",
        )
    soc = soc_of(board.compatible)
    if soc is not None and board.soc in soc_names() and soc != board.soc:
        yield Missing(
            "soc",
            f"{board.soc!r}, but compatible has a string of {soc} ({', '.join(board.compatible)})",
            f'write soc = "{soc}", or correct compatible',
        )
    if identity.runs_as is not None and not identity.models:
        yield Missing(
            "identity.models",
            f"runs_as = {identity.runs_as!r} identifies the board only together with its model",
            'add models = ["..."], as /proc/device-tree/model says',
        )


def _kernel(board: Board) -> Iterator[Missing]:
    try:
        check_source_name(board.kernel)
    except UserError as error:
        series = re.match(r"\d+\.\d+", board.kernel.removeprefix("v"))
        had = series is not None and series.group() in all_series()
        step = f'write kernel = "{series.group()}"' if series and had else error.hint
        yield Missing("kernel", error.message, step or "name another kernel")


def _npu(board: Board) -> Iterator[Missing]:
    """The NPU's settings, as far as the SoC's profile tells."""
    npu = load_soc(board.soc).npu
    if npu is None:
        yield Missing("soc", f"{board.soc} has no NPU", "take the SoC that the board has")
        return
    clocks = {clock.name: clock for clock in npu.clocks}
    for name, rate_hz in board.npu.rates_hz.items():
        if name not in clocks:
            yield Missing(
                "npu.rates_hz",
                f"the NPU has no clock {name!r}{nearest(name, list(clocks))}",
                f"its clocks are {', '.join(clocks)}",
            )
            continue
        reachable = clocks[name].reachable_hz()
        in_hz = next((rate_hz * unit for unit in (10**6, 10**3) if rate_hz * unit in reachable), 0)
        if in_hz and rate_hz not in reachable:
            yield Missing(
                "npu.rates_hz",
                f"{name} = {rate_hz:_}: rates are in Hz",
                f"write {name} = {in_hz:_}",
            )
        elif reachable and all(abs(rate_hz - each) > 1 for each in reachable):
            near = sorted(reachable, key=lambda each: abs(each - rate_hz))[:3]
            rates = ", ".join(f"{each:_}" for each in sorted(near, reverse=True))
            yield Missing(
                "npu.rates_hz",
                f"{name} = {rate_hz:_}: no parent clock reaches that rate, and the kernel would silently "
                "take another one",
                f"reachable near it: {rates}",
            )


def _boot(board: Board) -> Iterator[Missing]:
    """How it boots."""
    if board.boot is None:
        if board.qemu is None:
            yield Missing("boot", "nothing can be deployed", 'add [boot] with fat_mount = "..."')
    else:
        yield from _mount(board.boot.fat_mount)
        yield from _modules("boot.initrd_modules", board.boot.initrd_modules)
        if not board.boot.initrd_modules:
            yield Missing(
                "boot.initrd_modules",
                "a deployed kernel may not reach its root file system",
                "name the storage drivers (lsmod on the board)",
            )
        cmdline = board.boot.cmdline
        if cmdline is not None and "root=" not in cmdline:
            yield Missing(
                "boot.cmdline",
                "the command line names no root= for the kernel",
                "add it, or remove cmdline: then root and console are those of the running board",
            )
        if cmdline is not None and re.search(r"[\n\r\0]", cmdline):
            yield Missing(
                "boot.cmdline", "a command line is one line", "join the lines with spaces"
            )
    if board.qemu is not None:
        yield from _modules("qemu.initrd_modules", board.qemu.initrd_modules)


def _mount(mount: str) -> Iterator[Missing]:
    what = "it is the folder where the running board has its FAT boot partition mounted"
    step = 'write such as fat_mount = "/boot/firmware" (findmnt -t vfat on the board says where)'
    path = PurePosixPath(mount)
    if not mount.startswith("/"):
        yield Missing("boot.fat_mount", f"{mount!r} is not an absolute path; {what}", step)
    elif mount == "/" or any(mount == own or mount.startswith(f"{own}/") for own in _KERNELS_OWN):
        kind = "a device file" if mount.startswith("/dev/") else "no such place"
        yield Missing("boot.fat_mount", f"{mount!r} is {kind}; {what}", step)
    elif str(path) != mount or ".." in path.parts or re.search(r"\s", mount):
        yield Missing("boot.fat_mount", f"{mount!r} is not written plainly; {what}", step)


def _modules(key: str, modules: Sequence[str]) -> Iterator[Missing]:
    for module in modules:
        if _MODULE.fullmatch(module):
            continue
        plain = _MODULE_FILE.sub("", module.rpartition("/")[2]).rstrip("?")
        mark = "?" if module.endswith("?") else ""
        yield Missing(
            key,
            f"{module!r} is not a name of a module: names have no folder and no suffix",
            f'write "{plain}{mark}"'
            if _MODULE.fullmatch(plain)
            else "lsmod on the board lists them",
        )


def _health(board: Board) -> Iterator[Missing]:
    for unit in board.health.services:
        if not _UNIT.fullmatch(unit):
            yield Missing(
                "health.services",
                f"{unit!r} is not a name of a systemd unit",
                "systemctl list-units on the board lists them",
            )
