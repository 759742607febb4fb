# SPDX-License-Identifier: MIT
"""A slow link as a relay on loopback, in a process of its own: 100 Mbit/s, 20 ms there and back.

What a real one does to the first round trips of a connection (slow start) it does not do: TCP ends at the
relay. So who looks at TCP's own round-trip time sees a near host there, and not a far one.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

BYTES_PER_S = 100e6 / 8
ONE_WAY_S = 0.010
_CHUNK_BYTES = 16 << 10
# What is under way: twice what the link holds.
_UNDER_WAY = max(int(2 * BYTES_PER_S * 2 * ONE_WAY_S) // _CHUNK_BYTES, 4)


@contextlib.contextmanager
def slow_link(target_port: int) -> Iterator[int]:
    """The port of a relay to ``target_port``."""
    with subprocess.Popen(
        [sys.executable, "-m", "bench.link", str(target_port)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        try:
            yield int(process.stdout.readline())
        finally:
            process.terminate()


def _pass(source: socket.socket, sink: socket.socket) -> None:
    on_the_way: queue.Queue[tuple[float, bytes]] = queue.Queue(_UNDER_WAY)
    threading.Thread(target=_deliver, args=(on_the_way, sink), daemon=True).start()
    free_at = time.monotonic()
    with contextlib.suppress(OSError):
        while data := source.recv(_CHUNK_BYTES):
            free_at = max(free_at, time.monotonic()) + len(data) / BYTES_PER_S
            on_the_way.put((free_at + ONE_WAY_S, data))
    on_the_way.put((free_at + ONE_WAY_S, b""))


def _deliver(on_the_way: queue.Queue[tuple[float, bytes]], sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            due, data = on_the_way.get()
            time.sleep(max(due - time.monotonic(), 0))
            if not data:
                sink.shutdown(socket.SHUT_WR)
                return
            sink.sendall(data)


def main() -> None:
    """Pass connections on until the process is ended."""
    server = socket.create_server(("127.0.0.1", 0))
    sys.stdout.write(f"{server.getsockname()[1]}\n")
    sys.stdout.flush()
    while True:
        near, _ = server.accept()
        far = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
        for one in (near, far):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=_pass, args=(near, far), daemon=True).start()
        threading.Thread(target=_pass, args=(far, near), daemon=True).start()


if __name__ == "__main__":
    main()
