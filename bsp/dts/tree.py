# SPDX-License-Identifier: MIT
"""A device tree blob as a plain record: node path to property name to bytes.

The flat format is the Devicetree Specification's, chapter 5. ``fdt`` from PyPI reads it too, but
takes 20 ms for a board's tree where compiling it takes 25 ms, and stops at FDT_NOP, which bootloaders
leave behind; this reader takes 2 ms. The tests compare the two on every shipped board.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..base.errors import UserError

_MAGIC = 0xD00DFEED
_BEGIN_NODE, _END_NODE, _PROP, _NOP, _END = 1, 2, 3, 4, 9
_HEADER = struct.Struct(">10I")
_WORD = struct.Struct(">I")
_TWO_WORDS = struct.Struct(">II")

# What a damaged or hostile file may cost. The kernel takes no more than 2 MiB (MAX_FDT_SIZE in
# arch/arm64/include/asm/boot.h) and no deeper nesting than 64 (FDT_MAX_DEPTH in drivers/of/fdt.c); names
# have 31 characters by the specification, and twice that in real trees.
_MAX_BYTES = 2 << 20
_MAX_DEPTH = 64
_MAX_NAME = 255
_MAX_PATH = 1023


@dataclass(frozen=True)
class Tree:
    """A device tree that was read.

    Attributes:
        nodes: path (``/soc@0/npu@38500000``) to properties; a property's value is its bytes.
    """

    nodes: Mapping[str, Mapping[str, bytes]]

    def get(self, path: str, name: str) -> bytes | None:
        """Return the value of a property, or None where node or property are absent."""
        return self.nodes.get(path, {}).get(name)

    def strings(self, path: str, name: str) -> list[str]:
        """Return a string list (``compatible``); empty where there is none."""
        return strings(self.get(path, name) or b"")

    def cells(self, path: str, name: str) -> list[int]:
        """Return 32-bit cells; empty where there are none."""
        return cells(self.get(path, name) or b"")

    @property
    def compatible(self) -> list[str]:
        """The root's ``compatible``: what board this is."""
        return self.strings("/", "compatible")

    def status(self, path: str) -> str:
        """Return ``okay``, ``disabled``...; a node without ``status`` is ``okay``."""
        return (self.strings(path, "status") or ["okay"])[0]

    def by_phandle(self, phandle: int) -> str | None:
        """Return the path of the node with a phandle."""
        return self._by_phandle.get(_WORD.pack(phandle))

    @functools.cached_property
    def _by_phandle(self) -> dict[bytes, str]:
        return {node["phandle"]: path for path, node in self.nodes.items() if "phandle" in node}

    def label_of(self, path: str) -> str | None:
        """Return a label of a node, where the tree was compiled with ``-@``."""
        return self._labels.get(path.encode() + b"\0")

    @functools.cached_property
    def _labels(self) -> dict[bytes, str]:
        symbols = self.nodes.get("/__symbols__", {})
        return {value: label for label, value in reversed(list(symbols.items()))}


def strings(value: bytes) -> list[str]:
    """Return the strings in a property's value."""
    return value.rstrip(b"\0").decode(errors="replace").split("\0") if value else []


def cells(value: bytes) -> list[int]:
    """Return the 32-bit cells in a property's value."""
    return list(struct.unpack(f">{len(value) // 4}I", value[: len(value) // 4 * 4]))


def read_blob(path: Path, *, flag: str) -> bytes:
    """Return the content of a DTB file that a user names; never more than a device tree can have.

    Args:
        flag: what the file was named with, for the hint.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror}", hint=f"{flag} takes a DTB file"
        ) from error


def read_tree(blob: bytes, name: str) -> Tree:
    """Read a device tree blob (DTB).

    Args:
        blob: the file's content.
        name: what to call it in errors.

    Raises:
        UserError: it is no device tree blob, or damaged.
    """
    if len(blob) < _HEADER.size or _WORD.unpack_from(blob)[0] != _MAGIC:
        raise UserError(
            f"{name} is no device tree blob (it begins with {blob[:4].hex() or 'nothing'}, "
            f"expected {_MAGIC:x})",
            hint="a running board has its own at /sys/firmware/fdt",
        )
    header = _HEADER.unpack_from(blob)
    size_bytes, structure, names = header[1], header[2], header[3]
    if size_bytes > _MAX_BYTES:
        raise UserError(
            f"{name} says that it has {size_bytes} bytes; the kernel takes at most {_MAX_BYTES}",
            hint="this is no device tree of a board, or a damaged one",
        )
    if size_bytes > len(blob):
        raise UserError(
            f"{name} is truncated: {len(blob)} of {size_bytes} bytes", hint="copy the file again"
        )
    try:
        return Tree(_read_nodes(blob[:size_bytes], structure, names))
    except (struct.error, IndexError, ValueError, TypeError) as error:
        raise UserError(f"{name} is a damaged device tree blob: {error}") from error


def _read_nodes(blob: bytes, position: int, names_start: int) -> dict[str, dict[str, bytes]]:
    word, two_words, find = _WORD.unpack_from, _TWO_WORDS.unpack_from, blob.index
    nodes: dict[str, dict[str, bytes]] = {}
    names: dict[int, str] = {}
    parents: list[tuple[str, dict[str, bytes]]] = []
    path = ""
    node: dict[str, bytes] = {}
    while True:
        (token,) = word(blob, position)
        if token == _PROP:
            length, name_offset = two_words(blob, position + 4)
            name = names.get(name_offset)
            if name is None:
                start = names_start + name_offset
                end = find(0, start, start + _MAX_NAME + 1)
                name = names[name_offset] = blob[start:end].decode()
            start = position + 12
            if start + length > len(blob):
                raise ValueError(f"property {name} of {path} ends behind the file")
            node[name] = blob[start : start + length]
            position = (start + length + 3) & ~3
        elif token == _BEGIN_NODE:
            end = find(0, position + 4, position + 4 + _MAX_NAME + 1)
            parents.append((path, node))
            name = blob[position + 4 : end].decode()
            path = f"{path.rstrip('/')}/{name}"
            if len(parents) > _MAX_DEPTH or len(path) > _MAX_PATH:
                raise ValueError(f"nodes are nested too deep at {path[:60]}...")
            node = nodes[path] = {}
            position = (end + 4) & ~3
        elif token == _END_NODE:
            path, node = parents.pop()
            position += 4
        elif token == _NOP:
            position += 4
        elif token == _END:
            if parents or "/" not in nodes:
                raise ValueError("it ends inside a node")
            return nodes
        else:
            raise ValueError(f"unknown token {token:#x} at byte {position}")
