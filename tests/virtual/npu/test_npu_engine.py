# SPDX-License-Identifier: MIT
"""The virtual NPU's engine: front end, coefficient decoders, NN and TP jobs, and what it refuses."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bsp.base.errors import UserError
from tests.support.npu.jobs import NPUS, Bench, Convolution, bench_for, load_state
from virtual.npu.decoded_cache import DecodedCache
from virtual.npu.faults import FaultError, MemoryFaultError
from virtual.npu.identity import (
    IDENTITIES_DIR,
    driver_of,
    identity_names,
    load_identity,
    read_identity,
    vivante_names,
)
from virtual.npu.memory import Access, Buffer, Buffers
from virtual.npu.tflite import arithmetic
from virtual.npu.vivante import frontend, huffman, nn, tp, zero_runs
from virtual.npu.vivante.coefficients import Coefficients
from virtual.npu.vivante.engine import Engine

COMMANDS = np.array([*load_state(0x10A0, 0x400000)], np.uint32)


def sparse(rng: np.random.Generator, shape: tuple[int, ...], zero_point: int) -> NDArray[np.uint8]:
    """Weights with stretches of zero points, as trained and pruned models have them."""
    weights = rng.integers(0, 256, shape).astype(np.uint8)
    weights[rng.random(shape) < rng.random()] = zero_point
    return weights


def convolution(seed: int, generation: int) -> Convolution:
    """A random convolution that NPU and Mesa could meet."""
    rng = np.random.default_rng(seed)
    kernel = int(rng.choice([1, 1, 2, 3, 5, 7]))
    channels, out_channels = int(rng.integers(1, 20)), int(rng.integers(1, 40))
    height, width = (int(rng.integers(kernel, kernel + 6)) for _ in range(2))
    if generation == 7 and height == width == kernel > 1:
        height += 1  # with the sides of a fully connected layer it would be taken for one, in another order
    depthwise = generation == 8 and bool(rng.random() < 0.4)
    if depthwise:
        # Mesa 25.0.7 computes a negative channel for 2 to 5 of them (encode_superblock).
        channels = out_channels = channels if channels >= 6 else 1
    weight_zero_point = int(rng.integers(0, 256))
    planes = 1 if depthwise else channels
    cores = load_identity(NPUS[generation]).nn_cores
    return Convolution(
        generation,
        rng.integers(0, 256, (channels, height, width)).astype(np.uint8),
        sparse(rng, (out_channels, planes, kernel, kernel), weight_zero_point),
        rng.integers(-(1 << 16), 1 << 16, out_channels),
        in_zero_point=int(rng.integers(0, 256)),
        weight_zero_point=weight_zero_point,
        out_zero_point=int(rng.integers(0, 256)),
        pad=int(rng.integers(0, 2)) if kernel > 2 else 0,
        first_pixel=bool(rng.random() < 0.3),
        relu=bool(rng.random() < 0.5),
        depthwise=depthwise,
        mantissa=int(rng.integers(0, 1 << (15 if generation == 7 else 23))),
        shift=int(rng.integers(24, 30)) if generation == 7 else int(rng.integers(32, 38)),
        kernels=int(rng.integers(1, -(-out_channels // cores) + 1)),
        run_bits=0 if kernel == 1 else int(rng.integers(0, 9)),
    )


@pytest.mark.slow
@pytest.mark.parametrize("generation", [7, 8])
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_random_convolutions_equal_the_plain_definition(generation: int, seed: int) -> None:
    job = convolution(seed, generation)
    assert np.array_equal(bench_for(job).run(), job.expected())


def test_dense_depthwise_of_v7_takes_the_short_way() -> None:
    rng = np.random.default_rng(1)
    weights = np.full((24, 24, 3, 3), 77, np.uint8)
    for channel in range(24):
        weights[channel, channel] = rng.integers(0, 256, (3, 3))
    image = rng.integers(0, 256, (24, 9, 7)).astype(np.uint8)
    job = Convolution(
        7, image, weights, np.arange(24) * 1000, 13, 77, 5, pad=1, kernels=3, run_bits=8, shift=26
    )
    bench = bench_for(job)
    assert np.array_equal(bench.run(), job.expected())
    shape = nn.parse(bench.descriptor.view(np.uint32), 7).shape
    decoded = zero_runs.decode(bench.coefficients, shape, 8, 8)
    assert decoded.sources is not None
    assert decoded.weights.shape == (24, 1, 3, 3)


def test_large_sums_are_exact() -> None:
    # 4096 products of 255 * 255 pass 2**24, where single precision stops counting.
    image = np.full((4096, 1, 2), 255, np.uint8)
    weights = np.full((3, 4096, 1, 1), 255, np.uint8)
    weights[1, :7] = 254
    job = Convolution(7, image, weights, np.array([1, 2, 3]), 0, 0, shift=36, run_bits=0)
    bench = bench_for(job)
    assert np.array_equal(bench.run(), job.expected())
    assert job.accumulators().max() > 1 << 24


def test_v8_symbol_maps_in_any_order() -> None:
    job = convolution(5, 8)
    shape = nn.parse(nn.LAYOUT.pack(job.descriptor(0, 0, 0)), 8).shape
    from tests.support.npu.jobs import encode_v8

    plain = huffman.decode(np.frombuffer(encode_v8(job), np.uint8), shape, 6)
    for seed in range(4):
        order = tuple(random.Random(seed).sample(range(8), 8))
        data = np.frombuffer(encode_v8(job, order), np.uint8)
        assert np.array_equal(huffman.decode(data, shape, 6).weights, plain.weights)


def test_1x1_kernels_in_plain_order_are_run_and_noted() -> None:
    rng = np.random.default_rng(3)
    job = Convolution(
        7,
        rng.integers(0, 256, (16, 4, 4)).astype(np.uint8),
        rng.integers(0, 256, (32, 16, 1, 1)).astype(np.uint8),
        rng.integers(-9999, 9999, 32),
        in_zero_point=10,
        weight_zero_point=128,
        kernels=4,
        run_bits=0,
        shift=26,
        blocks_of_six=False,
    )
    bench = bench_for(job)
    assert np.array_equal(bench.run(), job.expected())
    (finding,) = bench.engine.findings
    assert finding.expected == zero_runs.BLOCKS
    assert finding.found == zero_runs.INTERLEAVED


def test_v8_depthwise_that_mesa_cannot_deal_out_is_refused() -> None:
    rng = np.random.default_rng(4)
    job = convolution(0, 8)
    job.weights = rng.integers(0, 256, (3, 1, 3, 3)).astype(np.uint8)
    job.biases = np.zeros(3, np.int64)
    job.image, job.depthwise, job.kernels = np.zeros((3, 5, 5), np.uint8), True, 1
    shape = nn.parse(nn.LAYOUT.pack(job.descriptor(0, 0, 0)), 8).shape
    job.depthwise = False
    data = np.frombuffer(job.stream(), np.uint8)
    with pytest.raises(FaultError, match="core 0 would write channel"):
        huffman.decode(data, shape, 6)


def test_cache_keeps_decoded_coefficients_by_content(monkeypatch: pytest.MonkeyPatch) -> None:
    job = convolution(11, 7)
    bench = bench_for(job)
    decoded = []
    real = zero_runs.decode

    def counted(*arguments: object) -> Coefficients:
        decoded.append(1)
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(zero_runs, "decode", counted)
    bench.run()
    bench.run()
    assert len(decoded) == 1
    bench.coefficients[64 + 4] ^= 1  # a weight or a bias of the first kernel
    bench.run()
    assert len(decoded) == 2


def test_cache_drops_what_was_not_used_for_longest() -> None:
    def made(_: int = 0) -> Coefficients:
        return Coefficients(
            np.zeros((1, 1, 10, 25), np.float32), None, np.zeros(1, np.int64), 0, 0, "", ""
        )

    cache = DecodedCache(limit_bytes=3100)
    streams = [np.full(10, number, np.uint8) for number in range(4)]
    first = cache.get(streams[0], "", made)
    for stream in streams[1:3]:
        cache.get(stream, "", made)
    assert cache.get(streams[0], "", made) is first
    cache.get(streams[3], "", made)
    assert cache.get(streams[0], "", made) is first


# --- what is refused


def fault_of(bench: Bench) -> FaultError:
    with pytest.raises(FaultError) as caught:
        bench.run()
    return caught.value


@pytest.mark.parametrize(
    ("generation", "field", "value"),
    [
        (7, "unused1", 1),
        (7, "further3", 0),
        (7, "layer_type", 1),
        (7, "per_channel_post_mul", 1),
        (7, "kernel_data_type", 2),
        (7, "depthwise", 1),
        (7, "post_multiplier_15_to_22", 1),
        (8, "brick_mode", 1),
        (8, "pooling", 1),
        (8, "rounding_mode", 0),
        (8, "in_image_border_const", 256),
        (8, "kernels_per_core", 0),
    ],
)
def test_a_field_that_is_not_understood_is_named(generation: int, field: str, value: int) -> None:
    job = convolution(2, generation)
    bench = bench_for(job)
    described, word, shift = nn.LAYOUT.place(field)
    values = bench.descriptor.view(np.uint32)
    mask = (1 << described.bits) - 1 << shift
    values[word] = int(values[word]) & ~mask | value << shift
    error = fault_of(bench)
    name = {"kernels_per_core": "kernels"}.get(field, field)
    assert name in error.finding.field
    assert error.finding.job == 0
    assert error.finding.unit == "NN"
    assert error.finding.address == 0x400000


def test_reads_and_writes_outside_the_buffers() -> None:
    job = convolution(7, 7)
    for name, address in (("in_image_address", 0x10000001), ("out_image_address", 0x20000001)):
        changed = convolution(7, 7)
        changed.fields = {name: address}
        error = fault_of(bench_for(changed))
        assert isinstance(error, MemoryFaultError)
        assert error.finding.address == address
        assert "past its end" in error.finding.found
    job.fields = {"out_image_address": 0x10000000}
    assert "submitted as READ" in fault_of(bench_for(job)).finding.found
    job.fields = {"in_image_address": 0x50000000}
    assert "outside all" in fault_of(bench_for(job)).finding.found


def test_nothing_is_written_by_a_job_that_faults() -> None:
    bench = bench_for(convolution(7, 8))
    bench.coefficients[64:128] ^= 0xFF
    fault_of(bench)
    assert (bench.output == 0xA5).all()


def test_a_channel_without_kernel_or_with_two() -> None:
    job = Convolution(
        7,
        np.zeros((1, 4, 4), np.uint8),
        np.full((2, 1, 3, 3), 9, np.uint8),
        np.zeros(2, np.int64),
        0,
        0,
        run_bits=0,
    )
    bench = bench_for(job)
    second = 64 + 64  # core 1's stream: 3 bytes, weight, bias, 8 weights, output offset
    offset = slice(second + 3 + 1 + 4 + 8, second + 3 + 1 + 4 + 8 + 4)
    assert bench.coefficients[offset].tolist() == [4, 0, 0, 0]
    bench.coefficients[offset] = 0
    error = fault_of(bench)
    assert error.finding.found == "0: 2, 1: 0"
    bench.coefficients[offset] = [3, 0, 0, 0]
    assert "multiple of the plane's 4 bytes" in fault_of(bench).finding.expected


@pytest.mark.parametrize("generation", [7, 8])
def test_a_stream_cut_off_is_refused(generation: int) -> None:
    job = convolution(21, generation)
    stream = np.frombuffer(job.stream(), np.uint8)
    bench = bench_for(job)
    for keep in (0, 10, 63, 64, 70, stream.size // 2, stream.size - 1):
        cut = Buffer(0x30000000, Access.READ, stream[:keep])
        buffers = [*bench.engine.memory._buffers[:3], cut]  # type: ignore[attr-defined]
        bench.engine.memory = Buffers(buffers)
        fault_of(bench)


def words(*values: int) -> NDArray[np.uint32]:
    return np.array(values, np.uint32)


@pytest.mark.parametrize(
    ("stream", "field"),
    [
        (words(5 << 27, 0), "FE opcode at word 0"),
        (words(0, 0, 2 << 27, 0), "FE opcode at word 2"),
        (words(8 << 27, 0x1000), "FE opcode at word 0"),
        (words(1 << 27 | 5 << 16, 1, 2), "LOAD_STATE at word 0"),
        (words(1 << 27 | 1 << 26 | 1 << 16, 1), "LOAD_STATE FIXP at word 0"),
        (words(0x00000001, 0), "FE word at word 0"),
        (words(*load_state(0x0C00, 1)), "state"),
        (words(*load_state(0x394C, 1)), "GL_TP_CONFIG"),
    ],
)
def test_front_end_errors(stream: NDArray[np.uint32], field: str) -> None:
    engine = Engine(load_identity("a311d"), Buffers([]))
    with pytest.raises(FaultError) as caught:
        engine.submit(stream)
    assert caught.value.finding.field == field


def test_doors_carry_out_their_own_states() -> None:
    seen: list[int] = []
    engine = Engine(load_identity("a311d"), Buffers([]), own_states={0x3804: seen.append})
    engine.submit(words(*load_state(0x3804, 7), *load_state(0x380C, 0xC23)))
    assert seen == [7]
    command = frontend.decode(1 << 27 | 0 << 16 | 0x3804 >> 2)
    assert (command.count, command.words, command.state) == (1024, 1026, 0x3804)


# --- TP jobs


def tp_bench(
    source: NDArray[np.uint8],
    size: int,
    fields: dict[str, int],
    table: NDArray[np.uint8] | None = None,
) -> tuple[Engine, NDArray[np.uint8]]:
    output = np.full(size, 0xA5, np.uint8)
    values = {
        "in_image_base_address": 0x1000000,
        "out_image_base_address": 0x2000000,
        "last": 1,
        **{f"out_loop_{loop}_count": 1 for loop in range(6)},
    }
    descriptor = tp.LAYOUT.pack(values | fields).view(np.uint8)
    memory = Buffers(
        [
            Buffer(0x400000, Access.READ, descriptor),
            Buffer(0x1000000, Access.READ, np.ascontiguousarray(source).reshape(-1)),
            Buffer(0x2000000, Access.WRITE, output),
            Buffer(0x3000000, Access.READ, np.zeros(0, np.uint8) if table is None else table),
        ]
    )
    return Engine(load_identity("a311d"), memory), output


TP_COMMANDS = np.array(load_state(0x10B8, 0x400001), np.uint32)


def transposed(
    height: int, width: int, channels: int, zero_points: tuple[int, int]
) -> dict[str, int]:
    """Rows x columns x channels to channels x rows x columns, one tile a channel."""
    return {
        "in_image_x_size": channels,
        "in_image_y_size": width,
        "in_image_z_size": height,
        "in_image_stride": channels,
        "in_image_slice": width * channels,
        "in_window_x_end": channels - 1,
        "in_window_y_end": width - 1,
        "in_tile_x_size": 1,
        "in_tile_x_inc": 1,
        "in_tile_y_size": width,
        "in_tile_y_inc": width,
        "out_loop_0_inc": 1,
        "out_loop_0_count": width,
        "out_loop_1_inc": width * height,
        "out_loop_1_count": channels,
        "out_loop_2_inc": width,
        "out_loop_2_count": height,
        "in_zp": zero_points[0],
        "out_zp": zero_points[1],
    }


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    channels=st.integers(1, 9),
    zero_points=st.sampled_from([(0, 0), (7, 7), (3, 250), (250, 3)]),
)
def test_tp_transposes(
    height: int, width: int, channels: int, zero_points: tuple[int, int]
) -> None:
    rng = np.random.default_rng(height + 10 * width + 100 * channels)
    source = rng.integers(0, 256, (height, width, channels)).astype(np.uint8)
    engine, output = tp_bench(source, source.size, transposed(height, width, channels, zero_points))
    engine.submit(TP_COMMANDS)
    shifted = source.astype(int).transpose(2, 0, 1) - zero_points[0] + zero_points[1]
    assert np.array_equal(output, np.clip(shifted, 0, 255).astype(np.uint8).reshape(-1))


@settings(max_examples=30, deadline=None)
@given(planes=st.integers(1, 4), half=st.integers(1, 6), pad=st.integers(0, 1))
def test_tp_space_to_depth(planes: int, half: int, pad: int) -> None:
    """Each 2x2 square of pixels becomes four planes; outside the image stands the zero point."""
    side = 2 * half - pad
    rng = np.random.default_rng(planes + 10 * half)
    source = rng.integers(0, 256, (planes, side, side)).astype(np.uint8)
    fields = {
        "in_image_x_size": side,
        "in_image_y_size": side,
        "in_image_z_size": planes,
        "in_image_stride": side,
        "in_image_slice": side * side,
        "in_window_x_start": -pad & 0xFFFF,
        "in_window_y_start": -pad & 0xFFFF,
        "in_window_x_end": 2 * half - 1 - pad,
        "in_window_y_end": 2 * half - 1 - pad,
        "in_tile_x_size": 2 * half,
        "in_tile_x_inc": 2 * half,
        "in_tile_y_size": 2 * half,
        "in_tile_y_inc": 2 * half,
        "out_loop_0_inc": half * half,
        "out_loop_0_count": 2,
        "out_loop_1_inc": 1,
        "out_loop_1_count": half,
        "out_loop_2_inc": 2 * half * half,
        "out_loop_2_count": 2,
        "out_loop_3_inc": half,
        "out_loop_3_count": half,
        "out_loop_6_inc": 4 * half * half,
        "in_zp": 9,
        "out_zp": 9,
    }
    engine, output = tp_bench(source, 4 * planes * half * half, fields)
    engine.submit(TP_COMMANDS)
    image = np.pad(source, ((0, 0), (pad, 0), (pad, 0)), constant_values=9)
    squares = image.reshape(planes, half, 2, half, 2).transpose(0, 2, 4, 1, 3)
    assert np.array_equal(output, squares.reshape(-1))


def test_tp_refuses_to_write_a_byte_twice() -> None:
    fields = transposed(3, 4, 5, (0, 0)) | {"out_loop_1_inc": 11}
    engine, output = tp_bench(np.zeros((3, 4, 5), np.uint8), 60, fields)
    with pytest.raises(FaultError, match="written once"):
        engine.submit(TP_COMMANDS)
    assert (output == 0xA5).all()


def fp21(value: float) -> int:
    """A float of 21 bits: sign, 5 bits of exponent with bias 15, 15 of mantissa; what is too small is 0."""
    fraction, exponent = math.frexp(abs(value))
    if value == 0 or exponent + 14 < 1:
        return 0
    mantissa = round((2 * fraction - 1) * (1 << 15))
    return (value < 0) << 20 | (exponent + 14) << 15 | mantissa


def looked_up(
    pixels: NDArray[np.uint8], function: Callable[[float], float], scale: float, zero_point: int
) -> NDArray[np.uint8]:
    """Run a look-up job over pixels with zero point 100, as Mesa 26 writes them."""
    table = np.zeros(1024, np.uint32)
    for index in range(1024):
        exponent, mantissa = index >> 4 & 31, index & 15
        magnitude = (1 + mantissa / 16) * 2.0 ** (exponent - 15) if exponent else 0.0
        value = function(-magnitude if index >> 9 else magnitude)
        table[index] = fp21(value)
    planes, rows, columns = pixels.shape
    bits = int(np.float32(scale).view(np.uint32))
    shift = 127 - (bits >> 23) & 0x7F
    fields = {
        "in_image_x_size": columns, "in_image_y_size": rows, "in_image_z_size": planes,
        "in_image_stride": columns, "in_image_slice": rows * columns,
        "in_window_x_end": columns - 1, "in_window_y_end": rows - 1,
        "in_tile_x_size": 64, "in_tile_x_inc": 64, "in_tile_y_size": 16, "in_tile_y_inc": 16,
        "alu_pwl_enable": 1, "alu_load_pwl_lut": 1, "alu_load_pwl_lut_global_mem": 1,
        "alu_load_pwl_lut_address": 0x3000000, "alu_pwl_sign_support": 1,
        "alu_output_post_multiplier": bits >> 8 & 0x7FFF,
        "alu_output_postshift": shift & 31, "alu_output_postshift_5_6": shift >> 5,
        "out_loop_1_reset": 1, "out_loop_2_reset": 1,
        "out_loop_1_count": 0, "out_loop_2_count": 0,
        "out_loop_3_count": -(-columns // 64), "out_loop_4_count": -(-rows // 16),
        "out_loop_1_inc": 1, "out_loop_2_inc": columns, "out_loop_3_inc": 64,
        "out_loop_4_inc": 16 * columns, "out_loop_6_inc": rows * columns,
        "in_zp": 100, "out_zp": zero_point,
    }  # fmt: skip
    engine, output = tp_bench(pixels, pixels.size, fields, table.view(np.uint8))
    engine.submit(TP_COMMANDS)
    return output.reshape(pixels.shape)


@pytest.mark.parametrize(
    ("function", "scale", "zero_point", "allowed"),
    [
        (lambda value: max(value, 0.0), 1.0, 3, 0),
        (lambda value: max(value, 0.0), 0.7, 0, 1),
        (abs, 1.0, 10, 0),
        (lambda value: 1 / (1 + math.exp(min(-value * 0.05, 700))), 256.0, 0, 1),
    ],
    ids=["relu", "relu-scaled", "abs", "logistic"],
)
def test_tp_looks_values_up(
    function: Callable[[float], float], scale: float, zero_point: int, allowed: int
) -> None:
    pixels = np.random.default_rng(4).integers(0, 256, (3, 18, 70)).astype(np.uint8)
    found = looked_up(pixels, function, scale, zero_point)
    reals = np.vectorize(function)(pixels.astype(float) - 100) * scale + zero_point
    expected = np.clip(np.floor(reals + 0.5), 0, 255)
    assert int(np.abs(found - expected).max()) <= allowed


def test_tp_look_ups_of_another_form_are_refused_by_name() -> None:
    fields = transposed(3, 4, 5, (0, 0)) | {"alu_pwl_enable": 1}
    engine, _ = tp_bench(np.zeros((3, 4, 5), np.uint8), 60, fields)
    with pytest.raises(FaultError, match="alu_load_pwl_lut of a look-up job"):
        engine.submit(TP_COMMANDS)
    fields = transposed(3, 4, 5, (0, 0)) | {"alu_output_post_multiplier": 5}
    engine, _ = tp_bench(np.zeros((3, 4, 5), np.uint8), 60, fields)
    with pytest.raises(FaultError, match="alu_output_post_multiplier without"):
        engine.submit(TP_COMMANDS)


def test_tp_a_job_of_no_planes_moves_nothing_and_is_noted() -> None:
    fields = transposed(3, 4, 5, (0, 0)) | {"in_image_z_size": 0}
    engine, output = tp_bench(np.zeros((3, 4, 5), np.uint8), 60, fields)
    engine.submit(TP_COMMANDS)
    assert (output == 0xA5).all()
    assert [each.field for each in engine.findings] == ["in_image_z_size"]


def test_tp_adds_planes_of_border() -> None:
    source = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    fields = {
        "in_image_x_size": 4, "in_image_y_size": 3, "in_image_z_size": 2,
        "in_image_stride": 4, "in_image_slice": 12, "in_window_x_end": 3, "in_window_y_end": 2,
        "in_tile_x_size": 4, "in_tile_x_inc": 4, "in_tile_y_size": 3, "in_tile_y_inc": 3,
        "in_window_z_start_overfetch": 1, "in_window_z_end_overfetch": 2,
        "out_loop_1_inc": 1, "out_loop_1_count": 4, "out_loop_2_inc": 4, "out_loop_2_count": 3,
        "out_loop_6_inc": 12, "in_zp": 7, "out_zp": 7,
    }  # fmt: skip
    engine, output = tp_bench(source, 60, fields)
    engine.submit(TP_COMMANDS)
    expected = np.full((5, 3, 4), 7, np.uint8)
    expected[1:3] = source
    assert (output.reshape(5, 3, 4) == expected).all()


# --- garbage


@pytest.mark.slow
def test_garbage_faults_and_nothing_else() -> None:
    """Random bits flipped anywhere: a result or a FaultError, in bounded time."""
    rng = random.Random(20251122)
    benches = [
        bench_for(convolution(seed, generation)) for seed in range(20) for generation in (7, 8)
    ]
    moved = np.zeros((3, 4, 5), np.uint8)
    began = time.monotonic()
    faults: list[str] = []
    for number in range(1200):
        bench = benches[number % len(benches)]
        target = rng.choice([bench.descriptor, bench.coefficients, bench.stream.view(np.uint8)])
        saved = target.copy()
        for _ in range(rng.randint(1, 4)):
            target[rng.randrange(target.size)] ^= 1 << rng.randrange(8)
        try:
            bench.run()
        except FaultError as error:
            faults.append(str(error))
        target[...] = saved
        engine, output = tp_bench(moved, moved.size, transposed(3, 4, 5, (1, 2)))
        descriptor = engine.memory.view(0x400000, 124, Access.READ)
        descriptor[rng.randrange(124)] ^= 1 << rng.randrange(8)
        try:
            engine.submit(TP_COMMANDS)
        except FaultError as error:
            faults.append(str(error))
        assert output.size == 60
    assert len(faults) > 500
    assert all(faults)
    assert time.monotonic() - began < 60


# --- requantisation, identities


def test_tflite_rounding() -> None:
    # Doubles up to 2**53 hold these; TFLite rounds twice, halves away from zero.
    assert arithmetic.quantize_multiplier(0.5) == (1 << 30, 0)
    assert arithmetic.quantize_multiplier(1.0) == (1 << 30, 1)
    values = np.array([-3, -1, 1, 3, 5], np.int64)
    mantissa, exponent = arithmetic.quantize_multiplier(0.25)
    assert arithmetic.multiply(values * 2, mantissa, exponent).tolist() == [-2, -1, 1, 2, 3]
    assert arithmetic.requantised(np.array([1000, -1000, 0]), 0.1, 10, 0).tolist() == [110, 0, 10]


def test_tflite_add_of_equal_scales_is_a_sum() -> None:
    scales = arithmetic.AddScales(0.5, 10, 0.5, 20, 1.0, 5)
    first = np.array([10, 30, 255], np.uint8)
    second = np.array([20, 22, 255], np.uint8)
    assert arithmetic.add(first, second, scales, 0).tolist() == [5, 16, 245]


def test_identities_are_whole() -> None:
    assert identity_names() == ["a311d", "imx8mp", "rk3588"]
    assert vivante_names() == ["a311d", "imx8mp"]
    for name in vivante_names():
        assert load_identity(name).model == 0x8000
    assert [driver_of(name) for name in identity_names()] == ["etnaviv", "etnaviv", "rocket"]
    with pytest.raises(UserError, match="for Vivante NPUs, and rk3588 is another maker's"):
        load_identity("rk3588")
    with pytest.raises(UserError, match="did you mean 'a311d'"):
        load_identity("a311")


def test_identity_files_are_read_strictly(tmp_path: Path) -> None:
    good = (IDENTITIES_DIR / "a311d.toml").read_text(encoding="utf-8")
    for old, new in (("nn_cores = 8", "nn_cores = 0"), ("nn_cores", "nn_core"), ("= 7", "= 9")):
        path = tmp_path / f"{abs(hash(new))}.toml"
        path.write_text(good.replace(old, new), encoding="utf-8")
        with pytest.raises(UserError):
            read_identity(path)
