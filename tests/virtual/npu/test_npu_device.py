# SPDX-License-Identifier: MIT
"""The virtual NPU's device door, against a client that plays QEMU and the kernel driver."""

from __future__ import annotations

import errno
import os
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bsp.base.project import PROJECT
from tests.support.npu.jobs import Convolution
from tests.support.npu.vfio_client import (
    PAGE,
    RAM_BASE,
    Client,
    Driver,
    RefusedError,
    Session,
    memfd,
    wait_until,
)
from virtual.npu.device import recording
from virtual.npu.device.guest_memory import BusFaultError, GuestMemory
from virtual.npu.device.mmu import Mmu, MmuException, MmuFaultError
from virtual.npu.device.vfio_user import Command, GuestRegion, Refused
from virtual.npu.identity import load_identity
from virtual.npu.memory import Access
from virtual.npu.traces.replay import replay
from virtual.npu.vivante import nn
from virtual.npu.vivante.engine import Engine
from virtual.npu.vivante.frontend import STATES

# --- the protocol


def test_qemu_start_up_sequence() -> None:
    with Session(greet=False) as bench:
        client = bench.client
        capabilities = client.version()["capabilities"]
        assert isinstance(capabilities, dict)
        assert capabilities["pgsizes"] == 4096
        client.dma_map(0x0, 0x4000000, None, flags=1)  # flash: in no file
        client.dma_map(RAM_BASE, 16 << 20, bench.fd)
        info = struct.unpack(
            "<IIII", client.ask(Command.DEVICE_GET_INFO, struct.pack("<IIII", 16, 0, 0, 0))
        )
        assert info == (16, 3, 9, 5)
        sizes = {}
        for index in range(9):
            answer = client.ask(
                Command.DEVICE_GET_REGION_INFO, struct.pack("<IIIIQQ", 32, 0, index, 0, 0, 0)
            )
            _, flags, number, _, size, _ = struct.unpack("<IIIIQQ", answer)
            assert number == index
            assert flags == (3 if size else 0)
            sizes[index] = size
        assert {index: size for index, size in sizes.items() if size} == {0: 0x100000, 7: 256}
        irqs = []
        for index in range(5):
            answer = client.ask(Command.DEVICE_GET_IRQ_INFO, struct.pack("<IIII", 16, 0, index, 0))
            irqs.append(struct.unpack("<IIII", answer)[1::2])
        assert irqs == [(7, 1), (0, 0), (0, 0), (0, 0), (0, 0)]
        assert client.read(0x00, region=7, size=4) == 0x10F01AF4
        assert client.read(0x08, region=7, size=4) == 0x12000001
        assert client.read(0x3D, region=7, size=1) == 1
        client.write(0x04, 0x0002, region=7, size=2)
        client.write(0x00, 0xFFFF, region=7, size=2)
        assert client.read(0x04, region=7, size=2) == 2
        assert client.read(0x00, region=7, size=2) == 0x1AF4
        bench.connect_interrupt()
        client.ask(Command.DEVICE_RESET)
        assert client.read(0x04, region=7, size=2) == 0


def test_identity_is_what_the_driver_knows() -> None:
    for name, expected in (
        ("a311d", (0x8000, 0x7120, 0x45080009, 0x88, 0)),
        ("imx8mp", (0x8000, 0x8002, 0x5080009, 0x9F, 0x6000000)),
    ):
        with Session(identity=name) as bench:
            read = bench.client.read
            assert read(0x18) >> 24 != 1  # not the family whose identity is elsewhere
            assert tuple(read(offset) for offset in (0x20, 0x24, 0xA8, 0x30, 0xE8)) == expected
            bench.client.write(0x20, 1)
            assert read(0x20) == 0x8000
            # byte and half-word reads give parts of the word
            assert (read(0x24, size=1), read(0x25, size=1)) == (
                expected[1] & 0xFF,
                expected[1] >> 8,
            )


