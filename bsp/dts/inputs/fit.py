# SPDX-License-Identifier: MIT
"""FIT images, which have the format of device trees and hold kernels and device trees: what is in one.

Source: U-Boot doc/usage/fit/source_file_format.rst. ``/images`` has a node for each part, in the order by
which ``dumpimage -p`` counts them; ``/configurations`` says which belong together.
"""

from __future__ import annotations

import mmap
import shlex
from dataclasses import dataclass
from pathlib import Path

from ...base.errors import UserError
from ..tree import Tree, read_tree, strings

_MAX_BYTES = 1 << 30
# All but the data itself fits: names, types, hashes.
_VALUE_BYTES = 4096


@dataclass(frozen=True)
class Part:
    """One part of a FIT image: its place as ``dumpimage -p`` counts, and what it says of itself."""

    index: int
    name: str
    kind: str
    description: str
    compression: str


def is_fit(tree: Tree) -> bool:
    """Whether a tree is a FIT image and not a description of hardware."""
    return "/images" in tree.nodes and (
        "/configurations" in tree.nodes
        or any(
            path.startswith("/images/") and {"data", "data-offset", "data-position"} & set(node)
            for path, node in tree.nodes.items()
        )
    )


def read_large(path: Path) -> Tree | None:
    """Return the tree of a FIT image that is larger than a device tree can be; None if it is none."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            tree = read_tree(data, str(path), max_bytes=_MAX_BYTES, value_bytes=_VALUE_BYTES)
    except (OSError, ValueError, UserError):
        return None
    return tree if is_fit(tree) else None


def parts(tree: Tree) -> list[Part]:
    """Return what a FIT image holds."""
    names = [path for path in tree.nodes if path.startswith("/images/") and path.count("/") == 2]

    def word(path: str, name: str) -> str:
        return (tree.strings(path, name) or [""])[0]

    return [
        Part(
            index,
            path.rpartition("/")[2],
            word(path, "type") or "unknown",
            word(path, "description"),
            word(path, "compression") or "none",
        )
        for index, path in enumerate(names)
    ]


def refusal(tree: Tree, path: Path) -> UserError:
    """Return the error for a FIT image that was given for a device tree."""
    every = parts(tree)
    trees = [part for part in every if part.kind == "flat_dt"]
    if not trees:
        held = ", ".join(f"{part.name} ({part.kind})" for part in every) or "nothing"
        return UserError(
            f"{path} is a FIT image, not a device tree, and holds none: {held}",
            hint="take the device tree that the board runs: cat /sys/firmware/fdt there",
        )
    chosen = _default(tree, trees)
    listed = "\n".join(
        f"  -p {part.index}  {part.name}"
        + (f" ({part.description})" if part.description else "")
        + (f", compressed with {part.compression}" if part.compression != "none" else "")
        + (", of the default configuration" if part == chosen else "")
        for part in trees
    )
    take = chosen or trees[0]
    packed = take.compression != "none"
    target = f"board.dtb{f'.{take.compression}' if packed else ''}"
    more = f", then decompress {target}" if packed else ""
    return UserError(
        f"{path} is a FIT image, not a device tree. It holds these device trees:\n{listed}",
        hint=f"dumpimage -T flat_dt -p {take.index} -o {target} {shlex.quote(str(path))}{more} "
        "(dumpimage is in u-boot-tools)",
    )


def _default(tree: Tree, trees: list[Part]) -> Part | None:
    """The device tree of the default configuration."""
    name = (tree.strings("/configurations", "default") or [""])[0]
    value = tree.get(f"/configurations/{name}", "fdt")
    wanted = strings(value or b"")
    return next((part for part in trees if part.name in wanted[:1]), None)
