# SPDX-License-Identifier: MIT
"""The guest's memory: what QEMU shares with the device, by guest-physical address."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import threading
from dataclasses import dataclass

import numpy as np

from ..faults import MemoryFaultError
from ..memory import Access, Bytes
from .vfio_user import MAX_DMA_MAPS, GuestRegion, Refused


class BusFaultError(MemoryFaultError):
    """A physical address where the guest has no memory: on silicon, an AXI bus error."""


@dataclass(frozen=True)
class Mapped:
    """A region of guest memory; ``data`` is None where it is in no file."""

    region: GuestRegion
    data: Bytes | None

    @property
    def end(self) -> int:
        """First address behind the region."""
        return self.region.address + self.region.size


class GuestMemory:
    """All regions of one guest. ``lock`` guards them; ``version`` changes with every unmapping."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.version = 0
        self._regions: list[Mapped] = []

    def add(self, region: GuestRegion) -> None:
        """Take a region over, and its descriptor.

        Raises:
            Refused: it overlaps another, there are too many, or its file cannot be trusted.
        """
        with self.lock:
            if len(self._regions) >= MAX_DMA_MAPS:
                raise Refused(errno.ENOSPC, f"more than {MAX_DMA_MAPS} regions of memory")
            end = region.address + region.size
            for other in self._regions:
                if region.address < other.end and other.region.address < end:
                    raise Refused(errno.EEXIST, f"memory at {region.address:#x} is mapped already")
            self._regions.append(Mapped(region, _map(region)))

    def remove(self, address: int, size: int) -> None:
        """Let go of the region that has exactly this address and size.

        Raises:
            Refused: there is none.
        """
        with self.lock:
            for index, mapped in enumerate(self._regions):
                if (mapped.region.address, mapped.region.size) == (address, size):
                    self._close(self._regions.pop(index))
                    self.version += 1
                    return
        raise Refused(errno.ENOENT, f"no memory of {size:#x} bytes at {address:#x} is mapped")

    def clear(self) -> None:
        """Let go of everything."""
        with self.lock:
            for mapped in self._regions:
                self._close(mapped)
            self._regions.clear()
            self.version += 1

    def find(self, address: int, size_bytes: int) -> Mapped:
        """Return the region that holds ``size_bytes`` at a guest-physical address; hold the lock.

        Raises:
            BusFaultError: there is no such memory.
        """
        for mapped in self._regions:
            if mapped.region.address <= address and address + size_bytes <= mapped.end:
                if mapped.data is None:
                    break
                return mapped
        raise BusFaultError(
            "physical address",
            "inside the guest's memory",
            f"{size_bytes} bytes elsewhere",
            address=address,
        )

    def view(self, address: int, size_bytes: int, access: Access) -> Bytes:
        """As ``Memory.view``, by guest-physical address.

        Raises:
            BusFaultError: there is no such memory, or it cannot be written.
        """
        with self.lock:
            mapped = self.find(address, size_bytes)
            if mapped.data is None:
                raise RuntimeError("the guest's memory is not mapped")
            if Access.WRITE in access and not mapped.region.writable:
                raise BusFaultError(
                    "physical address", "memory that can be written", "ROM", address=address
                )
            offset = address - mapped.region.address
            view = mapped.data[offset : offset + size_bytes]
            if Access.WRITE not in access:
                view.flags.writeable = False
            return view

    @staticmethod
    def _close(mapped: Mapped) -> None:
        if mapped.region.fd is not None:
            os.close(mapped.region.fd)


def _map(region: GuestRegion) -> Bytes | None:
    """Map a region's file into this process; the mapping lives as long as arrays refer to it."""
    if region.fd is None:
        return None
    try:
        # A file that shrinks under a mapping kills its reader (SIGBUS): memory-backend-memfd seals it.
        seals = fcntl.fcntl(region.fd, fcntl.F_GET_SEALS)
        size = os.fstat(region.fd).st_size
        if not seals & fcntl.F_SEAL_SHRINK or region.offset + region.size > size:
            raise Refused(
                errno.EINVAL, "memory must be a sealed memfd that holds all of the region"
            )
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if region.writable else 0)
        mapping = mmap.mmap(
            region.fd, region.size, mmap.MAP_SHARED, protection, offset=region.offset
        )
    except (OSError, ValueError, OverflowError) as error:
        number = error.errno if isinstance(error, OSError) and error.errno else errno.EINVAL
        raise Refused(number, f"memory that cannot be mapped: {error}") from error
    with contextlib.suppress(AttributeError, OSError):
        mapping.madvise(mmap.MADV_DONTDUMP)
    return np.frombuffer(mapping, np.uint8)
