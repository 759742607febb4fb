# SPDX-License-Identifier: MIT
"""What goes to many boards, made once: the files of a bundle as one stream, compressed, read by all.

The first board that lacks a set of files has it made; the others that lack the same set read what is made
as it grows. It is kept in a file without a name, so that memory does not grow with the bundle.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import Any

from bsp.base.cache import cache_dir

_PIECE_BYTES = 512 << 10
_WAIT_S = 60.0

Key = tuple[object, ...]
Sink = Callable[[memoryview], object]


class Shared:
    """Streams by what they are made of."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: dict[Key, Spool] = {}

    def stream(self, key: Key, make: Callable[[Sink], Any]) -> Spool:
        """Return a stream; ``make`` writes it if nobody has had it made yet."""
        with self._lock:
            spool = self._made.get(key)
            if spool is None:
                spool = self._made[key] = Spool()
                # A thread of its own: the board that came first may be lost on the way.
                threading.Thread(target=spool.fill, args=(make,), daemon=True).start()
        return spool

    @property
    def made(self) -> int:
        """How many streams were made."""
        return len(self._made)


class Spool:
    """Bytes that one thread writes and others read from their beginning.

    Attributes:
        result: what ``make`` returned, once all pieces have been read.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="npu-bsp-shared-", dir=cache_dir())  # noqa: SIM115
        self._size = 0
        self._ended = False
        self._error: BaseException | None = None
        self._grown = threading.Condition()
        self.result: Any = None

    def fill(self, make: Callable[[Sink], Any]) -> None:
        """Have the bytes written; whatever goes wrong is raised by ``pieces``."""
        try:
            self.result = make(self._append)
        except BaseException as error:
            self._error = error
        finally:
            with self._grown:
                self._ended = True
                self._grown.notify_all()

    def _append(self, data: memoryview) -> None:
        view = data
        while view:
            view = view[os.write(self._file.fileno(), view) :]
        with self._grown:
            self._size += len(data)
            self._grown.notify_all()

    def pieces(self) -> Iterator[bytes]:
        """Return the content, as far as it is there, and what is added to it.

        Raises:
            Exception: what ``make`` raised.
        """
        at = 0
        while True:
            with self._grown:
                while at == self._size and not self._ended:
                    self._grown.wait(_WAIT_S)
                size = self._size
                if at == size:
                    if self._error:
                        raise self._error
                    return
            while at < size:
                piece = os.pread(self._file.fileno(), min(_PIECE_BYTES, size - at), at)
                at += len(piece)
                yield piece
