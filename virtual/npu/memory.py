# SPDX-License-Identifier: MIT
"""Memory as the NPU sees it: views by GPU address, never outside what it was given."""

from __future__ import annotations

import bisect
import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .faults import MemoryFaultError

Bytes = NDArray[np.uint8]


class Access(enum.Flag):
    """What is done with memory; the values are ETNA_SUBMIT_BO_READ and _WRITE of etnaviv_drm.h."""

    READ = 1
    WRITE = 2


class Memory(Protocol):
    """What a door gives the engine: its client's memory, by GPU address."""

    def view(self, address: int, size_bytes: int, access: Access) -> Bytes:
        """Return ``size_bytes`` at a GPU address as one array that shares the client's memory.

        Called often; the array is used within the job and not kept.

        Raises:
            MemoryFaultError: some of it is not mapped, or not for this access.
        """
        ...


@dataclass(frozen=True)
class Buffer:
    """One buffer object: its GPU address, what the submit allows, and its bytes."""

    address: int
    access: Access
    data: Bytes


class Buffers:
    """Memory made of separate buffers, as one submit of the DRM interface lists them.

    Nothing lies between them: a view never reaches over the end of a buffer.
    """

    def __init__(self, buffers: Sequence[Buffer]) -> None:
        """Take the buffers of one submit.

        Raises:
            MemoryFaultError: two of them overlap.
        """
        self._buffers = sorted(buffers, key=lambda buffer: buffer.address)
        self._starts = [buffer.address for buffer in self._buffers]
        for lower, upper in zip(self._buffers, self._buffers[1:], strict=False):
            if lower.address + lower.data.size > upper.address:
                raise MemoryFaultError(
                    "buffers of the submit",
                    "no two at the same address",
                    f"{lower.data.size:#x} bytes at {lower.address:#x} reach into {upper.address:#x}",
                    address=upper.address,
                )

    def view(self, address: int, size_bytes: int, access: Access) -> Bytes:
        """As ``Memory.view``."""
        index = bisect.bisect_right(self._starts, address) - 1
        doing = f"{'write' if Access.WRITE in access else 'read'} of {size_bytes} bytes"
        if index < 0 or address >= self._starts[index] + self._buffers[index].data.size:
            raise MemoryFaultError(
                "GPU address",
                "inside a buffer of the submit",
                f"{doing} outside all",
                address=address,
            )
        buffer = self._buffers[index]
        offset = address - buffer.address
        if size_bytes < 0 or offset + size_bytes > buffer.data.size:
            past = offset + size_bytes - buffer.data.size
            raise MemoryFaultError(
                "GPU address",
                f"inside the buffer of {buffer.data.size} bytes at {buffer.address:#x}",
                f"{doing}, {past} bytes past its end",
                address=address,
            )
        if access & ~buffer.access:
            raise MemoryFaultError(
                "buffer flags",
                f"{access.name} allowed by the submit",
                f"{doing} of a buffer submitted as {buffer.access.name}",
                address=address,
            )
        return buffer.data[offset : offset + size_bytes]
