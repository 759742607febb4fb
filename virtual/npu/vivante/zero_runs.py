# SPDX-License-Identifier: MIT
"""Coefficient streams of NN generation 7: zero runs.

The format is what Mesa 25.0.7 src/gallium/drivers/etnaviv/etnaviv_ml_nn_v7.c writes:

- a header of one 32-bit word a core, the bytes of its stream, padded to 64 bytes; then the streams;
- a stream: 8 bits width of the run field, 16 bits number of kernels, then weights, least significant
  bit first. A weight is a token: run of zero points, then a literal of 8 bits; with width 0 just the
  literal;
- between the weights stand raw 32-bit words: after a kernel's first weight its bias, after its last the
  byte offset of its output plane. No run crosses them;
- weights of the kernels of a superblock are interleaved: a plane of each, then the next plane; for 1x1
  kernels blocks of six planes of each. Fully connected layers: one kernel after another, in the order of
  the input's bytes (write_core_sequential).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..faults import FaultError
from ..memory import Access, Bytes, Memory
from .coefficients import Coefficients, Shape, prepared

BLOCK_PLANES = 6
HEADER_ALIGN_BYTES = 64
INTERLEAVED, BLOCKS = "planes interleaved", "blocks of 6 planes"
SEQUENTIAL = "kernels one after another"
MAX_CONNECTED_SIDE = 15


def stream(memory: Memory, address: int, shape: Shape, nn_cores: int) -> Bytes:
    """Return the whole coefficient stream of a job, header included.

    Raises:
        FaultError: the header names cores that have no work, or leaves out cores that have.
    """
    header_bytes = _header_bytes(nn_cores)
    sizes = memory.view(address, header_bytes, Access.READ).view("<u4").tolist()
    used = min(shape.out_channels, nn_cores)
    if not all(sizes[:used]) or any(sizes[used:]):
        raise FaultError(
            "coefficient header", f"{used} stream sizes, then zeros", str(sizes), address=address
        )
    return memory.view(address, header_bytes + sum(sizes), Access.READ)


def decode(data: Bytes, shape: Shape, nn_cores: int, max_run_bits: int) -> Coefficients:
    """Return the coefficients in a stream.

    Where a 1x1 stream does not read as blocks of six, the plain order is tried: Mesa writes it for 1x1
    kernels that it made of 2x2 kernels with stride 2. Likewise where a kernel as large as its input is no
    fully connected layer's. ``Coefficients.layout`` tells.

    Raises:
        FaultError: the stream is cut off, is not a stream, or an output channel is not written once.
    """
    shape.check()
    expected = INTERLEAVED
    if shape.height == shape.width == 1:
        expected = BLOCKS
    elif _is_connected(shape):
        expected = SEQUENTIAL
    try:
        return _decode(data, shape, nn_cores, max_run_bits, expected, expected)
    except FaultError:
        if expected == INTERLEAVED:
            raise
        try:
            return _decode(data, shape, nn_cores, max_run_bits, INTERLEAVED, expected)
        except FaultError:
            pass
        raise


def tap_order(height: int, width: int) -> NDArray[np.intp]:
    """Return the order of a kernel's taps as indices into its rows laid end to end.

    Rows go in pairs; of kernels wider than 3 first three columns of both rows, then the rest. Mesa's
    write_core_sequential lays the taps of some dense 5x5 kernels over one plane row by row; silicon does
    not read them so: Mesa's list for the A311D has those Conv2D tests as failing, and passes the depthwise
    ones, whose descriptors are the same and whose taps go in pairs.
    """
    order: list[int] = []
    for top in range(0, height, 2):
        rows = range(top, min(top + 2, height))
        split = min(width, 3)
        order += [row * width + column for row in rows for column in range(split)]
        order += [row * width + column for row in rows for column in range(split, width)]
    return np.array(order, np.intp)


def _is_connected(shape: Shape) -> bool:
    """Whether a kernel has the sides that a fully connected layer's gets (create_nn_config).

    Of one plane: never. Silicon reads a 5x5 kernel over 5x5 pixels like any other of that size, and no
    field tells it from a fully connected layer of 25 inputs. Whether it reads those of several planes in
    the order of the input's bytes is open: Mesa's CI skips all FullyConnected tests on the A311D.
    """
    if not shape.whole_input or shape.planes == 1:
        return False
    rest = shape.planes * shape.height * shape.width
    sides = []
    for _ in range(2):
        side = next(each for each in range(MAX_CONNECTED_SIDE, 0, -1) if rest % each == 0)
        sides.append(side)
        rest //= side
    return sides == [shape.width, shape.height]


def _header_bytes(nn_cores: int) -> int:
    return -(-nn_cores * 4 // HEADER_ALIGN_BYTES) * HEADER_ALIGN_BYTES


@dataclass(frozen=True)
class _Superblock:
    """Kernels whose weights are interleaved; positions count weights from the superblock's start."""

    planes: NDArray[np.uint8]
    biases: NDArray[np.int64]
    offsets: NDArray[np.int64]


