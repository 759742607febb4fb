# SPDX-License-Identifier: MIT
"""``flash`` as it is typed: look, ask, write, go on where the link broke, read back."""

from __future__ import annotations

import contextlib
import hashlib
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bsp.base.ask import can_ask, confirm
from bsp.base.errors import InfrastructureError, UserError, ValidationError
from bsp.base.progress import Step, say, step
from bsp.base.screen import on_terminal
from bsp.base.words import counted
from bsp.profile import Board
from bsp.remote import ssh
from bsp.remote.inventory import Host
from bsp.remote.ssh import ConnectionLostError, UnreachableError
from images.disk import bmap
from images.disk.bmap import Map
from images.disk.image import Description

from . import plan, show
from .plan import WriteRequest
from .source import Source, read_source
from .stream import (
    LocalLink,
    RefusedError,
    Sent,
    Session,
    SshLink,
    VanishedError,
    chunks_of,
)

RETRY_S = 60.0
"""So long a board may be away before a flash gives up; what is there stays there."""
_PASSES = 3
_PAUSE_S = 0.5


@dataclass(frozen=True)
class FlashRequest:
    """What the user typed.

    Attributes:
        host: the board; None for a device of this machine.
        raw: the image need not be that of a disk.
        root: prefix of the paths on the board; for the tests.
    """

    device: str
    image: Path
    host: Host | None = None
    board: Board | None = None
    any_device: bool = False
    accept_new_key: bool = False
    timeout_s: float = 60.0
    raw: bool = False
    root: str = ""


@dataclass
class FlashResult:
    """What was done."""

    plan: dict[str, Any]
    outcome: str
    seconds: float = 0.0
    bytes_sent: int = 0
    chunks_sent: int = 0
    chunks: int = 0
    reconnects: int = 0
    verified_bytes: int = 0
    sha256: str | None = None

    def document(self) -> dict[str, Any]:
        """The document."""
        return {
            **self.plan,
            "outcome": self.outcome,
            "seconds": round(self.seconds, 2),
            "bytes_sent": self.bytes_sent,
            "chunks": self.chunks,
            "chunks_sent": self.chunks_sent,
            "reconnects": self.reconnects,
            "verified_bytes": self.verified_bytes,
            "sha256": self.sha256,
        }


def flash(request: FlashRequest, *, dry_run: bool = False, yes: bool = False) -> FlashResult:
    """Write an image onto a device and read it back.

    Raises:
        UserError: something speaks against it (see plan.py, source.py), or the user said no.
        InfrastructureError: the board went away and did not come back, or the device vanished.
        ValidationError: what is read back is not what was written.
    """

    def look_at_device() -> None:
        with ExitStack() as stack:
            _, facts = _begin(request, stack, image="", token="", lock=False)
            plan.check(_wish(request, bmap.whole(0), None), facts)
        if not dry_run and not yes and not can_ask():
            raise _no_terminal(request.device)

    source = read_source(request.image, raw=request.raw, before_unpacking=look_at_device)
    with contextlib.closing(source):
        return _flash(request, source, dry_run=dry_run, yes=yes)


def _flash(request: FlashRequest, source: Source, *, dry_run: bool, yes: bool) -> FlashResult:
    wish = _wish(request, source.map, source.description)
    work = _Work(request, source, wish)
    with ExitStack() as stack:
        _, facts = work.begin(stack, lock=False)
        plan.check(wish, facts)
    planned = plan.document(wish, facts, str(request.image), facts["done_chunks"])
    planned |= source.document()
    result = FlashResult(planned, "planned", chunks=len(work.chunks))
    if dry_run:
        return result
    if not yes:
        _ask(planned)
    started = time.monotonic()
    with step(f"Writing {request.image.name} to {request.device}") as now:
        work.write(now, result)
    result.seconds = time.monotonic() - started
    result.outcome = "written"
    return result


def _wish(request: FlashRequest, found: Map, description: Description | None) -> WriteRequest:
    host = request.host.name if request.host else None
    return WriteRequest(request.device, host, found, description, request.board, request.any_device)


def _begin(
    request: FlashRequest, stack: ExitStack, *, image: str, token: str, lock: bool
) -> tuple[Session, dict[str, Any]]:
    """Connect, start the writer, ask about the device."""
    if request.host:
        connection = stack.enter_context(
            ssh.connect(
                request.host,
                timeout_s=min(request.timeout_s, 30),
                accept_new_key=request.accept_new_key,
            )
        )
        link: SshLink | LocalLink = SshLink(connection)
    else:
        link = LocalLink()
    session = stack.enter_context(Session(link, root=request.root, timeout_s=request.timeout_s))
    try:
        facts = session.open(request.device, image=image, token=token, lock=lock)
    except RefusedError as error:
        raise UserError(error.message, hint="lsblk lists what there is") from error
    return session, facts


def _no_terminal(device: str) -> UserError:
    return UserError(
        f"this overwrites {device}, and there is no terminal to ask on",
        hint="--dry-run shows what would be written; --yes writes it",
    )


