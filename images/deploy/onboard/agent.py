# SPDX-License-Identifier: MIT
"""The board's half of a deployment: answers requests, one JSON object a line, until the host is gone.

``open`` comes first and answers with what runs and lies here; ``stage`` is followed by a stream (see
frames.py). A request that fails is answered with ``ok: false`` and ends the session. Nothing that a
running or a good generation consists of is ever written to.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import importlib
import json
import os
import time
import zlib

from . import lease
from .board import Board
from .files import (
    SECTOR_BYTES,
    is_generation,
    on_fat,
    sha256_of,
    write_sector,
)
from .frames import Frames, RefusedError

TYPE_CHECKING = False  # see frames.py
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import BinaryIO

    from .board import Record


_CHANGES = (
    "stage",
    "mend",
    "restore-manifest",
    "discard",
    "take-in",
    "take-over",
    "give-back",
    "give-up",
    "kexec-load",
    "persist",
    "unpersist",
    "arm",
    "disarm",
    "reboot",
    "commit",
)
"""Requests that only the holder of the lease may make."""
_RENEW_S = 5
_F_SETPIPE_SZ = 1031  # linux/fcntl.h; in Python since 3.10
_PIPE_BYTES = 1 << 20
"""What the SSH server can write ahead: with Linux's own 64 KiB it keeps megabytes, which makes it slow."""
_LOG_LINES = 5


def serve(source: BinaryIO, sink: BinaryIO) -> None:
    """Answer requests until the input ends."""
    session = _Session(Frames(source))
    try:
        while line := source.readline():
            try:
                request: Record = json.loads(line)
                answer = {"ok": True, **session.answer(request)}
            except EOFError:
                return
            except lease.HeldError as error:
                answer = {"ok": False, "error": str(error), "errno": None, "lease": error.lease}
            except (RefusedError, OSError) as error:
                answer = {"ok": False, "error": str(error), "errno": getattr(error, "errno", None)}
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                answer = {"ok": False, "error": f"broken request: {error!r}", "errno": None}
            sink.write(json.dumps(answer).encode() + b"\n")
            sink.flush()
            if not answer["ok"] and "lease" not in answer:
                return  # a stream may be read by half
    finally:
        session.end()


class _Session:
    """The state of one connection."""

    def __init__(self, frames: Frames) -> None:
        self._frames = frames
        self._board = Board("", "/boot/firmware")
        self._token = ""
        self._heard_s = 0.0
        frames.heard = self._heard

    def answer(self, request: Record) -> Record:
        """Carry out one request."""
        _check_names(request)
        what = request["do"]
        if what == "open":
            self._board = Board(request["root"], request["fat"], exact=bool(request.get("exact")))
            if request["lock"]:
                lease.take(self._board, request["lock"])
                self._token = request["lock"]["token"]
            return {**self._board.facts(request), **self._use()}
        if self._token:
            lease.renew(self._board, self._token)
        elif what in _CHANGES:
            raise RefusedError(f"{what}: this session has not taken the board's lease")
        if what == "arm":
            lease.keep_over_reboot(self._board, self._token, request["hold_s"])
            lease.note(self._board, self._token, "arms a trial", request["generation"])
            answer = _arm(self._board, request)
            self._token = ""  # this session ends with the reboot; the lease does not
            return answer
        if what in ("commit", "take-over", "give-back", "persist", "unpersist"):
            about = str(request.get("generation") or request.get("way") or "")
            lease.note(self._board, self._token, what, about)
        return _answer(self._board, request, self._frames)

    def _use(self) -> Record:
        """Return who holds the board, and what was done to it last."""
        held = lease.current(self._board)
        others = held is not None and not held["over"] and held["token"] != self._token
        return {
            "lease": held if others else None,
            "log": lease.last_lines(self._board, _LOG_LINES),
        }

    def end(self) -> None:
        """End the session: the host is gone, or done."""
        if self._token:
            with contextlib.suppress(OSError):
                lease.release(self._board, self._token)

    def _heard(self) -> None:
        now_s = time.monotonic()
        if self._token and now_s - self._heard_s > _RENEW_S:
            self._heard_s = now_s
            lease.renew(self._board, self._token)


def _check_names(request: Record) -> None:
    """Check names of generations: they become names of folders."""
    one = [request.get(key) for key in ("generation", "base", "resume")]
    many = [name for key in ("keep", "bases", "generations") for name in request.get(key, ())]
    for name in [*one, *many]:
        if name is not None and not (isinstance(name, str) and is_generation(name)):
            raise RefusedError(f"{name!r} is not a generation")