@pytest.mark.parametrize(
    ("command", "payload"),
    [
        (Command.DMA_MAP, struct.pack("<IIQQQ", 32, 3, 0, 0x1000, 0)),
        (Command.DMA_MAP, struct.pack("<IIQQQ", 32, 3, 0, 0x1000, 0x1001)),
        (Command.DMA_MAP, struct.pack("<IIQQQ", 32, 3, 0, 2**64 - 4096, 0x2000)),
        (Command.DMA_MAP, struct.pack("<IIQQQ", 32, 8, 0, 0x1000, 0x1000)),
        (Command.DMA_MAP, b""),
        (Command.DMA_UNMAP, struct.pack("<IIQQ", 24, 0, 0x1000, 0x1000)),
        (Command.DMA_UNMAP, struct.pack("<IIQQ", 24, 1, RAM_BASE, 16 << 20)),
        (Command.DEVICE_GET_INFO, b"\0" * 15),
        (Command.DEVICE_GET_REGION_INFO, struct.pack("<IIIIQQ", 32, 0, 9, 0, 0, 0)),
        (Command.DEVICE_GET_REGION_IO_FDS, b"\0" * 16),
        (Command.DEVICE_GET_IRQ_INFO, struct.pack("<IIII", 16, 0, 5, 0)),
        (Command.DEVICE_SET_IRQS, struct.pack("<IIIII", 20, 0x21, 1, 0, 1)),
        (Command.DEVICE_SET_IRQS, struct.pack("<IIIII", 20, 0x21, 0, 1, 1)),
        (Command.DEVICE_SET_IRQS, struct.pack("<IIIII", 20, 0x31, 0, 0, 1)),
        (Command.DEVICE_SET_IRQS, struct.pack("<IIIII", 20, 0x2F, 0, 0, 1)),
        (Command.DEVICE_SET_IRQS, struct.pack("<IIIII", 20, 0x0C, 0, 0, 1)),
        (Command.DEVICE_SET_IRQS, b"\0" * 19),
        (Command.REGION_READ, struct.pack("<QII", 0x100000, 0, 4)),
        (Command.REGION_READ, struct.pack("<QII", 2**64 - 2, 0, 4)),
        (Command.REGION_READ, struct.pack("<QII", 0, 0, 0)),
        (Command.REGION_READ, struct.pack("<QII", 0, 0, 4097)),
        (Command.REGION_READ, struct.pack("<QII", 0, 1, 4)),
        (Command.REGION_WRITE, struct.pack("<QII", 0, 0, 4)),
        (Command.REGION_WRITE, struct.pack("<QII", 254, 7, 4) + b"1234"),
        (99, b""),
    ],
)
def test_refused_with_an_error_and_the_connection_goes_on(command: int, payload: bytes) -> None:
    with Session() as bench:
        with pytest.raises(RefusedError):
            bench.client.ask(command, payload)
        assert bench.client.read(0x20) == 0x8000


@pytest.mark.parametrize(
    "junk",
    [
        struct.pack("<HHIII", 1, 9, 0, 0, 0),
        struct.pack("<HHIII", 1, 9, 15, 0, 0),
        struct.pack("<HHIII", 1, 9, 0xFFFFFFFF, 0, 0),
        struct.pack("<HHIII", 1, 9, 16, 1, 0),
        struct.pack("<HHIII", 1, 1, 20, 0, 0) + b"\0\0\0\0",
        b"\xff" * 64,
    ],
)
def test_a_broken_stream_ends_the_connection(junk: bytes) -> None:
    session = Session()
    with session as bench:
        bench.client.sock.sendall(junk)
        with pytest.raises((EOFError, ConnectionError)):
            bench.client.receive()
    assert bench.ended[0] is not None


@pytest.mark.parametrize("sent", [1, 15, 16, 20])
def test_a_client_that_stops_in_a_message_is_dropped(sent: int) -> None:
    message = struct.pack("<HHIII", 1, 9, 32, 0, 0) + bytes(16)
    with Session(deadline_s=0.1) as bench:
        bench.client.sock.sendall(message[:sent])
        wait_until(lambda: bool(bench.ended), 2)
    assert "middle of a message" in str(bench.ended[0])


def test_a_client_that_does_not_read_is_dropped() -> None:
    with Session(deadline_s=0.1) as bench:
        bench.client.sock.settimeout(2)
        question = struct.pack("<HHIIIQII", 1, 9, 32, 0, 0, 0, 7, 256)

        def flood() -> None:
            for _ in range(100_000):
                bench.client.sock.sendall(question)

        with pytest.raises(OSError, match=r"."):
            flood()
    assert "does not take its answer" in str(bench.ended[0])


