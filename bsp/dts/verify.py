# SPDX-License-Identifier: MIT
"""A merged DTB is read back: it has the changes, and nothing else is different.

libfdt (``fdtoverlay``) wrote it; our own reader, which shares no code with it, compares every property
of the tree with the base.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..base.errors import InfrastructureError
from .npu.required_changes import Change, Value, is_text, texts
from .tree import Tree


def verify(base: Tree, merged: Tree, changes: Sequence[Change]) -> None:
    """Check that ``merged`` is ``base`` with exactly ``changes``.

    Raises:
        InfrastructureError: it is not; the tools made something else than was asked.
    """
    expected = {path: dict(node) for path, node in base.nodes.items()}
    for change in changes:
        expected[change.path][change.property] = change.after_bytes()
    if expected != merged.nodes:
        raise InfrastructureError(
            f"the merged device tree differs at {_first_difference(expected, merged)}, "
            "which nothing asked for",
            hint="check the version of fdtoverlay (device-tree-compiler)",
        )


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
    if is_text(value):
        return ", ".join(f'"{text}"' for text in texts(value))
    return f"<{' '.join(str(cell) for cell in value)}>"