def _answer(board: Board, request: Record, frames: Frames) -> Record:
    what = request["do"]
    if what == "stage":  # a stream of files follows
        from .stage import stage

        return stage(board, request, frames)
    if what in _REQUESTS:
        return _REQUESTS[what](board, request)
    if what not in _MODULES:
        raise RefusedError(f"unknown request {what!r}")
    module = importlib.import_module(f".{_MODULES[what]}", __package__)
    answer: Record = getattr(module, what.replace("-", "_"))(board, request)
    return answer


def _manifest(board: Board, request: Record) -> Record:
    content = board.manifest(request["generation"])[0]
    return {"manifest": base64.b64encode(zlib.compress(content, 6)).decode()}


def _disarm(board: Board, _: Record) -> Record:
    write_sector(os.path.join(board.own, "trial.env"), bytes(SECTOR_BYTES))
    return {}


def _arm(board: Board, request: Record) -> Record:
    """Mark a generation to be tried at the next boot, and reboot."""
    entries = [entry for entry in board.manifest(request["generation"])[1] if on_fat(entry)]
    wrong = [
        entry["path"] for entry in entries if sha256_of(board.fat_file(entry)) != entry["sha256"]
    ]
    if wrong:
        raise RefusedError(f"on the boot partition, not as the manifest says: {', '.join(wrong)}")
    path = os.path.join(board.own, "trial.env")
    sector = base64.b64decode(request["sectors"][board.form])
    if board.on_ext:
        from .raw_sector import with_sector

        # No trial yet, and found nowhere else on the disk.
        write_sector(path, os.urandom(SECTOR_BYTES))
        board.settle()
        sector = with_sector(board, path, sector)
    write_sector(path, sector)
    board.settle()
    try:
        return _reboot(request)
    except BaseException:
        write_sector(path, bytes(SECTOR_BYTES))
        raise


def _reboot(request: Record) -> Record:
    """Reboot after a moment, in another process, so that this one can still answer."""
    import shutil
    import subprocess

    program, *arguments = request["reboot"]
    path = shutil.which(program)
    if path is None:
        raise RefusedError(f"this board has no program {program!r} to reboot with")
    subprocess.Popen(
        ["/bin/sh", "-c", 'sleep 0.3; exec "$@"', "sh", path, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    return {"rebooting": True}


def _commit(board: Board, request: Record) -> Record:
    """Make a generation the good one; the copy is written first, so that one of the two is always whole."""
    sector = base64.b64decode(request["sectors"][board.form])
    for name in ("good-copy.env", "good.env"):
        write_sector(os.path.join(board.own, name), sector)
    board.settle()
    mark = board.at(f"run/npu-bsp/confirmed-{request['generation']}")
    os.makedirs(os.path.dirname(mark), exist_ok=True)
    with open(mark, "wb"):
        pass
    # A trial is booted with oops=panic; once confirmed it goes on as usual.
    switch = board.at("proc/sys/kernel/panic_on_oops")
    if os.path.exists(switch):
        with open(switch, "w") as file:
            file.write("0")
    return {"good": request["generation"]}


_REQUESTS: dict[str, Callable[[Board, Record], Record]] = {
    "manifest": _manifest,
    "disarm": _disarm,
    "reboot": lambda _, request: _reboot(request),
    "verify": lambda board, request: board.verify(request),
    "commit": _commit,
}
_MODULES = {
    "mend": "stage",
    "restore-manifest": "stage",
    "discard": "stage",
    "survey": "adopt",
    "take-in": "adopt",
    "take-over": "adopt",
    "give-back": "adopt",
    "give-up": "adopt",
    "persist": "persist",
    "unpersist": "persist",
    "kexec-load": "kexec",
    "health": "health",
}
"""Requests that few sessions make: the module, compiled only then, that has a function of that name."""


def main(source: BinaryIO) -> None:
    """Serve the standard streams; some of the input has been read, through ``source``."""
    os.umask(0o022)
    with contextlib.suppress(OSError):  # a socket, or too many pipes of this user's are large
        fcntl.fcntl(source.fileno(), _F_SETPIPE_SZ, _PIPE_BYTES)
    with open(1, "wb", closefd=False) as sink:
        serve(source, sink)
