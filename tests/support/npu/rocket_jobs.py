# SPDX-License-Identifier: MIT
"""Convolutions for Rockchip's NPU, written as its driver would: registers, weights, feature maps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from virtual.npu.memory import Access, Buffer, Buffers
from virtual.npu.rocket.engine import Engine
from virtual.npu.rocket.registers import REGISTERS, UNITS

ATOM = 16
INPUT, WEIGHTS, BIASES, OUTPUT, ADDEND, COMMANDS = (0x100000 * number for number in range(1, 7))
_ADDRESSES = {register.name: address for address, register in REGISTERS.items()}
_NAME_OF = {name: register.name for register in REGISTERS.values() for name in register.fields}


def command(target: int, address: int, value: int) -> int:
    """Return one register command."""
    return target << 48 | (value & 0xFFFFFFFF) << 16 | address


def commands(fields: dict[str, int]) -> NDArray[np.uint64]:
    """Return the commands that set fields, all others to 0, and start the units."""
    words = dict.fromkeys(_ADDRESSES, 0)
    for name, value in fields.items():
        register = _NAME_OF[name]
        low, mask = REGISTERS[_ADDRESSES[register]].fields[name]
        words[register] |= (value & mask) << low
    ordinary = [
        command(UNITS[REGISTERS[_ADDRESSES[name]].unit], _ADDRESSES[name], word)
        for name, word in words.items()
    ]
    return np.array([*ordinary, 0x0041 << 48, command(0x81, 8, 0x1D)], np.uint64)


def feature_map(image: NDArray[np.integer[Any]], surface_pixels: int = 0) -> NDArray[np.uint8]:
    """Return an image of signed bytes, (channels, height, width), as surfaces of 16 channels."""
    channels, height, width = image.shape
    surfaces = -(-channels // ATOM)
    whole = np.zeros((surfaces * ATOM, height, width), np.int8)
    whole[:channels] = image
    laid = whole.reshape(surfaces, ATOM, height, width).transpose(0, 2, 3, 1)
    flat = laid.reshape(surfaces, -1)
    room = np.zeros((surfaces, max(surface_pixels, height * width) * ATOM), np.int8)
    room[:, : flat.shape[1]] = flat
    return room.reshape(-1).view(np.uint8)


def stored_weights(weights: NDArray[np.integer[Any]], *, depthwise: bool) -> NDArray[np.uint8]:
    """Return weights of unsigned bytes, (kernels, channels, height, width), as they lie in memory."""
    kernels, channels, height, width = weights.shape
    group = 64 if depthwise else 32
    aligned = -(-channels // ATOM) * ATOM
    filled = np.zeros((kernels, aligned, height, width), np.int16)
    filled[:, :channels] = weights
    out = bytearray()
    for first in range(0, kernels, 32):
        for channel in range(0, aligned, group):
            for y in range(height):
                for x in range(width):
                    for kernel in range(first, min(first + 32, kernels)):
                        block = filled[kernel, channel : channel + group, y, x]
                        out += (block - 128).astype(np.int8).tobytes()
    return np.frombuffer(bytes(out), np.uint8).copy()


@dataclass
class Convolution:
    """A convolution of unsigned bytes, as TFLite has it.

    Attributes:
        image: (channels, height, width); square, as Mesa's order of sides asks for.
        weights: (kernels, channels, kernel height, kernel width); one kernel of a depthwise one.
        addend: (output channels, height, width), added in the accumulator's scale times ``addend_scale``.
    """

    image: NDArray[np.uint8]
    weights: NDArray[np.uint8]
    biases: NDArray[np.int32]
    in_zero_point: int
    weight_zero_point: int
    out_zero_point: int
    scale: int
    shift: int
    stride: int = 1
    pad: int = 0
    depthwise: bool = False
    addend: NDArray[np.uint8] | None = None
    addend_zero_point: int = 0
    addend_scale: int = 1
    truncate: int = 0
    changed: dict[str, int] = field(default_factory=dict)

    @property
    def out_channels(self) -> int:
        return self.weights.shape[1] if self.depthwise else self.weights.shape[0]

    @property
    def out_sides(self) -> tuple[int, int]:
        kernel = self.weights.shape[2]
        sides = [(side + 2 * self.pad - kernel) // self.stride + 1 for side in self.image.shape[1:]]
        return sides[0], sides[1]

    def sums(self) -> NDArray[np.int64]:
        """The accumulators by the plain definition, biases and addend included."""
        channels, height, width = self.image.shape
        padded = np.full(
            (channels, height + 2 * self.pad, width + 2 * self.pad), self.in_zero_point, np.int64
        )
        padded[:, self.pad : self.pad + height, self.pad : self.pad + width] = self.image
        padded -= self.in_zero_point
        weights = self.weights.astype(np.int64) - self.weight_zero_point
        kernel = weights.shape[2]
        rows, columns = self.out_sides
        result = np.empty((self.out_channels, rows, columns), np.int64)
        for y in range(rows):
            for x in range(columns):
                top, left = y * self.stride, x * self.stride
                window = padded[:, top : top + kernel, left : left + kernel]
                if self.depthwise:
                    result[:, y, x] = (window * weights[0]).sum(axis=(1, 2))
                else:
                    result[:, y, x] = (window[None] * weights).sum(axis=(1, 2, 3))
        result += self.biases[:, None, None]
        if self.addend is not None:
            result += (self.addend.astype(np.int64) - self.addend_zero_point) * self.addend_scale
        return result

    def expected(self) -> NDArray[np.uint8]:
        """The output by the plain definition, halves away from zero."""
        exact = self.sums() * self.scale / 2.0**self.shift
        rounded = np.sign(exact) * np.floor(np.abs(exact) + 0.5) + self.out_zero_point
        return np.asarray(np.clip(rounded, 0, 255), np.uint8)

    def fields(self) -> dict[str, int]:
        """The registers' fields that are not 0."""
        channels, height, width = self.image.shape
        aligned = -(-channels // ATOM) * ATOM
        rows, columns = self.out_sides
        kernel, kernels = self.weights.shape[2], self.weights.shape[0]
        out_aligned = -(-self.out_channels // 32) * 32
        atoms = aligned // ATOM
        row = width * (atoms // 4) + (width if atoms % 4 == 3 else -(-width * (atoms % 4) // 4))
        pad = (self.in_zero_point - 128) & 0xFF
        adds, deep = self.addend is not None, self.depthwise
        sizes = {
            "DATAOUT_WIDTH": columns, "CORE_WIDTH": columns - 1, "CUBE_WIDTH": columns - 1,
            "WIDTH_WDMA": columns - 1, "RDMA_WIDTH": columns - 1, "CORE_HEIGHT": rows - 1,
            "CUBE_HEIGHT": rows - 1, "HEIGHT_WDMA": rows - 1, "RDMA_HEIGHT": rows - 1,
            "CORE_CHANNEL": out_aligned - 1, "CUBE_CHANNEL": out_aligned - 1,
            "CHANNEL_WDMA": out_aligned - 1, "RDMA_CHANNEL": out_aligned - 1,
        }  # fmt: skip
        deeply = {
            "CONV_MODE": 3, "DW_EN": 1, "DPU_CONV_MODE": 3, "RDMA_CONV_MODE": 3, "SIZE_E_0": 3,
            "SIZE_E_1": 3, "SIZE_E_2": 3,
        }  # fmt: skip
        flatly = {"SIZE_E_0": 1, "SIZE_E_1": 1, "SIZE_E_2": 1}
        adding = {
            "EW_CVT_TYPE": 1, "EW_DATA_MODE": 1, "EDATA_SIZE": 1, "EW_ALU_ALGO": 2, "EW_OP_SRC": 1,
            "ERDMA_DATA_MODE": 1, "ERDMA_DATA_SIZE": 1, "RDMA_COMB_USE": 5, "SRC_BASE_ADDR": ADDEND,
            "EW_BASE_ADDR": ADDEND + rows * columns * ATOM, "SURF_NOTCH_ADDR": rows * columns,
            "EW_SURF_NOTCH": rows * columns, "EW_OP_CVT_OFFSET": 128 - self.addend_zero_point,
            "EW_OP_CVT_SCALE": self.addend_scale, "EW_SURF_STRIDE": rows * columns,
        }  # fmt: skip
        plainly = {
            "EW_BYPASS": 1, "EW_OP_BYPASS": 1, "EW_OP_CVT_BYPASS": 1, "MRDMA_DISABLE": 1,
            "ERDMA_DISABLE": 1,
        }  # fmt: skip
        return {
            **sizes, **(deeply if deep else flatly), **(adding if adds else plainly),
            "WEIGHT_BANK": 6, "DATA_BANK": 6, "CONV_X_STRIDE": self.stride, "CONV_Y_STRIDE": self.stride,
            "DATAIN_WIDTH": width, "DATAIN_HEIGHT": height, "DATAIN_CHANNEL": aligned,
            "DATAIN_CHANNEL_REAL": channels - 1, "DATAOUT_ATOMICS": rows * columns,
            "WEIGHT_BYTES": kernel * kernel * aligned * kernels, "WEIGHT_KERNELS": kernels,
            "WEIGHT_BYTES_PER_KERNEL": kernel * kernel * aligned, "WEIGHT_WIDTH": kernel,
            "WEIGHT_HEIGHT": kernel, "DATA_ENTRIES": row, "DATA_SIGN": 1, "CVT_TYPE": 1, "CVT_BYPASS": 1,
            "PAD_LEFT": self.pad, "PAD_TOP": self.pad, "PAD_VALUE": pad << 8 | pad,
            "FEATURE_DATA_ADDR": INPUT, "LINE_STRIDE": width * 4,
            "SURF_STRIDE": width * height - width * 4, "DMA_WIDTH": width, "DMA_HEIGHT": height,
            "DMA_CHANNEL": aligned, "DCOMP_ADDR0": WEIGHTS, "QD_EN": 1, "CLIP_TRUNCATE": self.truncate,
            "OUTPUT_MODE": 2, "DST_BASE_ADDR": OUTPUT, "DST_SURF_STRIDE": rows * columns,
            "ORIG_CHANNEL": self.out_channels - 1, "BS_MUL_BYPASS": 1, "BS_RELU_BYPASS": 1,
            "BS_ALU_SRC": 1, "BS_ALU_ALGO": 2, "OW_OP": 128 - self.weight_zero_point, "BN_BYPASS": 1,
            "BN_ALU_BYPASS": 1, "BN_MUL_BYPASS": 1, "BN_RELU_BYPASS": 1, "EW_LUT_BYPASS": 1,
            "EW_RELU_BYPASS": 1, "OUT_CVT_OFFSET": self.out_zero_point - 128,
            "OUT_CVT_SCALE": self.scale, "OUT_CVT_SHIFT": self.shift, "BRDMA_DATA_USE": 1,
            "BS_BASE_ADDR": BIASES, **self.changed,
        }  # fmt: skip

    def stored_biases(self) -> NDArray[np.uint8]:
        """The biases as the driver stores them: with what pixels that are 128 too small lack."""
        weights = self.weights.astype(np.int64) - self.weight_zero_point
        sums = weights[0].sum(axis=(1, 2)) if self.depthwise else weights.sum(axis=(1, 2, 3))
        stored = self.biases - sums * (self.in_zero_point - 128)
        return np.asarray(stored >> self.truncate, np.int32).view(np.uint8)

    def bench(self) -> Bench:
        """The convolution in memory, ready to run."""
        rows, columns = self.out_sides
        surfaces = -(-self.out_channels // ATOM)
        words = commands(self.fields())
        # 24 channels of a zero point that is not 0 stand where Mesa fills up, too.
        signed = self.image.astype(np.int16) - 128
        contents = {
            INPUT: feature_map(signed),
            WEIGHTS: stored_weights(self.weights, depthwise=self.depthwise),
            BIASES: self.stored_biases(),
            OUTPUT: np.full(surfaces * rows * columns * ATOM, 0x5A, np.uint8),
            COMMANDS: words.view(np.uint8),
        }
        if self.addend is not None:
            contents[ADDEND] = feature_map(self.addend.astype(np.int16) - 128)
        return Bench(contents, words.size, (self.out_channels, rows, columns))


@dataclass
class Bench:
    """Memory with a job in it."""

    contents: dict[int, NDArray[np.uint8]]
    command_count: int
    out_shape: tuple[int, int, int]
    outputs: tuple[int, ...] = (OUTPUT,)

    def engine(self) -> Engine:
        """An engine on this memory."""
        everything = Access.READ | Access.WRITE
        buffers = [Buffer(address, everything, data) for address, data in self.contents.items()]
        return Engine(Buffers(buffers))

    def stream(self) -> NDArray[np.uint32]:
        """The words of the submit: one job of one task."""
        outputs = [word for each in self.outputs for word in (each, self.contents[each].size)]
        head = [1, 1, 1, len(self.outputs), COMMANDS, self.command_count]
        return np.array([*head, INPUT, *outputs], np.uint32)

    def run(self) -> NDArray[np.uint8]:
        """Run the job; return its output as unsigned bytes, (channels, height, width)."""
        self.engine().submit(self.stream())
        channels, rows, columns = self.out_shape
        laid = self.contents[OUTPUT].view(np.int8).reshape(-1, rows, columns, ATOM)
        planes = laid.transpose(0, 3, 1, 2).reshape(-1, rows, columns)[:channels]
        return np.asarray(planes.astype(np.int16) + 128, np.uint8)
