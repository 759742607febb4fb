# SPDX-License-Identifier: MIT
"""The launcher and the face: what a new user types first."""

import json
import os
import subprocess
from pathlib import Path

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