def test_version_comes_first_and_once() -> None:
    with Session(greet=False) as bench:
        bench.client.send(Command.REGION_READ, struct.pack("<QII", 0, 0, 4))
        with pytest.raises(EOFError):
            bench.client.receive()
    with Session() as bench, pytest.raises(EOFError):
        bench.client.version()
    for offer in (b"\1\0\0\0", b"\0\0\0\0[", b"\0\0\0\0[]\0", b"\0\0\0\0" + b"[" * 9999, b"\0"):
        with Session(greet=False) as bench:
            bench.client.send(Command.VERSION, offer)
            with pytest.raises(EOFError):
                bench.client.receive()


def test_no_reply_is_respected() -> None:
    with Session() as bench:
        bench.client.send(
            Command.REGION_WRITE, struct.pack("<QII", 0x654, 0, 4) + b"\x78\x56\x34\x12", flags=0x10
        )
        assert bench.client.read(0x654) == 0x12345678


def test_no_descriptor_leaks() -> None:
    def open_files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = open_files()
    with Session() as bench:
        inside = open_files()
        pipe, other = os.pipe()
        for flags, fds in ((3, [pipe]), (3, [pipe, other]), (9, [pipe])):
            with pytest.raises(RefusedError):
                bench.client.ask(
                    Command.DMA_MAP, struct.pack("<IIQQQ", 32, flags, 0, 0x1000, 0x1000), fds
                )
        with pytest.raises(RefusedError):  # not an eventfd: writing to it could block
            bench.client.set_irqs(0x24, 1, [pipe])
        bench.client.ask(Command.DEVICE_RESET, b"", [pipe, other])
        os.close(pipe)
        os.close(other)
        assert open_files() == inside
        bench.connect_interrupt()
    assert open_files() == before
    with Session() as bench:
        eight = [os.dup(0) for _ in range(9)]
        bench.client.send(Command.DEVICE_RESET, b"", eight)
        with pytest.raises((EOFError, ConnectionError)):
            bench.client.receive()
        for fd in eight:
            os.close(fd)
    assert open_files() == before


def test_memory_that_cannot_be_trusted_is_refused() -> None:
    with Session() as bench:
        unsealed = memfd(PAGE, sealed=False)
        short = memfd(PAGE)
        for fd, size in ((unsealed, PAGE), (short, 2 * PAGE)):
            with pytest.raises(RefusedError) as refused:
                bench.client.dma_map(0x1000, size, fd)
            assert refused.value.number == errno.EINVAL
        with pytest.raises(RefusedError) as refused:
            bench.client.dma_map(RAM_BASE + PAGE, PAGE, short)
        assert refused.value.number == errno.EEXIST
        bench.client.dma_map(0x1000, PAGE, short)
        bench.client.dma_unmap(0x1000, PAGE)
        bench.client.dma_map(0x1000, PAGE, short)
        os.close(unsealed)
        os.close(short)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 40))
def test_any_bytes_at_all_never_hang_the_server(seed: int, count: int) -> None:
    dice = random.Random(seed)
    with Session(deadline_s=0.05) as bench:
        for _ in range(count):
            command = dice.choice([*Command, 11, 0, 16])
            payload = dice.randbytes(dice.choice([0, 4, 16, 20, 24, 32, dice.randrange(64)]))
            fds = [bench.fd] * dice.choice([0, 0, 0, 1, 2])
            try:
                bench.client.send(command, payload, fds)
                bench.client.receive()
            except RefusedError:
                continue
            except (EOFError, ConnectionError, OSError):
                break


# --- the driver's sequences


def test_bind_and_first_submits() -> None:
    with Session() as bench:
        driver = Driver(bench)
        bench.connect_interrupt()
        driver.hw_reset()
        driver.hw_init()
        driver.start()
        for number in range(5):
            driver.queue([(0x3930, 0), (0x393C, 0), (0x10A4, number)], event=number)
            assert bench.wait_interrupt()
            assert driver.acknowledge() == 1 << number
        assert bench.jobs.states.count((0x10A4, 4)) == 1
        assert not bench.wait_interrupt(0.01)
        driver.end()
        # resume: the MMU is still on, so only the idle loop is started again
        assert bench.client.read(0x388) & 1
        driver.hw_init()
        bench.put(driver.RING, [0x380000C8, 0, 0x40000002, 0])
        driver.at = 0
        driver.start_fe(driver.RING_VA)
        driver.queue([], event=29)
        assert bench.wait_interrupt()
        assert driver.acknowledge() == 1 << 29
        assert bench.client.read(0x664) < PAGE


