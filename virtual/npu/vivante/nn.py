# SPDX-License-Identifier: MIT
"""The NN unit: a job descriptor becomes one convolution.

Fields and widths: ``struct etna_nn_params`` in Mesa 25.0.7
src/gallium/drivers/etnaviv/etnaviv_ml_nn.c; what each does: create_nn_config there. Tile sizes, cache modes
and cache addresses have no effect on the numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..faults import FaultError
from ..memory import Access, Bytes, Memory
from .coefficients import Shape
from .convolution import Geometry
from .descriptor import Field, Layout, Words
from .requant import Scale

FIRST_PIXEL = 3
_NONE = (0,)
_FLAG = (0, 1)

LAYOUT = Layout(
    (
        Field("layer_type", 1, _NONE),
        Field("no_z_offset", 1),
        Field("kernel_xy_size", 4),
        Field("kernel_z_size", 14),
        Field("kernels_per_core", 7),
        Field("pooling", 2, (0, FIRST_PIXEL)),
        Field("pooling_xy_size", 1),
        Field("prelu", 1, _NONE),
        Field("nn_layer_flush", 1),
        Field("kernel_data_type", 2, _NONE),
        Field("in_image_data_type", 2, _NONE),
        Field("out_image_data_type", 2, _NONE),
        Field("in_image_x_size", 13),
        Field("in_image_y_size", 13),
        Field("in_image_x_offset", 3),
        Field("in_image_y_offset", 3),
        Field("unused0", 1, _NONE),
        Field("brick_mode", 1, _NONE),
        Field("brick_distance", 16, _NONE),
        Field("relu", 1),
        Field("unused1", 1, _NONE),
        Field("post_multiplier", 1),
        Field("post_shift", 5),
        Field("unused2", 3, _NONE),
        Field("no_flush", 1),
        Field("unused3", 2, _NONE),
        Field("out_image_x_size", 13),
        Field("out_image_y_size", 13),
        Field("out_image_z_size", 14),
        Field("rounding_mode", 2, (1,)),
        Field("in_image_x_offset_bit_3", 1),
        Field("in_image_y_offset_bit_3", 1),
        Field("out_image_tile_x_size", 7),
        Field("out_image_tile_y_size", 7),
        Field("kernel_address", 26),
        Field("kernel_z_size2", 6),
        Field("in_image_address", 32),
        Field("out_image_address", 32),
        Field("image_caching_mode", 2),
        Field("kernel_caching_mode", 2),
        Field("partial_cache_data_unit", 2),
        Field("kernel_pattern_msb", 6),
        Field("kernel_y_size", 4),
        Field("out_image_y_stride", 16),
        Field("kernel_pattern_low", 32),
        Field("kernel_pattern_high", 32),
        Field("kernel_cache_start_address", 32),
        Field("kernel_cache_end_address", 32),
        Field("image_cache_start_address", 32),
        Field("image_cache_end_address", 32),
        Field("in_image_border_mode", 2, _NONE),
        Field("in_image_border_const", 16),
        Field("unused4", 1, _NONE),
        Field("kernel_data_type_bit_2", 1, _NONE),
        Field("in_image_data_type_bit_2", 1, _NONE),
        Field("out_image_data_type_bit_2", 1, _NONE),
        Field("post_multiplier_1_to_6", 6),
        Field("post_shift_bit_5_6", 2),
        Field("unused5", 2, _NONE),
        Field("in_image_x_stride", 16),
        Field("in_image_y_stride", 16),
        Field("out_image_x_stride", 16),
        Field("unused6", 8, _NONE),
        Field("post_multiplier_7_to_14", 8),
        Field("out_image_circular_buf_size", 26, _NONE),
        Field("per_channel_post_mul", 1, _NONE),
        Field("unused7_0", 1, _NONE),
        Field("unused7_1", 1, _NONE),
        Field("unused7_2", 1, _FLAG),  # v8 sets these two where the input is padded
        Field("unused7_3", 2, _FLAG),
        Field("out_image_circular_buf_end_addr_plus_1", 26, (0x3FFFFFF,)),
        Field("unused8", 6, _NONE),
        Field("in_image_circular_buf_size", 26, _NONE),
        Field("unused9", 6, _NONE),
        Field("in_image_circular_buf_end_addr_plus_1", 26, (0x3FFFFFF,)),
        Field("unused10", 6, _NONE),
        Field("coef_zero_point", 8),
        Field("out_zero_point", 8),
        Field("kernel_direct_stream_from_VIP_sram", 1, _NONE),
        Field("depthwise", 1),
        Field("post_multiplier_15_to_22", 8),
        Field("unused11", 6, _NONE),
        Field("unused12", 32, _NONE),
        Field("unused13_14", 32, _NONE),
        Field("unused15_16", 32, _NONE),
        Field("further1", 32, _NONE),
        Field("further2", 32, _NONE),
        Field("further3", 32, (0x3FFFFFF,)),
        Field("further4", 32, (0x7F800000,)),
        Field("further5", 32, (0xFF800000,)),
        Field("further6", 32, _NONE),
        Field("further7", 32, _NONE),
        Field("further8", 32, _NONE),
    )
)

MAX_MACS = 100_000_000_000
"""Most multiplications that one job may ask for: bounds the time of a garbage descriptor."""
MAX_PIXELS = 16 << 20
"""Most pixels of an input with its border, or of an output: bounds the memory of one."""


@dataclass(frozen=True)
class NnJob:
    """One NN job in the emulator's terms; sizes in pixels, strides in bytes.

    Attributes:
        in_plane: distance of the input's channel planes; in_row: of its rows. Likewise out_.
        low: smallest output value (the zero point with a fused RELU, else 0).
        coefficients_address: GPU address of the coefficient stream.
    """

    shape: Shape
    geometry: Geometry
    in_address: int
    in_height: int
    in_width: int
    in_row: int
    in_plane: int
    out_address: int
    out_row: int
    out_plane: int
    out_zero_point: int
    low: int
    scale: Scale
    coefficients_address: int

    @property
    def macs(self) -> int:
        """Multiplications of the convolution, as a dense one."""
        shape, geometry = self.shape, self.geometry
        return shape.weights * geometry.out_height * geometry.out_width

    @property
    def read_bytes(self) -> int:
        """Bytes of its descriptor and its input, each once; the coefficients come on top."""
        return 4 * LAYOUT.size_words + self.shape.in_channels * self.in_height * self.in_width

    @property
    def written_bytes(self) -> int:
        """Bytes of its output."""
        return self.shape.out_channels * self.geometry.out_height * self.geometry.out_width

    def describe(self) -> str:
        """Return the job in a few words, as channels x height x width."""
        shape, geometry = self.shape, self.geometry
        kind = "depthwise " if shape.depthwise else ""
        keep = ", every 2nd pixel" if geometry.step == 2 else ""
        return (
            f"{kind}{shape.height}x{shape.width} convolution "
            f"{shape.in_channels}x{self.in_height}x{self.in_width} -> "
            f"{shape.out_channels}x{geometry.out_height}x{geometry.out_width}{keep}"
        )


def parse(words: Words, generation: int) -> NnJob:
    """Return the job that a descriptor of ``LAYOUT.size_words`` words describes.

    Raises:
        FaultError: a field has a value that is not understood or not possible.
    """
    field = LAYOUT.unpack(words)
    if field["depthwise"] and generation < 8:
        raise FaultError("depthwise", f"0 on generation {generation}", "1")
    for name in ("in_image_x_size", "in_image_y_size", "out_image_x_size", "out_image_y_size"):
        if not field[name]:
            raise FaultError(name, "at least 1", "0")
    geometry = _geometry(field)
    shape = _shape(field)
    shape.check()
    job = NnJob(
        shape=shape,
        geometry=geometry,
        in_address=field["in_image_address"],
        in_height=field["in_image_y_size"],
        in_width=field["in_image_x_size"],
        in_row=field["in_image_x_stride"],
        in_plane=field["in_image_x_stride"] * field["in_image_y_stride"],
        out_address=field["out_image_address"],
        out_row=field["out_image_x_stride"],
        out_plane=shape.plane_bytes,
        out_zero_point=field["out_zero_point"],
        low=field["out_zero_point"] if field["relu"] else 0,
        scale=_scale(field, generation),
        coefficients_address=field["kernel_address"] << 6,
    )
    _check_size(job)
    return job


def _geometry(field: Mapping[str, int]) -> Geometry:
    step = 2 if field["pooling"] == FIRST_PIXEL else 1
    geometry = Geometry(
        out_height=-(-field["out_image_y_size"] // step),
        out_width=-(-field["out_image_x_size"] // step),
        step=step,
        pad_y=-_signed4(field["in_image_y_offset"] | field["in_image_y_offset_bit_3"] << 3),
        pad_x=-_signed4(field["in_image_x_offset"] | field["in_image_x_offset_bit_3"] << 3),
        border=field["in_image_border_const"],
    )
    if geometry.border > 255:
        raise FaultError("in_image_border_const", "0 to 255", str(geometry.border))
    for axis, size in (("x", geometry.out_width), ("y", geometry.out_height)):
        stride = field[f"out_image_{axis}_stride"]
        if stride < size:
            raise FaultError(f"out_image_{axis}_stride", f"at least {size}", str(stride))
    return geometry


def _shape(field: Mapping[str, int]) -> Shape:
    return Shape(
        in_channels=field["kernel_z_size"] | field["kernel_z_size2"] << 14,
        out_channels=field["out_image_z_size"],
        height=field["kernel_y_size"],
        width=field["kernel_xy_size"],
        zero_point=field["coef_zero_point"],
        depthwise=bool(field["depthwise"]),
        kernels=field["kernels_per_core"],
        plane_bytes=field["out_image_x_stride"] * field["out_image_y_stride"],
        whole_input=(field["kernel_xy_size"], field["kernel_y_size"])
        == (field["in_image_x_size"], field["in_image_y_size"]),
    )


def _scale(field: Mapping[str, int], generation: int) -> Scale:
    """Return what accumulators are multiplied with: 15 bits behind a leading 1, 23 from generation 8 on."""
    mantissa = (
        field["post_multiplier"]
        | field["post_multiplier_1_to_6"] << 1
        | field["post_multiplier_7_to_14"] << 7
    )
    shift = field["post_shift"] | field["post_shift_bit_5_6"] << 5
    if generation < 8:
        if field["post_multiplier_15_to_22"]:
            raise FaultError("post_multiplier_15_to_22", "0 on generation 7", "not 0")
        scale = Scale((1 << 15) + mantissa, shift)
    else:
        mantissa |= field["post_multiplier_15_to_22"] << 15
        scale = Scale((1 << 23) + mantissa, shift + 23)
    # An accumulator has 32 bits; its product with a mantissa of 24 must stay within 63 here.
    if scale.shift > 62:
        raise FaultError("post_shift", "a shift of at most 62", str(scale.shift))
    return scale


def _check_size(job: NnJob) -> None:
    """Raise a FaultError where the job would take too much memory or time here."""
    shape, geometry = job.shape, job.geometry
    rows = (geometry.out_height - 1) * geometry.step + shape.height
    columns = (geometry.out_width - 1) * geometry.step + shape.width
    for what, pixels in (
        ("input with border", rows * columns * shape.in_channels),
        ("output", geometry.out_height * geometry.out_width * shape.out_channels),
    ):
        if pixels > MAX_PIXELS:
            raise FaultError(what, f"at most {MAX_PIXELS} pixels", str(pixels))
    if job.macs > MAX_MACS:
        raise FaultError("convolution", f"at most {MAX_MACS} multiplications", str(job.macs))


def read_image(job: NnJob, memory: Memory) -> Bytes:
    """Return a view of the input, (channels, height, width)."""
    return _planes(
        memory,
        job.in_address,
        (job.shape.in_channels, job.in_height, job.in_width),
        (job.in_plane, job.in_row),
        Access.READ,
    )


def output_image(job: NnJob, memory: Memory) -> Bytes:
    """Return a view of the output, (channels, height, width), to be written."""
    geometry = job.geometry
    return _planes(
        memory,
        job.out_address,
        (job.shape.out_channels, geometry.out_height, geometry.out_width),
        (job.out_plane, job.out_row),
        Access.WRITE,
    )


def _planes(
    memory: Memory,
    address: int,
    shape: tuple[int, ...],
    strides: tuple[int, int],
    access: Access,
) -> Bytes:
    channels, height, width = shape
    plane, row = strides
    size_bytes = plane * (channels - 1) + row * (height - 1) + width
    flat = memory.view(address, size_bytes, access)
    return np.lib.stride_tricks.as_strided(flat, (channels, height, width), (plane, row, 1))


def _signed4(value: int) -> int:
    return (value ^ 8) - 8
