# SPDX-License-Identifier: MIT
"""Pictures of noise, the same each time."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from userspace.npu.validate.onboard.bmp import encode_bmp


def noise_picture(path: Path, height: int = 32, width: int = 0, *, seed: int = 1) -> Path:
    """Write a BMP file of noise; ``width`` 0: a square one."""
    size = (height, width or height, 3)
    path.write_bytes(
        encode_bmp(np.random.default_rng(seed).integers(0, 256, size).astype(np.uint8))
    )
    return path
