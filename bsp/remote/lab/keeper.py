# SPDX-License-Identifier: MIT
"""Holds a labgrid place for as long as its standard input stays open; a program of its own.

It runs in the environment that has labgrid (requirements/labgrid.txt), started by ``lab.lease``, and speaks
JSON on standard output, one object a line::

    {"event": "waiting", "why": "..."}         the places with these tags are taken
    {"event": "ready", "place": ..., ...}      the place is ours
    {"event": "failed", "message": ..., "hint": ..., "exit_code": 2}
    {"event": "taken", "message": "..."}       somebody took the place away from us; it ends
    {"event": "unsure", "message": "..."}      the coordinator does not answer; it goes on trying
    {"event": "sure", "message": "..."}        it answers again
    {"event": "released"} or {"event": "kept", "message": ...}   the last one

The parent's end of standard input closes however the parent ends: done, Ctrl-C, SIGTERM, SIGKILL. The place
is released then. If this program is killed too (or the machine falls), the coordinator keeps the place
acquired: labgrid's leases have no end. So each lease is noted in a file that its keeper has locked; the
next keeper on this machine finds the files that nobody has locked, and releases what they name.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import fcntl
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
from labgrid.remote.client import ClientSession, Error
from labgrid.remote.common import Place, Reservation, ReservationState
from labgrid.remote.generated import labgrid_coordinator_pb2 as messages
from labgrid.util.proxy import proxymanager

LOOK_EVERY_S = 0.25
POLL_EVERY_S = 1.0  # a reservation that is not asked about for 60 s ends
START_WITHIN_S = 20.0
RELEASE_WITHIN_S = 20.0
RETRY_EVERY_S = 2.0


class FailedError(Exception):
    """What the parent tells its user; ``exit_code`` as in bsp.base.errors."""

    def __init__(self, message: str, *, hint: str = "", exit_code: int = 2) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code


def tell(event: str, **fields: object) -> None:
    """Say something to the parent; it may be gone."""
    with contextlib.suppress(OSError):
        sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
        sys.stdout.flush()


class Keeper:
    """One lease: from the reservation to the release.

    Args:
        tags: what the place has to have; empty where ``token`` names a reservation.
        token: a reservation that somebody else made and will cancel.
        wait_s: how long to wait for a place.
        notes: folder of the notes on leases.
    """

    def __init__(
        self, coordinator: str, tags: dict[str, str], token: str, wait_s: float, notes: Path
    ) -> None:
        self.coordinator = coordinator
        self.tags = tags
        self.token = token
        self.own_reservation = not token
        self.wait_s = wait_s
        self.notes = notes
        self.note: Path | None = None
        self.note_file: int | None = None
        self.session: Any = None
        self.place = ""
        self.acquired = False
        self.stop = asyncio.Event()

    # --- the session ---------------------------------------------------------------------------

    async def connect(self) -> None:
        """Begin a session with the coordinator."""
        address = proxymanager.get_grpc_address(self.coordinator, default_port=20408)
        session = ClientSession(address, asyncio.get_running_loop())
        try:
            await asyncio.wait_for(session.start(), START_WITHIN_S)
        except (Error, TimeoutError) as error:
            with contextlib.suppress(Exception):
                session.stopping.set()
                await asyncio.wait_for(session.stop(), 2)
                await session.close()
            raise FailedError(
                f"no labgrid coordinator answers at {self.coordinator}",
                hint="export LG_COORDINATOR=HOST:PORT, and see that labgrid-coordinator runs there",
                exit_code=3,
            ) from error
        self.session = session

    async def disconnect(self) -> None:
        """End the session."""
        session, self.session = self.session, None
        if session is not None:
            with contextlib.suppress(Exception):
                session.stopping.set()
                await asyncio.wait_for(session.stop(), 5)
                await session.close()

    @property
    def us(self) -> str:
        """Who the coordinator takes us for: HOST/USER."""
        return f"{self.session.gethostname()}/{self.session.getuser()}"

    def known(self, name: str) -> Place | None:
        """The place of that name, as the coordinator last described it."""
        place: Place | None = self.session.places.get(name)
        return place

    # --- reserving -----------------------------------------------------------------------------

    def check_tags(self) -> None:
        """Refuse tags that no place has: waiting for one would take for ever."""
        places = list(self.session.places.values())
        if any(matches(place, self.tags) for place in places):
            return
        wanted_tags = ",".join(f"{key}={value}" for key, value in self.tags.items())
        existing_tags = sorted(
            f"{key}={value}" for place in places for key, value in tags_of(place).items()
        )
        suggestions = [
            match
            for key, value in self.tags.items()
            if f"{key}={value}" not in existing_tags
            for match in difflib.get_close_matches(f"{key}={value}", existing_tags, n=1, cutoff=0.6)
        ]
        listed = "; ".join(
            f"{place.name}: "
            + (",".join(f"{k}={v}" for k, v in sorted(place.tags.items())) or "none")
            for place in sorted(places, key=lambda place: str(place.name))[:8]
        )
        raise FailedError(
            f"no place of the lab has the tags {wanted_tags}; the coordinator at {self.coordinator} has "
            + (f"{len(places)} places ({listed})" if places else "no places at all"),
            hint=f"did you mean {suggestions[0]}?"
            if suggestions
            else "labgrid-client -p PLACE set-tags KEY=VALUE gives a place its tags",
        )

    async def reserve(self) -> None:
        """Have the coordinator allocate a place; wait for one that is taken."""
        if self.own_reservation:
            self.check_tags()
            request = messages.CreateReservationRequest(
                filters={"main": messages.Reservation.Filter(filter=self.tags)}, prio=0.0
            )
            try:
                answer = await self.session.stub.CreateReservation(request)
            except grpc.aio.AioRpcError as error:
                raise FailedError(
                    f"the lab takes no such reservation: {error.details()}"
                ) from error
            self.token = Reservation.from_pb2(answer.reservation).token
        deadline = time.monotonic() + self.wait_s
        last_reason = ""
        while True:
            reservation = await self.poll()
            if reservation.state in (ReservationState.allocated, ReservationState.acquired):
                [self.place] = reservation.allocations["main"]
                return
            if reservation.state is not ReservationState.waiting:
                raise FailedError(
                    f"the reservation {self.token} is {reservation.state.name}", exit_code=3
                )
            if self.stop.is_set():
                raise FailedError("interrupted while waiting for a place", exit_code=3)
            if (reason := self.taken_by(reservation)) != last_reason:
                last_reason = reason
                tell("waiting", why=reason)
            if time.monotonic() > deadline:
                raise FailedError(
                    f"no place became free within {self.wait_s:g} s: {reason}",
                    hint="NPU_BSP_LAB_WAIT=SECONDS waits longer; labgrid-client reservations shows the "
                    "queue",
                    exit_code=3,
                )
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.stop.wait(), POLL_EVERY_S)

    async def poll(self) -> Reservation:
        """Ask about the reservation, which also keeps it."""
        try:
            answer = await self.session.stub.PollReservation(
                messages.PollReservationRequest(token=self.token)
            )
        except grpc.aio.AioRpcError as error:
            raise FailedError(
                f"the lab does not know the reservation {self.token}: {error.details()}",
                hint="labgrid-client reservations lists them; one that nobody waits on ends after a minute",
            ) from error
        return Reservation.from_pb2(answer.reservation)

    def taken_by(self, reservation: Reservation) -> str:
        """Who has the places that would do."""
        tags = reservation.filters["main"]
        candidates = [place for place in self.session.places.values() if matches(place, tags)]
        holders = [
            f"{place.name} is " + (f"held by {place.acquired}" if place.acquired else "reserved")
            for place in sorted(candidates, key=lambda place: str(place.name))
        ]
        return ", ".join(holders) or "no place has these tags any more"

    # --- holding -------------------------------------------------------------------------------

    async def acquire(self) -> None:
        """Acquire the place that was allocated to us; nothing if we hold it already."""
        place = self.known(self.place)
        if place is None:
            raise RuntimeError(f"the coordinator does not know {self.place}")
        if place.acquired == self.us and not self.own_reservation:
            return  # its owner runs several commands under one lease, and releases it himself
        self.write_note()
        self.acquired = True  # from here on it may be: the answer can get lost
        try:
            self.session.check_matches(place)
            await self.session.stub.AcquirePlace(messages.AcquirePlaceRequest(placename=self.place))
        except grpc.aio.AioRpcError as error:
            raise FailedError(
                f"the lab does not give us {self.place}: {error.details()}", exit_code=3
            ) from error
        except Error as error:
            raise FailedError(
                f"a part of the place {self.place} is not there: {' '.join(map(str, error.args))}",
                hint="is its exporter running? labgrid-client -p PLACE show",
                exit_code=3,
            ) from error
        await self.session.sync_with_coordinator()

    def describe(self) -> dict[str, Any]:
        """What the parent has to know of the place."""
        place = self.known(self.place)
        if place is None:
            raise RuntimeError(f"the coordinator does not know {self.place}")
        resources = [
            (name, resource.cls, resource.args, resource.extra)
            for (name, _), resource in self.session.get_target_resources(place).items()
        ]
        services = [entry for entry in resources if entry[1] == "NetworkService"]
        if len(services) != 1:
            names = ", ".join(sorted(entry[0] for entry in services)) or "none"
            raise FailedError(
                f"the place {self.place} has {len(services)} NetworkServices ({names}), expected one: it "
                "says where the board's SSH server is",
                hint="add one to the exporter's file: docs/lab.md",
            )
        [(_, _, service, extra)] = services
        return {
            "place": self.place,
            "token": self.token,
            "tags": dict(place.tags),
            "address": service["address"],
            "port": service.get("port", 22),
            "user": service["username"],
            "proxy": extra.get("proxy") if extra.get("proxy_required") else None,
            "resources": sorted({entry[1] for entry in resources}),
        }

    async def hold(self) -> None:
        """Wait until the parent is done, or the place is not ours any more."""
        unsure = False
        while not self.stop.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.stop.wait(), RETRY_EVERY_S if unsure else LOOK_EVERY_S)
            if self.stop.is_set():
                return
            if self.session is None or self.session.stopping.is_set():
                if not unsure:
                    unsure = True
                    tell(
                        "unsure",
                        message=f"the coordinator at {self.coordinator} does not answer any more",
                    )
                await self.disconnect()
                with contextlib.suppress(FailedError):
                    await self.connect()
            elif self.is_ours():
                unsure = self.sure(unsure)
            elif unsure and self.own_reservation and self.is_free():
                # Its exporter may not be back yet.
                with contextlib.suppress(FailedError, grpc.aio.AioRpcError):
                    await self.have_again()
                    unsure = self.sure(unsure)
            else:
                place = self.known(self.place)
                holder = place.acquired if place else None
                self.acquired = False
                tell(
                    "taken",
                    message=f"{self.place} was taken away from us"
                    + (f": {holder} has it now" if holder else " (released by somebody else)"),
                )
                return

    def is_ours(self) -> bool:
        """Whether the coordinator says that we hold the place, by this reservation."""
        place = self.known(self.place)
        if place is None or place.acquired != self.us:
            return False
        # Who made a reservation himself may cancel it once the place is acquired.
        return place.reservation == (self.token or None) or (
            place.reservation is None and not self.own_reservation
        )

    def sure(self, unsure: bool) -> bool:
        """The place is ours; say so if that was in doubt."""
        if unsure:
            tell("sure", message=f"the coordinator is back; {self.place} is ours")
        return False

    def is_free(self) -> bool:
        """Whether nobody holds the place."""
        place = self.known(self.place)
        return place is not None and not place.acquired

    async def have_again(self) -> None:
        """Take the place anew: a coordinator that restarted has forgotten who has what."""
        self.token, self.tags, self.wait_s = "", {"name": self.place}, 0.0
        try:
            await self.reserve()
            await self.acquire()
        except FailedError:
            await self.give_back()
            raise

    # --- releasing -----------------------------------------------------------------------------

    async def release(self) -> None:
        """Give back what is ours; keeps trying for a while where the coordinator does not answer."""
        deadline = time.monotonic() + RELEASE_WITHIN_S
        while True:
            try:
                if self.session is None or self.session.stopping.is_set():
                    await self.disconnect()
                    await self.connect()
                await self.give_back()
                return
            except (FailedError, grpc.aio.AioRpcError) as error:
                if time.monotonic() > deadline:
                    why = error.message if isinstance(error, FailedError) else error.details()
                    raise FailedError(
                        f"{self.place or 'the reservation'} could not be released: {why}. "
                        f"When the coordinator is back: labgrid-client -p {self.place or '+'} release",
                        exit_code=3,
                    ) from error
            await asyncio.sleep(0.5)

    async def give_back(self) -> None:
        """Release the place if we acquired it and it is still ours; cancel our own reservation."""
        if self.acquired:
            await self.session.sync_with_coordinator()
        ours = self.acquired and self.is_ours()
        # In this order the next in the queue gets the place at once. In the other the coordinator takes it
        # for reserved still when it looks for who is next, and looks again only every 15 s.
        await self.cancel()
        if ours:
            await self.session.stub.ReleasePlace(
                messages.ReleasePlaceRequest(placename=self.place, fromuser=self.us)
            )
        self.acquired = False

    async def cancel(self) -> None:
        """Cancel the reservation, if it is our own."""
        if self.own_reservation and self.token:
            try:
                await self.session.stub.CancelReservation(
                    messages.CancelReservationRequest(token=self.token)
                )
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:
                    raise
                # A coordinator that restarted knows none.
            self.token = ""

    # --- notes for the next keeper -------------------------------------------------------------

    def write_note(self) -> None:
        """Note what is about to be acquired in a file that stays locked while we live."""
        self.notes.mkdir(parents=True, exist_ok=True)
        if self.note is None:
            self.note = self.notes / f"{os.getpid()}-{self.token}.json"
            self.note_file = os.open(self.note, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self.note_file, fcntl.LOCK_EX)
        if self.note_file is None:
            raise RuntimeError("the note was not opened")
        lease = {"coordinator": self.coordinator, "place": self.place, "token": self.token}
        os.ftruncate(self.note_file, 0)
        os.pwrite(self.note_file, json.dumps(lease).encode(), 0)
        os.fsync(self.note_file)

    def drop_note(self) -> None:
        """Forget the lease: it was given back."""
        if self.note is not None:
            self.note.unlink(missing_ok=True)

    async def release_left_behind(self) -> None:
        """Release what keepers that were killed on this machine have left acquired."""
        for path, lease in left_behind(self.notes):
            if lease.get("coordinator") != self.coordinator:
                continue
            place = self.known(str(lease.get("place")))
            if (
                place is not None
                and place.acquired == self.us
                and place.reservation == lease.get("token")
            ):
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await self.session.stub.ReleasePlace(
                        messages.ReleasePlaceRequest(placename=place.name, fromuser=self.us)
                    )
                    await self.session.stub.CancelReservation(
                        messages.CancelReservationRequest(token=str(lease["token"]))
                    )
                tell("freed", place=place.name)
            path.unlink(missing_ok=True)
        await self.session.sync_with_coordinator()

    # --- all of it -----------------------------------------------------------------------------

    async def run(self) -> int:
        """Reserve, acquire, hold, release; return the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self.stop.set)
        loop.add_reader(0, self._input)
        try:
            try:
                await self.connect()
                await self.release_left_behind()
                await self.reserve()
                await self.acquire()
                tell("ready", **self.describe())
                await self.hold()
            finally:
                if self.session is not None or self.acquired:
                    await self.release()
        except FailedError as error:
            kept = self.acquired
            tell(
                "kept" if kept else "failed",
                message=error.message,
                hint=error.hint,
                exit_code=error.exit_code,
            )
            return error.exit_code
        finally:
            if not self.acquired:
                self.drop_note()
            await self.disconnect()
        tell("released")
        return 0

    def _input(self) -> None:
        if not os.read(0, 4096):
            asyncio.get_running_loop().remove_reader(0)
            self.stop.set()


def tags_of(place: Place) -> dict[str, str]:
    """The tags of a place, as reservations see them: its name is one."""
    return {**place.tags, "name": place.name}


def matches(place: Place, tags: dict[str, str]) -> bool:
    """Whether a place has all these tags."""
    return tags.items() <= tags_of(place).items()


def left_behind(notes: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Notes of leases whose keepers do not live any more."""
    for path in sorted(notes.glob("*.json")):
        with contextlib.suppress(OSError, ValueError), path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield path, json.loads(file.read())


def main() -> None:
    """``keeper.py '{"coordinator": ..., "tags": ..., "token": ..., "wait_s": ..., "notes": ...}'``."""
    logging.basicConfig(level=logging.CRITICAL)  # what went wrong is told as an event
    request = json.loads(sys.argv[1])

    async def keep() -> int:
        keeper = Keeper(
            request["coordinator"],
            request["tags"],
            request["token"],
            request["wait_s"],
            Path(request["notes"]),
        )
        return await keeper.run()

    sys.exit(asyncio.run(keep()))


if __name__ == "__main__":
    main()
