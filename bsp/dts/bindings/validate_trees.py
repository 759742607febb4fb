# SPDX-License-Identifier: MIT
"""Validates device trees with dtschema; prints what it finds as JSON.

Runs in the extra's own environment (``requirements/dtschema.txt``), as a program:

    validate_trees.py SCHEMA BASE            all problems of BASE
    validate_trees.py SCHEMA BASE CHANGED    the same, and those of the nodes that differ in CHANGED

A node's problems follow from the node, all below it, and whether something above it is disabled. So a
node that is the same in both trees has the same problems, and is not validated twice.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from typing import Any

import dtschema  # type: ignore[import-not-found]
from dtschema.dtb_validate import schema_group  # type: ignore[import-not-found]


class _Checker(schema_group):  # type: ignore[misc]
    """dtschema's own checker, which looks only at nodes that ``known`` does not have just so."""

    known: dict[str, tuple[Any, bool]]

    def check_subtree(
        self, tree: Any, subtree: Any, disabled: bool, nodename: str, fullname: str, filename: str
    ) -> None:
        if self.known.get(fullname) == (subtree, _disabled(subtree, disabled)):
            return
        super().check_subtree(tree, subtree, disabled, nodename, fullname, filename)


def _disabled(node: Any, above: bool) -> bool:
    return "disabled" in node["status"] if "status" in node else above


def _index(
    node: Any, path: str, disabled: bool, nodes: dict[str, tuple[Any, bool]]
) -> dict[str, tuple[Any, bool]]:
    disabled = _disabled(node, disabled)
    nodes[path] = (node, disabled)
    for name, child in node.items():
        if isinstance(child, dict) and not name.startswith("__"):
            _index(child, f"{path.rstrip('/')}/{name}", disabled, nodes)
    return nodes


def _check(checker: _Checker, file: str, against: str | None) -> list[dict[str, Any]]:
    checker.known = {}
    if against is not None:
        with open(against, "rb") as blob:
            (base,) = checker.validator.decode_dtb(blob.read(), [])
        checker.known = _index(base, "/", False, {})
    diagnostics: list[dict[str, Any]] = checker.check_dtb(file)
    return diagnostics


def main(schema: str, base: str, changed: str | None = None) -> None:
    """Validate, and print ``{"base": [...], "changed": [...]}`` in dtschema's own form."""
    checker = _Checker(schema, collect_diagnostics=True)
    as_text = io.StringIO()
    with contextlib.redirect_stderr(as_text):  # each problem once more, as text
        document = {
            "version": dtschema.__version__,
            "base": _check(checker, base, None),
            "changed": _check(checker, changed, base) if changed else [],
        }
    json.dump(document, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
