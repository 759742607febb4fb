# SPDX-License-Identifier: MIT
"""Named, timed, nested steps on stderr; the same events feed the JSON results.

On a terminal a running step shows a counter that moves; in a log each step is one line when it starts
(if it lasts), one now and then if it says how far it is, and one when it ends.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

_depth: contextvars.ContextVar[int] = contextvars.ContextVar("npu_bsp_step_depth", default=0)
_listener: contextvars.ContextVar[Callable[[str], None] | None] = contextvars.ContextVar(
    "npu_bsp_step_listener", default=None
)
_output_lock = threading.Lock()

# A step that takes less than this is printed once, when it ends.
ANNOUNCE_AFTER_S = 0.3
# In a log, a step that says how far it is says so this often.
LOG_EVERY_S = 30.0


@dataclass
class Step:
    """One step while it runs. ``note()`` changes what is shown beside its name."""

    name: str
    depth: int
    started: float = field(default_factory=time.monotonic)
    seconds: float = 0.0
    detail: str = ""

    def note(self, detail: str) -> None:
        """Say how far the step is (``"34 of 180 MB"``); shown on a terminal at once."""
        self.detail = detail


def on_terminal() -> bool:
    """Whether lines on stderr may be drawn over."""
    return sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def _print(text: str, *, end: str = "\n") -> None:
    with _output_lock:
        sys.stderr.write(text + end)
        sys.stderr.flush()


@contextlib.contextmanager
def heard_by(listener: Callable[[str], None]) -> Iterator[None]:
    """Have a listener told the steps of this thread, in place of printing them: many run side by side."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def say(text: str) -> None:
    """Print one line of progress at the present depth."""
    listener = _listener.get()
    if listener:
        listener(text)
        return
    clear = "\r\x1b[K" if on_terminal() else ""
    _print(f"{clear}{'  ' * _depth.get()}{text}")


@contextlib.contextmanager
def step(name: str) -> Iterator[Step]:
    """Run a block as a step: ``with step("Compiling the device tree") as now: ...``."""
    depth = _depth.get()
    token = _depth.set(depth + 1)
    current = Step(name, depth)
    listener = _listener.get()
    if listener:
        try:
            listener(name)
            yield current
        finally:
            _depth.reset(token)
            current.seconds = time.monotonic() - current.started
        return
    ended = threading.Event()
    ticker = threading.Thread(target=_show, args=(current, ended), daemon=True)
    ticker.start()
    outcome = "failed"
    try:
        yield current
        outcome = "done"
    except KeyboardInterrupt:
        outcome = "interrupted"
        raise
    finally:
        _depth.reset(token)
        ended.set()
        ticker.join()
        current.seconds = time.monotonic() - current.started
        detail = f" ({current.detail})" if current.detail else ""
        mark = "" if outcome == "done" else f" {outcome}"
        clear = "\r\x1b[K" if on_terminal() else ""
        _print(f"{clear}{'  ' * depth}{name}{detail}:{mark} {current.seconds:.1f} s")


def _show(current: Step, ended: threading.Event) -> None:
    if ended.wait(ANNOUNCE_AFTER_S):
        return
    indent = "  " * current.depth
    if not on_terminal():
        _print(f"{indent}{current.name} ...")
        said = current.detail
        while not ended.wait(LOG_EVERY_S):
            if current.detail != said:
                said = current.detail
                _print(f"{indent}  {said}")
        return
    while not ended.wait(0.2):
        elapsed_s = time.monotonic() - current.started
        detail = f" {current.detail}" if current.detail else ""
        _print(f"\r\x1b[K{indent}{current.name} ...{detail} {elapsed_s:.0f} s", end="")
