# SPDX-License-Identifier: MIT
"""Does work in a forked process: one that crashes, hangs or runs out of memory is a result, not the end.

Shipped to boards beside ``runner.py``: the standard library only.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or __package__:
    from .stage_error import StageError
else:
    from stage_error import StageError

STARTED_BY = os.getppid()
# After which a process that was told to end counts as stuck in the kernel.
GRACE_S = 5.0
# Of what a child prints, so much is kept: half from its beginning, where a delegate says which driver it
# has loaded and what it takes, and half from its end, with the last words.
LOG_LIMIT_BYTES = 1 << 20
CUT = "\n(... cut ...)\n"


def in_child(work: Any, timeout_s: float) -> dict[str, Any]:
    """Return what ``work()`` returns, from a forked process: with its output, however it ends."""
    with tempfile.TemporaryFile() as log, tempfile.TemporaryFile() as answer:
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                be_first_to_go()
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
                signal.setitimer(signal.ITIMER_REAL, timeout_s)  # ends us inside C code, too
                try:
                    result = work()
                except StageError as error:
                    result = {"error": error.record()}
                except Exception as error:
                    traceback.print_exc()
                    result = {"error": {"stage": "run", "message": f"{error!r}"}}
                os.write(answer.fileno(), json.dumps(result).encode())
                code = 0
            finally:
                # Not exit(): delegates are known to crash while they are taken down.
                os._exit(code)
        late = f"did not end within {timeout_s:g} s"
        status = wait_for(child, timeout_s + GRACE_S)
        was_killed = status is None
        if status is None:
            late += ", and ignored the signal that ends it (SIGALRM): it was killed"
            os.kill(child, signal.SIGKILL)
            status = wait_for(child, GRACE_S)
        if status is None:
            message = f"did not end within {timeout_s:g} s, and cannot be killed: it is stuck in the kernel"
            return {"error": {"stage": "time", "message": message}, "log": ""}
        answer.seek(0)
        content = answer.read()
        text = _printed(log)
    facts: dict[str, Any]
    if was_killed or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM):
        facts = {"error": {"stage": "time", "message": late}}
    elif os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        name = signal_name(number)
        # Nobody but the kernel, short of memory, and an administrator sends it.
        words = f"was killed with {name}" if number == signal.SIGKILL else f"crashed with {name}"
        facts = {"error": {"stage": "crash", "message": words}, "signal": number}
    elif content:
        facts = _parsed(content)
    else:
        words = f"ended its process (exit code {os.WEXITSTATUS(status)}) before there was a result"
        facts = {"error": {"stage": "crash", "message": words}}
    facts["log"] = text
    return facts


def _printed(log: Any) -> str:
    """Return what was printed to a file; of much the beginning and the end."""
    size, half = log.seek(0, os.SEEK_END), LOG_LIMIT_BYTES // 2
    log.seek(0)
    if size <= LOG_LIMIT_BYTES:
        content: bytes = log.read()
        return content.decode(errors="replace")
    beginning = log.read(half)
    log.seek(size - half)
    return str(beginning.decode(errors="replace") + CUT + log.read().decode(errors="replace"))


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads(content)
    except ValueError:
        words = f"could not write all of its answer ({len(content)} bytes): the disk is full?"
        return {"error": {"stage": "crash", "message": words}}
    return facts


def be_first_to_go() -> None:
    """Have the kernel end this process, not the board's others, when memory runs out."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def signal_name(number: int) -> str:
    """Return ``SIGSEGV`` for 11; real-time signals have no names of their own."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def wait_for(child: int, timeout_s: float) -> int | None:
    """Return the status of a process that ends, or None if it does not within that time.

    Ends both if the connection that asked is cut: sshd ends then, and nobody is left to read results.
    """
    deadline = time.monotonic() + timeout_s
    pause_s = 0.001
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        if os.getppid() != STARTED_BY:
            os.kill(child, signal.SIGKILL)
            sys.exit("whoever started this is gone")
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, 0.05)
    return None
