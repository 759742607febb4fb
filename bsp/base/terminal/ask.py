# SPDX-License-Identifier: MIT
"""Questions to whoever sits at the terminal."""

from __future__ import annotations

import sys
import threading

from .screen import screen


def can_ask() -> bool:
    """Whether somebody may be asked: at a terminal, and not by one of many threads at once."""
    return (
        sys.stdin is not None
        and sys.stdin.isatty()
        and threading.current_thread() is threading.main_thread()
    )


def confirm(question: str) -> bool:
    """Ask on stderr, while no progress is drawn there; only "y" and "yes" are a yes."""
    with screen.paused():
        screen.say(question, end=" [y/N] ")
        return sys.stdin.readline().strip().lower() in ("y", "yes")
