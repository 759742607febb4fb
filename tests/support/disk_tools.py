# SPDX-License-Identifier: MIT
"""Tools that look into disk images, which Debian keeps in sbin."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"


def run_tool(*argv: str | Path) -> str:
    """Run a tool and return what it printed."""
    result = subprocess.run(
        [str(word) for word in argv],
        env={**os.environ, "PATH": PATH},
        check=True,
        capture_output=True,
        text=True,
    )
    return result.stdout
