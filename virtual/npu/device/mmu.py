# SPDX-License-Identifier: MIT
"""The NPU's MMU (version 2, secure): GPU addresses to guest memory, without copying.

A window of 4 GiB in this process stands for the GPU's address space. Before an access, each page of
it is mapped where the guest's page tables say, so that a buffer scattered over the guest's memory is
one contiguous array. Tables are read anew at each access (they are short), so nothing depends on
flushes that a driver may have forgotten.

Table formats: Linux 6.12 drivers/gpu/drm/etnaviv/etnaviv_iommu_v2.c: a page table array of 64-bit
entries, a first level of 1024 entries for 4 MiB each, second levels of 1024 entries for 4 KiB each.
Exception codes: drivers/gpu/drm/etnaviv/state_hi.xml.h.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from ..faults import MemoryFaultError
from ..memory import Access, Bytes
from .guest_memory import BusFaultError, GuestMemory

PAGE_BITS = 12
PAGE_BYTES = 1 << PAGE_BITS
WINDOW_BYTES = 1 << 32
_ENTRIES = 1024
_TABLE_BYTES = 4 * _ENTRIES
_PRESENT, _WRITEABLE = 0x1, 0x4
_MODE_1K = 0x1

# A process may have 65,530 mappings (vm.max_map_count); start afresh between jobs long before.
_MAX_PIECES = 40_000

_PROT_NONE = 0
_MAP_SHARED, _MAP_PRIVATE, _MAP_FIXED = 0x01, 0x02, 0x10
_MAP_ANONYMOUS, _MAP_NORESERVE = 0x20, 0x4000


class MmuException(IntEnum):
    """Why the MMU stopped an access."""

    FIRST_LEVEL_NOT_PRESENT = 1
    PAGE_NOT_PRESENT = 2
    WRITE_VIOLATION = 3


class MmuFaultError(MemoryFaultError):
    """An access that the MMU stopped."""

    def __init__(self, code: MmuException, address: int, found: str) -> None:
        super().__init__("GPU address", "a page that is mapped for it", found, address=address)
        self.code = code
        self.address = address


class Mmu:
    """The GPU's address space of one guest; ``view`` is for the front end's thread only."""

    def __init__(self, guest: GuestMemory) -> None:
        self._guest = guest
        self._first_level: int | None = None
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.mmap.restype = ctypes.c_void_p
        self._libc.mmap.argtypes = [
            ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64
        ]  # fmt: skip
        self._libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        flags = _MAP_PRIVATE | _MAP_ANONYMOUS | _MAP_NORESERVE
        self._base = self._mmap(None, WINDOW_BYTES, _PROT_NONE, flags, -1, 0)
        self._window = np.ctypeslib.as_array(
            (ctypes.c_uint8 * WINDOW_BYTES).from_address(self._base)
        )
        self._mapped: NDArray[np.uint32] = np.zeros(WINDOW_BYTES >> PAGE_BITS, np.uint32)
        self._pieces = 0
        self._guest_version = guest.version

    def close(self) -> None:
        """Give the window back; no view may be in use any more."""
        self._libc.munmap(self._base, WINDOW_BYTES)

    def load(self, array_address: int, index: int) -> None:
        """Use the page tables that an entry of the page table array names.

        Args:
            array_address: guest-physical address of the array.

        Raises:
            BusFaultError: the array is not in the guest's memory.
            MmuFaultError: the entry asks for 1 KiB pages.
        """
        entry = self._guest.view(array_address + 8 * index, 8, Access.READ)
        value = int.from_bytes(entry.tobytes(), "little")
        if value & _MODE_1K:
            raise MmuFaultError(
                MmuException.FIRST_LEVEL_NOT_PRESENT, 0, f"tables of 1 KiB pages ({value:#x})"
            )
        self._first_level = value & ~(PAGE_BYTES - 1)

    def forget(self) -> None:
        """Have no page tables, as after a reset."""
        self._first_level = None

    def between_jobs(self) -> None:
        """Start the window afresh if it has grown into too many pieces; no view may be in use."""
        if self._pieces > _MAX_PIECES:
            self._wipe()

    def discard(self) -> None:
        """Drop all pages at once because guest memory goes away, even under a running job.

        The job goes on with memory of nobody: it is to be abandoned, not to crash.
        """
        self._wipe()

    def view(self, address: int, size_bytes: int, access: Access) -> Bytes:
        """As ``Memory.view``.

        Raises:
            MmuFaultError: a page is not mapped, or not for this access.
            BusFaultError: a page or a table lies where the guest has no memory.
        """
        if address < 0 or size_bytes < 0 or address + size_bytes > WINDOW_BYTES:
            raise MmuFaultError(
                MmuException.PAGE_NOT_PRESENT, address, f"{size_bytes} bytes, over the end"
            )
        with self._guest.lock:
            if self._guest_version != self._guest.version:
                self._wipe()
            if size_bytes:
                self._map(address, size_bytes, access)
        view = self._window[address : address + size_bytes]
        if Access.WRITE not in access:
            view.flags.writeable = False
        return view

    def _map(self, address: int, size_bytes: int, access: Access) -> None:
        first, last = address >> PAGE_BITS, (address + size_bytes - 1) >> PAGE_BITS
        entries = self._entries(first, last, address)
        absent = np.flatnonzero(entries & _PRESENT == 0)
        if absent.size:
            where = first + int(absent[0])
            raise MmuFaultError(
                MmuException.PAGE_NOT_PRESENT,
                max(address, where << PAGE_BITS),
                f"page entry {int(entries[absent[0]]):#010x}",
            )
        if Access.WRITE in access:
            read_only = np.flatnonzero(entries & _WRITEABLE == 0)
            if read_only.size:
                where = first + int(read_only[0])
                raise MmuFaultError(
                    MmuException.WRITE_VIOLATION,
                    max(address, where << PAGE_BITS),
                    f"a write, page entry {int(entries[read_only[0]]):#010x}",
                )
        stale = np.flatnonzero(entries != self._mapped[first : last + 1])
        if stale.size:
            self._map_pages(first, entries, stale)

    def _entries(self, first: int, last: int, address: int) -> NDArray[np.uint32]:
        """Return the page entries of pages ``first`` to ``last``, copied from the guest's tables."""
        if self._first_level is None:
            raise MmuFaultError(
                MmuException.FIRST_LEVEL_NOT_PRESENT, address, "no page tables loaded"
            )
        directory = self._guest.view(self._first_level, _TABLE_BYTES, Access.READ).view("<u4")
        parts = []
        for index in range(first // _ENTRIES, last // _ENTRIES + 1):
            entry = int(directory[index])
            if not entry & _PRESENT:
                raise MmuFaultError(
                    MmuException.FIRST_LEVEL_NOT_PRESENT,
                    max(address, index * _ENTRIES << PAGE_BITS),
                    f"first-level entry {entry:#010x}",
                )
            table = self._guest.view(entry & ~(PAGE_BYTES - 1), _TABLE_BYTES, Access.READ)
            start = first - index * _ENTRIES if index == first // _ENTRIES else 0
            stop = last - index * _ENTRIES + 1 if index == last // _ENTRIES else _ENTRIES
            parts.append(table.view("<u4")[start:stop].copy())
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    def _map_pages(self, first: int, entries: NDArray[np.uint32], stale: NDArray[np.intp]) -> None:
        """Map the stale pages, as few pieces as they are contiguous in."""
        chosen = entries[stale].astype(np.uint64)
        physical = (chosen & np.uint64(0xFFFFF000)) | (
            (chosen >> np.uint64(4) & np.uint64(0xFF)) << np.uint64(32)
        )
        writable = chosen & np.uint64(_WRITEABLE)
        breaks = np.flatnonzero(
            (np.diff(stale) != 1)
            | (np.diff(physical.astype(np.int64)) != PAGE_BYTES)
            | (np.diff(writable.astype(np.int64)) != 0)
        )
        starts = [0, *(breaks + 1).tolist()]
        ends = [*(breaks + 1).tolist(), stale.size]
        for start, end in zip(starts, ends, strict=True):
            page, count = first + int(stale[start]), end - start
            self._map_piece(page, count, int(physical[start]), bool(writable[start]))
            self._mapped[page : page + count] = entries[stale[start:end]]

    def _map_piece(self, page: int, count: int, physical: int, writable: bool) -> None:
        size = count << PAGE_BITS
        try:
            mapped = self._guest.find(physical, size)
        except BusFaultError:
            if count == 1:
                raise
            half = count // 2  # a piece that lies in two regions, or partly in none
            self._map_piece(page, half, physical, writable)
            self._map_piece(page + half, count - half, physical + (half << PAGE_BITS), writable)
            return
        region = mapped.region
        if writable and not region.writable:
            raise BusFaultError(
                "physical address", "memory that can be written", "ROM", address=physical
            )
        if region.fd is None:
            raise RuntimeError("the region has no file")
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        offset = region.offset + physical - region.address
        target = self._base + (page << PAGE_BITS)
        self._mmap(target, size, protection, _MAP_SHARED | _MAP_FIXED, region.fd, offset)
        self._pieces += 1

    def _wipe(self) -> None:
        """Put memory of nobody under the whole window: readable, so that no running job crashes."""
        with self._guest.lock:
            self._mmap(
                self._base,
                WINDOW_BYTES,
                mmap.PROT_READ | mmap.PROT_WRITE,
                _MAP_PRIVATE | _MAP_ANONYMOUS | _MAP_NORESERVE | _MAP_FIXED,
                -1,
                0,
            )
            self._mapped.fill(0)
            self._pieces = 0
            self._guest_version = self._guest.version

    def _mmap(
        self, address: int | None, size: int, protection: int, flags: int, fd: int, offset: int
    ) -> int:
        result = self._libc.mmap(address, size, protection, flags, fd, offset)
        if result is None or result == ctypes.c_void_p(-1).value:
            number = ctypes.get_errno() or errno.ENOMEM
            raise OSError(number, f"mapping {size:#x} bytes: {os.strerror(number)}")
        return int(result)
