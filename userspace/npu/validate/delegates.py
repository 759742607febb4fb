# SPDX-License-Identifier: MIT
"""Which rows a smoke test has: what ``--delegate`` means."""

from __future__ import annotations

import re

from bsp.base.errors import UserError, nearest

ALL = "all"
CPU = "cpu"
REFERENCE = "cpu-reference"
TEFLON = "teflon"
OPENCL = "opencl"
TIM_VX = "tim-vx"
# In the order of the table: what everything is compared with comes first.
NAMES = (CPU, REFERENCE, TEFLON, OPENCL, TIM_VX)
# Delegates that take options behind a colon.
_NAMED = (TEFLON, OPENCL, TIM_VX)


def rows(choice: str) -> tuple[str, ...]:
    """Return the delegates to run, for a list of names and paths with commas between them.

    A part is ``all``, one of ``NAMES``, or ``PATH``; behind teflon, opencl, tim-vx and a path may stand
    options: ``PATH:key=value;key=value``. ``cpu`` is the best path that the CPU has (XNNPACK, threads);
    ``cpu-reference`` is the portable kernels, whose numbers are the same on every machine: the others are
    compared with it, so it always runs.

    Raises:
        UserError: a word is none of these, or the options are not key=value pairs.
    """
    chosen: list[str] = []
    for part in _parts(choice):
        if part == ALL:
            chosen += NAMES
            continue
        _check(part)
        chosen.append(part)
    chosen.append(REFERENCE)
    names = set(chosen)
    in_order = [name for name in NAMES if name in names]
    first = [name for name in in_order if name in (CPU, REFERENCE)]
    return tuple(dict.fromkeys([*first, *in_order, *chosen]))


def implied(choice: str) -> tuple[str, ...]:
    """Return the rows that run only so that the others can be compared with them."""
    parts = _parts(choice)
    return () if {ALL, CPU, REFERENCE} & set(parts) else (REFERENCE,)


def _parts(choice: str) -> list[str]:
    """Split at the commas that end a part; one within an option's value does not."""
    words = "|".join(map(re.escape, (ALL, *NAMES)))
    parts = re.split(rf",(?=\s*(?:(?:{words})(?:[:,]|\s*$)|[^,;=:]*/|[\w.-]+(?:,|$)))", choice)
    parts = [part.strip() for part in parts]
    if not any(parts):
        raise UserError("--delegate is empty", hint=f"one of {ALL}, {', '.join(NAMES)}, or a path")
    return list(filter(None, parts))


def _check(part: str) -> None:
    name, colon, options = part.partition(":")
    if "/" not in name and name not in (NAMES if not colon else _NAMED):
        if name in NAMES:
            raise UserError(f"the delegate {name} takes no options, found {options!r}")
        raise UserError(
            f"unknown delegate {name!r}{nearest(name, [ALL, *NAMES])}",
            hint=f"one of {ALL}, {', '.join(NAMES)}, or the path of a delegate's library "
            "with its options: /usr/lib/libvx_delegate.so:device_id=0",
        )
    for word in filter(None, options.split(";")):
        if "=" not in word:
            raise UserError(
                f"the option {word!r} of the delegate {name} is not key=value",
                hint=f"--delegate '{name}:key=value;key=value'",
            )
