# SPDX-License-Identifier: MIT
"""Work in threads that ends together: where one fails, or the user presses Ctrl-C, the others end, too.

Python interrupts the main thread alone, and a pool waits for what its threads run. So what runs for long
there says how it is ended (``ended_by``).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from .errors import InfrastructureError

_here = threading.local()


class _Group:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_over = False
        self._ends: dict[object, Callable[[], object]] = {}

    def add(self, key: object, end: Callable[[], object]) -> None:
        with self._lock:
            if self._is_over:
                raise InfrastructureError("interrupted")
            self._ends[key] = end

    def remove(self, key: object) -> None:
        with self._lock:
            self._ends.pop(key, None)

    def end(self) -> None:
        with self._lock:
            self._is_over = True
            ends = list(self._ends.values())
        for end in ends:
            end()


@contextmanager
def at_once(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Provide a pool for a block; an exception in the block ends what its threads run."""
    group = _Group()
    with ThreadPoolExecutor(workers, initializer=_join, initargs=(group,)) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            group.end()
            raise


@contextmanager
def ended_by(end: Callable[[], object]) -> Iterator[None]:
    """Have ``end`` called, from another thread, when the pool of this thread ends early; nothing elsewhere.

    Raises:
        InfrastructureError: it has ended already.
    """
    group: _Group | None = getattr(_here, "group", None)
    if group is None:
        yield
        return
    key = object()
    group.add(key, end)
    try:
        yield
    finally:
        group.remove(key)


def _join(group: _Group) -> None:
    _here.group = group
