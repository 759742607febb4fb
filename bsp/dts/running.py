# SPDX-License-Identifier: MIT
"""A running board's device tree as a base to build on: what its boot put in is taken out again.

``/sys/firmware/fdt`` is the tree that the kernel was given: with overlays that the boot loader applied,
and with things that are true for that one boot only.
"""

from __future__ import annotations

import re
import struct

from .tree import Tree, read_tree

# Written into /chosen at each boot by U-Boot (boot/fdt_support.c: fdt_chosen, fdt_initrd) or the kernel's
# EFI stub (drivers/firmware/efi/libstub/fdt.c).
_OF_ONE_BOOT = re.compile(
    r"bootargs|linux,initrd-(start|end)|(kaslr|rng)-seed|u-boot,.*|linux,uefi-.*|linux,booted-from-kexec"
)
_MAGIC, _VERSION, _COMPATIBLE_VERSION = 0xD00DFEED, 17, 16
_BEGIN_NODE, _END_NODE, _PROP, _END = 1, 2, 3, 9
_HEADER_BYTES = 40


def without_boot(blob: bytes, name: str) -> bytes:
    """Return the tree in a DTB without what one boot put into it; the same bytes for each boot.

    Raises:
        UserError: it is not a device tree blob, or damaged.
    """
    tree = read_tree(blob, name)
    chosen = tree.nodes.get("/chosen", {})
    kept = {key: value for key, value in chosen.items() if not _OF_ONE_BOOT.fullmatch(key)}
    nodes = {path: (kept if path == "/chosen" else dict(node)) for path, node in tree.nodes.items()}
    start = int.from_bytes(chosen.get("linux,initrd-start", b""), "big")
    reserved = [entry for entry in _reserved(blob) if not start or entry[0] != start]
    return encode(Tree(nodes), reserved, boot_cpu=struct.unpack_from(">I", blob, 28)[0])


def _reserved(blob: bytes) -> list[tuple[int, int]]:
    """The memory reservations of a DTB: (address, size) in bytes."""
    (at,) = struct.unpack_from(">I", blob, 16)
    ranges = []
    while at + 16 <= len(blob) and (entry := struct.unpack_from(">QQ", blob, at)) != (0, 0):
        ranges.append(entry)
        at += 16
    return ranges


def encode(tree: Tree, reserved: list[tuple[int, int]], *, boot_cpu: int = 0) -> bytes:
    """Return a tree as a DTB (Devicetree Specification 0.4, chapter 5), nodes in the order they have.

    Args:
        reserved: memory reservations: (address, size) in bytes.
        boot_cpu: the header's ``boot_cpuid_phys``.
    """
    body, names, offsets = bytearray(), bytearray(), dict[str, int]()
    open_paths: list[str] = []
    for path, node in tree.nodes.items():
        while open_paths and not _is_below(path, open_paths[-1]):
            open_paths.pop()
            body += struct.pack(">I", _END_NODE)
        open_paths.append(path)
        body += struct.pack(">I", _BEGIN_NODE) + _padded(path.rpartition("/")[2].encode() + b"\0")
        for key, value in node.items():
            if key not in offsets:
                offsets[key] = len(names)
                names += key.encode() + b"\0"
            body += struct.pack(">3I", _PROP, len(value), offsets[key]) + _padded(value)
    body += struct.pack(">I", _END_NODE) * len(open_paths) + struct.pack(">I", _END)
    reservations = b"".join(struct.pack(">QQ", *entry) for entry in [*reserved, (0, 0)])
    structure = _HEADER_BYTES + len(reservations)
    header = struct.pack(
        ">10I", _MAGIC, structure + len(body) + len(names), structure, structure + len(body),
        _HEADER_BYTES, _VERSION, _COMPATIBLE_VERSION, boot_cpu, len(names), len(body),
    )  # fmt: skip
    return header + reservations + bytes(body) + bytes(names)


def _is_below(path: str, above: str) -> bool:
    return path.startswith(above if above == "/" else f"{above}/")


def _padded(data: bytes) -> bytes:
    return data.ljust((len(data) + 3) & ~3, b"\0")
