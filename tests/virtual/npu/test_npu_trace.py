# SPDX-License-Identifier: MIT
"""Traces of the virtual NPU: recorded, replayed, shown; broken and hostile ones."""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from bsp.base.errors import BspError
from bsp.base.project import PROJECT
from tests.support.npu import traces as npu_traces
from tests.support.npu.jobs import load_state
from tests.virtual.npu.test_npu_engine import convolution
from virtual.npu.identity import load_identity
from virtual.npu.memory import Access, Buffer, Buffers
from virtual.npu.tflite.operations import Operation
from virtual.npu.traces import recorder, trace
from virtual.npu.traces import show as showing
from virtual.npu.traces.replay import replay
from virtual.npu.traces.trace import TraceError
from virtual.npu.traces.trace_text import replayed_text, shown_text
from virtual.npu.vivante import nn
from virtual.npu.vivante.engine import Engine


def recorded(folder: Path, generation: int = 7, seeds: tuple[int, ...] = (3, 4)) -> Path:
    path = folder / f"{generation}.npu"
    parts = [npu_traces.convolution_buffers(convolution(seed, generation)) for seed in seeds]
    faults = npu_traces.record(path, generation, [*parts, npu_traces.move_buffers()])
    assert faults == [""] * (len(seeds) + 1)
    return path


@pytest.mark.parametrize("generation", [7, 8])
def test_what_was_recorded_is_computed_again(generation: int, tmp_path: Path) -> None:
    path = recorded(tmp_path, generation, (1, 2, 3, 4, 5))
    found = replay(path)
    assert found.differences == []
    assert (found.submissions, found.nn_jobs, found.tp_jobs) == (6, 5, 1)
    jobs = [convolution(seed, generation) for seed in (1, 2, 3, 4, 5)]
    assert found.bytes_compared == sum(job.expected().size for job in jobs) + 24
    assert "equal: all" in replayed_text(found)


def test_the_same_work_takes_no_room_twice(tmp_path: Path) -> None:
    part = npu_traces.convolution_buffers(convolution(3, 7))
    once, often = tmp_path / "once", tmp_path / "often"
    npu_traces.record(once, 7, [part])
    npu_traces.record(often, 7, [part] * 20)
    assert often.stat().st_size < once.stat().st_size + 19 * 400
    assert replay(often).bytes_compared == 20 * replay(once).bytes_compared


@pytest.mark.parametrize("generation", [7, 8])
def test_other_coefficients_come_out_differently(generation: int, tmp_path: Path) -> None:
    path = recorded(tmp_path, generation)

    def turn_up_the_scale(job: dict[str, Any]) -> None:
        for piece in job["before"]:
            if piece[0] == 0x400000:
                words = np.frombuffer(piece[1], np.uint32).copy()
                words[word] ^= 1 << shift
                piece[1] = words.tobytes()

    _, word, shift = nn.LAYOUT.place("post_shift")
    other = npu_traces.changed(path, 2, turn_up_the_scale)
    found = replay(other)
    assert [each.job for each in found.differences] == [0], found.differences
    difference = found.differences[0]
    assert 0 < difference.bytes <= difference.of_bytes
    assert difference.largest > 0
    assert "DIFFERS: 1 job" in replayed_text(found)


def test_a_recorded_fault_is_expected_again(tmp_path: Path) -> None:
    buffers, commands = npu_traces.convolution_buffers(convolution(3, 7))
    short = Buffer(buffers[1].address, Access.READ, buffers[1].data[:-1])
    broken = [buffers[0], short, *buffers[2:]]
    path = tmp_path / "t"
    said = npu_traces.record(
        path, 7, [(broken, commands), (buffers, load_state(0xC00, 1)), (buffers, commands)]
    )
    assert "past its end" in said[0]
    assert "state" in said[1]
    found = replay(path)
    assert (found.differences, found.faults, found.nn_jobs) == ([], 2, 2)
    assert "2 submissions stopped at a fault" in replayed_text(found)
    shown = showing.show(path)
    assert "past its end" in shown.submissions[0].fault

    def no_fault(end: dict[str, Any]) -> None:
        end["fault"] = end["fault_field"] = ""

    other = replay(npu_traces.changed(path, 3, no_fault))
    assert [each.expected for each in other.differences] == ["no fault"]
    assert "DIFFERS" in replayed_text(other)


