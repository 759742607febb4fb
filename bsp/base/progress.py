# SPDX-License-Identifier: MIT
"""Named, timed, nested steps on stderr; the same events feed the JSON results.

On a terminal the innermost running step shows a counter that moves, in one line that is never wider than
the terminal; in a log each step is one line when it starts (if it lasts), one now and then if it says how
far it is, and one when it ends.
"""

from __future__ import annotations

import contextlib
import contextvars
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from .terminal.screen import cells, cut, on_terminal, screen

_depth: contextvars.ContextVar[int] = contextvars.ContextVar("npu_bsp_step_depth", default=0)
_listener: contextvars.ContextVar[Callable[[str], None] | None] = contextvars.ContextVar(
    "npu_bsp_step_listener", default=None
)

# A step that takes less than this is printed once, when it ends.
ANNOUNCE_AFTER_S = 0.3
# In a log, a step that says how far it is says so this often.
LOG_EVERY_S = 30.0


@dataclass(eq=False)
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

    def lines(self, columns: int, rows: int) -> list[str]:
        """What a terminal shows of it: its name, how far it is, and for how long it has been running."""
        elapsed_s = time.monotonic() - self.started
        if elapsed_s < ANNOUNCE_AFTER_S:
            return []
        return [_running_line(self, elapsed_s, columns)]


def _running_line(step: Step, elapsed_s: float, columns: int) -> str:
    """What moves is at the end of the line: where it is too narrow, the step's name is cut first."""
    ending = f" {elapsed_s:.0f} s"
    detail = f" {step.detail}" if step.detail else ""
    room = columns - len(ending)
    name = cut(f"{'  ' * step.depth}{step.name} ...", max(room - cells(detail), room // 2))
    return cut(f"{name}{detail}", room) + ending


@contextlib.contextmanager
def redirect_progress(listener: Callable[[str], None]) -> Iterator[None]:
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
    screen.say(f"{'  ' * _depth.get()}{text}")


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
    outcome = "failed"
    try:
        with _shown(current):
            yield current
        outcome = "done"
    except KeyboardInterrupt:
        outcome = "interrupted"
        raise
    finally:
        _depth.reset(token)
        current.seconds = time.monotonic() - current.started
        detail = f" ({current.detail})" if current.detail else ""
        mark = "" if outcome == "done" else f" {outcome}"
        screen.say(f"{'  ' * depth}{name}{detail}:{mark} {current.seconds:.1f} s")


@contextlib.contextmanager
def _shown(current: Step) -> Iterator[None]:
    if on_terminal():
        screen.begin(current)
        try:
            yield
        finally:
            screen.end(current)
        return
    ended = threading.Event()
    logger = threading.Thread(target=_log, args=(current, ended), daemon=True)
    logger.start()
    try:
        yield
    finally:
        ended.set()
        logger.join()


def _log(current: Step, ended: threading.Event) -> None:
    if ended.wait(ANNOUNCE_AFTER_S):
        return
    indent = "  " * current.depth
    screen.say(f"{indent}{current.name} ...")
    last_detail = current.detail
    while not ended.wait(LOG_EVERY_S):
        if current.detail != last_detail:
            last_detail = current.detail
            screen.say(f"{indent}  {last_detail}")
