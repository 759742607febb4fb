# SPDX-License-Identifier: MIT
"""The TP unit: a job descriptor moves bytes: transposes, reshuffles, pads.

Fields and widths: ``struct etna_tp_params`` in Mesa 25.0.7
src/gallium/drivers/etnaviv/etnaviv_ml_tp.c; values that are fixed: set_default_tp_config there. A window
of the input is scanned tile by tile; seven nested counters give the output addresses. Jobs of Mesa 26 with
a look-up table (create_pwl_lut_config) have tiles that the window's edges cut off: there, counts of 0 mean
as many as the tile has; general PAD (create_pad_config) adds planes before and after.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..faults import FaultError
from ..memory import Access, Bytes, Memory
from .descriptor import Field, Layout, Words
from .lookup import Lookup

_NONE = (0,)
_ON = (1,)
_FLAG = (0, 1)

LAYOUT = Layout(
    (
        Field("in_image_x_size", 16),
        Field("unused0", 16, _NONE),
        Field("in_image_y_size", 16),
        Field("in_image_z_size", 16),
        Field("in_image_stride", 16),
        Field("unused1", 16, _NONE),
        Field("in_image_slice", 32),
        Field("in_window_x_start", 16),
        Field("in_window_y_start", 16),
        Field("in_window_x_end", 16),
        Field("in_window_y_end", 16),
        Field("in_tile_sequence", 2, _NONE),
        Field("in_tile_global_mem", 1, _NONE),
        Field("in_image_global_mem", 1, _ON),
        Field("alu_i2f_enable", 1, _ON),
        Field("alu_square_enable", 1, _NONE),
        Field("alu_horz_processing", 3, _NONE),
        Field("alu_horz_proc_count", 6, _NONE),
        Field("alu_horz_proc_stride", 1, _NONE),
        Field("alu_vert_processing", 2, _NONE),
        Field("unused2", 1, _NONE),
        Field("alu_vert_proc_count", 6, _NONE),
        Field("alu_vert_proc_stride", 1, _NONE),
        Field("alu_nms_enable", 1, _NONE),
        Field("alu_pwl_enable", 1, _FLAG),
        Field("alu_mult_enable", 1, _NONE),
        Field("alu_f2i_enable", 1, _ON),
        Field("alu_load_pwl_lut", 1, _FLAG),
        Field("alu_load_pwl_lut_global_mem", 1, _FLAG),
        Field("in_tile_list_address", 32, _NONE),
        Field("in_tile_x_size", 16),
        Field("in_tile_y_size", 16),
        Field("in_tile_x_inc", 16),
        Field("in_tile_y_inc", 16),
        Field("in_image_base_address", 32),
        Field("alu_load_pwl_lut_address", 32),
        Field("out_tile_skip_at_border", 1, _NONE),
        Field("out_image_global_mem", 1, _ON),
        Field("out_loop_1_reset", 1, _FLAG),
        Field("out_loop_2_reset", 1, _FLAG),
        Field("out_loop_3_reset", 1, _FLAG),
        Field("out_brick_mode", 1, _NONE),
        Field("alu_z_filter_mode", 1, _NONE),
        Field("unused3", 1, _NONE),
        Field("in_window_z_start_overfetch", 2),
        Field("unused4", 1, _NONE),
        Field("in_window_z_end_overfetch", 2),
        Field("unused5", 1, _NONE),
        Field("alu_square_preshift", 4, _NONE),
        Field("in_image_data_type", 3, _NONE),
        Field("out_image_data_type", 3, _NONE),
        Field("unused6", 4, _NONE),
        Field("alu_pwl_sign_support", 1, _FLAG),
        Field("alu_relu_enable", 1, _NONE),
        Field("no_flush", 1),
        Field("last", 1),
        Field("out_image_base_address", 32),
        Field("out_loop_0_inc", 32),
        Field("out_loop_1_inc", 32),
        Field("out_loop_0_count", 16),
        Field("out_loop_1_count", 16),
        Field("out_loop_2_inc", 32),
        Field("out_loop_3_inc", 32),
        Field("out_loop_2_count", 16),
        Field("out_loop_3_count", 16),
        Field("out_loop_4_inc", 32),
        Field("out_loop_5_inc", 32),
        Field("out_loop_4_count", 16),
        Field("out_loop_5_count", 16),
        Field("out_loop_6_inc", 32),
        Field("alu_filter_pwl_swap", 1, _NONE),
        Field("flat_rounding_mode", 2, _ON),
        Field("integer_rounding_mode", 2, _ON),
        Field("alu_input_preshift", 5, _NONE),
        Field("alu_output_postshift", 5),
        Field("alu_reorder_bits_used", 4, _NONE),
        Field("alu_reorder_loop_2_mode", 1, _NONE),
        Field("unused7", 4, _NONE),
        Field("in_image_border_mode", 2, _NONE),
        Field("alu_output_postshift_5_6", 2),
        Field("unused8", 4, _NONE),
        Field("in_image_circular_buf_size", 32, _NONE),
        Field("in_image_circular_buf_end_address_plus_1", 32, (0x3FFFFFF,)),
        Field("out_image_circular_buf_size", 32, _NONE),
        Field("out_image_circular_buf_end_address_plus_1", 32, (0x3FFFFFF,)),
        Field("in_image_border_const", 16, _NONE),
        Field("coef_zp", 8, _NONE),
        Field("in_zp", 8),
        Field("out_zp", 8),
        Field("alu_output_post_multiplier", 15),
        Field("unused9", 9, _NONE),
    )
)

MAX_BYTES = 32 << 20
"""Most bytes that one job may move: bounds memory and time of a garbage descriptor."""

_LOOPS = 7


@dataclass(frozen=True)
class TpJob:
    """One TP job in the emulator's terms.

    Attributes:
        size: of the input image: (planes, rows, columns); slice and stride are bytes.
        window: x start, y start, x end, y end; ends included; may reach outside the image.
        tile: columns, rows.
        counts: of the loops, innermost first; the last runs as often as there are bytes.
        increments: bytes that each loop adds to the output address, innermost first.
        extra_planes: planes of border before and after the input's own.
        lookup: table that pixels go through; None moves them.
    """

    address: int
    size: tuple[int, int, int]
    slice_bytes: int
    stride_bytes: int
    window: tuple[int, int, int, int]
    tile: tuple[int, int]
    out_address: int
    counts: tuple[int, ...]
    increments: tuple[int, ...]
    in_zero_point: int
    out_zero_point: int
    extra_planes: tuple[int, int] = (0, 0)
    lookup: Lookup | None = None

    @property
    def bytes_moved(self) -> int:
        """Bytes that the job writes."""
        x0, y0, x1, y1 = self.window
        return (self.size[0] + sum(self.extra_planes)) * (x1 - x0 + 1) * (y1 - y0 + 1)

    @property
    def read_bytes(self) -> int:
        """Bytes of its descriptor and of what it moves, each once; a border is not read."""
        planes, rows, columns = self.size
        return 4 * LAYOUT.size_words + min(self.bytes_moved, planes * rows * columns)

    def describe(self) -> str:
        """Return the job in a few words, as planes x rows x columns."""
        planes, rows, columns = self.size
        doing = "look up" if self.lookup else "move"
        return f"{doing} {planes}x{rows}x{columns}, window {self.window}, {self.bytes_moved} bytes"


def parse(words: Words) -> TpJob:
    """Return the job that a descriptor of ``LAYOUT.size_words`` words describes.

    Raises:
        FaultError: a field has a value that is not understood or not possible.
    """
    field = LAYOUT.unpack(words)
    lookup = _lookup_of(field)
    edges = ("x_start", "y_start", "x_end", "y_end")
    x0, y0, x1, y1 = (_signed16(field[f"in_window_{edge}"]) for edge in edges)
    for axis, start, end in (("x", x0, x1), ("y", y0, y1)):
        length, tile = end - start + 1, field[f"in_tile_{axis}_size"]
        if length < 1:
            raise FaultError(f"in_window_{axis}_end", f"at least {start}", str(end))
        if not tile or (length % tile and not lookup):
            raise FaultError(f"in_tile_{axis}_size", f"a divisor of {length}", str(tile))
        if field[f"in_tile_{axis}_inc"] != tile:
            raise FaultError(f"in_tile_{axis}_inc", str(tile), str(field[f"in_tile_{axis}_inc"]))
    # Mesa shares planes out among cores, also fewer planes than cores: the last jobs have none.
    for axis in "xyz" if lookup else "xy":
        if not field[f"in_image_{axis}_size"]:
            raise FaultError(f"in_image_{axis}_size", "at least 1", "0")
    for loop in range(_LOOPS - 1):
        # Counts of 0 mean "to the tile's end"; seen in loops 1 and 2 of look-up jobs only.
        if not field[f"out_loop_{loop}_count"] and not (lookup and loop in (1, 2)):
            raise FaultError(f"out_loop_{loop}_count", "at least 1", "0")
    job = TpJob(
        address=field["in_image_base_address"],
        size=(field["in_image_z_size"], field["in_image_y_size"], field["in_image_x_size"]),
        slice_bytes=field["in_image_slice"],
        stride_bytes=field["in_image_stride"],
        window=(x0, y0, x1, y1),
        tile=(field["in_tile_x_size"], field["in_tile_y_size"]),
        out_address=field["out_image_base_address"],
        counts=tuple(field[f"out_loop_{loop}_count"] for loop in range(_LOOPS - 1)),
        increments=tuple(field[f"out_loop_{loop}_inc"] for loop in range(_LOOPS)),
        in_zero_point=field["in_zp"],
        out_zero_point=field["out_zp"],
        extra_planes=(field["in_window_z_start_overfetch"], field["in_window_z_end_overfetch"]),
        lookup=lookup,
    )
    if lookup:
        _check_lookup(job, field)
    if job.bytes_moved > MAX_BYTES:
        raise FaultError("TP job", f"at most {MAX_BYTES} bytes", str(job.bytes_moved))
    return job


def _lookup_of(field: dict[str, int]) -> Lookup | None:
    """Return the table that a job uses, None if it only moves."""
    flags = ("alu_pwl_enable", "alu_load_pwl_lut", "alu_load_pwl_lut_global_mem")
    scale = (
        "alu_load_pwl_lut_address",
        "alu_pwl_sign_support",
        "alu_output_post_multiplier",
        "alu_output_postshift",
        "alu_output_postshift_5_6",
    )
    if not any(field[name] for name in flags):
        for name in scale:
            if field[name]:
                raise FaultError(f"{name} without alu_pwl_enable", "0", f"{field[name]:#x}")
        return None
    for name in (*flags, "alu_pwl_sign_support"):
        if not field[name]:
            raise FaultError(f"{name} of a look-up job", "1", "0")
    shift = field["alu_output_postshift"] | field["alu_output_postshift_5_6"] << 5
    return Lookup(
        address=field["alu_load_pwl_lut_address"],
        multiplier=(1 << 15) + field["alu_output_post_multiplier"],
        shift=((shift ^ 0x40) - 0x40) + 15,
        in_zero_point=field["in_zp"],
        out_zero_point=field["out_zp"],
    )


def _check_lookup(job: TpJob, field: dict[str, int]) -> None:
    """Check that a look-up job is of the one form that Mesa writes.

    Raises:
        FaultError: it is not.
    """
    _, rows, columns = job.size
    tile_x, tile_y = job.tile
    expected = {
        "window": ((0, 0, columns - 1, rows - 1), job.window),
        "z overfetch": ((0, 0), job.extra_planes),
        "counts of the loops": (
            (1, 0, 0, -(-columns // tile_x), -(-rows // tile_y), 1),
            job.counts,
        ),
        "increments of the loops": (
            (0, 1, columns, tile_x, columns * tile_y, 0, columns * rows),
            job.increments,
        ),
        "resets of the loops": (
            (1, 1, 0),
            tuple(field[f"out_loop_{loop}_reset"] for loop in (1, 2, 3)),
        ),
    }
    for name, (wanted, found) in expected.items():
        if wanted != found:
            raise FaultError(f"{name} of a look-up job", str(wanted), str(found))


def run(job: TpJob, memory: Memory, *, table: Bytes | None = None) -> Bytes:
    """Run a job on memory, and return its output from the base address on.

    Args:
        table: output for each pixel value of a look-up job.

    Raises:
        FaultError: it reads or writes outside its buffers, or writes a byte more than once.
    """
    if job.lookup:
        if table is None:
            raise RuntimeError("a job that looks values up has no table")
        # Tile by tile, but what is written is the input's order: see ``_check_lookup``.
        source = read_image(job, memory)
        target = memory.view(job.out_address, job.bytes_moved, Access.WRITE)
        target[...] = table[source].reshape(-1)
        return target
    if not job.bytes_moved:
        return np.zeros(0, np.uint8)
    counts, increments = _loops(job, job.bytes_moved)
    last = sum((count - 1) * step for count, step in zip(counts, increments, strict=True))
    values = _scan(job, memory)
    if math.prod(counts) == values.size:
        target = memory.view(job.out_address, last + 1, Access.WRITE)
        if not _injective(counts, increments):
            _check_once(_addresses(counts, increments), values.size)
        shape, strides = counts[::-1], increments[::-1]
        np.lib.stride_tricks.as_strided(target, shape, strides)[...] = values.reshape(shape)
        return target
    places = _addresses(counts, increments)[: values.size]
    _check_once(places, values.size)
    target = memory.view(job.out_address, int(places.max()) + 1, Access.WRITE)
    target[places] = values
    return target


def read_image(job: TpJob, memory: Memory) -> Bytes:
    """Return a job's input, (planes, rows, columns), as a view.

    Raises:
        MemoryFaultError: some of it is not in a buffer that the submit lets be read.
    """
    planes, rows, columns = job.size
    if not planes:
        return np.zeros(job.size, np.uint8)
    size_bytes = job.slice_bytes * (planes - 1) + job.stride_bytes * (rows - 1) + columns
    flat = memory.view(job.address, size_bytes, Access.READ)
    return np.lib.stride_tricks.as_strided(flat, job.size, (job.slice_bytes, job.stride_bytes, 1))


def _scan(job: TpJob, memory: Memory) -> NDArray[np.uint8]:
    """Return the output bytes in the order in which the window is scanned."""
    planes = job.size[0]
    image = read_image(job, memory)
    x0, y0, x1, y1 = job.window
    inside = image[:, max(y0, 0) : max(y1 + 1, 0), max(x0, 0) : max(x1 + 1, 0)]
    if job.in_zero_point != job.out_zero_point:
        shifted = np.arange(256) - job.in_zero_point + job.out_zero_point
        inside = np.clip(shifted, 0, 255).astype(np.uint8)[inside]
    high, wide = y1 - y0 + 1, x1 - x0 + 1
    if inside.shape != (planes, high, wide):
        # Outside the image stands the border constant, 0, which the output zero point is added to.
        window = np.full((planes, high, wide), job.out_zero_point, np.uint8)
        top, left = max(-y0, 0), max(-x0, 0)
        window[:, top : top + inside.shape[1], left : left + inside.shape[2]] = inside
        inside = window
    if any(job.extra_planes):
        before, after = job.extra_planes
        grown = np.full((before + planes + after, high, wide), job.out_zero_point, np.uint8)
        grown[before : before + planes] = inside
        inside, planes = grown, before + planes + after
    tile_x, tile_y = job.tile
    tiled = inside.reshape(planes, high // tile_y, tile_y, wide // tile_x, tile_x)
    return tiled.transpose(0, 1, 3, 2, 4).flatten()


def _loops(job: TpJob, size: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return counts and increments of the loops that run for ``size`` bytes."""
    inner = 1
    for loop, count in enumerate(job.counts):
        if inner * count >= size:
            return (*job.counts[:loop], -(-size // inner)), job.increments[: loop + 1]
        inner *= count
    return (*job.counts, -(-size // inner)), job.increments


def _injective(counts: tuple[int, ...], increments: tuple[int, ...]) -> bool:
    """Whether it is plain that no two steps of the loops give the same address."""
    reach = 0
    for step, count in sorted(zip(increments, counts, strict=True)):
        if count > 1:
            if step <= reach:
                return False
            reach += (count - 1) * step
    return True


def _addresses(counts: tuple[int, ...], increments: tuple[int, ...]) -> NDArray[np.int64]:
    places = np.zeros(1, np.int64)
    for count, step in zip(counts, increments, strict=True):
        places = (np.arange(count, dtype=np.int64)[:, None] * step + places).reshape(-1)
    return places


def _check_once(places: NDArray[np.int64], size: int) -> None:
    different = np.unique(places).size
    if different != size:
        raise FaultError(
            "out_loop counts and increments",
            f"{size} bytes written once",
            f"{different} different addresses",
        )


def _signed16(value: int) -> int:
    return (value ^ 0x8000) - 0x8000
