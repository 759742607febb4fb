# SPDX-License-Identifier: MIT
"""Deployments that are broken on purpose, to see that the power-cut test catches them.

Each is code that is added to modules of the board's agent (images/deploy/onboard/) as it is sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from bsp.base.errors import UserError
from virtual.layouts.layout import layout_named

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
    board.settle()
    return _whole_take_over(board, request)
"""

# U-Boot overwrites the sector that trial.env names, whatever is in it.
_NO_COMPARISON = """
from .script_image import script_image, script_text
_whole_take_over = take_over
def take_over(board, request):
    text = script_text(base64.b64decode(request["script"]))
    asked = "if cmp.b ${npu_buffer} ${npu_at_dtb} 200; then"
    if asked not in text:
        raise RefusedError("the boot script asks in other words than expected")
    script = base64.b64encode(script_image(text.replace(asked, "if true; then"))).decode()
    return _whole_take_over(board, {**request, "script": script})
"""


@dataclass(frozen=True)
class Variant:
    """Something that is broken on purpose.

    Attributes:
        name: ``""``: nothing is.
        additions: code that is added to modules of the agent, by their names.
        steps: how many steps of a recording it takes to show.
        on: what the board has to be for that: any, one of another layout, one whose U-Boot reads ext4.
    """

    name: str
    additions: Mapping[str, str]
    steps: int = 1
    on: Literal["any", "layout", "ext4"] = "any"


VARIANTS: Mapping[str, Variant] = {
    each.name: each
    for each in (
        Variant("no-fsync", {"files": _NO_FSYNC}),
        Variant("switch-first", {"agent": _SWITCH_FIRST}),
        Variant("rename-first", {"adopt": _RENAME_FIRST}, on="layout"),
        Variant("no-comparison", {"adopt": _NO_COMPARISON}, steps=2, on="ext4"),
    )
}
WHOLE = Variant("", {}, steps=99)


def variant_named(name: str, layout: str = "") -> Variant:
    """Return a variant; ``WHOLE`` for ``""``.

    Args:
        layout: of the board that is recorded; nothing for ours, which is never adopted.

    Raises:
        UserError: there is no such variant, or nothing that it breaks is recorded.
    """
    if not name:
        return WHOLE
    variant = VARIANTS.get(name)
    if variant is None:
        raise UserError(
            f"there is no broken variant {name!r}", hint=f"--broken {' | '.join(VARIANTS)}"
        )
    other_layout = layout_named(layout)
    if variant.on != "any" and other_layout is None:
        raise UserError(
            f"{name} breaks the adoption of a board, and a board of ours needs none",
            hint=f"--broken {name} --layout armbian",
        )
    if variant.on == "ext4" and other_layout and other_layout.fat:
        raise UserError(
            f"{name} breaks how U-Boot spends a trial on ext4; with {layout} it does so on FAT",
            hint=f"--broken {name} --layout armbian",
        )
    return variant
