# SPDX-License-Identifier: MIT
"""Entries of the Boot Loader Specification: loader/entries; read by systemd-boot, GRUB, barebox. Pure."""

from __future__ import annotations

import re

from .facts import BootFacts

_ENTRY = re.compile(r"(?:.*)/loader/entries/[^/]+\.conf", re.IGNORECASE)


def entries(facts: BootFacts) -> list[str]:
    """Return the texts of all entries."""
    return [text for path, text in facts.files.items() if _ENTRY.fullmatch(path)]


def running_entry(facts: BootFacts) -> str:
    """Return the text of the entry of the kernel that runs; "" where none, or several that differ, name it.

    Which one was booted is not told; a kernel's release is in its version, or in the name of its file.
    """
    texts = entries(facts)
    if len(texts) == 1:
        return texts[0]
    release = re.compile(rf"(?<![\w.]){re.escape(facts.release)}(?![\w+~-]|\.\d)")
    lines = re.compile(r"(?im)^\s*(?:version|linux|efi|uki)\s+(.*)$")
    named = {text for text in texts if any(release.search(line) for line in lines.findall(text))}
    return named.pop() if facts.release and len(named) == 1 else ""


def devicetree_of(entry: str) -> str:
    """Return the device tree that an entry names; "" if it names none."""
    names = re.findall(r"(?im)^\s*devicetree\s+(\S+)", entry)
    return names[-1] if names else ""


def overlays_of(entry: str) -> list[str]:
    """Return the device-tree overlays that an entry names."""
    lines = re.findall(r"(?im)^\s*devicetree-overlay\s+(.*)$", entry)
    return [name for line in lines for name in line.split()]