def test_interrupt_is_a_level() -> None:
    with Session() as bench:
        driver = Driver(bench)
        bench.connect_interrupt()
        driver.hw_reset()
        driver.hw_init()
        driver.start()
        driver.queue([], event=3)
        assert bench.wait_interrupt()
        driver.queue([], event=4)
        time.sleep(0.02)
        assert not bench.wait_interrupt(0)  # masked until the guest has been there
        bench.client.read(0x004)  # something else than the acknowledgement
        bench.unmask()
        assert bench.wait_interrupt()  # still up: told again
        assert driver.acknowledge() == 0b11000
        assert not bench.wait_interrupt(0.01)
        bench.client.write(0x014, 0)
        driver.queue([], event=5)
        time.sleep(0.02)
        assert not bench.wait_interrupt(0)  # not enabled
        bench.client.write(0x014, 0xFFFFFFFF)
        assert bench.wait_interrupt()
        bench.client.set_irqs(0x21, 0)  # disconnected
        driver.acknowledge()


def test_mmu_fault_is_reported_and_recovered_from() -> None:
    with Session() as bench:
        driver = Driver(bench)
        bench.connect_interrupt()
        driver.hw_reset()
        driver.hw_init()
        driver.start()

        def job(state: int, value: int) -> None:
            if state == 0x10A0:
                bench.npu.memory.view(value, 64, Access.READ)

        bench.jobs.action = job
        driver.queue([(0x10A0, 0x5040)], event=1)
        assert bench.wait_interrupt()
        assert driver.acknowledge() == 0x40000000
        assert bench.client.read(0x384) == MmuException.PAGE_NOT_PRESENT
        assert bench.client.read(0x380) == 0x5040
        assert bench.client.read(0x004) & 1 == 0  # stuck until it is reset
        assert not bench.wait_interrupt(0.05)  # and the event never comes
        assert any("fault" in line for line in bench.log)
        driver.hw_reset()
        assert bench.client.read(0x384) == 0
        driver.hw_init()
        driver.start()
        driver.map_page(0x5000, RAM_BASE + 0x200000)
        driver.queue([(0x10A0, 0x5040)], event=1)
        assert bench.wait_interrupt()
        assert driver.acknowledge() == 1 << 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([0xF8000000, 0], None),  # unknown opcode: a hang, as nobody knows what silicon does
        ([0x08010000 | 0x4444 >> 2, 0], None),  # unknown state
        ([0x0801006B, 0xFFFF], 0x80000000),  # an unused entry: its tables are in no memory
        ([0x40000002, 0x80000000], 0x40000000),  # a jump to where nothing is mapped
    ],
)
def test_garbage_in_the_ring(words: list[int], expected: int | None) -> None:
    with Session() as bench:
        driver = Driver(bench)
        bench.connect_interrupt()
        driver.hw_reset()
        driver.hw_init()
        driver.start()
        target = driver.at + 16
        bench.put(driver.RING + target, [*words, 0x08010E01, 0x42, 0x10000000, 0])
        bench.put(driver.RING + driver.at + 4, [target])
        bench.put(driver.RING + driver.at, [0x40000002])
        if expected:
            assert bench.wait_interrupt()
            assert driver.acknowledge() == expected
        else:
            wait_until(lambda: bool(bench.log) or bench.client.read(0x384) != 0)
        driver.hw_reset()
        driver.hw_init()
        driver.start()
        driver.queue([], event=7)
        assert bench.wait_interrupt()
        assert driver.acknowledge() & 1 << 7


def test_links_in_a_circle_leave_the_socket_alive() -> None:
    with Session() as bench:
        driver = Driver(bench)
        driver.hw_reset()
        driver.hw_init()
        driver.start()
        bench.put(driver.RING + 64, [0x40000002, 64])
        bench.put(driver.RING + 4, [64])
        bench.put(driver.RING, [0x40000002])
        wait_until(lambda: bench.npu.front_end.counters.commands > 5000, 10)
        for _ in range(20):
            carried_out = bench.npu.front_end.counters.commands
            bench.client.read(0x20)
        # The front end was not waited for: it is at it still.
        wait_until(lambda: bench.npu.front_end.counters.commands > carried_out, 10)
        driver.hw_reset()


