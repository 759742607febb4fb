# SPDX-License-Identifier: MIT
"""A vfio-user client that plays QEMU and, on top of it, the kernel driver: no guest is needed."""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from virtual.npu.device.frontend import Jobs, NpuMemory
from virtual.npu.device.npu import VirtualNpu
from virtual.npu.device.vfio_user import Command, Connection, ProtocolError
from virtual.npu.identity import Identity, load_identity

RAM_BASE = 0x4000_0000
PAGE = 4096


class RefusedError(Exception):
    def __init__(self, number: int) -> None:
        super().__init__(os.strerror(number))
        self.number = number


def memfd(size: int, *, sealed: bool = True) -> int:
    """Guest memory as QEMU's memory-backend-memfd makes it."""
    fd = os.memfd_create("guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    if sealed:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    return fd


class Client:
    """The messages that QEMU 11.1 sends."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sock.settimeout(10)
        self.number = 0

    def send(self, command: int, payload: bytes, fds: Sequence[int] = (), flags: int = 0) -> None:
        self.number = (self.number + 1) & 0xFFFF
        head = struct.pack("<HHIII", self.number, command, 16 + len(payload), flags, 0)
        socket.send_fds(self.sock, [head + payload], list(fds))

    def receive(self) -> bytes:
        head = self._exactly(16)
        number, _, size, flags, error = struct.unpack("<HHIII", head)
        assert number == self.number
        assert flags & 0xF == 1
        payload = self._exactly(size - 16)
        if flags & 0x20:
            assert not payload
            raise RefusedError(error)
        return payload

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = self.sock.recv(count - len(data))
            if not part:
                raise EOFError
            data += part
        return data

    def ask(self, command: int, payload: bytes = b"", fds: Sequence[int] = ()) -> bytes:
        self.send(command, payload, fds)
        return self.receive()

    def version(self) -> dict[str, object]:
        capabilities = {"capabilities": {"max_msg_fds": 8, "max_data_xfer_size": 1 << 20}}
        offer = struct.pack("<HH", 0, 1) + json.dumps(capabilities).encode() + b"\0"
        answer = self.ask(Command.VERSION, offer)
        assert answer[:2] == b"\0\0"
        loaded = json.loads(answer[4:].rstrip(b"\0"))
        assert isinstance(loaded, dict)
        return loaded

    def dma_map(
        self, address: int, size: int, fd: int | None, offset: int = 0, flags: int = 3
    ) -> None:
        payload = struct.pack("<IIQQQ", 32, flags, offset, address, size)
        self.ask(Command.DMA_MAP, payload, [] if fd is None else [fd])

    def dma_unmap(self, address: int, size: int, flags: int = 0) -> None:
        self.ask(Command.DMA_UNMAP, struct.pack("<IIQQ", 24, flags, address, size))

    def set_irqs(
        self, flags: int, count: int = 1, fds: Sequence[int] = (), data: bytes = b""
    ) -> None:
        self.ask(
            Command.DEVICE_SET_IRQS,
            struct.pack("<IIIII", 20 + len(data), flags, 0, 0, count) + data,
            fds,
        )

    def read(self, offset: int, region: int = 0, size: int = 4) -> int:
        answer = self.ask(Command.REGION_READ, struct.pack("<QII", offset, region, size))
        return int.from_bytes(answer[16:], "little")

    def write(self, offset: int, value: int, region: int = 0, size: int = 4) -> None:
        head = struct.pack("<QII", offset, region, size)
        self.ask(Command.REGION_WRITE, head + value.to_bytes(size, "little"))


class RecordedJobs:
    """In place of the engine: keeps what it was told, and does what a test wants."""

    def __init__(self, memory: NpuMemory) -> None:
        self.memory = memory
        self.states: list[tuple[int, int]] = []
        self.action: Callable[[int, int], None] | None = None

    def write_state(self, state: int, value: int) -> None:
        self.states.append((state, value))
        if self.action:
            self.action(state, value)


@dataclass
class Bench:
    """A device with a client on the other end of a socket pair, and some guest memory."""

    npu: VirtualNpu
    client: Client
    jobs: RecordedJobs
    log: list[str]
    ram: mmap.mmap
    fd: int
    ended: list[BaseException | None] = field(default_factory=list)
    interrupt: int = -1

    def connect_interrupt(self) -> None:
        self.interrupt = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.client.set_irqs(0x24, 1, [self.interrupt])

    def wait_interrupt(self, timeout_s: float = 5) -> bool:
        poll = select.poll()
        poll.register(self.interrupt, select.POLLIN)
        if not poll.poll(timeout_s * 1000):
            return False
        os.eventfd_read(self.interrupt)
        return True

    def unmask(self) -> None:
        """What QEMU sends when the guest has touched the BAR."""
        self.client.set_irqs(0x11)

    def put(self, physical: int, words: Sequence[int]) -> None:
        offset = physical - RAM_BASE
        self.ram[offset : offset + 4 * len(words)] = struct.pack(f"<{len(words)}I", *words)

    def get(self, physical: int) -> int:
        return int.from_bytes(self.ram[physical - RAM_BASE : physical - RAM_BASE + 4], "little")


def wait_until(condition: Callable[[], bool], timeout_s: float = 5) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.001)


class Session:
    """Starts and ends a ``Bench``; a context manager."""

    def __init__(
        self,
        *,
        identity: str = "a311d",
        ram_bytes: int = 16 << 20,
        greet: bool = True,
        deadline_s: float = 0.3,
        make_jobs: Callable[[Identity, NpuMemory], Jobs] | None = None,
    ) -> None:
        jobs: list[RecordedJobs] = []
        log: list[str] = []

        def record(_: Identity, memory: NpuMemory) -> Jobs:
            jobs.append(RecordedJobs(memory))
            return jobs[-1]

        npu = VirtualNpu(load_identity(identity), make_jobs or record, log=log.append)
        ours, theirs = socket.socketpair()
        fd = memfd(ram_bytes)
        recorded = jobs[0] if jobs else RecordedJobs(npu.memory)
        self.bench = Bench(npu, Client(ours), recorded, log, mmap.mmap(fd, ram_bytes), fd)

        def serve() -> None:
            outcome: BaseException | None = None
            try:
                with theirs:
                    Connection(theirs, npu, deadline_s=deadline_s).serve()
            except ProtocolError as error:
                outcome = error
            self.bench.ended.append(outcome)

        self._thread = threading.Thread(target=serve, daemon=True)
        self._thread.start()
        if greet:
            self.bench.client.version()
            self.bench.client.dma_map(RAM_BASE, ram_bytes, fd)

    def __enter__(self) -> Bench:
        return self.bench

    def __exit__(self, *_: object) -> None:
        bench = self.bench
        bench.client.sock.close()
        self._thread.join(5)
        assert not self._thread.is_alive(), "the server hangs"
        bench.npu.close()
        bench.ram.close()
        os.close(bench.fd)
        if bench.interrupt >= 0:
            os.close(bench.interrupt)


class Driver:
    """What etnaviv 6.12 does to the registers and memory, in its order."""

    PTA, MTLB, STLB, RING, SAFE = (
        RAM_BASE + page * PAGE for page in (0x100, 0x101, 0x102, 0x110, 0x111)
    )
    RING_VA = 0x0

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.at = 0  # offset in the ring of the last WAIT

    def hw_reset(self) -> None:
        client = self.bench.client
        client.write(0x000, 0x100 | 0x200)
        client.write(0x000, 0x100)
        client.write(0x000, 0x100 | 0x80000)  # isolate
        client.write(0x3A8, 1)
        client.write(0x000, 0x100 | 0x80000)
        client.write(0x000, 0x100)
        assert client.read(0x004) & 1, "FE is not idle"
        assert client.read(0x000) & 0x30000 == 0x30000, "GPU is not idle"
        client.write(0x000, client.read(0x000) | 0x800)

    def hw_init(self) -> None:
        client = self.bench.client
        client.write(0x100, client.read(0x100) | 1)
        client.write(0x104, client.read(0x104) | 0x30000)
        client.write(0x008, 0x2200)
        client.write(0x3A8, client.read(0x3A8) | 4)
        client.write(0x10C, 0x01590880)
        client.write(0x014, 0xFFFFFFFF)

    def map_page(self, virtual: int, physical: int, *, writable: bool = True) -> None:
        first, second = virtual >> 22, virtual >> 12 & 0x3FF
        assert first == 0
        self.bench.put(self.MTLB, [self.STLB | 1])
        entry = physical & 0xFFFFF000 | physical >> 32 << 4 | 1 | (4 if writable else 0)
        self.bench.put(self.STLB + 4 * second, [entry])

    def start(self) -> None:
        """Load the page tables with the MMU off, then the idle loop with it on."""
        bench, client = self.bench, self.bench.client
        bench.put(self.MTLB, [2] * 1024)
        bench.put(self.STLB, [2] * 1024)
        self.map_page(self.RING_VA, self.RING)
        client.write(0x38C, self.PTA & 0xFFFFFFFF)
        client.write(0x390, self.PTA >> 32)
        client.write(0x394, 1)
        client.write(0x398, self.SAFE)
        client.write(0x39C, self.SAFE)
        client.write(0x3A0, 0)
        bench.put(self.PTA, [self.MTLB, 0])
        bench.put(self.RING, [0x0801006B, 0, 0x10000000, 0])  # PTA_CONFIG = 0, END
        self.start_fe(self.RING)
        wait_until(lambda: client.read(0x004) == 0x7FFFFFFF)
        client.write(0x388, 1)
        bench.put(self.RING, [0x380000C8, 0, 0x40000002, self.RING_VA])
        self.at = 0
        self.start_fe(self.RING_VA)

    def start_fe(self, address: int) -> None:
        client = self.bench.client
        client.write(0x654, address)
        client.write(0x658, 0x10002)
        client.write(0x3A4, 0x10002)

    def queue(self, states: Sequence[tuple[int, int]], event: int) -> None:
        """Append states and an event to the ring, and link the last WAIT to them."""
        bench = self.bench
        words: list[int] = []
        for state, value in [*states, (0x380C, 3), (0x3804, event | 0x40)]:
            words += [0x08010000 | state >> 2, value]
        target = self.at + 16
        wait = target + 4 * len(words)
        words += [0x380000C8, 0, 0x40000002, self.RING_VA + wait]
        assert wait + 16 <= PAGE
        bench.put(self.RING + target, words)
        bench.put(self.RING + self.at + 4, [self.RING_VA + target])
        bench.put(self.RING + self.at, [0x40000000 | len(words) // 2])
        self.at = wait

    def end(self) -> None:
        """Runtime suspend: the last WAIT becomes END."""
        self.bench.put(self.RING + self.at + 4, [0])
        self.bench.put(self.RING + self.at, [0x10000000])
        client = self.bench.client
        wait_until(lambda: client.read(0x004) == 0x7FFFFFFF, 1)

    def acknowledge(self) -> int:
        """The interrupt handler: read (and so clear) what is pending; QEMU then unmasks."""
        pending = self.bench.client.read(0x010)
        self.bench.unmask()
        return pending
