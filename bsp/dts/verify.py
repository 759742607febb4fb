# SPDX-License-Identifier: MIT
"""A merged DTB is read back: it has the changes, and nothing else is different.

Two readers that know nothing of each other look: our own compares the whole tree with the base, and
libfdt (``fdtget``) reads each changed property.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..base.errors import InfrastructureError
from ..base.process import run
from .need import Change, Value
from .tree import Tree, read_tree


def verify(base: Tree, changes: Sequence[Change], file: Path) -> Tree:
    """Check that a merged DTB is ``base`` with exactly ``changes``, and return it.

    Args:
        file: the merged DTB.

    Raises:
        InfrastructureError: it is not; the tools made something else than was asked.
    """
    merged: list[Tree] = []
    pairs = [word for change in changes for word in (change.path, change.property)]
    said = run(
        ["fdtget", "-t", "bx", file, *pairs],
        meanwhile=lambda: merged.append(read_tree(file.read_bytes(), "the merged device tree")),
    ).text.splitlines()
    expected = {path: dict(node) for path, node in base.nodes.items()}
    for change in changes:
        expected[change.path][change.property] = change.after_bytes()
    if expected != merged[0].nodes:
        raise InfrastructureError(
            f"the merged device tree differs at {_first_difference(expected, merged[0])}, "
            "which nothing asked for",
            hint="check the version of fdtoverlay (device-tree-compiler)",
        )
    for change, line in zip(changes, said, strict=True):
        if bytes(int(word, 16) for word in line.split()) != change.after_bytes():
            raise InfrastructureError(
                f"{change.property} of {change.path} should be {shown(change.after)}, "
                f"libfdt reads the bytes {line}",
                hint="check the version of fdtoverlay (device-tree-compiler)",
            )
    return merged[0]


def _first_difference(expected: dict[str, dict[str, bytes]], merged: Tree) -> str:
    for path in sorted(set(expected) | set(merged.nodes)):
        left, right = expected.get(path), merged.nodes.get(path)
        if left != right:
            for name in sorted(set(left or {}) | set(right or {})):
                if (left or {}).get(name) != (right or {}).get(name):
                    return f"{path}: {name}"
            return path
    return "nowhere"


def diff_text(changes: Sequence[Change]) -> str:
    """Return the changes as a diff of device tree source, to be read by people."""
    lines: list[str] = []
    path = None
    for change in changes:
        if change.path != path:
            lines.append(f"  {change.path}")
            path = change.path
        if change.before is not None:
            lines.append(f"  -   {change.property} = {shown(change.before)};")
        lines.append(f"  +   {change.property} = {shown(change.after)};")
    return "\n".join(lines)


def shown(value: Value) -> str:
    """Return a value as device tree source."""
    if isinstance(value, str):
        return f'"{value}"'
    return f"<{' '.join(str(cell) for cell in value)}>"
