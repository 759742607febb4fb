# SPDX-License-Identifier: MIT
"""A device tree blob as a plain record: node path to property name to bytes.

All of the project reads device trees with it. The flat format is the Devicetree Specification's, chapter 5.
``fdt`` from PyPI reads it too, but takes 20 ms for a board's tree where compiling it takes 25 ms, and stops
at FDT_NOP, which bootloaders leave behind; this reader takes 2 ms. The tests compare the two on every
shipped board.
"""

from __future__ import annotations

import functools
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from ..base.errors import UserError

_MAGIC = 0xD00DFEED
_BEGIN_NODE, _END_NODE, _PROP, _NOP, _END = 1, 2, 3, 4, 9
_HEADER = struct.Struct(">10I")
_WORD = struct.Struct(">I")
_TWO_WORDS = struct.Struct(">II")

# What a damaged or hostile file may cost. The kernel takes no more than 2 MiB (MAX_FDT_SIZE in
# arch/arm64/include/asm/boot.h) and no deeper nesting than 64 (FDT_MAX_DEPTH in drivers/of/fdt.c); names
# have 31 characters by the specification, and twice that in real trees.
MAX_BYTES = 2 << 20
_MAX_DEPTH = 64
_MAX_NAME = 255
_MAX_PATH = 1023

# Versions of the format that can be read: libfdt takes the same (FDT_FIRST_SUPPORTED_VERSION is 2 only for
# reading headers; before 16 the structure itself was another one).
_FIRST_VERSION, _LAST_VERSION = 16, 17


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
        """Return ``okay``, ``disabled``...; a node without ``status`` is ``okay``.

        A ``status`` without a value is the empty string, which is not ``okay``.
        """
        value = self.get(path, "status")
        return "okay" if value is None else (strings(value) or [""])[0]

    def is_available(self, path: str) -> bool:
        """Whether Linux takes a node as switched on (``__of_device_is_available`` in drivers/of/base.c).

        The nodes above it have to be so too before it becomes a device; that is not looked at here.
        """
        return self.status(path) in ("okay", "ok")

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


def is_blob(blob: bytes) -> bool:
    """Whether something begins as a device tree blob does."""
    return len(blob) >= _HEADER.size and _WORD.unpack_from(blob)[0] == _MAGIC


def total_bytes(blob: bytes) -> int:
    """Return how long a device tree blob says that it is."""
    size: int = _HEADER.unpack_from(blob)[1]
    return size


def read_tree(
    blob: bytes | mmap.mmap,
    name: str,
    *,
    max_bytes: int = MAX_BYTES,
    value_bytes: int | None = None,
) -> Tree:
    """Read a device tree blob (DTB).

    Args:
        blob: the file's content.
        name: what to call it in errors.
        max_bytes: how long it may say that it is; more is for images that have the same format.
        value_bytes: how much of each property's value is kept; None: all.

    Raises:
        UserError: it is not a device tree blob, or damaged.
    """
    if len(blob) < _HEADER.size and _WORD.pack(_MAGIC).startswith(blob[:4]) and len(blob):
        raise UserError(f"{name} is truncated: {len(blob)} bytes", hint="copy the file again")
    if len(blob) < _HEADER.size or _WORD.unpack_from(blob)[0] != _MAGIC:
        raise UserError(
            f"{name} is not a device tree blob (it begins with {blob[:4].hex() or 'nothing'}, "
            f"expected {_MAGIC:x})",
            hint="a running board has its own at /sys/firmware/fdt",
        )
    header = _HEADER.unpack_from(blob)
    size_bytes, structure, names = header[1], header[2], header[3]
    version, compatible_version = header[5], header[6]
    if size_bytes > max_bytes:
        raise UserError(
            f"{name} says that it has {size_bytes} bytes; the kernel takes at most {max_bytes}",
            hint="this is not a device tree of a board, or a damaged one",
        )
    if size_bytes > len(blob):
        raise UserError(
            f"{name} is truncated: {len(blob)} of {size_bytes} bytes", hint="copy the file again"
        )
    if version < _FIRST_VERSION or compatible_version > _LAST_VERSION:
        raise UserError(
            f"{name} is a device tree blob of version {version}; versions {_FIRST_VERSION} and "
            f"{_LAST_VERSION} can be read",
            hint="write it anew: dtc -I dtb -O dtb -o NEW.dtb FILE",
        )
    whole = blob if len(blob) == size_bytes else blob[:size_bytes]
    try:
        nodes, structure_end = _read_nodes(
            whole, structure, (names, min(names + header[8], size_bytes)), value_bytes
        )
        if version >= _LAST_VERSION and structure_end > structure + header[9]:
            raise ValueError(
                f"its nodes have {structure_end - structure} bytes, its header says {header[9]}"
            )
        return Tree(nodes)
    except (struct.error, IndexError, ValueError, TypeError) as error:
        raise UserError(
            f"{name} is a damaged device tree blob: {error}", hint="copy the file again"
        ) from error


def _read_nodes(
    blob: bytes | mmap.mmap, position: int, names_at: tuple[int, int], value_bytes: int | None
) -> tuple[dict[str, dict[str, bytes]], int]:
    """Return the nodes, and where their description ends.

    Args:
        names_at: where the names of properties begin and end.
    """
    names_start, names_end = names_at
    word, two_words, find = _WORD.unpack_from, _TWO_WORDS.unpack_from, blob.find
    size = len(blob)
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
                end = find(b"\0", start, min(start + _MAX_NAME + 1, names_end))
                if end < 0:
                    raise ValueError(f"the name of a property of {path} does not end")
                name = names[name_offset] = blob[start:end].decode()
            start = position + 12
            if start + length > size:
                raise ValueError(f"property {name} of {path} ends behind the file")
            if name in node:
                raise ValueError(f"{path} has the property {name} twice")
            kept = length if value_bytes is None else min(length, value_bytes)
            node[name] = blob[start : start + kept]
            position = (start + length + 3) & ~3
        elif token == _BEGIN_NODE:
            end = find(b"\0", position + 4, position + 4 + _MAX_NAME + 1)
            if end < 0:
                raise ValueError(f"the name of a node below {path} does not end")
            if nodes and not parents:
                raise ValueError("it has two roots")
            parents.append((path, node))
            name = blob[position + 4 : end].decode()
            path = f"{path.rstrip('/')}/{name}"
            if len(parents) > _MAX_DEPTH or len(path) > _MAX_PATH:
                raise ValueError(f"nodes are nested too deep at {path[:60]}...")
            if path in nodes:
                raise ValueError(f"it has the node {path} twice")
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
            return nodes, position + 4
        else:
            raise ValueError(f"unknown token {token:#x} at byte {position}")