def _decode(
    data: Bytes, shape: Shape, nn_cores: int, max_run_bits: int, layout: str, expected: str
) -> Coefficients:
    header_bytes = _header_bytes(nn_cores)
    cores = min(shape.out_channels, nn_cores)
    sizes = data[:header_bytes].view("<u4")[:cores].tolist()
    kernels_per_core = -(-shape.out_channels // cores)
    weights = np.zeros((shape.out_channels, shape.planes, shape.height, shape.width), np.uint8)
    biases = np.zeros(shape.out_channels, np.int64)
    written = np.zeros(shape.out_channels, np.int64)
    start = header_bytes
    for core, size_bytes in enumerate(sizes):
        reader = _Reader(data[start : start + size_bytes], shape.zero_point, core)
        start += size_bytes
        kernels = reader.begin(kernels_per_core, max_run_bits)
        for first in range(0, kernels, shape.kernels):
            block = _superblock(reader, shape, min(shape.kernels, kernels - first), layout)
            channels, rest = np.divmod(block.offsets, shape.plane_bytes)
            if rest.any():
                raise FaultError(
                    f"coefficients of core {core}: output offset",
                    f"a multiple of the plane's {shape.plane_bytes} bytes",
                    str(int(block.offsets[rest.argmax()])),
                )
            real = channels < shape.out_channels  # the others pad the last superblock
            channels = channels[real]
            weights[channels] = block.planes[real]
            biases[channels] = block.biases[real]
            np.add.at(written, channels, 1)
        reader.end()
    check_written_once(written)
    return prepared(
        weights,
        biases,
        shape,
        stored_bytes=data.size,
        layout=layout,
        expected_layout=expected,
    )


def check_written_once(written: NDArray[np.int64]) -> None:
    """Check that each output channel has exactly one kernel.

    Raises:
        FaultError: one has none or several.
    """
    wrong = np.flatnonzero(written != 1)
    if wrong.size:
        some = ", ".join(f"{channel}: {written[channel]}" for channel in wrong[:4].tolist())
        raise FaultError(
            "kernels an output channel", "1 each", f"{some}{' ...' if wrong.size > 4 else ''}"
        )


def _superblock(reader: _Reader, shape: Shape, kernels: int, layout: str) -> _Superblock:
    taps = shape.height * shape.width
    if layout == BLOCKS:
        first = min(BLOCK_PLANES, shape.planes)
        last_start = (shape.planes - 1) // BLOCK_PLANES * BLOCK_PLANES
        last = shape.planes - last_start
        before_last = last_start * kernels
    elif layout == SEQUENTIAL:
        first = last = shape.planes * taps
        before_last = 0
    else:
        first = last = taps
        before_last = (shape.planes - 1) * kernels * taps
    numbers = np.arange(kernels)
    values, words = reader.weights(
        shape.planes * kernels * taps,
        bias_after=numbers * first + 1,
        offset_after=before_last + (numbers + 1) * last,
    )
    if layout == BLOCKS:
        whole = shape.planes // BLOCK_PLANES
        cut = whole * kernels * BLOCK_PLANES
        body = values[:cut].reshape(whole, kernels, BLOCK_PLANES).transpose(1, 0, 2)
        tail = values[cut:].reshape(kernels, -1)
        planes = np.concatenate([body.reshape(kernels, -1), tail], axis=1)
    elif layout == SEQUENTIAL:
        planes = values
    else:
        order = tap_order(shape.height, shape.width)
        in_order = values.reshape(shape.planes, kernels, taps).transpose(1, 0, 2)
        planes = np.empty_like(in_order)
        planes[:, :, order] = in_order
    biases = words[0].astype(np.uint32).view(np.int32).astype(np.int64)
    return _Superblock(
        planes.reshape(kernels, shape.planes, shape.height, shape.width), biases, words[1]
    )


class _Reader:
    """Reads one core's stream; every read is checked against its end."""

    def __init__(self, data: Bytes, zero_point: int, core: int) -> None:
        self._size_bits = data.size * 8
        self._core = core
        self._zero_point = zero_point
        self._position = 0
        self._run_bits = 0
        self._data = data
        self._windows: NDArray[np.uint64] | None = None

    def begin(self, kernels: int, max_run_bits: int) -> int:
        """Read the stream's header; return its number of kernels."""
        self._need(24)
        self._run_bits = int(self._data[0])
        found = int(self._data[1]) | int(self._data[2]) << 8
        self._position = 24
        if self._run_bits > max_run_bits:
            raise self._fault(
                "width of zero runs", f"0 to {max_run_bits} bits", str(self._run_bits)
            )
        if found != kernels:
            raise self._fault("number of kernels", str(kernels), str(found))
        if self._run_bits:
            # For each byte the 40 bits that begin there: any field of up to 32 bits is one look-up.
            padded = np.concatenate([self._data, np.zeros(4, np.uint8)]).astype(np.uint64)
            count = self._data.size
            windows = padded[:count].copy()
            for index in range(1, 5):
                windows |= padded[index : index + count] << np.uint64(8 * index)
            self._windows = windows
        return found

    def end(self) -> None:
        """Check that nothing but padding to 64 bytes follows."""
        left_bits = self._size_bits - self._position
        if left_bits >= (HEADER_ALIGN_BYTES + 4) * 8:
            raise self._fault(
                "stream size", "the weights and their padding", f"{left_bits} more bits"
            )

    def weights(
        self, count: int, *, bias_after: NDArray[np.intp], offset_after: NDArray[np.intp]
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Read ``count`` weights and the raw words between them.

        ``bias_after`` and ``offset_after`` say after how many weights each kernel's words stand.
        Returns the weights, and the words as an array (2, kernels): biases, offsets.
        """
        kernels = bias_after.size
        after = np.concatenate([bias_after, offset_after])
        order = np.lexsort((np.arange(after.size) >= kernels, after))
        words = np.empty(after.size, np.int64)
        read = self._raw if self._windows is None else self._runs
        values = read(count, after[order], words, order)
        return values, words.reshape(2, kernels)

    def _raw(
        self, count: int, after: NDArray[np.intp], words: NDArray[np.int64], order: NDArray[np.intp]
    ) -> NDArray[np.uint8]:
        """All is whole bytes: gather it at once."""
        start = self._position // 8
        self._need(8 * (count + 4 * after.size))
        places = np.arange(count)
        places += 4 * np.searchsorted(after, places, side="right") + start
        word_places = start + after + 4 * np.arange(after.size)
        parts = self._data[word_places[:, None] + np.arange(4)].astype(np.int64)
        words[order] = parts @ np.array([1, 1 << 8, 1 << 16, 1 << 24])
        self._position += 8 * (count + 4 * after.size)
        values: NDArray[np.uint8] = self._data[places]
        return values

    def _runs(
        self, count: int, after: NDArray[np.intp], words: NDArray[np.int64], order: NDArray[np.intp]
    ) -> NDArray[np.uint8]:
        values = np.full(count, self._zero_point, np.uint8)
        done = 0
        for position, word in zip(after.tolist(), order.tolist(), strict=True):
            if position > done:
                self._tokens(values[done:position])
                done = position
            words[word] = self._word()
        if count > done:
            self._tokens(values[done:])
        return values

    def _tokens(self, values: NDArray[np.uint8]) -> None:
        """Fill ``values`` (all at the zero point) from tokens that end exactly at its end."""
        if self._windows is None:
            raise RuntimeError("the stream is not open")
        width = self._run_bits + 8
        run_mask, run_bits = np.uint64((1 << self._run_bits) - 1), np.uint64(self._run_bits)
        done = 0
        guess = 64
        while done < values.size:
            count = min(values.size - done, guess, (self._size_bits - self._position) // width)
            if count <= 0:
                self._need(width)
            places = self._position + np.arange(count) * width
            tokens = self._windows[places >> 3] >> (places & 7).astype(np.uint64)
            ends = np.cumsum((tokens & run_mask).astype(np.int64) + 1)
            fitting = int(np.searchsorted(ends, values.size - done, side="right"))
            if not fitting:
                raise self._fault(
                    "zero run", f"within {values.size - done} weights", f"{int(ends[0])} weights"
                )
            literals = (tokens[:fitting] >> run_bits) & np.uint64(255)
            values[done + ends[:fitting] - 1] = literals.astype(np.uint8)
            done += int(ends[fitting - 1])
            self._position += fitting * width
            guess *= 4

    def _word(self) -> int:
        if self._windows is None:
            raise RuntimeError("the stream is not open")
        self._need(32)
        value = int(self._windows[self._position >> 3]) >> (self._position & 7) & 0xFFFFFFFF
        self._position += 32
        return value

    def _need(self, bits: int) -> None:
        if self._position + bits > self._size_bits:
            raise self._fault(
                "stream size", f"{bits} more bits", f"{self._size_bits - self._position} left"
            )

    def _fault(self, field: str, expected: str, found: str) -> FaultError:
        return FaultError(f"coefficients of core {self._core}: {field}", expected, found)
