# SPDX-License-Identifier: MIT
"""One task: what a task's registers say, checked, as numbers with meanings.

A task is a convolution, with an addition of a second tensor behind it or not: all that Mesa 26.2 submits.
What it never sets is a fault where it is set, because its meaning is not known here.
Source: Mesa 26.1 src/gallium/drivers/rocket/rkt_regcmd.c and rkt_task.c.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..faults import FaultError
from .registers import ALWAYS_ZERO

ATOM = 16
"""Channels, and bytes, of one pixel of one surface of a feature map."""

MAX_VALUES = 64 << 20
"""Most weights, outputs, or pixels with their surroundings that a task may have here."""
MAX_MACS = 100_000_000_000

# Fields that Mesa leaves at one value, whatever the operation.
_CONSTANT = {
    "FC_DATA_BANK": 0, "DATA_REUSE": 0, "IN_PRECISION": 0, "PROC_PRECISION": 0, "DECONV": 0,
    "CMD_FIFO_SRST": 0, "CSC_DO_EN": 0, "CSC_WO_EN": 0, "KERNEL_GROUP": 0, "DECONV_X_STRIDE": 0,
    "DECONV_Y_STRIDE": 0, "ATROUS_X_DILATION": 0, "ATROUS_Y_DILATION": 0, "NN_MODE": 0, "SURF_MODE": 0,
    "FC_SKIP_EN": 0, "FC_SKIP_DATA": 0, "DATA_OFFSET": 0, "WEIGHT_OFFSET": 0, "DECOMP_CONTROL": 0,
    "WT_DEC_BYPASS": 0, "DCOMP_REGNUM": 0, "QD_EN": 1, "CORE_PROC_PRECISION": 0, "SOFT_GATING": 0,
    "CLIP_ROUND_TYPE": 0, "CORE_3030": 0, "FLYING_MODE": 0, "OUTPUT_MODE": 2, "SURF_LEN": 0, "NONALIGN": 0,
    "RGP_TYPE": 0, "TP_EN": 0, "COMB_USE": 0, "DATA_FORMAT": 0, "OFFSET_PEND": 0, "MINMAX_CTL": 0,
    "NOTCH_ADDR_0": 0, "NOTCH_ADDR_1": 0, "BS_BYPASS": 0, "BS_ALU_BYPASS": 0, "BS_MUL_BYPASS": 1,
    "BS_MUL_PRELU": 0, "BS_RELU_BYPASS": 1, "BS_RELUX_EN": 0, "BS_ALU_SRC": 1, "BS_ALU_ALGO": 2,
    "BS_ALU_CFG": 0, "BS_MUL_CFG": 0, "BS_RELUX_CMP_VALUE": 0, "OW_SRC": 0, "OD_BYPASS": 0, "TP_ORG_EN": 0,
    "RGP_CNTER": 0, "SIZE_C_WDMA": 0, "TP_PRECISION": 0, "BN_BYPASS": 1, "BN_ALU_CFG": 0, "BN_MUL_CFG": 0,
    "BN_RELUX_CMP_VALUE": 0, "EW_OP_TYPE": 0, "EW_MUL_PRELU": 0, "EW_LUT_BYPASS": 1, "EW_RELU_BYPASS": 1,
    "EW_RELUX_EN": 0, "EW_BINARY_EN": 0, "EW_EQUAL_EN": 0, "EW_CVT_ROUND": 0, "EW_RELUX_CMP_VALUE": 0,
    "EW_TRUNCATE": 0, "FP32TOFP16_EN": 0, "MINUS_EXP": 0, "OUT_CVT_ROUND": 0, "OUT_CVT_TYPE": 0,
    "DPU_40C4": 0, "EW_LINE_NOTCH_ADDR": 0, "BRDMA_DATA_USE": 1, "NRDMA_DATA_USE": 0, "BN_BASE_ADDR": 0,
    "ERDMA_NONALIGN": 0, "ERDMA_SURF_MODE": 0, "RDMA_FLYING_MODE": 0, "MRDMA_FP16TOFP32_EN": 0,
    "RDMA_PROC_PRECISION": 0, "RDMA_IN_PRECISION": 0, "RDMA_SRC_DMA_CFG": 0, "RDMA_PAD_CFG": 0,
    **dict.fromkeys(ALWAYS_ZERO, 0),
}  # fmt: skip


@dataclass(frozen=True)
class Conversion:
    """Multiply by ``scale``, shift right, add ``offset``: what the converters in front of and behind do."""

    offset: int
    scale: int
    shift: int


@dataclass(frozen=True)
class Addend:
    """The second tensor of an addition, in the layout of feature maps.

    Attributes:
        address: of its first surface, read by one unit; ``second_address`` of its second, read by another.
        pair_bytes: from a unit's surface to its next one; ``second_pair_bytes`` of the other unit.
        conversion: makes the accumulator's scale of its values; its offset comes first.
    """

    address: int
    second_address: int
    pair_bytes: int
    second_pair_bytes: int
    conversion: Conversion


@dataclass(frozen=True)
class Task:
    """A convolution, in pixels, channels and bytes.

    Attributes:
        channels: of the input that carry values; ``aligned_channels`` with those that fill an atom.
        line_bytes, surface_bytes: from row to row, and from one 16 channels to the next.
        input_conversion: makes signed bytes of a plane of unsigned ones; None where they are signed.
        data_entries: of 64 bytes, from one row to the next in the convolution buffer.
        pad_value: the word whose bytes stand outside the image.
        kernels: how many the weights hold; 1 for a depthwise convolution.
        weight_offset: is added to each weight.
        truncate: bits that accumulators lose before the bias comes.
        out_channels: that are written.
    """

    depthwise: bool
    width: int
    height: int
    channels: int
    aligned_channels: int
    input_address: int
    line_bytes: int
    surface_bytes: int
    input_conversion: Conversion | None
    data_entries: int
    stride_x: int
    stride_y: int
    pad_left: int
    pad_top: int
    pad_value: int
    kernel_width: int
    kernel_height: int
    kernels: int
    weights_address: int
    weight_offset: int
    bias_address: int
    truncate: int
    out_width: int
    out_height: int
    out_channels: int
    output_address: int
    out_surface_bytes: int
    output: Conversion
    addend: Addend | None

    @property
    def planar(self) -> bool:
        """Whether the input is one plane of unsigned bytes."""
        return self.input_conversion is not None

    @property
    def row_entries(self) -> int:
        """Entries of 64 bytes that a row of the input takes in the convolution buffer.

        Four pixels' atoms share an entry, two where there are two; three atoms have one for themselves,
        which Mesa's calc_entries_per_slice knows and its DATA_ENTRIES does not: on boards, its CI's 1x1
        convolutions of 48 channels fail, and those of 40 at 40 pixels, which Mesa has an exception for,
        pass.
        """
        atoms = self.aligned_channels // ATOM
        rest = self.width if atoms % 4 == 3 else -(-self.width * (atoms % 4) // 4)
        return self.width * (atoms // 4) + rest

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights as they are stored."""
        return self.kernel_height * self.kernel_width * self.aligned_channels * self.kernels

    @property
    def read_bytes(self) -> int:
        """Bytes of input, biases and second tensor, each once; the weights are left out."""
        image = self.height * self.width * (1 if self.planar else self.aligned_channels)
        return image + 4 * self.out_channels + (self.written_bytes if self.addend else 0)

    @property
    def written_bytes(self) -> int:
        """Bytes of the output, with the channels that fill its last atom."""
        return self.out_height * self.out_width * ATOM * -(-self.out_channels // ATOM)

    @property
    def macs(self) -> int:
        """Multiplications, without those with channels that only fill an atom."""
        each = 1 if self.depthwise else self.channels
        taps = self.kernel_width * self.kernel_height
        return self.out_width * self.out_height * self.out_channels * taps * each

    @property
    def reached(self) -> tuple[int, int]:
        """Rows and columns that the window reaches over, surroundings included."""
        return (
            (self.out_height - 1) * self.stride_y + self.kernel_height,
            (self.out_width - 1) * self.stride_x + self.kernel_width,
        )

    def describe(self) -> str:
        """Return the task in one line."""
        kind = "depthwise" if self.depthwise else "conv"
        text = (
            f"{kind} {self.kernel_height}x{self.kernel_width}/{self.stride_y} "
            f"{self.height}x{self.width}x{self.channels} -> "
            f"{self.out_height}x{self.out_width}x{self.out_channels}"
        )
        return text + (" + tensor" if self.addend else "")


def parse(fields: Mapping[str, int]) -> Task:
    """Return the task that registers describe.

    Raises:
        FaultError: a field is missing, says what is not understood, or contradicts another one.
    """
    check = _Check(fields)
    depthwise = _mode(check)
    width, height = check.at_least("DATAIN_WIDTH", 1), check.at_least("DATAIN_HEIGHT", 1)
    channels = check.value("DATAIN_CHANNEL_REAL") + 1
    aligned = check.at_least("DATAIN_CHANNEL", ATOM)
    if aligned % ATOM or not channels <= aligned < channels + ATOM:
        check.fail("DATAIN_CHANNEL", f"{channels} channels in atoms of {ATOM}")
    out_width = check.same("DATAOUT_WIDTH", "CORE_WIDTH", "CUBE_WIDTH", "WIDTH_WDMA", "RDMA_WIDTH")
    out_height = check.same("CORE_HEIGHT", "CUBE_HEIGHT", "HEIGHT_WDMA", "RDMA_HEIGHT")
    check.same("CORE_CHANNEL", "CUBE_CHANNEL", "CHANNEL_WDMA", "RDMA_CHANNEL")
    check.equals("DATAOUT_ATOMICS", out_width * out_height)
    check.equals("DMA_HEIGHT", height)
    check.equals("DMA_CHANNEL", aligned)
    kernel_width = check.at_least("WEIGHT_WIDTH", 1)
    kernel_height = check.at_least("WEIGHT_HEIGHT", 1)
    kernels = check.at_least("WEIGHT_KERNELS", 1)
    per_kernel = kernel_width * kernel_height * aligned
    check.equals("WEIGHT_BYTES_PER_KERNEL", per_kernel & 0x7FFFF)
    check.equals("WEIGHT_BYTES", per_kernel * kernels)
    _check_banks(check)
    if depthwise and check.value("ORIG_CHANNEL") + 1 != channels:
        check.fail("ORIG_CHANNEL", f"{channels - 1}: a depthwise convolution keeps its channels")
    planar = _planar(check)
    line, surface = _strides(check, planar=planar)
    task = Task(
        depthwise=depthwise, width=width, height=height, channels=channels, aligned_channels=aligned,
        input_address=check.value("FEATURE_DATA_ADDR"), line_bytes=line,
        surface_bytes=surface,
        input_conversion=_input_conversion(check) if planar else None,
        data_entries=check.at_least("DATA_ENTRIES", 1),
        stride_x=check.at_least("CONV_X_STRIDE", 1), stride_y=check.at_least("CONV_Y_STRIDE", 1),
        pad_left=check.value("PAD_LEFT"), pad_top=check.value("PAD_TOP"),
        pad_value=check.value("PAD_VALUE"),
        kernel_width=kernel_width, kernel_height=kernel_height, kernels=kernels,
        weights_address=check.value("DCOMP_ADDR0"), weight_offset=_signed(check.value("OW_OP"), 16),
        bias_address=check.value("BS_BASE_ADDR"), truncate=check.value("CLIP_TRUNCATE"),
        out_width=out_width, out_height=out_height, out_channels=check.value("ORIG_CHANNEL") + 1,
        output_address=check.value("DST_BASE_ADDR"),
        out_surface_bytes=check.value("DST_SURF_STRIDE") * ATOM,
        output=Conversion(
            _signed(check.value("OUT_CVT_OFFSET"), 32), check.value("OUT_CVT_SCALE"),
            check.value("OUT_CVT_SHIFT"),
        ),
        addend=_addend(check, out_width * out_height),
    )  # fmt: skip
    _bounded(task)
    return task


def _mode(check: _Check) -> bool:
    """Whether the convolution is depthwise; the units have to agree on it, and on what never changes."""
    for name, value in _CONSTANT.items():
        check.equals(name, value)
    depthwise = check.one_of("CONV_MODE", 0, 3) == 3
    for name, value in (("DW_EN", 1), ("DPU_CONV_MODE", 3), ("RDMA_CONV_MODE", 3)):
        check.equals(name, value if depthwise else 0)
    for name in ("SIZE_E_0", "SIZE_E_1", "SIZE_E_2"):
        check.equals(name, 3 if depthwise else 1)
    return depthwise


def _check_banks(check: _Check) -> None:
    """Pixels and weights share the banks of the convolution buffer."""
    if check.value("WEIGHT_BANK") + check.value("DATA_BANK") > 12 or not check.value("DATA_BANK"):
        check.fail(
            "DATA_BANK", "at least 1, and with WEIGHT_BANK at most the 12 banks that there are"
        )


def _bounded(task: Task) -> None:
    """Refuse what would take memory or time without end: registers can ask for far more than any model."""
    rows, columns = task.reached
    for name, value, most in (
        ("weights", task.weight_bytes, MAX_VALUES),
        ("pixels", rows * columns * task.channels, MAX_VALUES),
        ("outputs", task.out_height * task.out_width * task.out_channels, MAX_VALUES),
        ("multiplications", task.macs, MAX_MACS),
    ):
        if value > most:
            raise FaultError(f"task's {name}", f"at most {most}", str(value))


class _Check:
    """Looks at fields, and says which one is wrong."""

    def __init__(self, fields: Mapping[str, int]) -> None:
        self._fields = fields

    def value(self, name: str) -> int:
        if name not in self._fields:
            raise FaultError(name, "set by the task's commands", "not set")
        return self._fields[name]

    def fail(self, name: str, expected: str) -> None:
        raise FaultError(name, expected, str(self.value(name)))

    def equals(self, name: str, value: int) -> None:
        if self.value(name) != value:
            self.fail(name, f"{value} (another value is not understood)")

    def one_of(self, name: str, *values: int) -> int:
        if self.value(name) not in values:
            self.fail(name, " or ".join(map(str, values)))
        return self.value(name)

    def at_least(self, name: str, least: int) -> int:
        if self.value(name) < least:
            self.fail(name, f"at least {least}")
        return self.value(name)

    def same(self, *names: str) -> int:
        """Return the size that several units share; all but CNA's have 1 less in their registers."""
        sizes = {name: self.value(name) + (name != "DATAOUT_WIDTH") for name in names}
        first = sizes[names[0]]
        for name, size in sizes.items():
            if size != first:
                raise FaultError(name, f"{first}, as {names[0]} has it", str(size))
        return first


def _signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> bits - 1 else value


def _planar(check: _Check) -> bool:
    """Return whether the input is one plane of bytes: several fields must say the same."""
    planar = check.one_of("ARGB_IN", 0, 8) == 8
    for name in ("NONALIGN_DMA", "GROUP_LINE_OFF"):
        check.equals(name, int(planar))
    check.equals("CVT_BYPASS", int(not planar))
    check.equals("CVT_TYPE", int(not planar))
    check.equals("DATA_SIGN", int(not planar))
    check.equals("ROUND_TYPE", 0)
    check.equals("PER_CHANNEL_CVT_EN", 0xFFFF if planar else 0)
    return planar


def _strides(check: _Check, *, planar: bool) -> tuple[int, int]:
    """Return (bytes from row to row, bytes from surface to surface).

    LINE_STRIDE counts 4 bytes, or single ones of a plane; SURF_STRIDE counts atoms from behind the fourth
    row of one surface to the next.
    """
    line, surface = check.value("LINE_STRIDE"), check.value("SURF_STRIDE")
    if planar:
        return line, 0
    return line * 4, (line + _signed(surface, 28)) * ATOM


def _input_conversion(check: _Check) -> Conversion:
    """Return the conversion of a planar input; the four units of it are set alike."""
    offset, scale = check.value("CVT_OFFSET0"), check.value("CVT_SCALE0")
    truncate = check.value("CVT_TRUNCATE_0")
    for number in (1, 2, 3):
        check.equals(f"CVT_OFFSET{number}", offset)
        check.equals(f"CVT_SCALE{number}", scale)
        check.equals(f"CVT_TRUNCATE_{number}", truncate)
    return Conversion(_signed(offset, 16), scale, truncate)


def _addend(check: _Check, pixels: int) -> Addend | None:
    adds = not check.one_of("EW_BYPASS", 0, 1)
    for name in ("EW_OP_BYPASS", "EW_OP_CVT_BYPASS", "MRDMA_DISABLE", "ERDMA_DISABLE"):
        check.equals(name, int(not adds))
    for name, value in (
        ("EW_CVT_TYPE", 1), ("EW_DATA_MODE", 1), ("EDATA_SIZE", 1), ("EW_ALU_ALGO", 2), ("EW_OP_SRC", 1),
        ("ERDMA_DATA_MODE", 1), ("ERDMA_DATA_SIZE", 1), ("RDMA_COMB_USE", 5),
    ):  # fmt: skip
        check.equals(name, value if adds else 0)
    if not adds:
        return None
    conversion = Conversion(
        _signed(check.value("EW_OP_CVT_OFFSET"), 32),
        check.value("EW_OP_CVT_SCALE"),
        check.value("EW_OP_CVT_SHIFT"),
    )
    return Addend(
        check.value("SRC_BASE_ADDR"),
        check.value("EW_BASE_ADDR"),
        (pixels + check.value("SURF_NOTCH_ADDR")) * ATOM,
        (pixels + check.value("EW_SURF_NOTCH")) * ATOM,
        conversion,
    )