def test_new_page_tables_are_progress_too() -> None:
    """On a busy machine they take longer than the driver waits for a job."""
    with Session() as bench:
        driver = Driver(bench)
        driver.hw_reset()
        driver.hw_init()
        driver.start()
        began, go_on = threading.Event(), threading.Event()
        load = bench.npu.mmu.load

        def slowly(array: int, index: int) -> None:
            began.set()
            go_on.wait(5)
            load(array, index)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bench.npu.mmu, "load", slowly)
            driver.queue([(0x1AC, 0)], event=2)
            assert began.wait(5)
            assert bench.client.read(0x450) != bench.client.read(0x450)
            go_on.set()
        driver.hw_reset()


def test_the_end_of_a_job_is_progress_before_the_front_end_goes_on() -> None:
    """On a busy machine another program may run between the two for longer than the driver waits."""
    with Session() as bench:
        driver = Driver(bench)
        driver.hw_reset()
        driver.hw_init()
        driver.start()
        began, ended, stuck, go_on = (threading.Event() for _ in range(4))
        load, move = bench.npu.mmu.load, bench.npu.front_end._move

        def slowly(array: int, index: int) -> None:
            began.set()
            ended.wait(5)
            load(array, index)

        def interrupted(address: int, epoch: int) -> None:
            if ended.is_set():
                stuck.set()
                go_on.wait(5)
            move(address, epoch)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bench.npu.mmu, "load", slowly)
            patch.setattr(bench.npu.front_end, "_move", interrupted)
            driver.queue([(0x1AC, 0)], event=2)
            assert began.wait(5)
            before = bench.client.read(0x450)
            ended.set()
            assert stuck.wait(5)
            assert bench.client.read(0x450) != before
            go_on.set()
        driver.hw_reset()


def test_a_finished_job_is_no_hang_while_its_interrupt_is_on_the_way() -> None:
    """On a busy machine it reaches the guest later than the driver waits for a job."""
    with Session() as bench:
        driver = Driver(bench)
        driver.hw_reset()
        driver.hw_init()
        driver.start()
        wait_until(lambda: bench.npu.front_end.counters.commands > 10, 10)
        assert bench.client.read(0x450) == bench.client.read(0x450)
        driver.queue([], event=2)
        wait_until(lambda: bench.npu.front_end.counters.events == 1, 10)
        assert bench.client.read(0x450) != bench.client.read(0x450)
        assert bench.client.read(0x10) & 1 << 2
        assert bench.client.read(0x450) == bench.client.read(0x450)
        driver.hw_reset()


def test_a_reset_abandons_the_job_and_keeps_its_fingers_off_memory() -> None:
    with Session() as bench:
        driver = Driver(bench)
        bench.connect_interrupt()
        driver.hw_reset()
        driver.hw_init()
        driver.start()
        page = RAM_BASE + 0x300000
        driver.map_page(0x6000, page)
        began, go_on, outcome = threading.Event(), threading.Event(), []

        def long_job(state: int, value: int) -> None:
            if state != 0x10A0:
                return
            early = bench.npu.memory.view(0x6000, 4, Access.WRITE)
            began.set()
            go_on.wait(5)
            early[:] = 0xEE  # a view from before the reset
            try:
                bench.npu.memory.view(0x6000, 4, Access.WRITE)[:] = 0xDD
            except Exception as error:
                outcome.append(type(error).__name__)
                raise

        bench.jobs.action = long_job
        driver.queue([(0x10A0, 0x6000)], event=2)
        assert began.wait(5)
        # the hang check sees work being done
        assert bench.client.read(0x450) != bench.client.read(0x450)
        assert bench.client.read(0x004) & 1 == 0
        driver.hw_reset()
        bench.jobs.action = None
        go_on.set()
        wait_until(lambda: bool(outcome))
        assert bench.get(page) == 0
        assert not bench.wait_interrupt(0.05)
        driver.hw_init()
        driver.start()
        driver.map_page(0x6000, page)
        bench.jobs.action = lambda state, value: None
        driver.queue([(0x10A0, 0x6000)], event=2)
        assert bench.wait_interrupt()
        assert driver.acknowledge() == 1 << 2


