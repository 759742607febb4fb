# SPDX-License-Identifier: MIT
"""Coefficient streams of NN generation 8: Huffman codes.

The format is what Mesa 25.0.7 src/gallium/drivers/etnaviv/etnaviv_ml_nn_v8.c writes:

- a header of 64 bytes: version, symbol map (for each of 8 symbols the bits of a value), size of each
  core's stream in bits; then the streams, each padded to 64 bytes; then a 32-bit bias a channel;
- a stream holds bytes (weight minus zero point, as a two's complement byte) in pairs. First two bytes:
  the number of kernels on this core. Each step has the 3-bit codes of a pair, then the second code parts
  (2 bits, for code 010 only) of the pair before, then the value bits of the pair before that;
- weights come in blocks of 9 (depthwise: a whole kernel), kernels interleaved.

The hardware takes 128 off each pixel; the biases here are brought back to raw pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..faults import FaultError
from ..memory import Access, Bytes, Memory
from .coefficients import Coefficients, Shape, prepared
from .zero_runs import check_written_once

HEADER_BYTES = 64
SIZES_AT = 28
ALIGN_BITS = 512
BLOCK = 9
LAYOUT = "Huffman"
_FLUSH_STEPS = 2

# Symbols of the 3-bit codes; 010 (2) needs its second part. _FIXED: symbol and whether bit 2 is the sign.
_FIXED = {0: (0, True), 4: (0, True), 1: (1, True), 5: (1, True), 7: (2, False), 3: (3, False), 6: (4, False)}  # fmt: skip  # noqa: E501
# Symbols of the second part: (symbol, sign or None if the sign is with the value).
_SECOND: dict[int, tuple[int, int | None]] = {0: (7, None), 1: (5, 0), 2: (6, None), 3: (5, 1)}


def stream(memory: Memory, address: int, shape: Shape, nn_cores: int) -> Bytes:
    """Return the whole coefficient stream of a job: header, streams, biases.

    Raises:
        FaultError: the header names cores that have no work, or leaves out cores that have.
    """
    header = memory.view(address, HEADER_BYTES, Access.READ)
    sizes = header[SIZES_AT:].view("<u4").tolist()
    used = min(shape.out_channels, nn_cores)
    if not all(sizes[:used]) or any(sizes[used:]):
        raise FaultError(
            "coefficient header", f"{used} stream sizes, then zeros", str(sizes), address=address
        )
    streams_bytes = sum(_padded_bytes(bits) for bits in sizes)
    return memory.view(address, HEADER_BYTES + streams_bytes + 4 * shape.out_channels, Access.READ)


def decode(data: Bytes, shape: Shape, nn_cores: int) -> Coefficients:
    """Return the coefficients in a stream.

    Raises:
        FaultError: the stream is cut off, is not a stream, or an output channel is not written once.
    """
    shape.check()
    tables = _Tables.of(_symbol_map(data[:HEADER_BYTES]))
    cores = min(shape.out_channels, nn_cores)
    sizes = data[SIZES_AT:HEADER_BYTES].view("<u4")[:cores].tolist()
    taps = shape.height * shape.width
    kernel_weights = shape.planes * taps
    block = max(taps, BLOCK) if shape.depthwise else BLOCK
    blocks = -(-kernel_weights // block)
    padded_block = -(-block // BLOCK) * BLOCK
    weights = np.zeros((shape.out_channels, blocks * block), np.uint8)
    written = np.zeros(shape.out_channels, np.int64)
    start = HEADER_BYTES
    for core, bits in enumerate(sizes):
        groups = _groups(shape, nn_cores, cores, core)
        kernels = sum(group.size for group in groups)
        size_bytes = _padded_bytes(bits)
        values = _values(
            data[start : start + size_bytes],
            bits,
            2 + kernels * blocks * padded_block,
            tables,
            core,
        )
        start += size_bytes
        found = int(values[0]) | int(values[1]) << 8
        if found != kernels:
            raise FaultError(f"coefficients of core {core}: kernels", str(kernels), str(found))
        done = 2
        for channels in groups:
            count = blocks * channels.size * padded_block
            part = values[done : done + count].reshape(blocks, channels.size, padded_block)
            done += count
            part = part[:, :, :block].transpose(1, 0, 2).reshape(channels.size, blocks * block)
            weights[channels] = part + np.uint8(shape.zero_point)
            np.add.at(written, channels, 1)
    check_written_once(written)
    kernels_raw = weights[:, :kernel_weights].reshape(
        shape.out_channels, shape.planes, shape.height, shape.width
    )
    stored = data[start : start + 4 * shape.out_channels].view("<i4").astype(np.int64)
    sums = kernels_raw.sum(axis=(1, 2, 3), dtype=np.int64) - kernel_weights * shape.zero_point
    return prepared(
        kernels_raw,
        stored - 128 * sums,
        shape,
        stored_bytes=data.size,
        layout=LAYOUT,
        expected_layout=LAYOUT,
    )


def _padded_bytes(bits: int) -> int:
    return -(-bits // ALIGN_BITS) * ALIGN_BITS // 8


def _symbol_map(header: Bytes) -> tuple[int, ...]:
    """Return for each symbol the number of bits of its values; check the rest of the header."""
    raw = header[:SIZES_AT].tobytes()
    if raw[0] != 0x10 or any(raw[1:20]) or any(raw[24:]):
        raise FaultError(
            "coefficient header",
            "version 1, no run lengths, no average bias",
            f"{raw[:20].hex()} ... {raw[24:].hex()}",
        )
    packed = int.from_bytes(raw[20:24], "little")
    symbols = tuple(packed >> 4 * symbol & 15 for symbol in range(8))
    if max(symbols) > 8:
        raise FaultError("symbol map", "8 bit lengths of at most 8", f"{packed:#010x}")
    return symbols


def _groups(shape: Shape, nn_cores: int, cores: int, core: int) -> list[NDArray[np.intp]]:
    """Return the output channels of a core, one array a superblock (fill_weights, encode_superblock)."""
    full = shape.kernels
    kernels_per_core = math.ceil(shape.out_channels / nn_cores)
    superblocks = math.ceil(kernels_per_core / full)
    groups = []
    for superblock in range(superblocks):
        rest = shape.out_channels - cores * (superblocks - 1) * full
        if superblock < superblocks - 1:
            count = before = full
            first = superblock * full * cores + core * full
        else:
            count = rest // cores + (core < rest % cores)
            before = core * (rest // cores) + min(core, rest % cores)
            first = superblock * full * cores + before
        if shape.depthwise:
            channels = cores - core - 1 + cores * full * superblock + np.arange(count) * nn_cores
            if shape.out_channels > 1:
                left = shape.out_channels % nn_cores
                channels[channels >= shape.out_channels - left] -= nn_cores - left
        else:
            channels = first + np.arange(count)
        if count and not (channels.min() >= 0 and channels.max() < shape.out_channels):
            raise FaultError(
                "kernels_per_core",
                f"a division of {shape.out_channels} channels",
                f"{full}: core {core} would write channel {int(channels.max())}",
            )
        groups.append(channels)
    return groups


@dataclass(frozen=True)
class _Tables:
    """What 10 bits (codes of a pair, then possible second parts) mean: one entry for each value.

    Attributes:
        step_bits: 6 (the codes of the next pair) + bits of this pair's second parts.
        value_bits: bits of this pair's two values together.
        bits: (1024, 2) bits of each value; magnitude_bits: of its magnitude, leading one included.
        sign: (1024, 2) 0 or 1 if the codes hold the sign, 2 if it is the value's lowest bit.
    """

    step_bits: list[int]
    value_bits: list[int]
    bits: NDArray[np.uint64]
    magnitude_bits: NDArray[np.int64]
    sign: NDArray[np.uint64]

    @classmethod
    def of(cls, symbol_map: tuple[int, ...]) -> _Tables:
        step_bits, value_bits = [], []
        bits = np.zeros((1024, 2), np.uint64)
        magnitude_bits = np.zeros((1024, 2), np.int64)
        sign = np.zeros((1024, 2), np.uint64)
        for entry in range(1024):
            seconds = entry >> 6
            used = total = 0
            for side, code in enumerate((entry & 7, entry >> 3 & 7)):
                of_code: int | None
                if code == 2:
                    symbol, of_code = _SECOND[seconds >> used & 3]
                    used += 2
                else:
                    symbol, has_sign = _FIXED[code]
                    of_code = code >> 2 if has_sign else None
                length = symbol_map[symbol]
                stored = max(length, 1) - (of_code is not None)
                bits[entry, side] = stored
                magnitude_bits[entry, side] = length
                sign[entry, side] = 2 if of_code is None else of_code
                total += stored
            step_bits.append(6 + used)
            value_bits.append(total)
        return cls(step_bits, value_bits, bits, magnitude_bits, sign)


def _values(data: Bytes, bits: int, count: int, tables: _Tables, core: int) -> NDArray[np.uint8]:
    """Return the ``count`` bytes of one core's stream.

    One pass in Python finds where each pair's fields stand (each position depends on the one before);
    the values are then read out all at once.
    """
    field = f"coefficients of core {core}: stream size"
    pairs = -(-count // 2)
    if bits < 6 * pairs:
        raise FaultError(field, f"at least {6 * pairs} bits for {count} weights", str(bits))
    padded = np.concatenate([data, np.zeros(16, np.uint8)]).astype(np.uint64)
    windows = padded[: data.size + 8].copy()
    for index in range(1, 8):
        windows |= padded[index : index + windows.size] << np.uint64(8 * index)
    looked_up: list[int] = windows.tolist()
    step_bits, value_bits = tables.step_bits, tables.value_bits
    entries = [0] * (pairs + 1)
    positions = [0] * (pairs + 1)
    codes = looked_up[0] & 63
    position = 6
    waiting = 0
    try:
        for step in range(pairs + _FLUSH_STEPS - 1):
            window = looked_up[position >> 3] >> (position & 7)
            entry = codes | window & 0x3C0
            entries[step] = entry
            positions[step] = position
            position += step_bits[entry] + waiting
            waiting = value_bits[entry]
            codes = window & 63
    except IndexError:
        raise FaultError(field, f"{count} weights", f"cut off after {2 * step}") from None
    if position != bits:
        raise FaultError(field, f"{position} bits for {count} weights", str(bits))
    entry_array = np.array(entries)
    pair_entries = entry_array[:pairs]
    at = np.array(positions)[1:] + np.array(step_bits)[entry_array[1:]]
    values = np.empty((pairs, 2), np.uint8)
    one = np.uint64(1)
    for side in range(2):
        length = tables.bits[pair_entries, side]
        raw = (windows[at >> 3] >> (at & 7).astype(np.uint64)) & ((one << length) - one)
        at = at + length.astype(np.int64)
        sign = tables.sign[pair_entries, side]
        with_value = sign == 2
        negative = np.where(with_value, raw & one, sign).astype(bool)
        rest = np.where(with_value, raw >> one, raw).astype(np.int64)
        magnitude_bits = tables.magnitude_bits[pair_entries, side]
        magnitude = np.where(magnitude_bits > 0, (1 << np.maximum(magnitude_bits - 1, 0)) | rest, 0)
        values[:, side] = np.where(negative, ~magnitude, magnitude) & 255
    return values.reshape(-1)[:count]
