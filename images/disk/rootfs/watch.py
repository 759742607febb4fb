# SPDX-License-Identifier: MIT
"""The progress of dpkg in a root that is being made, read from dpkg's own records."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

_PERIOD_S = 0.5
_ENTRY = re.compile(r"^Package: (\S+)\nStatus: \S+ \S+ (\S+)$", re.MULTILINE)


def configured(records: Path) -> int:
    """Return how many packages are configured.

    Args:
        records: dpkg's folder (``/var/lib/dpkg``). What changed since ``status`` was last written is in
            numbered files of ``updates``.
    """
    states: dict[str, str] = {}
    for file in (records / "status", *sorted((records / "updates").glob("[0-9]*"))):
        with contextlib.suppress(OSError):  # dpkg removes them as it goes
            states.update(_ENTRY.findall(file.read_text(encoding="utf-8", errors="replace")))
    return sum(state == "installed" for state in states.values())


@contextlib.contextmanager
def watched(folder: Path, total: int, note: Callable[[str], None]) -> Iterator[None]:
    """Report how many packages are configured while a root is made somewhere below a folder."""
    ended = threading.Event()

    def report() -> None:
        while not ended.wait(_PERIOD_S):
            for status in folder.glob("*/var/lib/dpkg/status"):
                number = configured(status.parent)
                note(f"{number} of {total} packages" if number else f"unpacking {total} packages")

    watcher = threading.Thread(target=report, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