def test_memory_goes_away_under_a_running_job() -> None:
    with Session() as bench:
        driver = Driver(bench)
        driver.hw_reset()
        driver.hw_init()
        driver.start()
        driver.map_page(0x6000, RAM_BASE + 0x300000)
        began, go_on = threading.Event(), threading.Event()

        def job(state: int, value: int) -> None:
            if state == 0x10A0:
                view = bench.npu.memory.view(0x6000, PAGE, Access.WRITE)
                began.set()
                go_on.wait(5)
                view[:] = 1  # must not crash

        bench.jobs.action = job
        driver.queue([(0x10A0, 0x6000)], event=2)
        assert began.wait(5)
        bench.client.dma_unmap(RAM_BASE, 16 << 20)
        go_on.set()
        wait_until(lambda: bench.npu.front_end.counters.faults > 0)
        assert not any(bench.ram[0x300000 : 0x300000 + PAGE])


@pytest.mark.parametrize(("generation", "identity"), [(7, "a311d"), (8, "imx8mp")])
def test_the_engine_computes_on_scattered_guest_memory(
    generation: int, identity: str, tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    writer = recording.begin(trace, load_identity(identity), lambda text: None)
    rng = np.random.default_rng(generation)
    job = Convolution(
        generation,
        rng.integers(0, 256, (20, 40, 40)).astype(np.uint8),
        rng.integers(0, 256, (24, 20, 1, 1)).astype(np.uint8),
        rng.integers(-5000, 5000, 24),
        in_zero_point=11,
        weight_zero_point=128,
        out_zero_point=100,
        shift=26 if generation == 7 else 34,
        kernels=2,
    )
    with Session(
        identity=identity, make_jobs=lambda npu, memory: recording.RecordedJobs(npu, memory, writer)
    ) as bench:
        driver = Driver(bench)
        bench.connect_interrupt()
        driver.hw_reset()
        driver.hw_init()
        driver.start()
        pages = list(range(0x400, 0x500))
        random.Random(generation).shuffle(pages)
        where: dict[int, int] = {}

        def place(virtual: int, content: bytes, *, writable: bool = False) -> None:
            for start in range(0, len(content), PAGE):
                part = content[start : start + PAGE]
                where[virtual + start] = physical = RAM_BASE + pages.pop() * PAGE
                driver.map_page(virtual + start, physical, writable=writable)
                bench.ram[physical - RAM_BASE : physical - RAM_BASE + len(part)] = part

        image_at, output_at, coefficients_at, job_at = 0x40000, 0x80010, 0xC0000, 0x10040
        descriptor = nn.LAYOUT.pack(job.descriptor(image_at, output_at, coefficients_at)).tobytes()
        expected = job.expected()
        place(0x10000, bytes(0x40) + descriptor)
        place(0x40000, job.image.tobytes())
        place(0x80000, bytes(0x10 + expected.size), writable=True)
        place(0xC0000, job.stream())
        driver.queue([(0x3930, 0), (0x10A0, job_at), (0x10A4, 0)], event=6)
        assert bench.wait_interrupt(), bench.log
        assert driver.acknowledge() == 1 << 6
        assert not bench.log
        found = b"".join(
            bench.ram[physical - RAM_BASE : physical - RAM_BASE + PAGE]
            for virtual, physical in sorted(where.items())
            if 0x80000 <= virtual < 0xC0000
        )
        assert found[:0x10] == bytes(0x10)
        assert found[0x10 : 0x10 + expected.size] == expected.tobytes()
        # The same with an output that the driver has mapped read-only.
        driver.map_page(0x81000, where[0x81000], writable=False)
        driver.queue([(0x10A0, job_at)], event=7)
        assert bench.wait_interrupt()
        assert driver.acknowledge() == 0x40000000
        assert bench.client.read(0x384) == MmuException.WRITE_VIOLATION
        assert bench.client.read(0x380) == 0x81000
    recording.end(writer, trace, lambda text: None)
    again = replay(trace)  # the fault as well: the page was read-only
    assert (again.differences, again.submissions, again.faults) == ([], 2, 1)
    assert again.bytes_compared == expected.size


def test_a_guest_that_programs_garbage_is_always_stopped_by_a_reset() -> None:
    dice = random.Random(1)
    with Session(make_jobs=Engine) as bench:
        driver = Driver(bench)
        for _ in range(150):
            driver.hw_reset()
            driver.hw_init()
            driver.start()
            for _ in range(40):
                physical = dice.choice(
                    [RAM_BASE + dice.randrange(0x1000) * PAGE, dice.randrange(1 << 32)]
                )
                page = dice.randrange(1, 1024)
                bench.put(driver.STLB + 4 * page, [physical & 0xFFFFF000 | dice.randrange(0x1000)])
            words = []
            for _ in range(60):
                opcode = dice.choice([1, 1, 1, 1, 1, 2, 3, 7, 8, 9, dice.randrange(32)])
                state = dice.choice([*STATES, dice.randrange(0x4000) << 2])
                head = opcode << 27 | (
                    dice.choice([1, 1, 2, 0]) << 16 | state >> 2 if opcode == 1 else 0
                )
                words += [
                    head,
                    dice.choice([dice.randrange(1 << 32), dice.randrange(1 << 22) & ~7]),
                ]
            target = driver.at + 16
            bench.put(driver.RING + target, words)
            bench.put(driver.RING + driver.at + 4, [target])
            bench.put(driver.RING + driver.at, [0x40000002])
            time.sleep(0.002)
        driver.hw_reset()
        driver.hw_init()
        bench.connect_interrupt()
        driver.start()
        driver.queue([], event=9)
        assert bench.wait_interrupt()
        assert driver.acknowledge() & 1 << 9
        assert bench.npu.front_end.counters.faults > 50
        assert not any("Traceback" in line for line in bench.log)


# --- the MMU


def guest(pages: int = 64) -> tuple[GuestMemory, int]:
    memory = GuestMemory()
    fd = memfd(pages * PAGE)
    memory.add(GuestRegion(RAM_BASE, pages * PAGE, fd, 0, writable=True))
    return memory, fd


def tables(memory: GuestMemory, entries: dict[int, int]) -> Mmu:
    """Page 0 is the array, 1 the first level, 2 the second level of the first 4 MiB."""
    words = memory.view(RAM_BASE, 3 * PAGE, Access.READ | Access.WRITE).view("<u4")
    words[0] = RAM_BASE + PAGE
    words[1024] = (RAM_BASE + 2 * PAGE) | 1
    for page, entry in entries.items():
        words[2048 + page] = entry
    mmu = Mmu(memory)
    mmu.load(RAM_BASE, 0)
    return mmu


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(8, 40)), st.integers(0, 20 * PAGE), st.integers(1, 10 * PAGE))
def test_scattered_pages_are_one_array(order: list[int], start: int, size: int) -> None:
    memory, _ = guest()
    mmu = tables(memory, {page: RAM_BASE + where * PAGE | 5 for page, where in enumerate(order)})
    try:
        expected = b""
        for page, where in enumerate(order):
            content = bytes([page]) * PAGE
            memory.view(RAM_BASE + where * PAGE, PAGE, Access.WRITE)[:] = np.frombuffer(
                content, np.uint8
            )
            expected += content
        view = mmu.view(start, size, Access.READ)
        assert view.tobytes() == expected[start : start + size]
        assert not view.flags.writeable
        mmu.view(start, size, Access.WRITE)[:] = 0xAA
        page = start // PAGE
        physical = RAM_BASE + order[page] * PAGE + start % PAGE
        assert memory.view(physical, 1, Access.READ)[0] == 0xAA
    finally:
        mmu.close()
        memory.clear()


