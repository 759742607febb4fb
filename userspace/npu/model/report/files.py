# SPDX-License-Identifier: MIT
"""Writes a model's report as a page."""

from __future__ import annotations

import datetime
from pathlib import Path

from bsp.base.cache import write_atomically
from bsp.base.errors import UserError
from bsp.base.progress import say

from .page import page
from .report import Facts


def target(name: str) -> Path | None:
    """Return where the page goes, looked at before anything runs; None without a name.

    Raises:
        UserError: nothing can be written there.
    """
    if not name:
        return None
    path = Path(name).absolute()
    if path.is_dir():
        raise UserError(f"{name} is a folder", hint=f"--html {Path(name) / 'model-report.html'}")
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent}", hint="make it, or name another")
    return path


def write(facts: Facts, path: Path) -> Path:
    """Write the page, and return where it is.

    Raises:
        UserError: it cannot be written.
    """
    made_at = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    try:
        write_atomically(path, page(facts, made=made_at).encode())
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    say(f"the page is {path}")
    return path
