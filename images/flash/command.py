# SPDX-License-Identifier: MIT
"""The ``flash`` command: examine the device, ask, write, resume after a broken link, read back."""

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

from bsp.base.errors import InfrastructureError, UserError, ValidationError
from bsp.base.progress import Step, say, step
from bsp.base.terminal.ask import can_ask, confirm
from bsp.base.terminal.screen import on_terminal
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
from .records import Opened, PlanDocument
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
"""How long a board may be unreachable before a flash gives up. The written part stays valid."""
_PASSES = 3
_PAUSE_S = 0.5


@dataclass(frozen=True)
class FlashRequest:
    """The arguments of ``flash``.

    Attributes:
        host: the board; None for a device of this machine.
        raw: the image need not be the image of a disk.
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
    """The result of ``flash``."""

    plan: PlanDocument
    outcome: str
    seconds: float = 0.0
    bytes_sent: int = 0
    chunks_sent: int = 0
    chunks: int = 0
    reconnects: int = 0
    verified_bytes: int = 0
    sha256: str | None = None

    def document(self) -> dict[str, Any]:
        """The result as JSON."""
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
        UserError: the device or the image is refused (see plan.py, source.py), or the user declined.
        InfrastructureError: the board became unreachable for too long, or the device disappeared.
        ValidationError: the data read back differs from the data written.
    """

    def look_at_device() -> None:
        with ExitStack() as stack:
            _, facts = _begin(request, stack, image="", token="", lock=False)
            plan.check(_write_request(request, bmap.whole(0), None), facts)
        if not dry_run and not yes and not can_ask():
            raise _no_terminal(request.device)

    source = read_source(request.image, raw=request.raw, before_unpacking=look_at_device)
    with contextlib.closing(source):
        return _flash(request, source, dry_run=dry_run, yes=yes)


def _flash(request: FlashRequest, source: Source, *, dry_run: bool, yes: bool) -> FlashResult:
    write_request = _write_request(
        request, source.map, source.description, sector_bytes=source.sector_bytes
    )
    work = _Work(request, source, write_request)
    with ExitStack() as stack:
        _, facts = work.begin(stack, lock=False)
        plan.check(write_request, facts)
    plan_document = plan.document(write_request, facts, str(request.image), source.document())
    result = FlashResult(plan_document, "planned", chunks=len(work.chunks))
    if dry_run:
        return result
    if not yes:
        _ask(plan_document)
    started = time.monotonic()
    with step(f"Writing {request.image.name} to {request.device}") as progress:
        work.write(progress, result)
    result.seconds = time.monotonic() - started
    result.outcome = "written"
    return result


def _write_request(
    request: FlashRequest,
    block_map: Map,
    description: Description | None,
    *,
    sector_bytes: int = 0,
) -> WriteRequest:
    return WriteRequest(
        request.device,
        request.host.name if request.host else None,
        block_map,
        description,
        request.board,
        request.any_device,
        sector_bytes,
    )


def _begin(
    request: FlashRequest, stack: ExitStack, *, image: str, token: str, lock: bool
) -> tuple[Session, Opened]:
    """Connect, start the writer, and ask it about the device."""
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
        raise UserError(error.message, hint="lsblk lists the devices") from error
    return session, facts


def _no_terminal(device: str) -> UserError:
    return UserError(
        f"this overwrites {device}, and there is no terminal to ask on",
        hint="--dry-run shows what would be written; --yes writes it",
    )


def _ask(plan_document: PlanDocument) -> None:
    if not can_ask():
        raise _no_terminal(plan_document["device"])
    if not confirm(f"{show.plan_text(plan_document)}\nWrite it? Everything on the device is lost."):
        raise UserError("nothing was written")


class _Work:
    """One flash, over any number of connections."""

    def __init__(self, request: FlashRequest, source: Source, write_request: WriteRequest) -> None:
        self._request = request
        self._source = source
        self._write_request = write_request
        self._identity = source.identity
        self._token = uuid.uuid4().hex
        self.chunks = chunks_of(source.map)
        self._sent = Sent()
        self._digests: dict[int, bytes] = {}
        self._whole_bytes = 0

    def begin(self, stack: ExitStack, *, lock: bool) -> tuple[Session, Opened]:
        """Connect, start the writer, and ask it about the device."""
        return _begin(self._request, stack, image=self._identity, token=self._token, lock=lock)

    def write(self, progress: Step, result: FlashResult) -> None:
        """Write and verify all chunks, and tell the writer that the flash is complete."""
        deadline: float | None = None
        while True:
            before = self._whole_bytes
            try:
                with ExitStack() as stack:
                    session, facts = self.begin(stack, lock=True)
                    plan.check(self._write_request, facts)
                    deadline = None
                    self._pass(session, facts, progress, result)
                    return
            except VanishedError as error:
                raise InfrastructureError(
                    f"{self._request.device} disappeared while it was written to, after "
                    f"{self._whole_bytes / 1e6:.0f} MB",
                    hint="check the cable or the card; the same command continues where it stopped",
                ) from error
            except RefusedError as error:
                raise InfrastructureError(
                    f"{self._request.device} cannot be written to: {error.message}",
                    hint="dmesg there has the reason",
                ) from error
            except (ConnectionLostError, UnreachableError) as error:
                if not self._request.host:
                    raise
                if deadline is None or self._whole_bytes > before:
                    deadline = time.monotonic() + RETRY_S
                if time.monotonic() > deadline:
                    raise InfrastructureError(
                        f"{self._request.host.name} became unreachable during a flash and did not "
                        f"come back within {RETRY_S:g} s: {error.message}",
                        hint="the same command continues where it stopped",
                    ) from error
                result.reconnects += 1
                say(f"the link broke ({error.message}); trying again")
                time.sleep(_PAUSE_S)

    def _pass(self, session: Session, facts: Opened, now: Step, result: FlashResult) -> None:
        done = min(int(facts["done_chunks"]), len(self.chunks))
        if done:
            kept = sum(length for _, length in self.chunks[:done])
            say(f"continuing after {kept / 1e6:.0f} MB that are on the device already")
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
            say(f"{counted(len(indexes), 'chunk')} differed when read back: sending again")
        else:
            where = ", ".join(str(self.chunks[index][0]) for index in indexes[:5])
            raise ValidationError(
                f"{self._request.device} does not store what is written to it: when read back, "
                f"{counted(len(indexes), 'chunk')} differ (at bytes {where}{', ...' * (len(indexes) > 5)})",
                hint="it is worn out, or smaller than it reports: use another",
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
    """Turns byte counts into a line with percentage, rate and remaining time."""

    def __init__(self, now: Step, total: int, note: Callable[[int], object]) -> None:
        self._now = now
        self._total = total
        self._note = note
        self._started = time.monotonic()
        self._reported = self._started

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
        if not on_terminal() and time.monotonic() - self._reported > 10:
            self._reported = time.monotonic()
            say(text)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
