# SPDX-License-Identifier: MIT
"""Whether what runs is what was sent: device trees compared by meaning, not by bytes.

A boot loader may change the tree that it hands on. What every boot loader is expected to change is left
out of the comparison; each entry of ``LOADER_NODES`` and ``LOADER_PROPERTIES`` says who does it.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from bsp.dts.tree import read_tree

# The functions named are U-Boot's, in boot/fdt_support.c unless another file is given.
LOADER_NODES = (
    r"/chosen(/.*)?",  # command line, RAM disk, seeds: fdt_chosen(), fdt_initrd()
    r"/memory(@[0-9a-f]+)?",  # what memory was found: fdt_fixup_memory_banks()
    r"/reserved-memory/(optee|tee|secmon)[^/]*",  # optee_copy_fdt_nodes(), lib/optee/optee.c
    r"/firmware/optee",  # the same
)
LOADER_PROPERTIES = (
    (r"/", "serial-number"),  # fdt_root()
    (r"/.*", "local-mac-address"),  # fdt_fixup_ethernet()
    (r"/.*", "mac-address"),  # the same
    (r"/cpus/.*", "cpu-release-addr"),  # arch/arm/cpu/armv8/fdt.c
)

_ON = (None, b"okay\0", b"ok\0")


@dataclass(frozen=True)
class TreeDifference:
    """Where a running tree is not the expected one; None where something is absent."""

    path: str
    property: str
    expected: bytes | None
    found: bytes | None

    def __str__(self) -> str:
        if not self.property:
            return (
                f"{self.path}: {'node is missing' if self.found is None else 'node was not sent'}"
            )
        text = f"{self.path} {self.property}: expected {_shown(self.expected)}, found {_shown(self.found)}"
        if self.property == "status" and self.expected in _ON and self.found not in _ON:
            text += " (the boot loader, or an overlay that it applies, switched it off)"
        return text


def compare(expected: bytes, running: bytes) -> list[TreeDifference]:
    """Return where the running tree is not the expected one, boot-loader fix-ups left out.

    Raises:
        UserError: one of the two is not a device tree, or damaged.
    """
    sent_nodes = read_tree(expected, "the device tree that was sent").nodes
    running_nodes = read_tree(running, "the running device tree").nodes
    result: list[TreeDifference] = []
    for path in sorted({*sent_nodes, *running_nodes}):
        if any(re.fullmatch(pattern, path) for pattern in LOADER_NODES):
            continue
        one, other = sent_nodes.get(path), running_nodes.get(path)
        if one is None or other is None:
            result.append(
                TreeDifference(
                    path, "", None if one is None else b"", None if other is None else b""
                )
            )
            continue
        for name in sorted({*one, *other}):
            if one.get(name) == other.get(name):
                continue
            if not any(
                re.fullmatch(pattern, path) and name == changed_name
                for pattern, changed_name in LOADER_PROPERTIES
            ):
                result.append(TreeDifference(path, name, one.get(name), other.get(name)))
    return result


def _shown(value: bytes | None) -> str:
    """A property's value as a person reads it: strings, or cells."""
    if value is None:
        return "nothing"
    if not value:
        return "true"
    if value.endswith(b"\0") and re.fullmatch(rb"([\x20-\x7e]+\0)+", value):
        return ", ".join(f'"{part.decode()}"' for part in value[:-1].split(b"\0"))
    if len(value) % 4 == 0:
        cells = struct.unpack(f">{len(value) // 4}I", value)
        text = " ".join(f"{cell:#x}" for cell in cells[:8])
        return f"<{text}{' ...' if len(cells) > 8 else ''}>"
    return value[:16].hex(" ")
