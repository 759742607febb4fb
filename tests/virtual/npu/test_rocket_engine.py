# SPDX-License-Identifier: MIT
"""The virtual RK3588's engine: register commands, weights, arithmetic, and what it refuses."""

from __future__ import annotations

import contextlib
import os
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.npu.rocket_jobs import COMMANDS, INPUT, OUTPUT, Convolution, command, commands
from virtual.npu.faults import FaultError, MemoryFaultError
from virtual.npu.finding import Blame
from virtual.npu.rocket import registers
from virtual.npu.rocket.engine import jobs_of
from virtual.npu.rocket.registers import UNITS, fields_of


def convolution(seed: int) -> Convolution:
    """A random convolution that Mesa could submit."""
    rng = np.random.default_rng(seed)
    kernel = int(rng.choice([1, 1, 3, 5]))
    side = int(rng.integers(kernel, kernel + 9))
    depthwise = bool(rng.random() < 0.4)
    channels = int(rng.integers(2, 150 if kernel < 3 or depthwise else 70))
    kernels = 1 if depthwise else int(rng.integers(1, 45)) * 2
    out_channels = channels if depthwise else kernels
    pad = kernel // 2 if rng.random() < 0.5 else 0
    stride = int(rng.integers(1, 3))
    out_side = (side + 2 * pad - kernel) // stride + 1
    adds = bool(rng.random() < 0.3)
    return Convolution(
        rng.integers(0, 256, (channels, side, side)).astype(np.uint8),
        rng.integers(0, 256, (kernels, channels, kernel, kernel)).astype(np.uint8),
        rng.integers(-(1 << 14), 1 << 14, out_channels).astype(np.int32),
        in_zero_point=int(rng.integers(0, 256)),
        weight_zero_point=int(rng.integers(0, 256)),
        out_zero_point=int(rng.integers(0, 256)),
        scale=int(rng.integers(1 << 14, 1 << 15)),
        shift=int(rng.integers(22, 28)),
        stride=stride,
        pad=pad,
        depthwise=depthwise,
        addend=rng.integers(0, 256, (out_channels, out_side, out_side)).astype(np.uint8)
        if adds
        else None,
        addend_zero_point=int(rng.integers(0, 256)),
        addend_scale=int(rng.integers(1, 500)),
    )


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_random_convolutions_equal_the_plain_definition(seed: int) -> None:
    job = convolution(seed)
    bench = job.bench()
    assert np.array_equal(bench.run(), job.expected())
    channels, rows, columns = bench.out_shape
    untouched = bench.contents[OUTPUT].reshape(-1, rows, columns, 16)[
        -1, :, :, channels % 16 or 16 :
    ]
    assert (untouched == 0x5A).all()


def one_by_one(channels: int = 8, **changed: int) -> Convolution:
    """A small convolution whose output is its input, more or less; with some fields changed."""
    rng = np.random.default_rng(channels)
    return Convolution(
        rng.integers(0, 256, (channels, 4, 4)).astype(np.uint8),
        np.asarray(np.eye(channels) * 64 + 128, np.uint8)[:, :, None, None],
        np.zeros(channels, np.int32),
        in_zero_point=128, weight_zero_point=128, out_zero_point=128, scale=1 << 14, shift=20,
        changed=changed,
    )  # fmt: skip


def test_accumulators_lose_the_bits_that_are_truncated_before_the_bias_comes() -> None:
    job = one_by_one()
    job.truncate, job.shift = 3, 17
    assert np.abs(job.bench().run().astype(int) - job.image).max() <= 1
    job.scale, job.shift = 1 << 14, 14
    assert (
        np.abs(job.bench().run().astype(int) - 128).max() > 60
    )  # eight times as large, at its limits


def test_a_plane_of_unsigned_bytes_is_converted() -> None:
    rng = np.random.default_rng(7)
    image = rng.integers(0, 256, (1, 5, 16)).astype(np.uint8)
    job = one_by_one(8)
    job.image = image
    job.weights = np.full((8, 1, 1, 1), 192, np.uint8)
    job.changed = {
        "ARGB_IN": 8, "NONALIGN_DMA": 1, "GROUP_LINE_OFF": 1, "CVT_BYPASS": 0, "CVT_TYPE": 0,
        "DATA_SIGN": 0, "PER_CHANNEL_CVT_EN": 0xFFFF, "LINE_STRIDE": 16, "DATA_ENTRIES": 80,
        **{f"CVT_OFFSET{number}": 65408 for number in range(4)},
        **{f"CVT_SCALE{number}": 16384 for number in range(4)},
        **{f"CVT_TRUNCATE_{number}": 14 for number in range(4)},
    }  # fmt: skip
    bench = job.bench()
    bench.contents[INPUT] = image.reshape(-1).copy()
    assert np.array_equal(bench.run(), np.repeat(image, 8, axis=0))