@pytest.mark.parametrize("generation", [7, 8])
def test_show_says_what_the_jobs_are(generation: int, tmp_path: Path) -> None:
    path = recorded(tmp_path, generation, (3, 4, 3))
    shown = showing.show(path)
    for each, seed in zip(shown.submissions, (3, 4, 3), strict=False):
        job = convolution(seed, generation)
        (first,) = each.jobs
        rows, columns = job.expected().shape[1:]
        height, width = job.weights.shape[2:]
        assert f"{height}x{width} " in first.what
        assert first.what.endswith(f"-> {len(job.weights)}x{rows}x{columns}")
        assert first.stored_bytes == len(job.stream())
        assert first.weights == job.weights.size
        assert first.zero_weights == (job.weights == job.weight_zero_point).sum()
        assert first.macs == job.weights.size * rows * columns
        assert first.written_bytes == job.expected().size
        assert first.read_bytes > job.image.size + len(job.stream())
    assert [each.like for each in shown.submissions] == [None, None, 0, None]
    assert shown.submissions[3].jobs[0].what == "2x3x4 -> 2x3x4"
    text = shown_text(shown)
    assert max(map(len, text.splitlines())) <= 80
    assert "the same jobs as submission 0" in text
    assert "in all: 4 submissions, 3 NN and 1 TP jobs" in text
    one = shown_text(showing.show(path, job=1), fields=True)
    assert "kernels_per_core" in one
    assert max(map(len, one.splitlines())) <= 80
    with pytest.raises(BspError, match="has 4 jobs, from 0; there is no job 9"):
        showing.show(path, job=9)


def invoke(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "invoke", *arguments]
    return subprocess.run(
        command, cwd=PROJECT, capture_output=True, text=True, timeout=60, check=False
    )


def test_the_tasks(tmp_path: Path) -> None:
    path = recorded(tmp_path)
    assert replay(path).document()["verdict"] == "equal"
    said = invoke("npu.show", str(path), "--json")
    assert said.returncode == 0, said.stderr
    assert json.loads(said.stdout)["totals"]["nn_jobs"] == 2

    def another_byte(job: dict[str, Any]) -> None:
        address, content = job["after"][-1]
        job["after"][-1] = [address, content[:-1] + bytes([content[-1] ^ 255])]

    other = npu_traces.changed(path, 2, another_byte)
    said = invoke("npu.replay", str(other))
    assert said.returncode == 4
    assert "DIFFERS: 1 job" in said.stdout
    assert TraceError("").exit_code == 2


# --- broken and hostile traces


def test_what_is_no_trace_is_named(tmp_path: Path) -> None:
    path = recorded(tmp_path)
    content = path.read_bytes()
    records = npu_traces.taken_apart(content)
    other = tmp_path / "other"
    cases = {
        "No such file": None,
        "not a trace of an NPU": b"PK\x03\x04" * 20,
        "is cut short": content[:20],
        "trace format 2": npu_traces.put_together(records, version=2),
        "first record is not a header": npu_traces.put_together(records[1:]),
        "Job outside a submission": npu_traces.put_together([records[0], *records[2:]]),
        "without an end": npu_traces.put_together(records[:3]),
        "Submit within a submission": npu_traces.put_together([*records[:3], *records[4:]]),
        "record 1: ": npu_traces.put_together([records[0], b"\xc1", *records[1:]]),
        "damaged": bytes([*content[:100], content[100] ^ 1, *content[101:]]),
    }
    for message, case in cases.items():
        other.unlink(missing_ok=True)
        if case is not None:
            other.write_bytes(case)
        for look in (replay, showing.show):
            with pytest.raises(TraceError, match=message):
                look(other)


def test_records_that_do_not_fit_each_other(tmp_path: Path) -> None:
    path = recorded(tmp_path)

    def refused(number: int, **values: Any) -> str:
        other = npu_traces.changed(path, number, lambda record: record.update(values))
        with pytest.raises(TraceError) as caught:
            replay(other)
        return caught.value.message

    assert "outside the buffers" in refused(2, before=[[0x7000000, b"abc"]])
    assert "jobs are not the recorded ones" in refused(2, unit="TP")
    assert "more than 1 GiB" in refused(1, buffers=[[0, 1 << 31, 1]])
    assert "a buffer at" in refused(1, buffers=[[1 << 31, 1 << 32, 1]])
    assert "writes more than it can" in refused(2, writes=[[0, 1 << 30]])
    assert "more jobs recorded" in refused(1, stream=b"")
    assert "record 0" in refused(0, npu={"name": "x"})


def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "MAX_RECORD_BYTES", 1 << 16)
    bomb = npu_traces.put_together([b"\0" * (trace.MAX_RECORD_BYTES + 1)])
    path = tmp_path / "bomb"
    path.write_bytes(bomb)
    with pytest.raises(TraceError, match="too large"):
        replay(path)


