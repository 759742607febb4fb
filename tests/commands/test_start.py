# SPDX-License-Identifier: MIT
"""The start of ./inv: what it saves is made up for where it is wanted."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from bsp.base.project import PROJECT

_PROGRAM = """\
import runpy, sys
runpy.run_path("commands/face/start.py")
import invoke, paramiko
assert not {"zipfile", "unittest.mock"} & set(sys.modules), "imported all the same"
print(invoke.__version__, paramiko.__version__)
import importlib.metadata
try:
    importlib.metadata.version("no-such-package")
except importlib.metadata.PackageNotFoundError:
    print(importlib.metadata.metadata("invoke")["Name"])
"""


def test_versions_are_told_without_what_reads_packages_and_the_rest_of_it_is_there() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [
        metadata.version("invoke"),
        metadata.version("paramiko"),
        "invoke",
    ]


def test_settings_in_a_yaml_file_are_read_and_its_parser_is_imported_for_them_only(
    tmp_path: Path,
) -> None:
    environment = {**os.environ, "HOME": str(tmp_path)}
    program = """\
import runpy, sys
started = runpy.run_path("commands/face/start.py")
from invoke.config import Config
settings = Config()
print(settings.run.get("echo"), settings.run.get("shell"), "invoke.vendor.yaml.parser" in sys.modules)
"""
    answers = []
    for text in (None, "run:\n  echo: true\n  shell: /bin/other\n"):
        if text:
            (tmp_path / ".invoke.yaml").write_text(text)
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=PROJECT, env=environment, capture_output=True,
            text=True, check=True,
        )  # fmt: skip
        answers.append(done.stdout.split())
    assert answers == [["False", "bash", "False"], ["True", "/bin/other", "True"]]


def test_modules_are_compiled_once_into_the_cache_where_python_may_not_write_beside_them(
    tmp_path: Path,
) -> None:
    environment = {
        **os.environ,
        "PYTHONDONTWRITEBYTECODE": "1",
        "NPU_BSP_CACHE": str(tmp_path / "cache"),
    }
    environment.pop("PYTHONPYCACHEPREFIX", None)
    command = [sys.executable, "-v", "-P", "commands/face/start.py", "--version"]
    for run in range(2):
        done = subprocess.run(
            command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=True
        )
        module = str(PROJECT / "commands/face/program.py")
        assert (f"# code object from {module}" in done.stderr) == (run == 0)
        compiled = list((tmp_path / "cache/bytecode").rglob("program.*.pyc"))
        assert [path for path in compiled if str(PROJECT / "commands/face") in str(path)]


def test_nothing_is_compiled_into_a_cache_that_cannot_be_made() -> None:
    """Of a home that is not there (/nonexistent) Python would make one below the current folder."""
    program = (
        "import runpy, sys; runpy.run_path('commands/face/start.py'); print(sys.pycache_prefix)"
    )
    environment = {
        **os.environ,
        "PYTHONDONTWRITEBYTECODE": "1",
        "NPU_BSP_CACHE": "/dev/null/none",
    }
    environment.pop("PYTHONPYCACHEPREFIX", None)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=PROJECT, env=environment, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "None\n"


def test_without_a_home_there_is_the_one_of_the_users_entry() -> None:
    """An empty one would be the root folder: caches and keys would be looked for in /.cache and /.ssh."""
    for home in ("", None):
        environment = {key: value for key, value in os.environ.items() if key != "HOME"}
        if home is not None:
            environment["HOME"] = home
        program = """\
import runpy
runpy.run_path("commands/face/start.py")
from pathlib import Path
print(Path.home())
"""
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=PROJECT, env=environment, capture_output=True,
            text=True, check=True,
        )  # fmt: skip
        assert done.stdout.strip() == pwd.getpwuid(os.getuid()).pw_dir
