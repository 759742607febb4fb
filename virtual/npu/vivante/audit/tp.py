# SPDX-License-Identifier: MIT
"""Looks at TP jobs: are bytes where the descriptor's counters put them, and is the border the model's?

Some bytes of each job are followed by hand, one at a time, by code of its own: no array operation of the
emulator's. What a job must bring where is not checked against the model here, but for where an image begins
that is folded (2x2 pixels into 4 planes, for a convolution of stride 2): a wrong order shows in the sums of
the NN job that reads it, or in the model's outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from userspace.npu.model.graph import Operation, Tensor

from ...finding import Blame, Finding
from ...memory import Bytes
from ..tp import TpJob

_PLACES = 9
"""Bytes of a job that are followed: bounds the audit's time."""


def moved_bytes(job: TpJob, image: Bytes, target: Bytes) -> Iterator[Finding]:
    """Follow some bytes from the input to the address that the loops give them.

    Args:
        image: the input before the job, (planes, rows, columns).
        target: output after the job, from its base address on.
    """
    if job.lookup:
        return  # one table for all bytes, in the input's order: see ``ExactMode.table``
    total = job.bytes_moved
    for number in sorted({total * step // _PLACES for step in range(_PLACES)} | {total - 1}):
        expected, place = _value(job, image, number), _offset(job, number)
        found = int(target[place]) if place < target.size else -1
        if found != expected:
            yield Finding(
                f"byte {number} of the TP job, at {job.out_address + place:#x}",
                f"{expected} after the descriptor",
                str(found) if found >= 0 else "nothing written",
                blame=Blame.EMULATOR,
                evidence="followed by hand through the descriptor's counters",
            )
            return


def border(job: TpJob, tensors: Sequence[Tensor]) -> Iterator[Finding]:
    """Compare the value of a border with the zero points of the model's tensors of the image's size."""
    if job.lookup:
        return
    x0, y0, x1, y1 = job.window
    _, rows, columns = job.size
    if x0 >= 0 and y0 >= 0 and x1 < columns and y1 < rows and not any(job.extra_planes):
        return
    same_size = [
        each
        for each in tensors
        if len(each.shape) == 4 and set(each.shape[1:3]) == {rows, columns} and each.scales
    ]
    zero_points = sorted({each.zero_point for each in same_size})
    if zero_points and job.out_zero_point not in zero_points:
        yield Finding(
            "out_zp of a job with a border",
            f"{' or '.join(map(str, zero_points))}, the zero point of {same_size[0].name}",
            str(job.out_zero_point),
            blame=Blame.SUBMISSION,
            evidence="recomputed from the model",
        )


def rows_apart(job: TpJob) -> Iterator[Finding]:
    """Rows that overlap belong to an image whose rows were taken for columns."""
    _, rows, columns = job.size
    if not job.lookup and rows > 1 and job.stride_bytes < columns:
        yield Finding(
            "in_image_stride",
            f"at least {columns}, the pixels of a row",
            str(job.stride_bytes),
            blame=Blame.SUBMISSION,
            evidence=f"its {rows} rows overlap",
        )


def folds(job: TpJob) -> bool:
    """Whether a job folds 2x2 pixels into 4 planes."""
    if job.lookup or (job.counts[0], job.counts[2]) != (2, 2) or not job.increments[0]:
        return False
    plane = job.increments[0]
    return (job.increments[2], job.increments[6]) == (2 * plane, 4 * plane)


def folded_at(job: TpJob, operators: Sequence[Operation]) -> Iterator[Finding]:
    """Compare where a job begins that folds pixels with a strided convolution's padding.

    Mesa shares an image out among the TP cores by rows, columns or planes. Where a job has part of an axis
    and begins at 0, it may be a later part: nothing is said about that axis.
    """
    if not folds(job) or not job.stride_bytes:
        return
    whole = (job.slice_bytes // job.stride_bytes, job.stride_bytes)
    starts = (job.window[1], job.window[0])
    judged = [axis for axis in (1, 0) if job.size[1 + axis] >= whole[axis] or starts[axis] < 0]
    allowed: dict[tuple[int, int], str] = {}
    for each in operators:
        source, weights, target = (*each.inputs[:2], *each.outputs[:1])
        if each.strides != (2, 2) or source is None or weights is None or target is None:
            continue
        pads = (padding(each, 0), padding(each, 1))
        # Mesa takes rows for columns in some shapes.
        for turned in (1, -1):
            if whole == source.shape[1:3][::turned]:
                allowed[pads[::turned][0], pads[::turned][1]] = each.name
    right = any(all(-starts[axis] == pads[axis] for axis in judged) for pads in allowed)
    if allowed and not right:
        pads, name = next(iter(allowed.items()))
        fields = ", ".join(f"in_window_{'yx'[axis]}_start" for axis in judged)
        yield Finding(
            f"{fields} of a job that folds pixels",
            ", ".join(str(-pads[axis]) for axis in judged) + ": the padding before the image",
            ", ".join(str(starts[axis]) for axis in judged),
            operation=name,
            blame=Blame.SUBMISSION,
            evidence="recomputed from the model",
        )


def padding(operator: Operation, axis: int) -> int:
    """Return how many rows (0) or columns (1) of padding stand before a convolution's image.

    TensorFlow puts the odd one of SAME behind it.
    """
    source, weights, target = operator.inputs[0], operator.inputs[1], operator.outputs[0]
    if not operator.same or source is None or weights is None or target is None:
        return 0
    sizes = [each.shape[1 + axis] for each in (source, weights, target)]
    return max((sizes[2] - 1) * operator.strides[axis] + sizes[1] - sizes[0], 0) // 2


def _value(job: TpJob, image: Bytes, number: int) -> int:
    """Return what the scan's byte of a number must be."""
    x0, y0, x1, y1 = job.window
    high, wide = y1 - y0 + 1, x1 - x0 + 1
    tile_x, tile_y = job.tile
    plane, rest = divmod(number, high * wide)
    tile, inside = divmod(rest, tile_x * tile_y)
    down, right = divmod(tile, wide // tile_x)
    y, x = divmod(inside, tile_x)
    y, x = y0 + down * tile_y + y, x0 + right * tile_x + x
    plane -= job.extra_planes[0]
    planes, rows, columns = image.shape
    if not (0 <= plane < planes and 0 <= y < rows and 0 <= x < columns):
        return job.out_zero_point
    return min(max(int(image[plane, y, x]) - job.in_zero_point + job.out_zero_point, 0), 255)


def _offset(job: TpJob, number: int) -> int:
    """Return where the loops put the scan's byte of a number, innermost loop first."""
    place = 0
    for count, increment in zip(job.counts, job.increments, strict=False):
        number, step = divmod(number, count)
        place += step * increment
    return place + number * job.increments[-1]
