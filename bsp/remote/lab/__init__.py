# SPDX-License-Identifier: MIT
"""Boards of a shared lab: ``--host lab:board=vim3`` holds a labgrid place while a command runs.

labgrid reserves, leases and switches power; the connection to the board stays ours, with its host key
verified (labgrid's own SSH driver does not verify it). labgrid lives in an environment of its own, and the
lease in a process of its own (keeper.py): the place is given back however this process ends.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import getpass
import json
import os
import queue
import re
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

from bsp.base.cache import state_dir
from bsp.base.errors import InfrastructureError, UserError
from bsp.base.packages.optional_env import extra_python
from bsp.base.progress import say, step
from bsp.catalog import board_names

from ..host import Host
from ..ssh_config import named_in_ssh_config

PREFIX = "lab:"
DEFAULT_WAIT_S = 600.0

_KEEPER = Path(__file__).with_name("keeper.py")
_DEFAULT_COORDINATOR = "127.0.0.1:20408"  # labgrid's own
_RELEASE_S = 30.0
# Of what anybody may have told the coordinator: names go into files such as known_hosts.
_PLAIN = re.compile(r"[\w.:%+@-]+", re.ASCII)
_TAG = re.compile(r"([a-z][a-z0-9_]+)=([^=\s]+)")  # labgrid's TAG_KEY


class Lease:
    """A place that is ours, and the process that holds it."""

    def __init__(self, wanted: str, tags: dict[str, str], token: str) -> None:
        self.wanted = wanted
        self.coordinator = os.environ.get("LG_COORDINATOR") or _DEFAULT_COORDINATOR
        self.python = extra_python("labgrid", module="labgrid.remote.client")
        self.place: dict[str, Any] = {}
        self._closing = False
        self._events: queue.Queue[dict[str, Any] | None] = queue.Queue()
        request = {
            "coordinator": self.coordinator,
            "tags": tags,
            "token": token,
            "wait_s": _wait_s(),
            "notes": str(state_dir() / "lab"),
        }
        # A session of its own: Ctrl-C on this terminal ends us, and the keeper sees that we ended.
        self._keeper = subprocess.Popen(
            [self.python, _KEEPER, json.dumps(request)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if os.environ.get("NPU_BSP_DEBUG") else subprocess.DEVNULL,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_until_ours(self) -> None:
        """Wait for the place.

        Raises:
            UserError: no place has these tags, or the lab does not let us have it.
            InfrastructureError: no coordinator answers, or the place did not become free in time.
        """
        with step(f"Reserving a board of the lab: {self.wanted}") as progress:
            while (event := self._events.get()) is not None:
                if event["event"] == "ready":
                    self.place = event
                    progress.note(event["place"])
                    return
                if event["event"] == "waiting":
                    say(f"waiting: {event['why']}")
                elif event["event"] == "freed":
                    say(f"released {event['place']}, which a killed run of yours had left acquired")
                elif event["event"] in ("failed", "kept"):
                    kind = UserError if event["exit_code"] == 2 else InfrastructureError
                    raise kind(event["message"], hint=event["hint"])
        raise InfrastructureError(
            f"the process that talks to labgrid ended at once (exit code {self._keeper.wait()})",
            hint=f"rm -r {self.python.parents[1]} has labgrid installed anew",
        )

    def host(self) -> Host:
        """The board as a host: where labgrid says it is, its power behind labgrid's driver.

        Raises:
            UserError: what the coordinator says is not an address.
        """
        place = self.place
        for what in ("place", "address", "user", "proxy"):
            if place[what] is not None and not _PLAIN.fullmatch(place[what]):
                raise UserError(
                    f"the {what} that the lab names for {self.wanted} is {place[what]!r}: expected "
                    "letters, digits and .:%+@-",
                    hint="put it right in the exporter's file, or at the coordinator",
                )
        proxy = place["proxy"]
        if proxy and not named_in_ssh_config(proxy):
            proxy = f"{getpass.getuser()}@{proxy}"  # as ssh would
        power: tuple[str, ...] = ()
        if any("Power" in name or name == "NetworkSysfsGPIO" for name in place["resources"]):
            client = (str(self.python), "-m", "labgrid.remote.client")
            power = (*client, "-x", self.coordinator, "-p", place["place"], "power", "cycle")
        board = place["tags"].get("board")
        return Host(
            name=f"{PREFIX}name={place['place']}",
            address=place["address"],
            port=place["port"],
            user=place["user"],
            board=board if board in board_names() else None,
            power=power,
            # Behind exporters, boards of different places may have the same address.
            host_key_alias=place["place"] if proxy else None,
            proxy_jump=proxy,
        )

    def release(self) -> None:
        """Give the place back and see that it was; the keeper does it in any case."""
        self._closing = True
        stdin = self._keeper.stdin
        if stdin is None:
            raise RuntimeError("the keeper was started without pipes")
        with contextlib.suppress(OSError):
            stdin.close()
        try:
            self._keeper.wait(timeout=_RELEASE_S)
        except subprocess.TimeoutExpired:
            say(f"{self.wanted} is still being released; process {self._keeper.pid} goes on trying")
            return
        self._reader.join(timeout=5)

    def _read(self) -> None:
        """Take the keeper's events, in a thread."""
        if self._keeper.stdout is None:
            raise RuntimeError("the keeper was started without pipes")
        for line in self._keeper.stdout:
            event = json.loads(line)
            if not self.place:
                self._events.put(event)
            kind = event["event"]
            if kind == "ready":
                self.place = event
            elif not self.place:
                continue
            elif kind == "released":
                say(f"released {self.place['place']}")
            elif kind == "taken":
                say(f"{event['message']}; stopping")
                self._interrupt()
            elif kind in ("unsure", "sure", "kept", "failed"):
                say(event["message"])
        self._events.put(None)
        if self.place and not self._closing and self._keeper.wait() < 0:
            say(
                f"the process that held {self.place['place']} was killed; the place stays acquired: "
                f"labgrid-client -p {self.place['place']} release, or the next --host lab: from here"
            )

    def _interrupt(self) -> None:
        """Press Ctrl-C: the board is somebody else's now."""
        main = threading.main_thread().ident
        if main is not None and not self._closing:
            signal.pthread_kill(main, signal.SIGINT)


