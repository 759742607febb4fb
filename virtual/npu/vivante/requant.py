# SPDX-License-Identifier: MIT
"""From accumulators to 8-bit outputs, as silicon is predicted to round them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..tflite.arithmetic import Accumulators, Pixels


@dataclass(frozen=True)
class Scale:
    """A descriptor's multiplier and shift: real value = multiplier / 2**shift.

    Mesa 25.0.7 etnaviv_ml_nn.c, create_nn_config: v7 keeps 15 bits of the float's mantissa, v8 all 23;
    the leading one is implied.
    """

    multiplier: int
    shift: int

    @property
    def real(self) -> float:
        """The factor as a number."""
        return self.multiplier / 2.0**self.shift


def hardware(accumulators: Accumulators, scale: Scale, zero_point: int, low: int) -> Pixels:
    """Return outputs as silicon is predicted to round them: half up, then clamp to ``low``..255.

    Rounding of negative ties on silicon is not known; this is one of the two likely ways.
    """
    product = accumulators * scale.multiplier
    if scale.shift:
        product += 1 << scale.shift - 1
        product >>= scale.shift
    product += zero_point
    return np.clip(product, low, 255, out=product).astype(np.uint8)
