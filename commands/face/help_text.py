# SPDX-License-Identifier: MIT
"""What ``./inv``, ``./inv --list`` and ``./inv TASK --help`` print; no word is broken at a line's end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from bsp.base.words import filled

from .usage import flag_of

_BEGIN = (
    ("./inv bringup", "the whole path on a virtual board, without hardware"),
    ("./inv boards", "which boards are known, and what kernels have"),
    ("./inv doctor --host HOST", "why the NPU of your board does not work"),
    ("./inv TASK --help", "what a task does, and its flags"),
)
_VALUES = {
    "against": "MESA",
    "apply": "DTBO",
    "bisect": "GOOD..BAD",
    "bootloader": "FILE",
    "broken": "FAULT",
    "calibration": "FILE",
    "case": "NAME",
    "container": "IMAGE",
    "env": "NAME=VALUE",
    "experiment": "SERIES",
    "fragment": "FILE",
    "hostname": "NAME",
    "html": "FILE",
    "identity": "KEY",
    "input": "FILE",
    "inputs": "FOLDER",
    "junit": "FILE",
    "layout": "NAME",
    "like": "BOARD",
    "output": "PATH",
    "patches": "SERIES",
    "python": "VERSION",
    "rauc-system": "FILE",
    "reason": "TEXT",
    "record": "FILE",
    "recording": "FOLDER",
    "report": "FILE",
    "save-fragment": "FILE",
    "select": "WORDS",
    "sign": "BUNDLE",
    "threads": "N",
    "to": "GENERATION",
    "uboot": "like:BOARD",
    "userspace": "FOLDER",
    "verify": "BUNDLE",
}
"""What flags take whose name does not say it; of the others the last word of the name does."""
_LEAST_TEXT = 28  # narrower than this, an explanation goes below its name


def overview(tasks: Iterable[tuple[str, str]], width: int) -> str:
    """What ``./inv`` alone prints: where to begin, and the tasks.

    Args:
        tasks: name and docstring of each.
        width: columns of the terminal.
    """
    named = [(name, split(text)[0]) for name, text in tasks]
    about = (
        "npu-bsp brings the free driver for Vivante NPUs up on boards, and proves that it works."
    )
    more = (
        "README.md has a tour, docs/README.md an index; ./inv --help also names Invoke's own flags."
    )
    return "\n".join(
        [filled(about, width), "", "Begin here:", "", *columns(_BEGIN, width), "",
         "Tasks:", "", *columns(named, width), "", filled(more, width)]
    )  # fmt: skip


def task_help(name: str, text: str, arguments: Sequence[Any], width: int) -> str:
    """What ``./inv TASK --help`` prints: what it does, an example, its flags; what has to be given first.

    Args:
        name: of the task.
        text: its docstring, with ``Example: ...`` at its end.
        arguments: Invoke's, in any order.
        width: columns of the terminal.
    """
    what, example = split(text)
    needed = [each for each in arguments if each.positional]
    others = sorted((each for each in arguments if not each.positional), key=lambda a: str(a.names))
    usage = " ".join([f"./inv {name}", *(spelled(each, example, " ") for each in needed)])
    lines = [f"Usage: {usage}{' [flags]' if others else ''}", "", filled(what, width)]
    if example:
        lines += ["", f"Example: {example}"]
    rows = [
        (spelled(each, example, "="), explained(each) + " (must be given)" * each.positional)
        for each in (*needed, *others)
    ]
    return "\n".join([*lines, *(["", "Flags:", "", *columns(rows, width)] if rows else [])])


def split(text: str) -> tuple[str, str]:
    """A docstring as what the task does, and its example."""
    what, _, example = " ".join(text.split()).partition(" Example: ")
    return what, example.removesuffix(".")


def explained(argument: Any) -> str:
    """An argument's help text, with its default where that is a value of its own."""
    text = str(argument.help or "")
    default = argument.default
    if default in (None, "", False, [], ()) or "default" in text or argument.kind is bool:
        return text
    if isinstance(default, int | float) and default < 0:
        return text  # stands for "not given"
    shown = f"{default:g}" if isinstance(default, float) else default
    return f"{text} (default: {shown})"


def value_of(argument: Any) -> str:
    """What a flag takes: ``HOST``, ``SECONDS``, a number; nothing for a switch."""
    if not argument.takes_value:
        return ""
    if argument.kind in (int, float):
        return "SECONDS" if "seconds" in str(argument.help).split() else "N"
    name = str(max(argument.names, key=len)).replace("_", "-")
    return _VALUES.get(name, name.rpartition("-")[2].upper())


def spelled(argument: Any, example: str, between: str) -> str:
    """An argument as it is typed: ``--host HOST``, ``--dry-run``, ``NAME``."""
    flag, value = flag_of(argument, example), value_of(argument)
    return f"{flag}{between}{value}" if value and flag.startswith("--") else flag


def columns(rows: Iterable[tuple[str, str | None]], width: int) -> list[str]:
    """Names on the left, explanations on the right, or below where there is no room."""
    rows = list(rows)
    indent = 2 + max((len(name) for name, _ in rows), default=0) + 3
    below = width - indent < _LEAST_TEXT
    if below:
        indent = 6
    lines = []
    for name, text in rows:
        wrapped = filled(text or "", width - indent).splitlines()
        beside = "" if below or not wrapped else wrapped.pop(0)
        lines.append(f"  {name}".ljust(0 if below else indent) + beside)
        lines += [" " * indent + line for line in wrapped]
    return [line.rstrip() for line in lines]
