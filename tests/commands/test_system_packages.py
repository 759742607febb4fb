# SPDX-License-Identifier: MIT
"""Every program that this project starts comes with a Debian package that ``./inv`` installs.

Read from the source, and from what dpkg says of this machine: dependencies count, recommendations do not,
as ``./inv`` installs none.
"""

from __future__ import annotations

import ast
import functools
import re
import subprocess
from pathlib import Path

import pytest

from bsp.base.process import PACKAGE_OF_TOOL, find_tool
from bsp.base.project import PROJECT

_STATUS = Path("/var/lib/dpkg/status")
_FLOORS = ("bsp", "userspace", "images", "virtual", "commands")
_RUNNERS = {"run", "Popen", "call", "check_output", "check_call"}
_FINDERS = {"require_tool", "find_tool", "which"}

# What only few people need: each is looked for, and its package named, when it is needed.
OPTIONAL = {
    "aarch64-linux-gnu-g++": "build-delegate opencl",
    "ccache": "kernel builds, where it is there",
    "clang": "build-kernel --llvm",
    "dnf": "Fedora's; looked for to know its systems",
    "ld.lld": "build-kernel --llvm",
    "llvm-ar": "build-kernel --llvm",
    "rauc": "bundle --format rauc installs it",
    "sudo": "where there is none, somebody is told what to do as root",
}

# Started on boards and in LAVA's containers, by what is sent there.
ON_BOARDS = {"python3", "systemctl", "modprobe", "kexec", "lava-test-case"}

needs_dpkg = pytest.mark.skipif(not _STATUS.exists(), reason="this is not a Debian-like system")


def listed(name: str) -> list[str]:
    lines = (PROJECT / "requirements" / name).read_text().split("\n")
    return [line.split(" ")[0] for line in lines if line and not line.startswith("#")]


# --- what the code starts --------------------------------------------------------------------


def programs_in(source: str) -> set[str]:
    """Names of the programs that a module starts.

    They are the first word of what it gives to ``run`` and its like, the names that it looks for, and the
    first word of each list that has an option, if there is such a program: wherever that list is run.
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and node.args:
            name, owner = _name_and_owner(node.func)
            if owner in ("", "subprocess", "shutil", "process"):
                argument = node.args[0]
                if name in _RUNNERS and isinstance(argument, ast.List | ast.Tuple):
                    found |= _first_word(argument.elts)
                elif name in _FINDERS:
                    found |= _first_word([argument])
        elif isinstance(node, ast.List | ast.Tuple) and any(map(_is_option, node.elts[1:])):
            found |= {
                name
                for name in _first_word(node.elts)
                if name in PACKAGE_OF_TOOL or find_tool(name)
            }
    return {name for name in found if re.fullmatch(r"[a-z][\w.+-]*", name)}


def _name_and_owner(function: ast.expr) -> tuple[str, str]:
    if isinstance(function, ast.Name):
        return function.id, ""
    if isinstance(function, ast.Attribute):
        return function.attr, getattr(function.value, "id", "?")
    return "", "?"


def _first_word(words: list[ast.expr]) -> set[str]:
    """The first word; behind ``*words`` only a known program, as in ``[*isolation, "mmdebstrap"]``."""
    first = [word for word in words if not isinstance(word, ast.Starred)][:1]
    found = {str(word.value) for word in first if isinstance(word, ast.Constant)}
    return found if words[:1] == first else found & set(PACKAGE_OF_TOOL)


def _is_option(word: ast.expr) -> bool:
    text = word.values[0] if isinstance(word, ast.JoinedStr) and word.values else word
    value = text.value if isinstance(text, ast.Constant) else ""
    return isinstance(value, str) and re.match(r"--?[A-Za-z]", value) is not None


@functools.cache
def started() -> dict[str, list[str]]:
    """Each program, and the files that start it."""
    found: dict[str, list[str]] = {}
    for floor in _FLOORS:
        for path in sorted((PROJECT / floor).rglob("*.py")):
            if "onboard" in path.parts:
                continue
            for program in programs_in(path.read_text(encoding="utf-8")):
                found.setdefault(program, []).append(str(path.relative_to(PROJECT)))
    return found


def test_programs_are_found_in_the_source() -> None:
    source = """