def test_mmu_exceptions() -> None:
    memory, _ = guest()
    ram = RAM_BASE + 8 * PAGE
    mmu = tables(memory, {1: ram | 5, 2: ram | 1, 4: 0x9000_0005})
    cases = [
        (0x0FF0, 16, Access.READ, MmuException.PAGE_NOT_PRESENT, 0x0FF0),
        (0x1000, 0x2001, Access.READ, MmuException.PAGE_NOT_PRESENT, 0x3000),
        (0x1FFF, 2, Access.WRITE, MmuException.WRITE_VIOLATION, 0x2000),
        (0x3FFFFF, 2, Access.READ, MmuException.FIRST_LEVEL_NOT_PRESENT, 0x400000),
        (0xFFFFFFFF, 2, Access.READ, MmuException.PAGE_NOT_PRESENT, 0xFFFFFFFF),
    ]
    for address, size, access, code, where in cases:
        with pytest.raises(MmuFaultError) as fault:
            mmu.view(address, size, access)
        assert (fault.value.code, fault.value.address) == (code, where)
    with pytest.raises(BusFaultError):
        mmu.view(0x4000, 1, Access.READ)
    assert mmu.view(0x1000, 0x2000, Access.READ).size == 0x2000
    assert mmu.view(0x7000, 0, Access.READ).size == 0
    mmu.forget()
    with pytest.raises(MmuFaultError):
        mmu.view(0x1000, 1, Access.READ)
    mmu.close()
    memory.clear()