@functools.cache
def lease(name: str) -> Lease:
    """Hold the place that ``lab:...`` means until this process ends; one lease a name.

    Raises:
        UserError: the name is none, or as ``Lease.wait_until_ours``.
    """
    tags, token = parse(name)
    held = Lease(name.removeprefix(PREFIX), tags, token)
    atexit.register(held.release)
    held.wait_until_ours()
    return held


def host(name: str) -> Host:
    """Return the board that ``lab:...`` means; it is ours until this process ends.

    Raises:
        UserError, InfrastructureError: as ``lease``.
    """
    return lease(name).host()


def parse(name: str) -> tuple[dict[str, str], str]:
    """Return the tags that ``lab:KEY=VALUE,KEY=VALUE`` asks for, or the token of ``lab:+TOKEN``.

    Raises:
        UserError: it is neither.
    """
    request = name.removeprefix(PREFIX)
    if request.startswith("+"):
        token = request[1:] or os.environ.get("LG_TOKEN", "")
        if not token:
            raise UserError(
                f"{name} means your reservation, and LG_TOKEN is not set",
                hint='eval "$(labgrid-client reserve --wait --shell board=vim3)"; or write lab:+TOKEN',
            )
        return {}, token
    tags = [_TAG.fullmatch(part) for part in request.split(",")]
    if not all(tags):
        raise UserError(
            f"{name!r} names no board of a lab: expected tags as KEY=VALUE, several with commas",
            hint="--host lab:board=vim3, lab:name=PLACE, or lab:+TOKEN for a reservation of yours",
        )
    return {match[1]: match[2] for match in tags if match}, ""


def _wait_s() -> float:
    text = os.environ.get("NPU_BSP_LAB_WAIT", "")
    try:
        wait_s = float(text) if text else DEFAULT_WAIT_S
    except ValueError:
        wait_s = -1
    if not 0 <= wait_s < 1e6:
        raise UserError(f"NPU_BSP_LAB_WAIT is {text!r}, expected seconds to wait for a place")
    return wait_s
