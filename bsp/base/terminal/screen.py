# SPDX-License-Identifier: MIT
"""What is drawn over on a terminal's last lines while work goes on, and the lines that stay above it.

Several things may go on at once, nested or side by side; only the one that began last is drawn. What is
drawn never fills a line of the terminal, so that it takes as many lines as it has, and the cursor rests on
its first character: when the terminal becomes narrower and breaks what is drawn into more lines, the cursor
moves with that character, and the rows to clear begin there.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import shutil
import sys
import threading
import unicodedata
from collections.abc import Iterator
from typing import Protocol

_REDRAW_S = 0.2
# DECAWM: should the terminal be narrower than we think, it cuts the line too, and breaks it not.
_NO_WRAP, _WRAP = "\x1b[?7l", "\x1b[?7h"
_SAVE, _RESTORE = "\x1b7", "\x1b8"  # DECSC, DECRC: the place of the cursor


class Drawable(Protocol):
    """Something that goes on, and can be drawn."""

    def lines(self, columns: int, rows: int) -> list[str]:
        """What to show now on a terminal of this size; nothing: what began before it is shown."""


def on_terminal() -> bool:
    """Whether lines on stderr may be drawn over: a terminal that can do it, and nobody asked for less."""
    return (
        sys.stderr is not None
        and sys.stderr.isatty()
        and os.environ.get("TERM", "dumb") not in ("", "dumb")
        and not os.environ.get("NO_COLOR")
    )


def size() -> tuple[int, int]:
    """Columns and rows of the terminal that stderr is; asked anew each time, as it may be resized."""
    try:
        columns, rows = os.get_terminal_size(sys.stderr.fileno())
    except (AttributeError, OSError, ValueError):
        columns = rows = 0
    fallback = shutil.get_terminal_size()
    return columns or fallback.columns, rows or fallback.lines


def cut(text: str, columns: int) -> str:
    """Return one line of at most ``columns`` cells: longer text ends in "...", control characters go."""
    encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
    plain = text.encode(encoding, "backslashreplace").decode(encoding)
    plain = "".join(c if unicodedata.category(c) != "Cc" else " " for c in plain)
    if cells(plain) <= columns:
        return plain
    dots = "..."[: max(columns, 0)]
    room = columns - len(dots)
    shortened = ""
    for character in plain:
        room -= cells(character)
        if room < 0:
            break
        shortened += character
    return shortened + dots


def cells(text: str) -> int:
    """How many cells of a terminal this text takes: two for each wide character."""
    return sum(
        0
        if unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me", "Cf")
        else 2
        if unicodedata.east_asian_width(character) in "WF"
        else 1
        for character in text
    )


class Screen:
    """The lines below which stderr is drawn over; any thread may call its methods."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.RLock())
        self._going_on: list[Drawable] = []
        self._drawer: threading.Thread | None = None
        self._drawn: tuple[str, ...] = ()
        self._paused = 0
        self._reader_gone = False

    @property
    def reader_gone(self) -> bool:
        """Whether whoever read stderr has closed it (``2>&1 | head``)."""
        return self._reader_gone

    def begin(self, drawable: Drawable) -> None:
        """Draw this, on a terminal, until it ends or another one begins."""
        with self._changed:
            self._going_on.append(drawable)
            if self._drawer is None and on_terminal():
                self._drawer = threading.Thread(target=self._draw_on, daemon=True)
                self._drawer.start()

    def end(self, drawable: Drawable, text: str = "") -> None:
        """Draw this no longer; leave ``text`` as a line that stays."""
        with self._changed:
            self._going_on.remove(drawable)
            self.say(text) if text else self._clear()
            self._changed.notify_all()

    def say(self, text: str, *, end: str = "\n") -> None:
        """Leave a line that stays, above what is drawn."""
        with self._changed:
            self._write(f"{self._clearing()}{text}{end}")

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Draw nothing meanwhile: somebody is asked, and types."""
        with self._changed:
            self._paused += 1
            self._clear()
        try:
            yield
        finally:
            with self._changed:
                self._paused -= 1

    def _draw_on(self) -> None:
        with self._changed:
            while self._going_on:
                self._changed.wait(_REDRAW_S)
                if not self._paused:
                    self._draw()
            self._drawer = None

    def _draw(self) -> None:
        columns, rows = size()
        for drawable in reversed(self._going_on):
            lines = drawable.lines(columns - 1, rows)
            if lines:
                clearing = self._clearing()
                self._drawn = tuple(cut(line, columns - 1) for line in lines)
                text = "\n".join(self._drawn)
                self._write(f"{clearing}{_NO_WRAP}{text}{_WRAP}\r{_up(len(lines) - 1)}")
                return

    def _clear(self) -> None:
        if self._drawn:
            self._write(self._clearing())

    def _clearing(self) -> str:
        """What clears each row that is drawn on, also where the terminal became narrower, and goes back."""
        columns, _ = size()
        rows = sum(max(-(-cells(line) // columns), 1) for line in self._drawn)
        self._drawn = ()
        if not rows:
            return ""
        # Back to the saved place, not up again: where a terminal cuts lines, there may be no row below.
        return "\r" + _SAVE + "\x1b[B".join(["\x1b[K"] * rows) + _RESTORE

    def _write(self, text: str) -> None:
        if self._reader_gone or sys.stderr is None:
            return
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except BrokenPipeError:
            # Nobody sees how far it is: end, and put things in order, as with Ctrl-C.
            self._reader_gone = True
            silence(2)
            _thread.interrupt_main()
        except (OSError, ValueError):
            pass  # a full disk takes no log; the work goes on


def _up(rows: int) -> str:
    return f"\x1b[{rows}A" if rows > 0 else ""


def silence(descriptor: int) -> None:
    """Have this file descriptor lead nowhere, so that nothing fails again when Python flushes it."""
    with contextlib.suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)


screen = Screen()