def test_a_depthwise_convolution_takes_two_bytes_in_turn_as_what_surrounds_the_image() -> None:
    channels = 20
    job = convolution(0)
    job = Convolution(
        np.full((channels, 3, 3), 132, np.uint8),
        np.full((1, channels, 3, 3), 129, np.uint8),
        np.zeros(channels, np.int32),
        in_zero_point=132, weight_zero_point=128, out_zero_point=0, scale=1 << 14, shift=14, pad=1,
        depthwise=True,
    )  # fmt: skip
    assert not job.bench().run().any()
    job.changed = {"PAD_VALUE": 4}  # as Mesa writes it: the second byte is 0, which is 4 less
    found, engine = job.bench(), job.bench().engine()
    values = found.run()
    assert not values[::2].any()
    assert values[1::2, 0, 0].tolist() == [0] * 10  # five pixels outside, each 4 less: at its limit
    job.biases = np.full(channels, 100, np.int32)
    assert job.bench().run()[1::2, 0, 0].tolist() == [80] * 10
    engine.submit(found.stream())
    (finding,) = engine.findings
    assert finding.field == "PAD_CON1"
    assert finding.blame is Blame.SUBMISSION


@pytest.mark.parametrize(("channels", "shared"), [(40, True), (48, True), (24, False), (64, False)])
def test_rows_of_three_atoms_take_an_entry_a_pixel(channels: int, shared: bool) -> None:
    job = one_by_one(channels)
    atoms = -(-channels // 16)
    job.changed = {"DATA_ENTRIES": -(-4 * atoms // 4)}  # as Mesa computes it
    bench = job.bench()
    engine = bench.engine()
    engine.submit(bench.stream())
    assert bool(engine.findings) == shared
    values = bench.run()
    wrong = (np.abs(values.astype(int) - job.image) > 1).any(axis=0)
    # The next row lies over the last pixel of each row but the last.
    assert wrong.tolist() == [[False] * 3 + [shared]] * 3 + [[False] * 4]


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("NN_MODE", 1, "not understood"),
        ("EW_LUT_BYPASS", 0, "not understood"),
        ("DATAOUT_ATOMICS", 15, "16"),
        ("CORE_WIDTH", 4, "as DATAOUT_WIDTH"),
        ("WEIGHT_BYTES", 1, "not understood"),
        ("WEIGHT_BANK", 7, "12 banks"),
        ("CONV_X_STRIDE", 0, "at least 1"),
        ("DATAIN_CHANNEL", 24, "atoms of 16"),
        ("MRDMA_DISABLE", 0, "not understood"),
        ("EW_BYPASS", 0, "not understood"),
        ("ARGB_IN", 3, "0 or 8"),
    ],
)
def test_what_mesa_never_sets_is_a_named_fault(field: str, value: int, words: str) -> None:
    bench = one_by_one(**{field: value}).bench()
    with pytest.raises(FaultError) as caught:
        bench.run()
    assert words in str(caught.value)
    assert (bench.contents[OUTPUT] == 0x5A).all()


def test_a_depthwise_convolution_keeps_its_channels() -> None:
    job = convolution(0)
    while not job.depthwise:
        job = convolution(int(job.biases.sum()) & 0xFFFF)
    job.changed = {"ORIG_CHANNEL": 2 * job.out_channels - 1}
    with pytest.raises(FaultError, match="keeps its channels"):
        job.bench().run()


@pytest.mark.parametrize(
    "field", ["FEATURE_DATA_ADDR", "DCOMP_ADDR0", "BS_BASE_ADDR", "DST_BASE_ADDR"]
)
def test_an_address_outside_all_buffers_is_a_memory_fault(field: str) -> None:
    bench = one_by_one(**{field: 0x7000000}).bench()
    with pytest.raises(MemoryFaultError):
        bench.run()
    assert (bench.contents[OUTPUT] == 0x5A).all()


def test_a_job_writes_the_buffers_only_that_it_names() -> None:
    bench = one_by_one().bench()
    bench.outputs = (INPUT,)
    with pytest.raises(MemoryFaultError):
        bench.run()
    bench.outputs = ()
    with pytest.raises(MemoryFaultError, match="out_bo_handles"):
        bench.run()


def test_commands_are_read_strictly() -> None:
    right = commands({})
    assert fields_of(right)["DST_SURF_STRIDE"] == 0
    cases = {
        "a register that is known": command(UNITS["CNA"], 0x1998, 0),
        "0x201 \\(CNA\\)": command(UNITS["DPU"], 0x1040, 0),
        "0 in reserved bits": command(UNITS["CNA"], 0x1040, 1 << 20),
    }
    for words, wrong in cases.items():
        with pytest.raises(FaultError, match=words):
            fields_of(np.insert(right, 3, np.uint64(wrong)))
    for words, some in {
        "before the start": np.delete(right, -2),
        "starts the units": right[:-1],
        "nothing behind": np.append(right, right[0]),
    }.items():
        with pytest.raises(FaultError, match=words):
            fields_of(some)


def test_each_register_has_fields_of_its_own() -> None:
    names = [name for register in registers.REGISTERS.values() for name in register.fields]
    assert len(names) == len(set(names))
    for register in registers.REGISTERS.values():
        bits = [mask << low for low, mask in register.fields.values()]
        assert sum(bits) == np.bitwise_or.reduce(bits), register.name


def attack(count: int, seed: int) -> int:
    """Run jobs with changed bits, commands and fields; return how many ran to their end.

    Anything but a fault fails the test, and so does a byte that changes outside of the output.
    """
    rng = random.Random(seed)
    jobs = [one_by_one(), *(convolution(number) for number in range(6))]
    benches = [job.bench() for job in jobs]
    ran = 0
    for number in range(count):
        bench = benches[number % len(benches)]
        before = {address: content.copy() for address, content in bench.contents.items()}
        if rng.random() < 0.5:
            words = bench.contents[COMMANDS].view(np.uint64).copy()
            for _ in range(rng.randint(1, 3)):
                words[rng.randrange(words.size)] ^= np.uint64(1 << rng.randrange(64))
        else:
            fields = jobs[number % len(jobs)].fields()
            for name in rng.sample(sorted(fields), rng.randint(1, 4)):
                fields[name] = rng.choice([0, 1, fields[name] + 1, rng.getrandbits(12), 0xFFFFFFFF])
            words = commands(fields)
        given = words.view(np.uint8)
        bench.contents[COMMANDS] = given
        with contextlib.suppress(FaultError):
            bench.run()
            ran += 1
        assert np.array_equal(bench.contents[COMMANDS], given)
        for address, content in before.items():
            if address not in (COMMANDS, OUTPUT):
                assert np.array_equal(bench.contents[address], content)
        bench.contents.update(before)
    return ran


def test_garbage_is_a_fault_and_nothing_else() -> None:
    assert 10 < attack(400, seed=4) < 390  # some changes do no harm, most are stopped


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_ten_thousand_changed_jobs() -> None:
    assert 200 < attack(10_000, seed=int(os.environ.get("NPU_BSP_SEED", "5"))) < 9_800


def test_what_no_model_asks_for_is_refused_before_memory_is_taken() -> None:
    side = 2047
    sides = dict.fromkeys(("CORE_WIDTH", "CUBE_WIDTH", "WIDTH_WDMA", "RDMA_WIDTH"), side - 1)
    sides |= dict.fromkeys(("CORE_HEIGHT", "CUBE_HEIGHT", "HEIGHT_WDMA", "RDMA_HEIGHT"), side - 1)
    job = one_by_one(20, DATAOUT_WIDTH=side, DATAOUT_ATOMICS=side * side, **sides)
    with pytest.raises(FaultError, match="task's pixels"):
        job.bench().run()


def test_a_stream_that_ends_too_soon_or_goes_on_is_a_fault() -> None:
    stream = one_by_one().bench().stream()
    (job,) = jobs_of(stream)
    assert job.tasks == [(COMMANDS, one_by_one().bench().command_count)]
    for size in range(stream.size):
        with pytest.raises(FaultError):
            jobs_of(stream[:size])
    with pytest.raises(FaultError, match="more words"):
        jobs_of(np.append(stream, np.uint32(0)))
