# SPDX-License-Identifier: MIT
"""A TCP relay on loopback: a link that is slow, or is cut after so many bytes."""

from __future__ import annotations

import contextlib
import math
import random
import socket
import threading
import time

_LOSS = 0.03
_RETRANSMISSION_S = 0.2  # Linux' shortest time-out (TCP_RTO_MIN)


class Relay:
    """Passes connections on to ``target_port``; counts the bytes that go there."""

    def __init__(
        self,
        target_port: int,
        *,
        cut_after_bytes: int | tuple[int, ...] | None = None,
        bytes_per_s: float | None = None,
        cut_back_after_bytes: int | None = None,
        stalls: random.Random | None = None,
        deaf: int = 0,
    ) -> None:
        """Relay to ``target_port``.

        Args:
            cut_back_after_bytes: cut once, after so many bytes from the target.
            stalls: hold pieces back now and then, in both directions, as TCP does for lost packets.
            deaf: so many connections are taken first, and not passed on.
        """
        self._target_port = target_port
        self._cut_back = cut_back_after_bytes
        self._stalls = stalls
        self._deaf = deaf
        self.passed_back_bytes = 0
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
                if self._deaf:
                    self._deaf -= 1
                    self._pairs.append(near)
                    continue
                try:
                    far = socket.create_connection(("127.0.0.1", self._target_port))
                except OSError:  # nobody there, now
                    near.close()
                    continue
                self._pairs += [near, far]
                threading.Thread(target=self._pass, args=(near, far, True), daemon=True).start()
                threading.Thread(target=self._pass, args=(far, near, False), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        try:
            self._pass_on(source, sink, counted)
        except OSError:  # one end was reset: the other is to hear of it
            with contextlib.suppress(OSError):
                sink.shutdown(socket.SHUT_RDWR)

    def _pass_on(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        while data := source.recv(16384):
            if self._stalls:
                time.sleep(0.01)
                if self._stalls.random() < _LOSS:
                    time.sleep(_RETRANSMISSION_S)
            if not counted:
                over = self.passed_back_bytes + len(data) - (self._cut_back or math.inf)
                if over > 0:
                    sink.sendall(data[: len(data) - int(over)])
                    self._cut_back = None
                    self.was_cut = True
                    self.cuts += 1
                    self._cut()
                    return
                self.passed_back_bytes += len(data)
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
