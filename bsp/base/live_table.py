# SPDX-License-Identifier: MIT
"""One table on stderr that shows many things at once as they go on; plain lines where there is no terminal.

The rows of what goes on are drawn over each other; what has ended scrolls away above them as one line each.
"""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType

from .progress import on_terminal

_REDRAW_S = 0.2


class LiveTable:
    """A context manager; any thread may call its methods."""

    def __init__(self, summary: Callable[[], str]) -> None:
        """``summary`` returns the last line: how far all of it is."""
        self._summary = summary
        self._rows: dict[str, tuple[str, float]] = {}
        self._lock = threading.RLock()
        self._drawn = 0
        self._ended = threading.Event()
        self._terminal = on_terminal()
        self._drawer = threading.Thread(target=self._draw_on, daemon=True)

    def __enter__(self) -> LiveTable:
        if self._terminal:
            self._drawer.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        if self._terminal:
            self._drawer.join()
            self._write("")

    def show(self, name: str, text: str) -> None:
        """Say what one row is doing now."""
        with self._lock:
            since = self._rows[name][1] if name in self._rows else time.monotonic()
            self._rows[name] = (text.partition("\n")[0], since)

    def end(self, name: str, text: str) -> None:
        """Remove a row, and leave one line that stays."""
        with self._lock:
            self._rows.pop(name, None)
            self._write(f"{text}\n")

    def say(self, text: str) -> None:
        """Leave one line that stays."""
        with self._lock:
            self._write(f"{text}\n")

    def _draw_on(self) -> None:
        while not self._ended.wait(_REDRAW_S):
            with self._lock:
                self._write("", rows=self._lines())

    def _lines(self) -> list[str]:
        columns, lines = shutil.get_terminal_size()
        room = max(lines - 3, 1)
        width = max((len(name) for name in self._rows), default=0)
        now = time.monotonic()
        shown = [
            f"  {name.ljust(width)}  {now - since:4.0f} s  {text}"
            for name, (text, since) in list(self._rows.items())[:room]
        ]
        if len(self._rows) > room:
            shown[-1] = f"  and {len(self._rows) - room + 1} more"
        return [line[: columns - 1] for line in (*shown, self._summary())]

    def _write(self, text: str, *, rows: list[str] | None = None) -> None:
        back = f"\x1b[{self._drawn}A" if self._drawn else ""
        clear = f"{back}\r\x1b[J" if self._terminal else ""
        below = "".join(f"{line}\n" for line in rows or ())
        self._drawn = len(rows or ())
        sys.stderr.write(f"{clear}{text}{below}")
        sys.stderr.flush()
