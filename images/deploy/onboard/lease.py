# SPDX-License-Identifier: MIT
"""The lease of a board: one deployment at a time, with an owner, an expiry, and a log of steals.

A lease is held by the session that took it, for as long as that lives and something comes over it; over
the reboot of a trial it is held for the time that the trial may take. It counts in seconds since boot,
never by the clock, which a board may not have, or which may jump.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import time

from .board import Board
from .files import make_way, read, read_text, write_whole
from .frames import RefusedError

TYPE_CHECKING = False  # see frames.py
if TYPE_CHECKING:
    from collections.abc import Iterator

    from .board import Record

HERE = "run/npu-bsp/lease.json"
OVER_REBOOT = "var/lib/npu-bsp/lease.json"
LOG = "var/lib/npu-bsp/log"

_SILENT_S = 600  # a session from which nothing came for so long is taken for dead
_RENEW_S = 5
_LOG_BYTES = 64 << 10
_ENDS_S = 5
_WAIT_S = 2  # a session that is just ending gives it back in no time


class HeldError(RefusedError):
    """Another deployment holds this board; ``lease`` says who."""

    def __init__(self, lease: Record) -> None:
        super().__init__(
            f"another deployment to this board is running: {lease['purpose']} of {lease['owner']}, "
            f"for {lease['age_s']:.0f} s; its lease ends in {lease['left_s']:.0f} s"
        )
        self.lease = lease


def take(board: Board, request: Record) -> None:
    """Take the lease, or raise who holds it.

    Args:
        request: ``token`` (the same in all sessions of one deployment), ``owner``, ``purpose``, ``client``,
            and ``steal``: why it is taken from whoever has it; empty to respect that.

    Raises:
        HeldError: another one has it.
    """
    deadline = time.monotonic() + (0 if request["steal"] else _WAIT_S)
    while not _take(board, request, wait=time.monotonic() < deadline):
        time.sleep(0.05)


def _take(board: Board, request: Record, *, wait: bool) -> bool:
    with _alone(board):
        held = current(board)
        other = held if held is not None and held["token"] != request["token"] else None
        if other and not other["over"]:
            if wait and other.get("armed_s") is None:
                return False
            if not request["steal"]:
                raise HeldError(other)
            _log(
                board,
                request["owner"],
                "stole the lease",
                f"from {other['owner']}: {request['steal']}",
            )
        if other:
            _end(other)
        if held is None or other:
            _log(board, request["owner"], "took the lease", request["purpose"])
        lease = {key: request[key] for key in ("token", "owner", "purpose", "client")}
        age_s = held["age_s"] if held and not other else 0
        _write(board, {**lease, "since_s": _uptime_s(board) - age_s})
    return True


def renew(board: Board, token: str) -> None:
    """Extend the lease: a request came.

    Raises:
        RefusedError: it was taken away.
    """
    held = _read(board)
    if held is None or held["token"] != token:
        by = f" by {held['owner']}" if held else ""
        raise RefusedError(f"the lease on this board was taken away{by}; see its /{LOG}")
    if held.get("armed_s") is None and _uptime_s(board) - held["renewed_s"] > _RENEW_S:
        _write(board, held)


def keep_over_reboot(board: Board, token: str, for_s: float) -> None:
    """Keep the lease for the time of a trial, with or without a session."""
    with _alone(board):
        renew(board, token)
        held = {**(_read(board) or {}), "armed_s": for_s}
        _write(board, held)
        write_whole(board.at(OVER_REBOOT), json.dumps(held).encode())


def release(board: Board, token: str) -> None:
    """Release the lease, if this session still holds it."""
    with _alone(board):
        held = _read(board)
        if held is not None and held["token"] == token:
            make_way(board.at(HERE))
            make_way(board.at(OVER_REBOOT))
            _log(board, held["owner"], "gave the lease back", held["purpose"])


def note(board: Board, token: str, what: str, detail: str) -> None:
    """Write into the board's log what the holder of the lease did."""
    held = _read(board)
    if held is not None and held["token"] == token:
        _log(board, held["owner"], what, detail)


def current(board: Board) -> Record | None:
    """Return the lease with ``age_s``, ``left_s`` and whether it is ``over``; None if there is none."""
    held = _read(board)
    if held is None:
        return None
    now_s = _uptime_s(board)
    same_boot = held["boot_id"] == _boot_id(board)
    if held.get("armed_s") is not None:
        # In a later boot it counts from that boot's start: later than it was taken, never earlier.
        left_s = held["armed_s"] - (now_s - held["renewed_s"] if same_boot else now_s)
        alive = True
    else:
        left_s = _SILENT_S - (now_s - held["renewed_s"])
        alive = same_boot and _started(held["pid"]) == held["pid_started"]
    age_s = now_s - held["since_s"] if same_boot else now_s
    return {**held, "age_s": age_s, "left_s": left_s, "over": not alive or left_s <= 0}


def last_lines(board: Board, count: int) -> list[str]:
    """Return the end of the board's log."""
    return read(board.at(LOG)).decode(errors="replace").splitlines()[-count:]


def _read(board: Board) -> Record | None:
    for path in (HERE, OVER_REBOOT):
        content = read(board.at(path))
        if content:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                held: Record = json.loads(content)
                if held["token"] and held["owner"] and held["boot_id"] is not None:
                    return held
    return None


def _write(board: Board, lease: Record) -> None:
    """Write the lease, to memory and so without a flush: a power cut ends a session anyway."""
    path = board.at(HERE)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    held = {
        **lease,
        "renewed_s": _uptime_s(board),
        "boot_id": _boot_id(board),
        "pid": os.getpid(),
        "pid_started": _started(os.getpid()),
    }
    with open(f"{path}.partial", "w") as file:
        json.dump(held, file)
    os.rename(f"{path}.partial", path)


@contextlib.contextmanager
def _alone(board: Board) -> Iterator[None]:
    path = board.at("run/lock/npu-bsp-deploy")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _end(lease: Record) -> None:
    """End the session that had the lease: two sessions that build at once would collide."""
    pid, started = lease["pid"], lease["pid_started"]
    deadline = time.monotonic() + _ENDS_S
    while started and pid != os.getpid() and _started(pid) == started:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM if time.monotonic() < deadline else signal.SIGKILL)
        time.sleep(0.02)


def _started(pid: int) -> str:
    """Return when a process began (proc(5), field 22); "" if there is none, or it has ended."""
    fields = read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    return fields[19].decode() if len(fields) > 19 and fields[0] != b"Z" else ""


def _boot_id(board: Board) -> str:
    return read_text(board.at("proc/sys/kernel/random/boot_id"))


def _uptime_s(board: Board) -> float:
    words = read_text(board.at("proc/uptime")).split()
    return float(words[0]) if words else time.clock_gettime(time.CLOCK_BOOTTIME)


def _log(board: Board, owner: str, what: str, detail: str) -> None:
    """Add a line to the log; its older half is dropped when it is too long. Errors are ignored."""
    path = board.at(LOG)
    text = " ".join(f"{owner} {what}: {detail}".split())
    line = f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {text}\n"
    with contextlib.suppress(OSError):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if os.path.exists(path) and os.stat(path).st_size > _LOG_BYTES:
            old = read(path)
            write_whole(path, old[old.index(b"\n", len(old) // 2) + 1 :])
        with open(path, "a") as file:
            file.write(line)
