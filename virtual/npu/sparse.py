# SPDX-License-Identifier: MIT
"""4 GiB of zeros of which only what is written takes memory: a copy of an NPU's address space."""

from __future__ import annotations

import mmap
from collections.abc import Iterator

import numpy as np

from .memory import Bytes

SIZE_BYTES = 1 << 32
PAGE_BITS = 12
# Linux include/uapi/asm-generic/mman.h; Python's mmap module names it from 3.13 on.
_MAP_NORESERVE = 0x4000


def new() -> Bytes:
    """Return the zeros; they are given back when nothing refers to them any more."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
    return np.frombuffer(mmap.mmap(-1, SIZE_BYTES, flags=flags), np.uint8)


def differing(address: int, mine: Bytes, other: Bytes) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of the runs of 4 KiB pages in which two arrays differ, as indices.

    ``address`` says where the arrays begin: pages are those of the address space.
    """
    places = np.flatnonzero(mine != other)
    if not places.size:
        return
    pages = np.unique(places + (address & (1 << PAGE_BITS) - 1) >> PAGE_BITS)
    breaks = np.flatnonzero(np.diff(pages) != 1)
    firsts = pages[np.concatenate([[0], breaks + 1])]
    lasts = pages[np.concatenate([breaks, [pages.size - 1]])]
    lead = address & (1 << PAGE_BITS) - 1
    for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
        start = max((first << PAGE_BITS) - lead, 0)
        end = min((last + 1 << PAGE_BITS) - lead, mine.size)
        yield start, end
