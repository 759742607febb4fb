# SPDX-License-Identifier: MIT
"""The device's one interrupt: a level, made from an event descriptor that masks itself.

QEMU takes the event as "the line went up" and holds the interrupt back until the guest has touched
the device; then it sends UNMASK. If the line is still up at that moment, the event is sent again
(linux/vfio.h, VFIO_IRQ_INFO_AUTOMASKED; QEMU hw/vfio/pci.c, vfio_intx_eoi).
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import struct
import threading
from pathlib import Path

from .vfio_user import Refused

_ONE = struct.pack("=Q", 1)


class InterruptLine:
    """A level-triggered line; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._fd: int | None = None
        self._masked = False
        self._level = False
        self.raised = 0
        """How often the client was told."""

    def connect(self, fd: int | None) -> None:
        """Send events to ``fd`` from now on, or to nobody; the line takes ``fd`` over.

        Raises:
            Refused: it is not an event descriptor (a pipe could block us).
        """
        if fd is not None and not _is_eventfd(fd):
            raise Refused(errno.EINVAL, "the interrupt's descriptor is not an eventfd")
        with self._lock:
            if self._fd is not None:
                os.close(self._fd)
            self._fd = fd
            self._masked = False
            self._update()

    def mask(self, masked: bool) -> None:
        """Hold events back, or let them through again (at once, if the line is up)."""
        with self._lock:
            self._masked = masked
            self._update()

    def set(self, level: bool) -> None:
        """Set the line's level."""
        with self._lock:
            self._level = level
            self._update()

    def trigger(self) -> None:
        """Send one event whatever the level is."""
        with self._lock:
            self._send()

    def _update(self) -> None:
        if self._level and not self._masked and self._fd is not None:
            self._masked = True
            self._send()

    def _send(self) -> None:
        if self._fd is None:
            return
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        if not poll.poll(0):
            return  # its counter is full: whoever reads it has been told often enough
        with contextlib.suppress(OSError):
            os.write(self._fd, _ONE)
            self.raised += 1


def _is_eventfd(fd: int) -> bool:
    try:
        return str(Path(f"/proc/self/fd/{fd}").readlink()) == "anon_inode:[eventfd]"
    except OSError:
        return False
