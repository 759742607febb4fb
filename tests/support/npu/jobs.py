# SPDX-License-Identifier: MIT
"""Builds NPU jobs for the tests: coefficient encoders, descriptors, memory, and plain references.

The encoders are written from the format's description (docs/virtual-npu.md), a bit at a time, and share
no code with the decoders.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from virtual.npu.identity import load_identity
from virtual.npu.memory import Access, Buffer, Buffers
from virtual.npu.vivante import nn
from virtual.npu.vivante.engine import Engine

NPUS = {7: "a311d", 8: "imx8mp"}


class BitWriter:
    def __init__(self) -> None:
        self.bits: list[int] = []

    def put(self, value: int, width: int) -> None:
        assert 0 <= value < 1 << width
        self.bits += [value >> bit & 1 for bit in range(width)]

    def padded(self, multiple_bytes: int) -> bytes:
        bits = self.bits + [0] * (-len(self.bits) % (8 * multiple_bytes))
        return np.packbits(np.array(bits, np.uint8), bitorder="little").tobytes()


def rows_in_pairs(height: int, width: int) -> list[tuple[int, int]]:
    """Rows two at a time; of wide kernels the first three columns of both, then the rest of both."""
    order = []
    for pair in [(row, row + 1) for row in range(0, height, 2)]:
        rows = [row for row in pair if row < height]
        near = range(min(width, 3)) if width > 3 else range(width)
        far = range(3, width) if width > 3 else range(0)
        for columns in (near, far):
            order += [(row, column) for row in rows for column in columns]
    return order


@dataclass
class Convolution:
    """A convolution to run: weights (OC, C, H, W) of 8 bits; depthwise (v8): C is 1."""

    generation: int
    image: NDArray[np.uint8]
    weights: NDArray[np.uint8]
    biases: NDArray[np.int64]
    in_zero_point: int
    weight_zero_point: int
    out_zero_point: int = 0
    pad: int = 0
    first_pixel: bool = False
    relu: bool = False
    depthwise: bool = False
    mantissa: int = 0
    shift: int = 20
    kernels: int = 1
    run_bits: int = 3
    blocks_of_six: bool | None = None
    fields: dict[str, int] = field(default_factory=dict)

    @property
    def cores(self) -> int:
        return load_identity(NPUS[self.generation]).nn_cores

    def out_size(self) -> tuple[int, int]:
        """Stored rows and columns: SAME for pad 1, else VALID; every second pixel if asked for."""
        rows = self.image.shape[1] + 2 * self.pad - self.weights.shape[2] + 1
        columns = self.image.shape[2] + 2 * self.pad - self.weights.shape[3] + 1
        return (-(-rows // 2), -(-columns // 2)) if self.first_pixel else (rows, columns)

    def accumulators(self) -> NDArray[np.int64]:
        """The plain definition: sum over taps of (weight - zero point) * (pixel - zero point)."""
        signed = self.weights.astype(np.int64) - self.weight_zero_point
        pad = self.pad
        image = np.pad(
            self.image.astype(np.int64) - self.in_zero_point, ((0, 0), (pad, pad), (pad, pad))
        )
        height, width = signed.shape[2:]
        step = 2 if self.first_pixel else 1
        rows, columns = self.out_size()
        result = np.zeros((len(signed), rows, columns), np.int64)
        for channel, kernel in enumerate(signed):
            planes = image[channel : channel + 1] if self.depthwise else image
            for row in range(rows):
                for column in range(columns):
                    y, x = row * step, column * step
                    window = planes[:, y : y + height, x : x + width]
                    result[channel, row, column] = (window * kernel).sum() + self.biases[channel]
        return result

    def expected(self) -> NDArray[np.uint8]:
        """Hardware mode: one rounding, half up."""
        mantissa_bits = 15 if self.generation == 7 else 23
        low = self.out_zero_point if self.relu else 0
        factor = (1 << mantissa_bits) + self.mantissa
        result = np.empty(self.accumulators().shape, np.uint8)
        for place, value in np.ndenumerate(self.accumulators()):
            scaled = (int(value) * factor + (1 << self.shift - 1)) // (1 << self.shift)
            result[place] = min(max(scaled + self.out_zero_point, low), 255)
        return result

    def plane_bytes(self) -> int:
        rows, columns = self.out_size()
        return rows * columns

    def stream(self) -> bytes:
        return encode_v7(self) if self.generation == 7 else encode_v8(self)

    def descriptor(self, input_at: int, output_at: int, coefficients_at: int) -> dict[str, int]:
        rows, columns = self.out_size()
        double = 2 if self.first_pixel else 1
        planes, height, width = self.image.shape
        shift = self.shift if self.generation == 7 else self.shift - 23
        offset = -self.pad & 15
        values = {
            "kernel_xy_size": self.weights.shape[3],
            "kernel_y_size": self.weights.shape[2],
            "kernel_z_size": planes,
            "kernels_per_core": self.kernels,
            "pooling": 3 if self.first_pixel else 0,
            "in_image_x_size": width,
            "in_image_y_size": height,
            "in_image_x_stride": width,
            "in_image_y_stride": height,
            "in_image_x_offset": offset & 7,
            "in_image_y_offset": offset & 7,
            "in_image_x_offset_bit_3": offset >> 3,
            "in_image_y_offset_bit_3": offset >> 3,
            "in_image_border_const": self.in_zero_point,
            "relu": int(self.relu),
            "post_multiplier": self.mantissa & 1,
            "post_multiplier_1_to_6": self.mantissa >> 1 & 0x3F,
            "post_multiplier_7_to_14": self.mantissa >> 7 & 0xFF,
            "post_multiplier_15_to_22": self.mantissa >> 15,
            "post_shift": shift & 31,
            "post_shift_bit_5_6": shift >> 5,
            "out_image_x_size": columns * double,
            "out_image_y_size": rows * double,
            "out_image_z_size": len(self.weights),
            "out_image_x_stride": columns,
            "out_image_y_stride": rows,
            "in_image_address": input_at,
            "out_image_address": output_at,
            "kernel_address": coefficients_at >> 6,
            "coef_zero_point": self.weight_zero_point,
            "out_zero_point": self.out_zero_point,
            "depthwise": int(self.depthwise),
        }
        return values | self.fields


def superblocks(kernels: int, size: int) -> list[range]:
    return [range(start, min(start + size, kernels)) for start in range(0, kernels, size)]


def encode_v7(job: Convolution) -> bytes:
    channels, planes, height, width = job.weights.shape
    cores = min(channels, job.cores)
    per_core = -(-channels // cores)
    six = height == width == 1 if job.blocks_of_six is None else job.blocks_of_six
    taps = rows_in_pairs(height, width)
    corrected = job.biases - (
        (job.weights.astype(np.int64) - job.weight_zero_point).sum(axis=(1, 2, 3))
        * job.in_zero_point
    )
    streams = []
    for core in range(cores):
        out = BitWriter()
        out.put(job.run_bits, 8)
        out.put(per_core, 16)
        run: list[int] = []

        def end_run(out: BitWriter = out, run: list[int] = run) -> None:
            if run:
                out.put(len(run) - 1, job.run_bits)
                out.put(job.weight_zero_point, 8)
                run.clear()

        def put_weight(value: int, out: BitWriter = out, run: list[int] = run) -> None:
            if job.run_bits == 0:
                out.put(value, 8)
            elif value == job.weight_zero_point and len(run) < (1 << job.run_bits) - 1:
                run.append(value)
            else:
                out.put(len(run), job.run_bits)
                out.put(value, 8)
                run.clear()

        for block in superblocks(per_core, job.kernels):
            numbers = [core + cores * kernel for kernel in block]
            steps: list[tuple[int, list[int], bool, bool]] = []
            groups = superblocks(planes, 6) if six else [range(z, z + 1) for z in range(planes)]
            for group in groups:
                for number in numbers:
                    kernel = job.weights[number % channels]  # beyond the channels: padding
                    values = [
                        int(kernel[plane, row, column]) for plane in group for row, column in taps
                    ]
                    steps.append((number, values, group[0] == 0, group[-1] == planes - 1))
            for number, values, first, last in steps:
                put_weight(values[0])
                if first:
                    end_run()
                    out.put(int(corrected[number % channels]) & 0xFFFFFFFF, 32)
                for value in values[1:]:
                    put_weight(value)
                if last:
                    end_run()
                    out.put(number * job.plane_bytes(), 32)
        streams.append(out.padded(64))
    header = np.zeros(-(-job.cores * 4 // 64) * 16, "<u4")
    header[:cores] = [len(stream) for stream in streams]
    return header.tobytes() + b"".join(streams)


SYMBOL_CODES = {0: 0b000, 1: 0b001, 2: 0b111, 3: 0b011, 4: 0b110, 5: 0b010, 6: 0b010, 7: 0b010}


def encode_v8(job: Convolution, symbol_map: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7)) -> bytes:
    channels, planes, height, width = job.weights.shape
    cores = min(channels, job.cores)
    signed = job.weights.astype(np.int64) - job.weight_zero_point
    corrected = job.biases + signed.sum(axis=(1, 2, 3)) * (128 - job.in_zero_point)
    block = max(9, height * width) if job.depthwise else 9
    streams, sizes = [], []
    for core in range(cores):
        groups = v8_channels(job, core)
        kernels = sum(len(group) for group in groups)
        values = [kernels & 255, kernels >> 8]
        for group in groups:
            count = planes * height * width
            for start in range(0, count, block):
                for channel in group:
                    flat = job.weights[channel].reshape(-1)[start : start + block]
                    part = [(int(value) - job.weight_zero_point) & 255 for value in flat]
                    values += part + [0] * (-(-block // 9) * 9 - len(part))
        content, bits = huffman_bits(values, symbol_map)
        streams.append(content)
        sizes.append(bits)
    header = bytearray(64)
    header[0] = 1 << 4
    packed = sum(length << 4 * symbol for symbol, length in enumerate(symbol_map))
    header[20:24] = packed.to_bytes(4, "little")
    header[28 : 28 + 4 * cores] = np.array(sizes, "<u4").tobytes()
    tail: bytes = (corrected & 0xFFFFFFFF).astype("<u4").tobytes()
    return bytes(header) + b"".join(streams) + tail


def v8_channels(job: Convolution, core: int) -> list[list[int]]:
    """Channels of a core, a list a superblock: dealt out in turn, whole superblocks first."""
    channels, cores = len(job.weights), min(len(job.weights), job.cores)
    per_core = -(-channels // job.cores)
    groups: list[list[list[int]]] = [[] for _ in range(cores)]
    start = 0
    blocks = -(-per_core // job.kernels)
    for number in range(blocks):
        left = channels - start
        for each in range(cores):
            count = job.kernels
            if number == blocks - 1:
                count = left // cores + (each < left % cores)
            groups[each].append(list(range(start, start + count)))
            start += count
    if not job.depthwise:
        return groups[core]
    # Depthwise: kernel k of superblock s on core c is channel cores * (full * s + k) + (cores - 1 - c);
    # the last, partly filled row of cores is moved down by what is missing.
    rest = channels % job.cores
    named: list[list[int]] = []
    for number, group in enumerate(groups[core]):
        row = []
        for kernel in range(len(group)):
            channel = job.cores * kernel + cores * job.kernels * number + cores - 1 - core
            if channels > 1 and channel >= channels - rest:
                channel -= job.cores - rest
            row.append(channel)
        named.append(row)
    return named


def huffman_bits(values: list[int], symbol_map: tuple[int, ...]) -> tuple[bytes, int]:
    symbol_of = {length: symbol for symbol, length in enumerate(symbol_map)}
    codes = []  # (3-bit code, second part and its width, value bits and their width)
    for value in values + [0] * (len(values) % 2):
        negative = value >> 7
        magnitude = value ^ 255 if negative else value
        length = magnitude.bit_length()
        symbol = symbol_of[length]
        mantissa = magnitude & (1 << max(length - 1, 0)) - 1
        code = SYMBOL_CODES[symbol]
        second, second_width = 0, 2 if code == 2 else 0
        if symbol in (0, 1):
            code |= negative << 2
        elif symbol == 5:
            second = 1 | negative << 1
        elif symbol == 6:
            second = 2
        if symbol in (0, 1, 5):
            codes.append((code, second, second_width, mantissa, max(length - 1, 0)))
        else:
            signed = mantissa << 1 | negative
            codes.append((code, second, second_width, signed, max(length, 1)))
    flush = (0b100 if len(values) % 2 else 0, 0, 0, 0, 0)
    codes += [flush] * 4
    out = BitWriter()
    for pair in range(len(codes) // 2):
        for part in codes[2 * pair : 2 * pair + 2]:
            out.put(part[0], 3)
        if pair >= 1:
            for part in codes[2 * pair - 2 : 2 * pair]:
                out.put(part[1], part[2])
        if pair >= 2:
            for part in codes[2 * pair - 4 : 2 * pair - 2]:
                out.put(part[3], part[4])
    return out.padded(64), len(out.bits)


@dataclass
class Bench:
    """An engine with memory laid out for one NN job."""

    engine: Engine
    stream: NDArray[np.uint32]
    descriptor: NDArray[np.uint8]
    coefficients: NDArray[np.uint8]
    output: NDArray[np.uint8]

    def run(self) -> NDArray[np.uint8]:
        self.engine.submit(self.stream)
        return self.output


def load_state(state: int, *values: int) -> list[int]:
    words = [1 << 27 | len(values) << 16 | state >> 2, *values]
    return words + [0] * (len(words) % 2)


def bench_for(job: Convolution) -> Bench:
    stream = np.frombuffer(job.stream(), np.uint8).copy()
    rows, columns = job.out_size()
    output = np.full(len(job.weights) * rows * columns, 0xA5, np.uint8)
    words = nn.LAYOUT.pack(job.descriptor(0x10000000, 0x20000000, 0x30000000))
    descriptor = words.view(np.uint8).copy()
    memory = Buffers(
        [
            Buffer(0x400000, Access.READ, descriptor),
            Buffer(0x10000000, Access.READ, np.ascontiguousarray(job.image).reshape(-1)),
            Buffer(0x20000000, Access.WRITE, output),
            Buffer(0x30000000, Access.READ, stream),
        ]
    )
    commands = [0, 0, *load_state(0x393C, 0, 0), *load_state(0x3930, 0)]
    commands += load_state(0x10A0, 0x400000)
    return Bench(
        Engine(load_identity(NPUS[job.generation]), memory),
        np.array(commands, np.uint32),
        descriptor,
        stream,
        output.reshape(len(job.weights), rows, columns),
    )
