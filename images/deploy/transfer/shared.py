# SPDX-License-Identifier: MIT
"""Streams that go to many boards, made once: the files of a bundle, compressed.

The first board that lacks a set of files starts the making; boards that lack the same set read the stream
as it grows. It is stored in a file without a name, so that memory does not grow with the bundle.
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
    """Streams by the key of their content."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: dict[Key, Spool] = {}

    def stream(self, key: Key, make: Callable[[Sink], Any]) -> Spool:
        """Return a stream; ``make`` writes it unless it has been started already."""
        with self._lock:
            spool = self._made.get(key)
            if spool is None:
                spool = self._made[key] = Spool()
                # A thread of its own: the connection to the first board may break.
                threading.Thread(target=spool.fill, args=(make,), daemon=True).start()
        return spool

    @property
    def made(self) -> int:
        """Number of streams that were made."""
        return len(self._made)


class Spool:
    """A stream that one thread writes and others read from its beginning.

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
        """Write the stream; ``pieces`` raises any error."""
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
        """Yield the content, first what is there and then what is added.

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
