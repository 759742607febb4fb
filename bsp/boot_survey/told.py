# SPDX-License-Identifier: MIT
"""What npu-bsp's boot script tells of a board's U-Boot: from the command line of what then booted. Pure.

``npu_bsp.lacks=cmp,itest``: commands and variables that images/deploy/boot/boot.cmd misses.
``npu_bsp.trial=moved``: why it took no trial although there was one.

Both are on the command line of generations, and of the board's old way of booting where that keeps U-Boot's
``bootargs``.
"""

from __future__ import annotations

import re

_OPTION = "npu_bsp.lacks="
_TRIAL_OPTION = "npu_bsp.trial="
_TRIAL = {
    "torn": "U-Boot found its mark, trial.env, torn, or cannot run it (source)",
    "moved": "its mark, trial.env, is not in the sector of the disk that it names: it was moved or copied "
    "after it was armed, and U-Boot left both alone",
    "unloadable": "U-Boot could not load all of its files from the boot partition",
    "unstarted": "U-Boot loaded it and did not start it: it lacks the command booti, or booti does not "
    "take this kernel",
}
_NAME = re.compile(r"[A-Za-z0-9_-]{1,32}")

_NO_PLACE = "the boot script does not know the partition that it lies on, so it could load nothing"
_NO_MEMORY = "there is no address to load that to"
_NOT_SPENT = "a trial cannot be marked as spent, so none is taken"
_MEANING = {
    "devtype": _NO_PLACE,
    "devnum": _NO_PLACE,
    "distro_bootpart": _NO_PLACE,
    "kernel_addr_r": _NO_MEMORY,
    "fdt_addr_r": _NO_MEMORY,
    "ramdisk_addr_r": _NO_MEMORY,
    "load": "nothing can be loaded from the boot partition, not even boot.scr",
    "itest": f"whether there is a trial cannot be read: {_NOT_SPENT}",
    "mw": _NOT_SPENT,
    "cmp": f"the disk's sector cannot be compared with the file, so it is left alone: {_NOT_SPENT}",
    "fatwrite": f"it is not there, or could not write: {_NOT_SPENT}",
    "read": f"sectors of the disk cannot be read: {_NOT_SPENT}",
    "write": f"sectors of the disk cannot be written: {_NOT_SPENT}",
}


def lacks_in(cmdline: str) -> tuple[str, ...]:
    """Return the names that a kernel command line says are missing, each once."""
    values = [word.removeprefix(_OPTION) for word in cmdline.split() if word.startswith(_OPTION)]
    names = [name for value in values for name in value.split(",") if _NAME.fullmatch(name)]
    return tuple(dict.fromkeys(names))


def bars(name: str, way: str) -> bool:
    """Return whether a U-Boot that lacks something cannot mark a trial as spent in that way: fat or raw."""
    kind = name.rpartition("-")[2]
    only = "fat" if kind == "fatwrite" else "raw" if kind in ("cmp", "read", "write") else way
    return only == way


def untaken_in(cmdline: str) -> str:
    """Return in words why the boot script took no trial, by a kernel command line; empty: it is silent."""
    words = [word for word in cmdline.split() if word.startswith(_TRIAL_OPTION)]
    return _TRIAL.get(words[-1].removeprefix(_TRIAL_OPTION), "") if words else ""


def meaning_of(name: str) -> str:
    """Return what it means that a U-Boot has no command or variable of that name."""
    kind = "variable" if _MEANING.get(name) in (_NO_PLACE, _NO_MEMORY) else "command"
    # A device's subcommands: mmc-read is ``mmc read``.
    meaning = _MEANING.get(name) or _MEANING.get(
        name.rpartition("-")[2], "the boot script needs it"
    )
    return f"the {kind} {name.replace('-', ' ')} ({meaning})"


def explained(names: tuple[str, ...]) -> str:
    """Return in words what a U-Boot lacks; empty where it lacks nothing."""
    return f"its U-Boot lacks {', '.join(map(meaning_of, names))}" if names else ""
