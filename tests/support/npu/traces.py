# SPDX-License-Identifier: MIT
"""Traces for the tests: recorded from single jobs, taken apart, changed, and put together again."""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from tests.support.npu.jobs import NPUS, Convolution, bench_for, load_state
from virtual.npu.faults import FaultError
from virtual.npu.identity import load_identity
from virtual.npu.memory import Access, Buffer, Buffers
from virtual.npu.traces import recorder
from virtual.npu.traces.trace import MAGIC
from virtual.npu.vivante import tp
from virtual.npu.vivante.engine import Engine


def convolution_buffers(job: Convolution) -> tuple[list[Buffer], list[int]]:
    """Return the buffers of ``bench_for`` and its commands."""
    bench = bench_for(job)
    rows = [
        Buffer(0x400000, Access.READ, bench.descriptor),
        Buffer(0x10000000, Access.READ, np.ascontiguousarray(job.image).reshape(-1)),
        Buffer(0x20000000, Access.WRITE, bench.output.reshape(-1)),
        Buffer(0x30000000, Access.READ, bench.coefficients),
    ]
    return rows, bench.stream.tolist()


def move_buffers() -> tuple[list[Buffer], list[int]]:
    """A TP job that transposes 2 planes of 3 x 4 bytes to interleaved ones."""
    words = tp.LAYOUT.pack(
        {
            "in_image_x_size": 4, "in_image_y_size": 3, "in_image_z_size": 2,
            "in_image_stride": 4, "in_image_slice": 12,
            "in_window_x_end": 3, "in_window_y_end": 2,
            "in_tile_x_size": 4, "in_tile_y_size": 3, "in_tile_x_inc": 4, "in_tile_y_inc": 3,
            "in_image_base_address": 0x500000, "out_image_base_address": 0x600000,
            "out_loop_0_inc": 2, "out_loop_0_count": 12, "out_loop_1_inc": 1, "out_loop_1_count": 2,
            "out_loop_2_count": 1, "out_loop_3_count": 1, "out_loop_4_count": 1,
            "out_loop_5_count": 1,
        }
    )  # fmt: skip
    rows = [
        Buffer(0x420000, Access.READ, words.view(np.uint8).copy()),
        Buffer(0x500000, Access.READ, np.arange(1, 25, dtype=np.uint8)),
        Buffer(0x600000, Access.READ | Access.WRITE, np.zeros(24, np.uint8)),
    ]
    return rows, load_state(0x10B8, 0x420000)


def record(path: Path, generation: int, parts: list[tuple[list[Buffer], list[int]]]) -> list[str]:
    """Record submissions of one client; return what stopped them, "" for nothing."""
    identity = load_identity(NPUS[generation])
    writer = recorder.begin(path, identity, door="shim")
    watch = recorder.Recorder(writer, 0)
    engine = Engine(identity, Buffers([]), watch=watch)
    said = []
    for buffers, commands in parts:
        stream = np.array(commands, np.uint32)
        watch.begin_submit(buffers, stream)
        engine.memory = watch.watched(Buffers(buffers))
        fault = None
        try:
            engine.submit(stream)
        except FaultError as error:
            fault = error
        watch.end_submit(fault)
        said.append(str(fault or ""))
    writer.close()
    return said


def taken_apart(content: bytes) -> list[bytes]:
    """Return the raw records of a trace."""
    position = 12
    records: list[bytes] = []
    while True:
        stored, raw = struct.unpack_from("<II", content, position)
        position += 8
        if not raw:
            return records
        records.append(zlib.decompress(content[position : position + stored]))
        assert len(records[-1]) == raw
        position += stored


def put_together(records: list[bytes], *, version: int = 1) -> bytes:
    """Return a trace with a right hash."""
    content = bytearray(struct.pack("<8sI", MAGIC, version))
    for raw in records:
        stored = zlib.compress(raw)
        content += struct.pack("<II", len(stored), len(raw)) + stored
    content += struct.pack("<II", 0, 0)
    return bytes(content) + hashlib.sha256(content).digest()


def changed(path: Path, number: int, change: Callable[[dict[str, Any]], None]) -> Path:
    """Write a copy of a trace in which one record was changed as a dictionary."""
    records = taken_apart(path.read_bytes())
    document = msgspec.msgpack.decode(records[number])
    change(document)
    records[number] = msgspec.msgpack.encode(document)
    other = path.with_name(f"changed-{path.name}")
    other.write_bytes(put_together(records))
    return other
