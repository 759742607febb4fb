# SPDX-License-Identifier: MIT
"""The floors of the house: no import upward, no circle of files; read from the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from bsp.base.project import PROJECT

FLOORS = ("bsp", "userspace", "images", "virtual", "commands")
"""From the ground up; a module imports from its own floor and from those below."""

NEVER_IMPORTED = ("tasks", "tests", "bench", "docs")
"""What no floor imports: they stand beside the house, and import it."""

Graph = dict[str, set[str]]


def modules(root: Path) -> dict[str, Path]:
    """All modules of the floors, by their dotted name."""
    found = {}
    for floor in FLOORS:
        for path in sorted((root / floor).rglob("*.py")):
            name = ".".join(path.relative_to(root).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def imports(name: str, path: Path) -> Iterator[str]:
    """What a module imports anywhere in it, also late and for types only, as dotted names."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*start, *([node.module] if node.module else [])])
            yield from (f"{source}.{alias.name}" for alias in node.names)


def graph(root: Path) -> Graph:
    """Which file imports which: a name that is not a file counts for the package or module that has it."""
    known = modules(root)
    found: Graph = {}
    for name, path in known.items():
        targets = {
            target if target in known else target.rpartition(".")[0]
            for target in imports(name, path)
        }
        found[name] = {target for target in targets if target in known} - {name}
    return found


def upward(files: Graph) -> list[str]:
    """Imports from a higher floor."""
    return [
        f"{name} imports {target}"
        for name, targets in files.items()
        for target in sorted(targets)
        if FLOORS.index(target.split(".")[0]) > FLOORS.index(name.split(".")[0])
    ]


def circle(files: Graph) -> list[str]:
    """Some circle of files, as a path that ends where it begins; empty if there is none."""
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name not in done:
            for target in sorted(files[name]):
                if found := walk(target, [*path, name]):
                    return found
            done.add(name)
        return []

    return next((found for name in sorted(files) if (found := walk(name, []))), [])


def test_no_file_imports_from_a_higher_floor() -> None:
    assert upward(graph(PROJECT)) == []


def test_no_circle_of_files() -> None:
    assert " -> ".join(circle(graph(PROJECT))) == ""


def test_no_floor_imports_what_stands_beside_the_house() -> None:
    for name, path in modules(PROJECT).items():
        for target in imports(name, path):
            assert target.split(".")[0] not in NEVER_IMPORTED, f"{name} imports {target}"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("from virtual import high", "bsp.low imports virtual.high"),
        ("def late():\n    import virtual.high", "bsp.low imports virtual.high"),
        ("from ..virtual.high import x", "bsp.low imports virtual.high"),
        ("import json", None),
    ],
)
def test_an_import_upward_is_found(tmp_path: Path, line: str, expected: str | None) -> None:
    for floor in FLOORS:
        (tmp_path / floor).mkdir()
        (tmp_path / floor / "__init__.py").touch()
    (tmp_path / "virtual/high.py").write_text("x = 1\n")
    (tmp_path / "bsp/low.py").write_text(f"{line}\n")
    assert upward(graph(tmp_path)) == ([expected] if expected else [])


def test_a_circle_is_found(tmp_path: Path) -> None:
    (tmp_path / "bsp").mkdir()
    (tmp_path / "bsp/__init__.py").touch()
    for name, target in (("one", "two"), ("two", "three"), ("three", "one")):
        (tmp_path / f"bsp/{name}.py").write_text(f"from .{target} import x\n")
    assert circle(graph(tmp_path)) == ["bsp.one", "bsp.two", "bsp.three", "bsp.one"]