def test_recording_ends_at_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = npu_traces.convolution_buffers(convolution(3, 7))
    whole, path = tmp_path / "whole", tmp_path / "t"
    npu_traces.record(whole, 7, [part, npu_traces.move_buffers()])
    limit = whole.stat().st_size - 100
    begin = recorder.begin
    monkeypatch.setattr(recorder, "begin", lambda *a, **k: begin(*a, **k, limit_bytes=limit))
    npu_traces.record(path, 7, [part, npu_traces.move_buffers(), part])
    assert replay(path).submissions == 1
    assert not list(tmp_path.glob(".t.*"))


def mutated(rng: random.Random, content: bytes, records: list[bytes]) -> bytes:
    """Damage a trace: its bytes, the bytes of a record, or the memory in a record."""
    kind = rng.randrange(3)
    if kind == 0:
        damaged = bytearray(content)
        for _ in range(rng.randrange(1, 4)):
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        return bytes(damaged[: rng.choice([len(damaged), rng.randrange(len(damaged))])])
    chosen = list(records)
    number = rng.randrange(len(chosen))
    if kind == 1:
        raw = bytearray(chosen[number])
        for _ in range(rng.randrange(1, 4)):
            raw[rng.randrange(len(raw))] = rng.choice([rng.randrange(256), 0, 255, 0x7F, 0xDF])
        chosen[number] = bytes(raw)
    else:
        document = msgspec.msgpack.decode(chosen[number])
        for piece in document.get("before", []):
            body = bytearray(piece[1])
            for _ in range(rng.randrange(1, 5)):
                body[rng.randrange(len(body))] ^= 1 << rng.randrange(8)
            piece[1] = bytes(body)
        if "stream" in document:
            words = np.frombuffer(document["stream"], np.uint32).copy()
            words[rng.randrange(words.size)] ^= np.uint32(1 << rng.randrange(32))
            document["stream"] = words.tobytes()
        chosen[number] = msgspec.msgpack.encode(document)
    return npu_traces.put_together(chosen)


def fuzz(folder: Path, count: int, seed: int) -> None:
    """Replay and show mutated traces: a result or a TraceError, soon, in bounded memory."""
    rng = random.Random(seed)
    sources = []
    for generation in (7, 8):
        content = recorded(folder, generation, (1, 2, 3)).read_bytes()
        sources.append((content, npu_traces.taken_apart(content)))
    path = folder / "mutated"
    refused = differing = 0
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(count):
        path.write_bytes(mutated(rng, *sources[number % 2]))
        started = time.monotonic()
        try:
            showing.show(path)
            differing += bool(replay(path, timeout_s=20).differences)
        except TraceError:
            refused += 1
        assert time.monotonic() - started < 60, number
    assert refused > count // 5
    assert differing > count // 50
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib
    assert grown_kib < 1_500_000, grown_kib


def test_mutated_traces(tmp_path: Path) -> None:
    fuzz(tmp_path, 150, seed=1)


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_ten_thousand_mutated_traces(tmp_path: Path) -> None:
    fuzz(tmp_path, 10_000, seed=int(os.environ.get("NPU_BSP_SEED", "2")))


def test_tables_of_the_model_are_kept(tmp_path: Path) -> None:
    """In exact mode a trace has the model's scales and look-up tables."""
    table = np.arange(256, dtype=np.uint8)[::-1]
    known = Operation(0, "operation 0 (RELU)", 3, 1, 2, 3, 0.5, 0.25, table=table)
    path = tmp_path / "t"
    recorder.begin(path, load_identity("a311d"), door="shim", operations=[known]).close()
    header = trace.header_of(trace.read(path), path)
    assert header.mode == "exact"
    (found,) = header.operations
    assert found.table is not None
    assert found.table.tolist() == table.tolist()
    assert (found.name, found.real) == (known.name, 0.5)


def test_a_job_that_a_reset_took_away_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "t"
    identity = load_identity("a311d")
    writer = recorder.begin(path, identity, door="device")
    watch = recorder.Recorder(writer, 0)
    buffers, _ = npu_traces.convolution_buffers(convolution(3, 7))
    memory = watch.watched(Buffers(buffers))
    engine = Engine(identity, memory, watch=watch)
    watch.job_begins("NN", 0x400000)
    for each in buffers:
        memory.view(each.address, each.data.size, each.access)
    # No end of it: the next job sees the same memory, and is recorded with all of it.
    engine.write_state(0x10A0, 0x400000)
    watch.one_job([(0x10A0, 0x400000)])
    writer.close()
    found = replay(path)
    assert (found.differences, found.nn_jobs) == ([], 1)
    assert found.bytes_compared == convolution(3, 7).expected().size
