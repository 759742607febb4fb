# SPDX-License-Identifier: MIT
"""Does this board's U-Boot run boot scripts? Known before anything is renamed for one. Pure."""

from __future__ import annotations

from ..uboot import Trial
from .facts import BootFacts
from .firmware import own_bootcmd
from .layout import Layout

_BY_SCRIPT = ("npu-bsp", "armbian", "toradex", "script-ext4", "script-fat")
_VARIABLES = ("boot_scripts", "scan_dev_for_scripts")


def runs_scripts(facts: BootFacts, layout: Layout, trial: Trial) -> str:
    """Return how it is known that U-Boot runs ``boot.scr``; empty: it is not known.

    Args:
        trial: what is known of the board's U-Boot from its upstream configuration.
    """
    if layout.name in _BY_SCRIPT:
        return f"it runs {layout.first} today"
    if own_bootcmd(facts):
        return ""  # whatever the rest of its variables could do
    named = [name for name in _VARIABLES if name in (facts.variables or {})]
    if named:
        return f"its variable {named[0]}"
    if facts.bootloader_words:
        return f"{facts.bootloader_words[0]!r} in the bootloader on the disk"
    return trial.why if trial.way == "fat" else ""
