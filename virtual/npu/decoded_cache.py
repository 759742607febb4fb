# SPDX-License-Identifier: MIT
"""What engines decode once and keep by the hash of what they decoded: weights, coefficients."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, cast

import numpy as np

from .memory import Bytes


class Sized(Protocol):
    """What says how much memory it takes."""

    @property
    def size_bytes(self) -> int:
        """Memory that this takes in the cache."""
        ...


Decoded = TypeVar("Decoded", bound=Sized)


class DecodedCache:
    """Decoded things by hash, the longest unused dropped first; safe to share by threads and engines."""

    def __init__(self, limit_bytes: int = 192 << 20) -> None:
        self._limit_bytes = limit_bytes
        self._held_bytes = 0
        self._entries: OrderedDict[bytes, Any] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, stream: Bytes, key: object, decode: Callable[[], Decoded]) -> Decoded:
        """Return what ``decode`` makes of ``stream``, from the cache if it was made before.

        ``key`` holds all else that the result depends on, its type too.
        """
        digest = hashlib.blake2b(repr(key).encode(), digest_size=20)
        digest.update(np.ascontiguousarray(stream).data)
        name = digest.digest()
        with self._lock:
            if name in self._entries:
                self._entries.move_to_end(name)
                return cast(Decoded, self._entries[name])
        decoded = decode()
        with self._lock:
            if name not in self._entries:
                self._entries[name] = decoded
                self._held_bytes += decoded.size_bytes
            while self._held_bytes > self._limit_bytes and len(self._entries) > 1:
                _, dropped = self._entries.popitem(last=False)
                self._held_bytes -= dropped.size_bytes
        return decoded
