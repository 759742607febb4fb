# SPDX-License-Identifier: MIT
"""The launcher and the face: what a new user types first."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from bsp.base.project import PROJECT
from docs.make import arguments


def inv(*arguments: str, cwd: Path = PROJECT, **env: str) -> subprocess.CompletedProcess[str]:
    command = [str(PROJECT / "inv"), *arguments]
    environment = {**os.environ, **env}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def test_list_names_the_tasks_from_any_folder(tmp_path: Path) -> None:
    listed = inv("--list", cwd=tmp_path)
    assert listed.returncode == 0
    for name in ("bringup", "build-dts", "deploy", "smoke-test", "virtual.up"):
        assert name in listed.stdout


def test_help_has_every_flag_explained() -> None:
    listed = json.loads(inv("--list", "--list-format", "json").stdout)

    def names(collection: dict[str, object], prefix: str = "") -> list[str]:
        tasks = collection["tasks"]
        inner = collection["collections"]
        assert isinstance(tasks, list)
        assert isinstance(inner, list)
        found = [prefix + task["name"] for task in tasks]
        return found + [n for c in inner for n in names(c, f"{prefix}{c['name']}.")]

    from tasks import namespace

    for name in names(listed):
        found = namespace[name]
        assert "Example: ./inv" in (found.__doc__ or ""), name
        unexplained = [a.names for a in arguments(found) if not a.help]
        assert not unexplained, (name, unexplained)


def test_an_error_is_one_line_and_a_hint_and_json_has_it_too() -> None:
    asked = inv("board", "vim4", "--json")
    assert asked.returncode == 2
    assert asked.stderr.startswith("error: unknown board 'vim4'; did you mean 'vim3'?\nhint: ")
    assert "Traceback" not in asked.stderr
    assert json.loads(asked.stdout)["exit_code"] == 2


@pytest.mark.parametrize(("missing", "named"), [("python", "Python 3.11"), ("sudo", "as root")])
def test_install_says_what_is_missing(tmp_path: Path, missing: str, named: str) -> None:
    """The installer on a machine without Python 3.11, and without root and sudo."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("grep", "tr", "mktemp", "rm", "tail"):
        (tools / tool).symlink_to(f"/usr/bin/{tool}")
    project = tmp_path / "project"
    (project / "requirements").mkdir(parents=True)
    (project / "requirements" / "system.txt").write_text("# packages\nno-such-package-at-all\n")

    def script(name: str, body: str) -> None:
        (tools / name).write_text(f"#!/bin/sh\n{body}\n")
        (tools / name).chmod(0o755)

    script("python3", "exit 1" if missing == "python" else "exit 0")
    script("dpkg-query", "exit 1")
    script("id", "echo 1000")
    ended = subprocess.run(
        ["/bin/sh", str(PROJECT / "requirements" / "install.sh"), str(project), "run"],
        env={"PATH": str(tools)},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2
    assert named in ended.stderr
    assert "hint: " in ended.stderr
    assert not (project / ".venv").exists()
