# SPDX-License-Identifier: MIT
"""The boot state on a board's FAT partition: three files of one sector each. Pure: bytes in, bytes out.

    /npu-bsp/good.env, good-copy.env     the generation that boots, and the one before it
    /npu-bsp/trial.env                   the generation to try once; spent (zeros) at all other times

Each is a script image of U-Boot (64 bytes of header with two checksums, then ``setenv`` lines), padded with
zeros to 512 bytes. U-Boot's ``source`` runs none whose checksum is wrong, so a sector that was written by
half never says anything: not of two generations mixed, not of a name cut short. ``boot.cmd`` decides by the
very rules of this module.

Boards that were set up before boot script 2 have text there, which ``env import -t`` reads and which ends
with a line that repeats what it says. They keep it: ``Form.TEXT``.
"""

from __future__ import annotations

import base64
import enum
import re
from collections.abc import Callable
from dataclasses import dataclass

from ..onboard.script_image import MAGIC, script_image, script_text

SECTOR_BYTES = 512
SPENT = bytes(SECTOR_BYTES)
"""``trial.env`` when there is nothing to try."""

_GENERATION = re.compile(r"[0-9a-f]{12}")
_NONE = "none"


class Form(enum.Enum):
    """How a board's state is written: as its boot script reads it."""

    SCRIPT = "script"
    TEXT = "text"


def in_each_form(render: Callable[[Form], bytes]) -> dict[str, str]:
    """Return a file in each form, in base64: a board takes the one that its boot script reads."""
    return {form.value: base64.b64encode(render(form)).decode() for form in Form}


@dataclass(frozen=True)
class Good:
    """Which generation boots.

    Attributes:
        good: the generation that was confirmed last.
        previous: the one before; None if there is none.
    """

    good: str
    previous: str | None = None


def render_good(state: Good, form: Form = Form.SCRIPT) -> bytes:
    """Return the sector for ``good.env`` and ``good-copy.env``."""
    previous = state.previous or _NONE
    for generation in filter(None, (state.good, state.previous)):
        _check(generation)
    return _sector({"npu_good": state.good, "npu_previous": previous}, _end_of_good, form)


def parse_good(sector: bytes) -> Good | None:
    """Read one copy; None if it is torn, empty or something else."""
    values = _values(sector, _end_of_good)
    good, previous = values.get("npu_good", ""), values.get("npu_previous", "")
    if not _GENERATION.fullmatch(good):
        return None
    if previous == _NONE:
        return Good(good)
    return Good(good, previous) if _GENERATION.fullmatch(previous) else None


def _end_of_good(values: dict[str, str]) -> tuple[str, str]:
    return "npu_good_end", f"{values.get('npu_good', '')}.{values.get('npu_previous', '')}"


def choose_good(sector: bytes, copy: bytes) -> Good | None:
    """The good generation, as the boot script finds it: the first of the two copies that is whole."""
    return parse_good(sector) or parse_good(copy)


def render_trial(generation: str, form: Form = Form.SCRIPT) -> bytes:
    """Return the sector for ``trial.env`` that has ``generation`` tried once."""
    _check(generation)
    return _sector({"npu_trial": generation}, _end_of_trial, form)


def render_probe() -> bytes:
    """Return the sector for ``trial.env`` that tries nothing: U-Boot spends it if it can."""
    return _sector({"npu_probe": "1"}, _end_of_trial, Form.SCRIPT)


def parse_trial(sector: bytes) -> str | None:
    """The generation that is to be tried at the next boot; None if there is none."""
    trial = _values(sector, _end_of_trial).get("npu_trial", "")
    return trial if _GENERATION.fullmatch(trial) else None


def _end_of_trial(values: dict[str, str]) -> tuple[str, str]:
    return "npu_trial_end", values.get("npu_trial", "")


def render_args(
    args: str, *, kernel: str, initrd: str, dtb: str, form: Form = Form.SCRIPT
) -> bytes:
    """Return a generation's ``args.env``: what to load (paths on the partition) and its command line.

    Args:
        initrd: empty for a generation without a RAM disk; only scripts can say that.

    Raises:
        ValueError: the command line is none that a boot script can hand on.
    """
    if not args.isascii() or re.search(r"[\n\0']", args):
        raise ValueError(
            f"no command line for U-Boot (one line of ASCII, no single quote): {args!r}"
        )
    values = {"npu_kernel": kernel, "npu_initrd": initrd, "npu_dtb": dtb, "npu_args": args}
    if form is Form.TEXT:
        return _text(values, _end_of_args)
    # In quotes the shell leaves all alone: a command line may have `;`, `$` and double quotes.
    return script_image(
        "".join(f"setenv {name} '{value}'\n" for name, value in values.items() if value)
    )


def parse_args(data: bytes) -> dict[str, str] | None:
    """Read ``args.env`` back: ``npu_args``, ``npu_kernel``...; None if it is not whole."""
    return _values(data, _end_of_args) or None


def _end_of_args(_: dict[str, str]) -> tuple[str, str]:
    return "npu_args_end", "1"


def _check(generation: str) -> None:
    if not _GENERATION.fullmatch(generation):
        raise ValueError(f"{generation!r} is not a generation: 12 hexadecimal digits")


_End = Callable[[dict[str, str]], tuple[str, str]]
"""The last line of a text, from its other values: if it is there, the text is whole."""


def _sector(values: dict[str, str], end: _End, form: Form) -> bytes:
    if form is Form.TEXT:
        data, padding = _text(values, end), b"\n"
    else:
        lines = (f"setenv {name} {value}\n" for name, value in values.items())
        data, padding = script_image("".join(lines)), b"\0"
    if len(data) > SECTOR_BYTES:
        raise ValueError(f"boot state of {len(data)} bytes; a sector has {SECTOR_BYTES}")
    return data.ljust(SECTOR_BYTES, padding)


def _text(values: dict[str, str], end: _End) -> bytes:
    lines = [*values.items(), end(values)]
    return "".join(f"{name}={value}\n" for name, value in lines).encode("ascii")


def _values(data: bytes, end: _End) -> dict[str, str]:
    """Read what a file sets; nothing where it is torn: U-Boot's boot script reads nothing then either."""
    if data[:4] == MAGIC.to_bytes(4, "big"):
        lines = re.findall(r"^setenv (\w+) '?([^'\n]*)'?$", script_text(data) or "", re.MULTILINE)
        return dict(lines)
    # As U-Boot does (lib/hashtable.c, himport_r): up to the first NUL.
    text = data.partition(b"\0")[0].decode("ascii", errors="replace")
    pairs = (line.partition("=") for line in text.split("\n") if not line.lstrip().startswith("#"))
    values = {name: value for name, equals, value in pairs if equals}
    name, expected = end(values)
    return (
        {key: value for key, value in values.items() if key != name}
        if values.get(name) == expected
        else {}
    )
