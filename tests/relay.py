# SPDX-License-Identifier: MIT
"""A TCP relay on loopback: a link that is slow, or is cut after so many bytes."""

from __future__ import annotations

import contextlib
import socket
import threading
import time


class Relay:
    """Passes connections on to ``target_port``; counts the bytes that go there."""

    def __init__(
        self,
        target_port: int,
        *,
        cut_after_bytes: int | tuple[int, ...] | None = None,
        bytes_per_s: float | None = None,
    ) -> None:
        self._target_port = target_port
        # One: from then on nothing passes. Several: it is cut at each of these totals, and passes new
        # connections on in between and afterwards.
        self._stays_cut = isinstance(cut_after_bytes, int)
        cuts = (cut_after_bytes,) if isinstance(cut_after_bytes, int) else cut_after_bytes
        self._cuts = list(cuts or ())
        self._bytes_per_s = bytes_per_s
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        self.passed_bytes = 0
        self.was_cut = False
        self.cuts = 0
        self._pairs: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()
        self._cut()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._server.accept()
                far = socket.create_connection(("127.0.0.1", self._target_port))
                self._pairs += [near, far]
                threading.Thread(target=self._pass, args=(near, far, True), daemon=True).start()
                threading.Thread(target=self._pass, args=(far, near, False), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(16384):
                if counted:
                    if self._bytes_per_s:
                        time.sleep(len(data) / self._bytes_per_s)
                    if self._cuts and self.passed_bytes + len(data) > self._cuts[0]:
                        sink.sendall(data[: max(self._cuts[0] - self.passed_bytes, 0)])
                        self.was_cut = True
                        self.cuts += 1
                        if not self._stays_cut:
                            del self._cuts[0]
                        self._cut()
                        return
                    self.passed_bytes += len(data)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def _cut(self) -> None:
        for one in self._pairs:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
