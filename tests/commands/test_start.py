# SPDX-License-Identifier: MIT
"""The start of ./inv: what it saves is made up for where it is wanted."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata

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
