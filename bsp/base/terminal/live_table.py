# SPDX-License-Identifier: MIT
"""One table on stderr that shows many things at once as they go on; plain lines where there is no terminal.

The rows of what goes on are drawn over each other; what has ended scrolls away above them as one line each.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType

from .screen import screen


class LiveTable:
    """A context manager; any thread may call its methods."""

    def __init__(self, summary: Callable[[], str]) -> None:
        """``summary`` returns the last line: how far all of it is."""
        self._summary = summary
        self._rows: dict[str, tuple[str, float]] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> LiveTable:
        screen.begin(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        screen.end(self)

    def show(self, name: str, text: str) -> None:
        """Say what one row is doing now."""
        with self._lock:
            since = self._rows[name][1] if name in self._rows else time.monotonic()
            self._rows[name] = (text.partition("\n")[0], since)

    def end(self, name: str, text: str) -> None:
        """Remove a row, and leave one line that stays."""
        with self._lock:
            self._rows.pop(name, None)
        screen.say(text)

    def say(self, text: str) -> None:
        """Leave one line that stays."""
        screen.say(text)

    def lines(self, columns: int, rows: int) -> list[str]:
        """The rows of what goes on, as many as fit, and the summary."""
        room = max(rows - 3, 1)
        with self._lock:
            going_on = list(self._rows.items())
        width = max((len(name) for name, _ in going_on), default=0)
        now = time.monotonic()
        shown = [
            f"  {name.ljust(width)}  {now - since:4.0f} s  {text}"
            for name, (text, since) in going_on[:room]
        ]
        if len(going_on) > room:
            shown[-1] = f"  and {len(going_on) - room + 1} more"
        return [*shown, self._summary()]
