# SPDX-License-Identifier: MIT
"""Deployments that are broken on purpose, to see that the power-cut test catches them.

Each is code that is added to modules of the board's agent (images/deploy/onboard/) as it is sent.
"""

from __future__ import annotations

from collections.abc import Mapping

from bsp.base.errors import UserError

# No file and no file system is flushed any more, before or after anything.
_NO_FSYNC = """
os.fsync = lambda handle: None
def flush_filesystem(path): pass
def checkpoint(path): pass
"""

# The new generation is made the good one before its content is sent.
_SWITCH_FIRST = """
from .script_image import script_image
_whole_stage = stage
def stage(board, request, frames):
    name = request["generation"]
    sector = script_image(f"setenv npu_good {name}\\nsetenv npu_previous none\\n")
    for file in ("good-copy.env", "good.env"):
        write_sector(os.path.join(board.own, file), sector.ljust(SECTOR_BYTES, b"\\0"))
    board.settle()
    return _whole_stage(board, request, frames)
"""

# What booted the board gets its other name before our script is there: a cut in between leaves neither.
_RENAME_FIRST = """
_whole_take_over = take_over
def take_over(board, request):
    for name, other in RENAMED.items():
        if os.path.exists(f"{board.fat}/{name}"):
            os.rename(f"{board.fat}/{name}", f"{board.fat}/{other}")
    before = f"{board.fat}/{SCRIPT}"
    if os.path.exists(before):
        os.rename(before, f"{board.fat}/{OLD_SCRIPT}")
    settle(board)
    return _whole_take_over(board, request)
"""

VARIANTS: Mapping[str, Mapping[str, str]] = {
    "no-fsync": {"files": _NO_FSYNC},
    "switch-first": {"agent": _SWITCH_FIRST},
    "rename-first": {"adopt": _RENAME_FIRST},
}

_OF_ADOPTION = ("rename-first",)


def additions(variant: str, layout: str = "") -> Mapping[str, str]:
    """The code of a variant; none for ``""``.

    Args:
        layout: of the board that is recorded; nothing for ours, which is never adopted.

    Raises:
        UserError: there is no such variant, or nothing that it breaks is recorded.
    """
    if not variant:
        return {}
    if variant in _OF_ADOPTION and layout in ("", "npu-bsp"):
        raise UserError(
            f"{variant} breaks the adoption of a board, and a board of ours needs none",
            hint=f"--broken {variant} --layout extlinux-fat",
        )
    try:
        return VARIANTS[variant]
    except KeyError:
        raise UserError(
            f"there is no broken variant {variant!r}", hint=f"--broken {' | '.join(VARIANTS)}"
        ) from None
