# SPDX-License-Identifier: MIT
"""The vfio-user protocol, server side: what QEMU's ``vfio-user-pci`` says on its socket, and the answers.

One connection, one client, one message at a time. Whatever the client sends is untrusted: sizes are
bounded before anything is allocated, a message that has begun must end within a deadline, every
descriptor that arrives is either handed to the device or closed, and a command that cannot be carried
out is refused with an error number. Only a broken stream (not a refused command) ends the connection.

Source: QEMU ``docs/interop/vfio-user.rst`` (protocol 0.0) and ``hw/vfio-user/`` (what the client
really sends); the constants are those of ``linux/vfio.h``.
"""

from __future__ import annotations

import array
import contextlib
import errno
import json
import os
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Protocol

HEADER = struct.Struct("<HHIII")
_DMA_MAP = struct.Struct("<IIQQQ")
_DMA_UNMAP = struct.Struct("<IIQQ")
_DEVICE_INFO = struct.Struct("<IIII")
_REGION_INFO = struct.Struct("<IIIIQQ")
_IRQ_INFO = struct.Struct("<IIII")
_IRQ_SET = struct.Struct("<IIIII")
_REGION_ACCESS = struct.Struct("<QII")

MAX_TRANSFER_BYTES = 4096
"""Most bytes of one region access; the client is told so."""

MAX_MESSAGE_BYTES = HEADER.size + max(_REGION_ACCESS.size + MAX_TRANSFER_BYTES, 16384)
"""Longest message: a full region access, or a VERSION with generous capabilities."""

MAX_DESCRIPTORS = 8
MAX_DMA_MAPS = 4096
PAGE_BYTES = 4096

MESSAGE_DEADLINE_S = 5.0
"""A message that has begun must have arrived, and an answer must have been taken, after this time."""

REPLY, NO_REPLY, ERROR = 0x01, 0x10, 0x20
_TYPE_MASK = 0x0F

CONFIG_REGION = 7
NUM_REGIONS = 9
NUM_IRQ_TYPES = 5
INTX = 0


class Command(IntEnum):
    """Commands that the client sends."""

    VERSION = 1
    DMA_MAP = 2
    DMA_UNMAP = 3
    DEVICE_GET_INFO = 4
    DEVICE_GET_REGION_INFO = 5
    DEVICE_GET_REGION_IO_FDS = 6
    DEVICE_GET_IRQ_INFO = 7
    DEVICE_SET_IRQS = 8
    REGION_READ = 9
    REGION_WRITE = 10
    DEVICE_RESET = 13


class IrqSet(IntFlag):
    """Flags of DEVICE_SET_IRQS: exactly one kind of data, exactly one action."""

    DATA_NONE = 0x01
    DATA_BOOL = 0x02
    DATA_EVENTFD = 0x04
    MASK = 0x08
    UNMASK = 0x10
    TRIGGER = 0x20


_IRQ_DATA = IrqSet.DATA_NONE | IrqSet.DATA_BOOL | IrqSet.DATA_EVENTFD
_IRQ_ACTION = IrqSet.MASK | IrqSet.UNMASK | IrqSet.TRIGGER
# linux/vfio.h: VFIO_IRQ_INFO_EVENTFD | MASKABLE | AUTOMASKED; REGION_INFO_FLAG_READ | WRITE
_INTX_FLAGS = 0x7
_REGION_READ_WRITE = 0x3
_DEVICE_RESET_PCI = 0x3
_UNMAP_ALL = 0x2


class ProtocolError(Exception):
    """The stream cannot be trusted any more: the connection ends."""


class Refused(Exception):  # noqa: N818 - an answer, not a defect
    """A command is answered with an error number; the connection goes on."""

    def __init__(self, number: int, why: str) -> None:
        super().__init__(why)
        self.number = number


@dataclass(frozen=True)
class GuestRegion:
    """A piece of the guest's memory that the device may reach.

    Attributes:
        address: first guest-physical address.
        size: in bytes, a multiple of the page size.
        fd: descriptor of the memory file, owned by the receiver; None for memory that is in no file
            (flash), which the device cannot reach.
        offset: of the region in that file, in bytes.
        writable: whether the device may write to it.
    """

    address: int
    size: int
    fd: int | None
    offset: int
    writable: bool