run(["dtc", "-I", "dts"])
subprocess.Popen(("xz", "--stdout"))
words = ["depmod", "-a"]
run(words)
run([*isolation, "mmdebstrap"])
isolation = ["unshare", "--mount"] if root else []
run([tool, "x"])
connection.run(["reboot"])
require_tool("newuidmap")
"""
    found = programs_in(source)
    assert {"dtc", "xz", "depmod", "mmdebstrap", "newuidmap"} <= found
    assert "reboot" not in found
    assert {"dtc", "cpp", "make", "git", "depmod", "mmdebstrap", "tar", "patch"} <= set(started())


# --- what the packages bring -----------------------------------------------------------------


@functools.cache
def packages() -> dict[str, dict[str, str]]:
    """The installed packages, with the fields that count."""
    found = {}
    for entry in _STATUS.read_text(encoding="utf-8").split("\n\n"):
        fields = dict(re.findall(r"^([A-Za-z-]+): (.*)$", entry, re.MULTILINE))
        if fields.get("Status", "").endswith(" installed"):
            found[fields["Package"]] = fields
    return found


def closure(names: list[str]) -> set[str]:
    """The packages, all that they depend on, and what is essential in Debian."""
    known = packages()
    providers: dict[str, list[str]] = {}
    for name, fields in known.items():
        for provided in re.findall(r"[^\s,()]+(?=\s|,|$)", fields.get("Provides", "")):
            providers.setdefault(provided, []).append(name)
    essential = [name for name, fields in known.items() if fields.get("Essential") == "yes"]
    waiting = [name for name in (*names, *essential, "apt") if name in known]
    found = set(waiting)
    while waiting:
        fields = known[waiting.pop()]
        for clause in f"{fields.get('Pre-Depends', '')}, {fields.get('Depends', '')}".split(","):
            choices = [re.sub(r"[:\s(].*", "", each.strip()) for each in clause.split("|")]
            real = [name for name in choices if name in known]
            other = [name for choice in choices for name in providers.get(choice, [])]
            for name in (real or other)[:1]:
                if name not in found:
                    found.add(name)
                    waiting.append(name)
    return found


@functools.cache
def _files() -> dict[str, set[str]]:
    """The packages that have each of the programs' files, by their names in /usr/bin and the like."""
    paths = [find_tool(name) for name in {*started(), *PACKAGE_OF_TOOL}]
    places = {place for path in paths if path for place in _places(path)}
    asked = subprocess.run(["dpkg-query", "-S", *sorted(places)], capture_output=True, text=True)
    found: dict[str, set[str]] = {}
    for line in asked.stdout.splitlines():
        names, _, path = line.partition(": /")
        if not names.startswith("diversion"):
            found[f"/{path}"] = {re.sub(r":.*", "", name) for name in names.split(", ")}
    return found


def _places(path: str) -> set[str]:
    """A file by all its names: itself, what a link leads to, and before /bin became a link."""
    names = {path, str(Path(path).resolve())}
    return names | {name.replace("/usr/", "/", 1) for name in names}


def packages_of(path: str) -> set[str]:
    """The packages that have a program."""
    return {name for place in _places(path) for name in _files().get(place, ())}


@needs_dpkg
def test_every_program_comes_with_a_listed_package() -> None:
    brought = closure(listed("system.txt"))
    lacking = {}
    for program, files in started().items():
        if program in OPTIONAL or program in ON_BOARDS:
            continue
        path = find_tool(program)
        if path is None:  # not installed here: the table that hints are made of has to know it
            if PACKAGE_OF_TOOL.get(program) not in listed("system.txt"):
                lacking[program] = files
        elif path.startswith(("/usr/local/", "/root/", "/home/")):
            continue  # not a package's; nothing can be said
        elif not packages_of(path) & brought:
            lacking[program] = [*files, *packages_of(path)]
    assert lacking == {}, "neither in requirements/system.txt nor in OPTIONAL"


@needs_dpkg
def test_what_programs_are_compiled_with_is_not_left_to_recommendations() -> None:
    """gcc only recommends the headers of the C library."""
    brought = closure(listed("system.txt"))
    if not set(listed("system.txt")) <= set(packages()):
        pytest.skip("not all packages of requirements/system.txt are installed here")
    assert {
        "gcc",
        "libc6-dev",
        "linux-libc-dev",
        "libc6-dev-arm64-cross",
        "make",
        "perl",
    } <= brought
    assert "libc6-dev" not in closure(["gcc"]), "this test would see nothing"


@needs_dpkg
def test_the_package_that_a_hint_names_has_the_program() -> None:
    wrong = {}
    for program, package in PACKAGE_OF_TOOL.items():
        path = find_tool(program)
        if path and not path.startswith("/usr/local/"):
            owners = packages_of(path)
            # A package without a version in its name depends on the one that has the file.
            if package not in owners and not owners & closure([package]):
                wrong[program] = (package, owners)
    assert not wrong


def test_the_lists_are_sorted_and_without_doubles() -> None:
    for name in ("system.txt", "system-dev.txt"):
        assert listed(name) == sorted(set(listed(name)))
    assert not set(listed("system.txt")) & set(listed("system-dev.txt"))
