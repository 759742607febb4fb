# SPDX-License-Identifier: MIT
"""Whether what runs is what was sent: device trees compared by meaning, not by bytes.

A boot loader may change the tree that it hands on. What every boot loader is expected to change is left
out of the comparison; each entry of ``LOADER_NODES`` and ``LOADER_PROPERTIES`` says who does it. A running
tree also has NOP tokens where the kernel wiped a seed, so it is read here: PyPI's ``fdt`` refuses them.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from bsp.base.errors import ValidationError

Tree = dict[str, dict[str, bytes]]
"""Path of a node -> its properties."""

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

_MAGIC = 0xD00DFEED
_BEGIN, _END_NODE, _PROP, _NOP, _END = 1, 2, 3, 4, 9


@dataclass(frozen=True)
class Difference:
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
        return f"{self.path} {self.property}: expected {_shown(self.expected)}, found {_shown(self.found)}"


def read_tree(blob: bytes) -> Tree:
    """Read a DTB (Devicetree Specification 0.4, chapter 5).

    Raises:
        ValidationError: it is not one.
    """
    try:
        magic, _, at, strings_at = struct.unpack_from(">4I", blob)
        if magic != _MAGIC:
            raise ValidationError(
                f"not a device tree: it starts with {magic:#x}, expected {_MAGIC:#x}"
            )
        tree: Tree = {}
        path: list[str] = []
        while True:
            (token,) = struct.unpack_from(">I", blob, at)
            at += 4
            if token == _BEGIN:
                end = blob.index(b"\0", at)
                path.append(blob[at:end].decode())
                tree["/" + "/".join(path[1:])] = {}
                at = (end + 4) & ~3
            elif token == _END_NODE:
                path.pop()
            elif token == _PROP:
                size, name_at = struct.unpack_from(">2I", blob, at)
                start = strings_at + name_at
                name = blob[start : blob.index(b"\0", start)].decode()
                tree["/" + "/".join(path[1:])][name] = blob[at + 8 : at + 8 + size]
                at += 8 + ((size + 3) & ~3)
            elif token == _END:
                return tree
            elif token != _NOP:
                raise ValidationError(f"not a device tree: token {token} at {at - 4:#x}")
    except (struct.error, ValueError, IndexError, KeyError) as error:
        raise ValidationError(f"the device tree is cut off or damaged: {error}") from error


def compare(expected: bytes, running: bytes) -> list[Difference]:
    """Return where the running tree is not the expected one, boot-loader fix-ups left out.

    Raises:
        ValidationError: one of the two is no device tree.
    """
    ours, theirs = read_tree(expected), read_tree(running)
    result: list[Difference] = []
    for path in sorted({*ours, *theirs}):
        if any(re.fullmatch(pattern, path) for pattern in LOADER_NODES):
            continue
        one, other = ours.get(path), theirs.get(path)
        if one is None or other is None:
            result.append(
                Difference(path, "", None if one is None else b"", None if other is None else b"")
            )
            continue
        for name in sorted({*one, *other}):
            if one.get(name) == other.get(name):
                continue
            if not any(
                re.fullmatch(pattern, path) and name == known
                for pattern, known in LOADER_PROPERTIES
            ):
                result.append(Difference(path, name, one.get(name), other.get(name)))
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
