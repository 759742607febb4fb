# SPDX-License-Identifier: MIT
"""A run of ``make`` or ``ninja``: its log is read as it grows, and a failure is said in words."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ..errors import InfrastructureError, UserError
from ..process import Completed, require_tool, run

LOG = "npu-bsp.log"
_WRONG = re.compile(r"\b(fatal )?error:|undefined refer|ninja: error|\*\*\* ")


def compile_in(
    folder: Path,
    command: Sequence[str],
    *,
    what: str,
    env: Mapping[str, str],
    on_lines: Callable[[list[bytes]], None],
) -> None:
    """Run ``make`` or ``ninja``; its output goes to ``LOG`` in the build folder.

    Args:
        what: what is compiled, as a failure names it: ``Mesa``, ``the kernel``.
        on_lines: gets each whole line that the program printed, in order, from another thread.

    Raises:
        UserError: the source does not compile; the message has the compiler's first complaints.
        InfrastructureError: the disk is full, or the compiler was killed; the next run goes on.
    """
    log = folder / LOG
    with log.open("wb") as sink:
        ended = threading.Event()
        reader = threading.Thread(target=_follow, args=(log, ended, on_lines), daemon=True)
        reader.start()
        try:
            # Complaints go where progress goes, in order.
            words = ["sh", "-c", 'exec "$@" 2>&1', "sh", require_tool(command[0]), *command[1:]]
            done = run(words, env=env, stdout=sink, check=False)
        finally:
            ended.set()
            reader.join()
    if done.exit_code != 0:
        _explain(done, log, what)


def _follow(log: Path, ended: threading.Event, on_lines: Callable[[list[bytes]], None]) -> None:
    with log.open("rb") as file:
        rest = b""
        while True:
            last = ended.is_set()
            *lines, rest = (rest + file.read()).split(b"\n")
            if lines:
                on_lines(lines)
            if last:
                return
            ended.wait(0.5)


def _explain(done: Completed, log: Path, what: str) -> None:
    log_lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    if any("No space left on device" in line for line in log_lines):
        raise InfrastructureError(
            f"the disk is full: {log.parent}",
            hint="make room, or set NPU_BSP_CACHE; the same command then goes on where it stopped",
        )
    killed = ("Killed", "terminated by signal")
    if done.exit_code < 0 or any(word in line for line in log_lines for word in killed):
        raise InfrastructureError(
            f"the compiler was ended from outside (out of memory?); see {log}",
            hint="the same command goes on where it stopped; --jobs 1 needs less memory",
        )
    error_lines = [line for line in log_lines if _WRONG.search(line)]
    raise UserError(
        f"{what} does not compile:\n" + "\n".join((error_lines or log_lines[-12:])[:12]),
        hint=f"all that was said: {log}",
    )