def _ask(planned: dict[str, Any]) -> None:
    if not can_ask():
        raise _no_terminal(planned["device"])
    if not confirm(f"{show.plan_text(planned)}\nWrite it? All that is there is lost."):
        raise UserError("nothing was written")


class _Work:
    """One flash, over as many connections as it takes."""

    def __init__(self, request: FlashRequest, source: Source, wish: WriteRequest) -> None:
        self._request = request
        self._source = source
        self._wish = wish
        self._identity = source.identity
        self._token = uuid.uuid4().hex
        self.chunks = chunks_of(source.map)
        self._sent = Sent()
        self._digests: dict[int, bytes] = {}
        self._whole_bytes = 0

    def begin(self, stack: ExitStack, *, lock: bool) -> tuple[Session, dict[str, Any]]:
        """Connect, start the writer, ask about the device."""
        return _begin(self._request, stack, image=self._identity, token=self._token, lock=lock)

    def write(self, now: Step, result: FlashResult) -> None:
        """Write, verify, and say so to the writer."""
        deadline: float | None = None
        while True:
            before = self._whole_bytes
            try:
                with ExitStack() as stack:
                    session, facts = self.begin(stack, lock=True)
                    plan.check(self._wish, facts)
                    deadline = None
                    self._pass(session, facts, now, result)
                    return
            except VanishedError as error:
                raise InfrastructureError(
                    f"{self._request.device} has vanished while it was written to, after "
                    f"{self._whole_bytes / 1e6:.0f} MB",
                    hint="look at the cable or the card; the same command goes on where it stopped",
                ) from error
            except RefusedError as error:
                raise InfrastructureError(
                    f"{self._request.device} cannot be written to: {error.message}",
                    hint="look at dmesg there",
                ) from error
            except (ConnectionLostError, UnreachableError) as error:
                if not self._request.host:
                    raise
                if deadline is None or self._whole_bytes > before:
                    deadline = time.monotonic() + RETRY_S
                if time.monotonic() > deadline:
                    raise InfrastructureError(
                        f"{self._request.host.name} went away in the middle of a flash and did not "
                        f"come back within {RETRY_S:g} s: {error.message}",
                        hint="the same command goes on where it stopped",
                    ) from error
                result.reconnects += 1
                say(f"the link broke ({error.message}); trying again")
                time.sleep(_PAUSE_S)

    def _pass(
        self, session: Session, facts: dict[str, Any], now: Step, result: FlashResult
    ) -> None:
        done = min(int(facts["done_chunks"]), len(self.chunks))
        if done:
            kept = sum(length for _, length in self.chunks[:done])
            say(f"going on after {kept / 1e6:.0f} MB that are there already")
        progress = _Progress(now, sum(length for _, length in self.chunks), self._note)
        indexes: list[int] = list(range(len(self.chunks)))
        first = done
        for _ in range(_PASSES):
            answer = session.send(
                self._source,
                indexes,
                done=first,
                compress=bool(self._request.host and facts["zstd"]),
                sent=self._sent,
                digests=self._digests,
                progress=progress,
            )
            result.bytes_sent, result.chunks_sent = self._sent.wire_bytes, self._sent.chunks
            indexes, first = answer["need"], 0
            if not indexes:
                break
            say(f"{counted(len(indexes), 'chunk')} read back differently: sending again")
        else:
            where = ", ".join(str(self.chunks[index][0]) for index in indexes[:5])
            raise ValidationError(
                f"{self._request.device} does not keep what is written to it: read back, "
                f"{counted(len(indexes), 'chunk')} differ (at bytes {where}{', ...' * (len(indexes) > 5)})",
                hint="it is worn out, or smaller than it says: take another",
            )
        own = hashlib.sha256()
        for index in range(len(self.chunks)):
            own.update(self._digests[index])
        if answer["digest"] != own.hexdigest():
            raise ValidationError(
                f"the hash of {self._request.device} is {answer['digest']}, expected {own.hexdigest()}"
            )
        session.done()
        result.sha256 = own.hexdigest()
        result.verified_bytes = sum(length for _, length in self.chunks)
        now.note(f"{result.verified_bytes / 1e6:.0f} MB, read back")

    def _note(self, whole_bytes: int) -> None:
        self._whole_bytes = max(self._whole_bytes, whole_bytes)


class _Progress:
    """Turns counts into what a person wants to see: how far, how fast, how long still."""

    def __init__(self, now: Step, total: int, note: Callable[[int], object]) -> None:
        self._now = now
        self._total = total
        self._note = note
        self._started = time.monotonic()
        self._said = self._started

    def __call__(self, whole_bytes: int) -> None:
        self._note(whole_bytes)
        elapsed_s = time.monotonic() - self._started
        rate = whole_bytes / max(elapsed_s, 0.001)
        left_s = max(self._total - whole_bytes, 0) / max(rate, 1)
        share = 100 * min(whole_bytes, self._total) // self._total
        text = (
            f"{share} % of {self._total / 1e6:.0f} MB, {rate / 1e6:.1f} MB/s, "
            f"{_duration(left_s)} left"
        )
        self._now.note(text)
        if not on_terminal() and time.monotonic() - self._said > 10:
            self._said = time.monotonic()
            say(text)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