def test_changed_page_tables_are_seen_without_a_flush() -> None:
    memory, _ = guest()
    mmu = tables(memory, {0: RAM_BASE + 8 * PAGE | 5})
    memory.view(RAM_BASE + 8 * PAGE, 1, Access.WRITE)[0] = 8
    memory.view(RAM_BASE + 9 * PAGE, 1, Access.WRITE)[0] = 9
    assert mmu.view(0, 1, Access.READ)[0] == 8
    memory.view(RAM_BASE + 2 * PAGE, 4, Access.WRITE).view("<u4")[0] = RAM_BASE + 9 * PAGE | 5
    assert mmu.view(0, 1, Access.READ)[0] == 9
    mmu.close()
    memory.clear()


def test_a_piece_over_two_regions_of_memory() -> None:
    memory = GuestMemory()
    for index in range(2):
        fd = memfd(32 * PAGE)
        memory.add(GuestRegion(RAM_BASE + index * 32 * PAGE, 32 * PAGE, fd, 0, writable=True))
    mmu = tables(memory, {page: RAM_BASE + (page + 16) * PAGE | 5 for page in range(32)})
    mmu.view(0, 32 * PAGE, Access.WRITE)[:] = 7
    assert memory.view(RAM_BASE + 40 * PAGE, 1, Access.READ)[0] == 7
    with pytest.raises(BusFaultError):
        memory.view(RAM_BASE + 31 * PAGE, 2 * PAGE, Access.READ)
    with pytest.raises(Refused):
        memory.remove(RAM_BASE, PAGE)
    mmu.close()
    memory.clear()


def test_a_window_in_too_many_pieces_starts_afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("virtual.npu.device.mmu._MAX_PIECES", 8)
    memory, _ = guest()
    mmu = tables(memory, {page: RAM_BASE + (60 - page) * PAGE | 5 for page in range(40)})
    for page in range(40):
        mmu.between_jobs()
        mmu.view(page * PAGE, PAGE, Access.WRITE)[:] = page
        assert mmu._pieces <= 9
    mmu.between_jobs()
    assert [int(mmu.view(page * PAGE, 1, Access.READ)[0]) for page in range(40)] == list(range(40))
    mmu.close()
    memory.clear()


# --- the server as a process


def test_server_serves_one_client_and_ends_with_it(tmp_path: Path) -> None:
    path = tmp_path / ("long" * 20) / "npu.sock"  # longer than a socket's path may be
    path.parent.mkdir()
    command = [sys.executable, "-m", "virtual.npu.device"]
    process = subprocess.Popen(
        [
            *command, "--socket", str(path), "--identity", "imx8mp", "--accept-timeout", "20",
            "--record", str(tmp_path / "trace"),
        ],
        stdout=subprocess.PIPE,
        text=True,
        cwd=PROJECT,
    )  # fmt: skip
    try:
        wait_until(path.exists, 10)
        folder = os.open(path.parent, os.O_PATH)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            wait_until(lambda: sock.connect_ex(f"/proc/self/fd/{folder}/npu.sock") == 0, 10)
            os.close(folder)
            client = Client(sock)
            client.version()
            assert client.read(0x24) == 0x8002
        output, _ = process.communicate(timeout=10)
    finally:
        process.kill()
    assert process.returncode == 0, output
    assert "1 register reads" in output
    assert "client gone" in output
    assert "recorded 0 jobs" in output
    assert replay(tmp_path / "trace").submissions == 0
    assert not path.exists()


def test_server_without_a_client_gives_up(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "virtual.npu.device", "--accept-timeout", "0.1"]
    ended = subprocess.run(
        [*command, "--socket", str(tmp_path / "s"), "--identity", "a311d"],
        capture_output=True,
        text=True,
        timeout=30,
        cwd=PROJECT,
    )
    assert ended.returncode == 3
    assert "no client" in ended.stdout
