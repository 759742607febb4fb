# SPDX-License-Identifier: MIT
"""An output of a row, from the runner's record to numbers. Pure."""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..records import OutputRecord

Reals = NDArray[np.float64]
# Of the numbers that are not finite in the reference, as many more may be in another row: one in so many.
_FEW = 20


@dataclass(frozen=True)
class Values:
    """An output's numbers.

    Attributes:
        raw: as the model gives them, in the output's shape.
        real: what they mean: scale * (raw - zero point); raw where they are not quantised.
        step: by how much neighbouring values differ; 0 where values are not in steps, or nobody knows.
        short: of numbers of classes, places x classes: by how much each class is worse than the best one,
            as a share of the spread of all scores; None where that is not known.
    """

    raw: NDArray[Any]
    real: Reals
    step: float
    short: NDArray[np.float32] | None = None


def raw_values(record: OutputRecord) -> NDArray[Any]:
    """Return a record's values as they are, in its shape; complex ones as pairs on one more axis."""
    content = zlib.decompress(base64.b64decode(record["data"]))
    values = np.frombuffer(content, np.dtype(record["dtype"]))
    values = values.reshape(record["shape"]) if "shape" in record else values
    return np.stack([values.real, values.imag], axis=-1) if values.dtype.kind == "c" else values


def values_of(record: OutputRecord, *, step: float = 0.0) -> Values:
    """Return a record's values.

    Args:
        record: the runner's: ``dtype``, ``shape``, ``scale``, ``zero_point``, ``data``.
        step: of values that are in steps though they are no longer integers (dequantised ones).
    """
    raw = raw_values(record)
    real = raw.astype(np.float64)
    scale = float(record.get("scale") or 0.0)
    short = _short(record, raw.size)
    if scale:
        with np.errstate(invalid="ignore", over="ignore"):  # of a scale that is infinite
            return Values(raw, (real - record["zero_point"]) * scale, scale, short)
    whole = np.issubdtype(raw.dtype, np.integer) or raw.dtype == np.bool_
    return Values(raw, real, 1.0 if whole else step, short)


def _short(record: OutputRecord, places: int) -> NDArray[np.float32] | None:
    sent = record.get("short")
    if not sent:
        return None
    units = np.frombuffer(zlib.decompress(base64.b64decode(sent["data"])), np.uint8)
    if units.size != places * sent["classes"]:
        return None
    return units.reshape(places, sent["classes"]) * np.float32(sent["unit"])


def comparable(ours: Values, theirs: Values) -> tuple[Values, Values, str]:
    """Return two outputs of one form with 0 in both where either is not finite.

    A model may have such numbers by its own computation (the logarithm of 0, masks of attention). Where the
    reference has one, ours may be anything: it depends on rounding.

    Returns:
        Ours, theirs, and what is wrong with ours: numbers that are not finite where theirs are ("" if few).
    """
    ours_broken, theirs_broken = ~are_numbers(ours), ~are_numbers(theirs)
    if not np.any(ours_broken | theirs_broken):
        return ours, theirs, ""
    count, most = (
        int(np.count_nonzero(ours_broken & ~theirs_broken)),
        int(np.count_nonzero(theirs_broken)) // _FEW,
    )
    problem = f"{count} of {ours.real.size} values are not finite" if count > most else ""
    keep = ~(ours_broken | theirs_broken)
    return _only(ours, keep), _only(theirs, keep), problem


def are_numbers(values: Values) -> NDArray[np.bool_]:
    """Where an output holds numbers: neither NaN, nor infinite, nor the largest there is.

    TFLite's portable kernels end at that one where its others overflow (``ActivationFunctionWithMinMax``).
    """
    numbers: NDArray[np.bool_] = np.isfinite(values.real)
    if values.raw.dtype.kind == "f":
        numbers &= np.abs(values.raw) < np.finfo(values.raw.dtype).max
    return numbers


def _only(values: Values, keep: NDArray[np.bool_]) -> Values:
    zero = values.raw.dtype.type(0)
    raw, real = np.where(keep, values.raw, zero), np.where(keep, values.real, 0.0)
    return Values(raw, real, values.step, values.short)


def scores(record: OutputRecord) -> Reals:
    """Return the scores of all classes, 0..1, as label_image computes them: q/255, (q+128)/256.

    Args:
        record: the runner's ``output`` record.
    """
    values = raw_values(record).ravel()
    if values.dtype == np.uint8:
        return values / 255.0
    if values.dtype == np.int8:
        return (values.astype(np.float64) + 128) / 256.0
    return values.astype(np.float64)


def lifeless(record: OutputRecord) -> str:
    """Say what is wrong with an output that no working model gives, or return an empty string."""
    return lifeless_values(raw_values(record))


def lifeless_values(values: NDArray[Any], what: str = "the output") -> str:
    """As ``lifeless``, of numbers; ``what`` names the output."""
    values = values.ravel()
    if values.dtype.kind in "fc" and not np.all(np.isfinite(values)):
        return f"{what} holds numbers that are not finite"
    if values.size > 1 and np.all(values == values[0]):
        value = values[0]
        if value == 0:
            return f"{what} is all zeros"
        limits = np.iinfo(values.dtype) if np.issubdtype(values.dtype, np.integer) else None
        saturated = limits is not None and value in (limits.min, limits.max)
        return f"{what} is {'saturated: ' if saturated else ''}all {value}"
    return ""
