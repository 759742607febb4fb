# SPDX-License-Identifier: MIT
"""Writes a picture as an uncompressed BMP: ``pictures.py`` runs it with a Python that has Pillow."""

from __future__ import annotations

import importlib
import sys
from typing import Any

MOST_PIXELS = 100_000_000


def of_bytes(picture: Any) -> Any:
    """Return a picture whose pixels are bytes: Pillow makes white of all that is above 255.

    Raises:
        ValueError: nobody can tell what its numbers mean.
    """
    if picture.mode == "F":
        raise ValueError("its pixels are real numbers: make bytes of them")
    if picture.mode != "I" and not picture.mode.startswith("I;16"):
        return picture
    wide = picture.convert("I")
    least, most = wide.getextrema()
    if least < 0 or most > 65535:
        raise ValueError(f"its pixels are {least} to {most}: make bytes of them")
    return wide.point(lambda value: value * (1 / 256)).convert("L")


def main(source: str, target: str) -> int:
    """Convert; say what is wrong on standard output, and return 1."""
    image: Any = importlib.import_module("PIL.Image")
    ops: Any = importlib.import_module("PIL.ImageOps")
    try:
        with image.open(source) as picture:
            width, height = picture.size
            if width * height > MOST_PIXELS:
                raise ValueError(f"{width} x {height} pixels, more than {MOST_PIXELS}")
            of_bytes(ops.exif_transpose(picture)).convert("RGB").save(target, "BMP")
    except Exception as error:  # Pillow raises nearly anything on broken files
        sys.stdout.write(str(error).replace(source, "the file") or repr(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
