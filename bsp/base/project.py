# SPDX-License-Identifier: MIT
"""Where this checkout is: for what is read or run by its place in the project, not beside a module."""

import functools
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parents[2]


def results_folder() -> Path:
    """Return ``build`` in the project, where results go if nothing else is said."""
    return Path("build") if Path.cwd() == PROJECT else PROJECT / "build"


@functools.cache
def version() -> str:
    """Return the version of this project, as in ``pyproject.toml``."""
    text = (PROJECT / "pyproject.toml").read_text(encoding="utf-8")
    return str(tomllib.loads(text)["project"]["version"])
