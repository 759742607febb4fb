# SPDX-License-Identifier: MIT
"""Jobs and clients that mean harm: nothing outside their own memory is written, and others go on."""

from __future__ import annotations

import fcntl
import mmap
import os
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support.npu import traces as npu_traces
from tests.support.npu.jobs import NPUS, Convolution
from tests.virtual.npu.test_npu_engine import convolution
from virtual.npu.faults import FaultError
from virtual.npu.identity import load_identity
from virtual.npu.memory import Access, Buffer, Buffers
from virtual.npu.shim.server import MAGIC, Server
from virtual.npu.vivante.engine import Engine

GUARD_BYTES = 1 << 16
PAGE = 4096
# Linux include/uapi/linux/fcntl.h
F_ADD_SEALS, SEALS = 1033, 1 | 2 | 4


class Guarded:
    """A submission whose buffers lie in one array, with room on both sides that must not change."""

    def __init__(self, buffers: list[Buffer], commands: list[int]) -> None:
        self.commands = commands
        self.memory = np.full(
            GUARD_BYTES + sum(each.data.size + GUARD_BYTES for each in buffers), 0x5A, np.uint8
        )
        self.allowed = np.zeros(self.memory.size, np.bool_)
        self.buffers = []
        at = GUARD_BYTES
        for each in buffers:
            part = self.memory[at : at + each.data.size]
            part[:] = each.data
            self.allowed[at : at + each.data.size] = Access.WRITE in each.access
            self.buffers.append(Buffer(each.address, each.access, part))
            at += each.data.size + GUARD_BYTES
        self.before = self.memory.copy()

    def run(self, generation: int, commands: list[int]) -> bool:
        """Run it; whether it ran to its end. Nothing outside buffers to be written may change."""
        given = self.memory.copy()
        engine = Engine(load_identity(NPUS[generation]), Buffers(self.buffers))
        try:
            engine.submit(np.array(commands, np.uint32))
            ran = True
        except FaultError:
            ran = False
        changed = self.memory != given
        assert not (changed & ~self.allowed).any()
        return ran

    def restore(self) -> None:
        self.memory[:] = self.before


def attack(count: int, seed: int) -> tuple[int, float]:
    """Run mutated submissions; return how many ran, and the seconds of the slowest."""
    rng = random.Random(seed)
    ran, slowest = 0, 0.0
    targets = []
    for generation in (7, 8):
        for each in (1, 2, 5):
            parts = npu_traces.convolution_buffers(convolution(each, generation))
            targets.append((generation, Guarded(*parts)))
        targets.append((generation, Guarded(*npu_traces.move_buffers())))
    for number in range(count):
        generation, target = targets[number % len(targets)]
        commands = list(target.commands)
        for _ in range(rng.randrange(1, 4)):
            # Mostly the descriptor, which is the first buffer; else any buffer or the stream.
            buffer = target.buffers[0 if rng.random() < 0.7 else rng.randrange(len(target.buffers))]
            kind = rng.random()
            if kind < 0.6 or buffer.data.size < 4:
                buffer.data[rng.randrange(buffer.data.size)] ^= 1 << rng.randrange(8)
            elif kind < 0.9:
                words = buffer.data[: buffer.data.size & ~3].view(np.uint32)
                words[rng.randrange(words.size)] = rng.choice(
                    [0, 1, 0xFFFFFFFF, 0x80000000, 0x7FFFFFFF, rng.getrandbits(32)]
                )
            else:
                commands[rng.randrange(len(commands))] ^= 1 << rng.randrange(32)
        started = time.monotonic()
        ran += target.run(generation, commands)
        slowest = max(slowest, time.monotonic() - started)
        target.restore()
    return ran, slowest


def test_mutated_jobs_write_nothing_outside_their_buffers() -> None:
    ran, _ = attack(300, seed=3)
    assert 30 < ran < 290  # some mutations do no harm, most are stopped


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_ten_thousand_mutated_jobs() -> None:
    ran, slowest = attack(10_000, seed=int(os.environ.get("NPU_BSP_SEED", "4")))
    assert 1000 < ran < 9700
    assert slowest < 60


# --- clients of the shim's server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "npu.sock"
    made = Server(path, load_identity("imx8mp"))
    threading.Thread(target=made.serve, daemon=True).start()
    yield path
    made.close()


def submitted(path: Path, job: Convolution, *, stay: bool = True) -> NDArray[np.uint8] | None:
    """Be a client with one job; return its output, or (without ``stay``) leave before the answer."""
    buffers, commands = npu_traces.convolution_buffers(job)
    size = 1 << 20
    handle = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.ftruncate(handle, size)
    memory = np.frombuffer(mmap.mmap(handle, size), np.uint8)
    fcntl.fcntl(handle, F_ADD_SEALS, SEALS)
    table, at, places = b"", PAGE, []
    for each in buffers:
        memory[at : at + each.data.size] = each.data
        table += struct.pack("<4Q", each.address, at, each.data.size, each.access.value)
        places.append(at)
        at += -(-each.data.size // PAGE) * PAGE + PAGE
    stream = struct.pack(f"<{len(commands)}I", *commands)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(30)
        connection.connect(str(path))
        socket.send_fds(connection, [struct.pack("<8sQ", MAGIC, size)], [handle])
        os.close(handle)
        assert connection.recv(32, socket.MSG_WAITALL)[:8] == MAGIC
        connection.sendall(struct.pack("<II", len(buffers), len(stream)) + table + stream)
        if not stay:
            return None
        status, length = struct.unpack("<II", connection.recv(8, socket.MSG_WAITALL))
        assert (status, length) == (0, 0), connection.recv(length)
    output = job.expected()
    return np.array(memory[places[2] : places[2] + output.size]).reshape(output.shape)


def test_clients_that_die_in_a_job_disturb_nobody(server: Path) -> None:
    jobs = [convolution(seed, 8) for seed in range(1, 7)]

    def client(number: int) -> bool:
        job = jobs[number % len(jobs)]
        found = submitted(server, job, stay=number % 3 != 0)
        return found is None or bool((found == job.expected()).all())

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(client, range(18)))