class Device(Protocol):
    """What the protocol drives. Methods raise :class:`Refused` for what cannot be done."""

    @property
    def regions(self) -> Mapping[int, int]:
        """Size in bytes of each region that exists, by its index (BARs 0 to 5, 7 = configuration)."""

    def read(self, region: int, offset: int, size: int) -> bytes:
        """Return ``size`` bytes (bounds are checked already)."""

    def write(self, region: int, offset: int, data: bytes) -> None:
        """Write bytes (bounds are checked already)."""

    def map_memory(self, region: GuestRegion) -> None:
        """Take over a piece of guest memory, and its descriptor unless this raises."""

    def unmap_memory(self, address: int, size: int) -> None:
        """Let go of a piece that was mapped with exactly these values."""

    def unmap_all(self) -> None:
        """Let go of all guest memory."""

    def connect_interrupt(self, fd: int | None) -> None:
        """Raise the interrupt through this event descriptor from now on ; taken over unless this raises."""

    def mask_interrupt(self, masked: bool) -> None:
        """Hold the interrupt back, or let it through again."""

    def trigger_interrupt(self) -> None:
        """Raise the interrupt once, as a loopback test does."""

    def reset(self) -> None:
        """Back to the state after power-on; memory and interrupts stay connected."""


class Connection:
    """One client on one stream socket."""

    def __init__(
        self, sock: socket.socket, device: Device, *, deadline_s: float = MESSAGE_DEADLINE_S
    ) -> None:
        self._sock = sock
        self._device = device
        self._deadline_s = deadline_s
        self._greeted = False

    def serve(self) -> None:
        """Answer until the client is gone.

        Raises:
            ProtocolError: the client sent what is not a message, or stopped in the middle of one.
        """
        try:
            while self.serve_one():
                pass
        finally:
            self._device.connect_interrupt(None)
            self._device.unmap_all()

    def serve_one(self) -> bool:
        """Receive and answer one message; False when the client has closed the connection."""
        received = self._receive()
        if received is None:
            return False
        message_id, number, flags, payload, descriptors = received
        reply, error = b"", 0
        with _closing(descriptors):
            try:
                reply = self._carry_out(number, payload, descriptors)
            except Refused as refusal:
                error = refusal.number
        if flags & NO_REPLY:
            return True
        size = HEADER.size + (0 if error else len(reply))
        head = HEADER.pack(message_id, number, size, REPLY | (ERROR if error else 0), error)
        self._send(head if error else head + reply)
        return True

    # --- the stream

    def _receive(self) -> tuple[int, int, int, bytes, list[int]] | None:
        self._sock.settimeout(None)  # an idle machine may say nothing for days
        descriptors: list[int] = []
        try:
            head = self._receive_bytes(HEADER.size, descriptors, may_end=True)
            if not head:
                return None
            message_id, number, size, flags, _ = HEADER.unpack(head)
            if flags & _TYPE_MASK:
                raise ProtocolError(f"expected a command, found a message with flags {flags:#x}")
            if not HEADER.size <= size <= MAX_MESSAGE_BYTES:
                raise ProtocolError(
                    f"message size {size}, expected {HEADER.size} to {MAX_MESSAGE_BYTES}"
                )
            payload = self._receive_bytes(size - HEADER.size, descriptors)
        except BaseException:
            _close(descriptors)
            raise
        return message_id, number, flags, payload, descriptors

    def _receive_bytes(self, count: int, descriptors: list[int], *, may_end: bool = False) -> bytes:
        """Receive exactly ``count`` bytes; the deadline starts with the first of a message."""
        data = bytearray()
        flags = socket.MSG_CMSG_CLOEXEC
        room = socket.CMSG_SPACE(MAX_DESCRIPTORS * array.array("i").itemsize)
        while len(data) < count:
            try:
                part, ancillary, part_flags, _ = self._sock.recvmsg(count - len(data), room, flags)
            except TimeoutError:
                raise ProtocolError(
                    f"the client stopped in the middle of a message ({len(data)} of {count} bytes)"
                ) from None
            except OSError as error:
                if may_end and not data:
                    return b""
                raise ProtocolError(f"the connection broke: {error.strerror}") from error
            for level, kind, content in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    received = array.array("i")
                    received.frombytes(content[: len(content) - len(content) % received.itemsize])
                    descriptors.extend(received)
            if part_flags & socket.MSG_CTRUNC or len(descriptors) > MAX_DESCRIPTORS:
                raise ProtocolError(f"more than {MAX_DESCRIPTORS} descriptors in one message")
            if not part:
                if may_end and not data:
                    return b""
                raise ProtocolError("the client closed the connection in the middle of a message")
            data += part
            self._sock.settimeout(self._deadline_s)
        return bytes(data)

    def _send(self, message: bytes) -> None:
        self._sock.settimeout(self._deadline_s)
        try:
            self._sock.sendall(message)
        except OSError as error:
            raise ProtocolError(f"the client does not take its answer: {error}") from error

    # --- the commands

    def _carry_out(self, number: int, payload: bytes, descriptors: list[int]) -> bytes:
        try:
            command = Command(number)
        except ValueError:
            raise Refused(errno.ENOTSUP, f"unknown command {number}") from None
        if not self._greeted:
            if command is not Command.VERSION:
                raise ProtocolError(f"expected VERSION first, found {command.name}")
        elif command is Command.VERSION:
            raise ProtocolError("a second VERSION")
        match command:
            case Command.VERSION:
                return self._version(payload)
            case Command.DMA_MAP:
                return self._dma_map(payload, descriptors)
            case Command.DMA_UNMAP:
                return self._dma_unmap(payload)
            case Command.DEVICE_GET_INFO:
                _fields(_DEVICE_INFO, payload)
                return _DEVICE_INFO.pack(
                    _DEVICE_INFO.size, _DEVICE_RESET_PCI, NUM_REGIONS, NUM_IRQ_TYPES
                )
            case Command.DEVICE_GET_REGION_INFO:
                return self._region_info(payload)
            case Command.DEVICE_GET_IRQ_INFO:
                return self._irq_info(payload)
            case Command.DEVICE_SET_IRQS:
                return self._set_irqs(payload, descriptors)
            case Command.REGION_READ:
                return self._region_read(payload)
            case Command.REGION_WRITE:
                return self._region_write(payload)
            case Command.DEVICE_RESET:
                self._device.reset()
                return b""
            case Command.DEVICE_GET_REGION_IO_FDS:
                raise Refused(errno.ENOTSUP, "no region has descriptors of its own")

    def _version(self, payload: bytes) -> bytes:
        if len(payload) < 4:
            raise ProtocolError("VERSION is too short")
        major, minor = struct.unpack_from("<HH", payload)
        if major != 0:
            raise ProtocolError(f"protocol {major}.{minor} proposed, expected 0.x")
        offered = payload[4:].rstrip(b"\0")
        if offered:
            try:
                capabilities = json.loads(offered)
            except (ValueError, RecursionError) as error:
                raise ProtocolError(f"VERSION's capabilities are not JSON: {error}") from error
            if not isinstance(capabilities, dict):
                raise ProtocolError("VERSION's capabilities are not a JSON object")
        self._greeted = True
        answer = {
            "capabilities": {
                "max_msg_fds": MAX_DESCRIPTORS,
                "max_data_xfer_size": MAX_TRANSFER_BYTES,
                "max_dma_maps": MAX_DMA_MAPS,
                "pgsizes": PAGE_BYTES,
            }
        }
        return struct.pack("<HH", 0, 0) + json.dumps(answer).encode() + b"\0"

    def _dma_map(self, payload: bytes, descriptors: list[int]) -> bytes:
        _, flags, offset, address, size = _fields(_DMA_MAP, payload)
        if flags & ~0x3 or not flags & 0x1:
            raise Refused(errno.EINVAL, f"DMA_MAP flags {flags:#x}")
        if not size or (size | address | offset) % PAGE_BYTES or address + size > 1 << 52:
            raise Refused(errno.EINVAL, f"DMA_MAP of {size:#x} bytes at {address:#x}")
        if len(descriptors) > 1:
            raise Refused(
                errno.EINVAL, f"DMA_MAP with {len(descriptors)} descriptors, expected one"
            )
        fd = descriptors[0] if descriptors else None
        self._device.map_memory(GuestRegion(address, size, fd, offset, bool(flags & 0x2)))
        descriptors.clear()  # taken over
        return b""

    def _dma_unmap(self, payload: bytes) -> bytes:
        _, flags, address, size = _fields(_DMA_UNMAP, payload)
        if flags & ~_UNMAP_ALL:
            raise Refused(errno.EINVAL, f"DMA_UNMAP flags {flags:#x}")
        if flags & _UNMAP_ALL:
            self._device.unmap_all()
        else:
            self._device.unmap_memory(address, size)
        return payload

    def _region_info(self, payload: bytes) -> bytes:
        index = _fields(_REGION_INFO, payload)[2]
        if index >= NUM_REGIONS:
            raise Refused(errno.EINVAL, f"region {index}")
        size = self._device.regions.get(index, 0)
        flags = _REGION_READ_WRITE if size else 0
        return _REGION_INFO.pack(_REGION_INFO.size, flags, index, 0, size, 0)

    def _irq_info(self, payload: bytes) -> bytes:
        index = _fields(_IRQ_INFO, payload)[2]
        if index >= NUM_IRQ_TYPES:
            raise Refused(errno.EINVAL, f"interrupt type {index}")
        flags, count = (_INTX_FLAGS, 1) if index == INTX else (0, 0)
        return _IRQ_INFO.pack(_IRQ_INFO.size, flags, index, count)

    def _set_irqs(self, payload: bytes, descriptors: list[int]) -> bytes:
        if len(payload) < _IRQ_SET.size:
            raise Refused(errno.EINVAL, "DEVICE_SET_IRQS is too short")
        _, bits, index, start, count = _IRQ_SET.unpack_from(payload)
        data, action = IrqSet(bits & _IRQ_DATA), IrqSet(bits & _IRQ_ACTION)
        if bits & ~(_IRQ_DATA | _IRQ_ACTION) or data.bit_count() != 1 or action.bit_count() != 1:
            raise Refused(errno.EINVAL, f"DEVICE_SET_IRQS flags {bits:#x}")
        if index != INTX or start != 0 or count > 1:
            raise Refused(errno.EINVAL, f"interrupts {index}:{start}+{count}; there is INTx only")
        if data is IrqSet.DATA_EVENTFD:
            if action is not IrqSet.TRIGGER:
                raise Refused(errno.ENOTSUP, "masking through a descriptor")
            if len(descriptors) > 1:
                raise Refused(errno.EINVAL, f"{len(descriptors)} descriptors for one interrupt")
            self._device.connect_interrupt(descriptors[0] if descriptors else None)
            descriptors.clear()  # taken over
            return b""
        if data is IrqSet.DATA_BOOL:
            if len(payload) != _IRQ_SET.size + count:
                raise Refused(errno.EINVAL, "DEVICE_SET_IRQS has another number of values")
            if count and not payload[-1]:
                return b""
        if action is IrqSet.TRIGGER:
            if count:
                self._device.trigger_interrupt()
            else:
                self._device.connect_interrupt(None)
        elif count:
            self._device.mask_interrupt(action is IrqSet.MASK)
        return b""

    def _region_read(self, payload: bytes) -> bytes:
        offset, region, size = _fields(_REGION_ACCESS, payload)
        self._check_access(region, offset, size)
        return payload + self._device.read(region, offset, size)

    def _region_write(self, payload: bytes) -> bytes:
        if len(payload) < _REGION_ACCESS.size:
            raise Refused(errno.EINVAL, "REGION_WRITE is too short")
        offset, region, size = _REGION_ACCESS.unpack_from(payload)
        data = payload[_REGION_ACCESS.size :]
        if len(data) != size:
            raise Refused(errno.EINVAL, f"REGION_WRITE of {size} bytes carries {len(data)}")
        self._check_access(region, offset, size)
        self._device.write(region, offset, data)
        return payload[: _REGION_ACCESS.size]

    def _check_access(self, region: int, offset: int, size: int) -> None:
        limit = self._device.regions.get(region, 0)
        if not 0 < size <= MAX_TRANSFER_BYTES or offset + size > limit:
            raise Refused(errno.EINVAL, f"{size} bytes at {offset:#x} of region {region} ({limit})")


def _fields(layout: struct.Struct, payload: bytes) -> tuple[int, ...]:
    if len(payload) != layout.size:
        raise Refused(errno.EINVAL, f"expected {layout.size} bytes, found {len(payload)}")
    return layout.unpack(payload)


@contextlib.contextmanager
def _closing(descriptors: list[int]) -> Iterator[None]:
    """Close what is still in the list at the end: what the device takes over is taken out."""
    try:
        yield
    finally:
        _close(descriptors)


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)
