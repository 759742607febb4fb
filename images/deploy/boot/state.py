# SPDX-License-Identifier: MIT
"""The boot state on a board's FAT partition: three files of one sector each. Pure: bytes in, bytes out.

    /npu-bsp/good.env, good-copy.env     the generation that boots, and the one before it
    /npu-bsp/trial.env                   the generation to try once; spent (zeros) at all other times

Each is text that U-Boot's ``env import -t`` reads, padded with newlines to 512 bytes, and ends with a line
that repeats what it says. A sector that was written by half therefore never says anything: not of two
generations mixed, not of a name cut short. ``boot.cmd`` decides by the very rules of this module.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

SECTOR_BYTES = 512
SPENT = bytes(SECTOR_BYTES)
"""``trial.env`` when there is nothing to try."""

_GENERATION = re.compile(r"[0-9a-f]{12}")
_NONE = "none"


@dataclass(frozen=True)
class Good:
    """Which generation boots.

    Attributes:
        good: the generation that was confirmed last.
        previous: the one before; None if there is none.
    """

    good: str
    previous: str | None = None


def render_good(state: Good) -> bytes:
    """Return the sector for ``good.env`` and ``good-copy.env``."""
    previous = state.previous or _NONE
    for generation in filter(None, (state.good, state.previous)):
        _check(generation)
    return _sector(
        f"npu_good={state.good}\nnpu_previous={previous}\nnpu_good_end={state.good}.{previous}\n"
    )


def parse_good(sector: bytes) -> Good | None:
    """Read one copy; None if it is torn, empty or something else."""
    values = _variables(sector)
    good, previous = values.get("npu_good", ""), values.get("npu_previous", "")
    if values.get("npu_good_end") != f"{good}.{previous}" or not _GENERATION.fullmatch(good):
        return None
    if previous == _NONE:
        return Good(good)
    return Good(good, previous) if _GENERATION.fullmatch(previous) else None


def choose_good(sector: bytes, copy: bytes) -> Good | None:
    """The good generation, as the boot script finds it: the first of the two copies that is whole."""
    return parse_good(sector) or parse_good(copy)


def render_trial(generation: str) -> bytes:
    """Return the sector for ``trial.env`` that has ``generation`` tried once."""
    _check(generation)
    return _sector(f"npu_trial={generation}\nnpu_trial_end={generation}\n")


def parse_trial(sector: bytes) -> str | None:
    """The generation that is to be tried at the next boot; None if there is none."""
    values = _variables(sector)
    trial = values.get("npu_trial", "")
    return trial if values.get("npu_trial_end") == trial and _GENERATION.fullmatch(trial) else None


def render_args(args: str, *, kernel: str, initrd: str, dtb: str) -> bytes:
    """Return a generation's ``args.env``: what to load (paths on the partition) and its command line."""
    if "\n" in args or "\0" in args:
        raise ValueError("a kernel command line is one line")
    return (
        f"npu_kernel={kernel}\nnpu_initrd={initrd}\nnpu_dtb={dtb}\nnpu_args={args}\nnpu_args_end=1\n"
    ).encode()


def parse_args(data: bytes) -> dict[str, str] | None:
    """Read ``args.env`` back: ``npu_args``, ``npu_kernel``...; None if it is not whole."""
    values = _variables(data)
    return values if values.get("npu_args_end") == "1" else None


def _check(generation: str) -> None:
    if not _GENERATION.fullmatch(generation):
        raise ValueError(f"{generation!r} is no generation: 12 hexadecimal digits")


def _sector(text: str) -> bytes:
    data = text.encode("ascii")
    if len(data) > SECTOR_BYTES:
        raise ValueError(f"boot state of {len(data)} bytes; a sector has {SECTOR_BYTES}")
    return data.ljust(SECTOR_BYTES, b"\n")


def _variables(sector: bytes) -> dict[str, str]:
    """Read ``name=value`` lines as U-Boot does (lib/hashtable.c, himport_r): up to the first NUL."""
    text = sector.partition(b"\0")[0].decode("ascii", errors="replace")
    pairs = (line.partition("=") for line in text.split("\n") if not line.lstrip().startswith("#"))
    return {name: value for name, equals, value in pairs if equals}
