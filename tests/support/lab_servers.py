# SPDX-License-Identifier: MIT
"""A lab on loopback: labgrid's own coordinator and exporter, and a power switch that speaks HTTP."""

from __future__ import annotations

import http.server
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

from bsp.base.packages.optional_env import extra_python


class PowerSwitch:
    """What labgrid's driver ``simplerest`` talks to; ``switched`` is what it was told, in order."""

    def __init__(self, on: Callable[[], object]) -> None:
        self.switched: list[str] = []
        switch = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                switch.switched.append(self.path)
                if self.path.endswith("/1"):
                    on()
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"1")

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Lab:
    """A coordinator and an exporter; each place has the resources of the group that has its name.

    Args:
        isolated: boards are reached through the exporter's machine only.
        places: tags of each place.
        resources: the exporter's file: a dictionary for each place.
    """

    def __init__(
        self,
        folder: Path,
        places: dict[str, dict[str, str]],
        resources: dict[str, object],
        *,
        isolated: bool = False,
    ) -> None:
        self.folder = folder
        self._isolated = ["--isolated"] if isolated else []
        folder.mkdir()
        self.python = str(extra_python("labgrid", module="labgrid.remote.client"))
        # The coordinator's own store; JSON is YAML.
        kept = {
            name: {
                "aliases": [], "comment": "", "tags": tags, "created": 0.0, "changed": 0.0,
                "matches": [{"exporter": "*", "group": name, "cls": "*", "name": None, "rename": None}],
            }
            for name, tags in places.items()
        }  # fmt: skip
        (folder / "places.yaml").write_text(json.dumps(kept))
        (folder / "resources.json").write_text(json.dumps(resources))
        self._processes: list[subprocess.Popen[bytes]] = []
        self._start_servers("127.0.0.1:0")
        self._watch = subprocess.Popen(
            [self.python, Path(__file__).with_name("lab_watch.py"), self.address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + 10
        while int(self.ask("resources")) < sum(map(_count, resources.values())):
            assert time.monotonic() < deadline, (folder / "exporter.log").read_text()
            time.sleep(0.02)

    def _start_servers(self, listen: str) -> None:
        ready = self._start("coordinator", ["-l", listen], "listening on")
        self.address = f"127.0.0.1:{ready.rsplit(':', 1)[1]}"
        words = ["-c", self.address, "-n", "shelf", "--hostname", "127.0.0.1"]
        self._start("exporter", [*words, *self._isolated, "resources.json"], "Exporter ready")

    def restart(self) -> None:
        """End both servers, and start them again at the same address."""
        self._end_servers()
        self._start_servers(self.address)

    def _end_servers(self) -> None:
        for process in reversed(self._processes):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
        for process in self._processes:
            process.wait(timeout=10)
        self._processes.clear()

    def _start(self, what: str, words: list[str], ready: str) -> str:
        log = self.folder / f"{what}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [self.python, "-m", f"labgrid.remote.{what}", *words],
                cwd=self.folder,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self._processes.append(process)
        deadline = time.monotonic() + 20
        while True:
            found = [line for line in log.read_text().splitlines() if line.startswith(ready)]
            if found:
                return found[0]
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)

    def client(self, *words: str) -> str:
        """What labgrid's own client says."""
        done = subprocess.run(
            [self.python, "-m", "labgrid.remote.client", "-x", self.address, *words],
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    def ask(self, question: str) -> str:
        """Ask lab_watch.py."""
        assert self._watch.stdin
        assert self._watch.stdout
        self._watch.stdin.write(f"{question}\n")
        self._watch.stdin.flush()
        return self._watch.stdout.readline().strip()

    def holder(self, place: str) -> str:
        """Who has acquired a place, as the coordinator says; ``None`` is nobody."""
        return self.ask(place)

    def reservations(self) -> int:
        """How many the coordinator knows."""
        return int(self.ask("reservations"))

    def wait_until_free(self, place: str, *, timeout_s: float = 10) -> None:
        deadline = time.monotonic() + timeout_s
        while (holder := self.holder(place)) != "None":
            assert time.monotonic() < deadline, f"{place} is still held by {holder}"
            time.sleep(0.02)

    def close(self) -> None:
        self._watch.communicate()
        self._end_servers()


def _count(group: object) -> int:
    assert isinstance(group, dict)
    return len(group)
