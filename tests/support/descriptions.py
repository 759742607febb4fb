# SPDX-License-Identifier: MIT
"""What lies beside an image of build-image's, for images that were not built."""

from __future__ import annotations

from pathlib import Path

import msgspec

from images.disk.image import Description, description_file


def describe(image: Path) -> None:
    """Write what build-image puts beside an image, for a vim3."""
    fields = {field.name: "" for field in msgspec.structs.fields(Description)}
    description = Description(
        **{  # type: ignore[arg-type]
            **fields,
            "format": 1,
            "board": "vim3",
            "compatible": ("khadas,vim3",),
            "packages": (),
            "host_key": None,
            "identity_file": None,
            "bootloader": {},
            "partitions": (),
            "size_bytes": image.stat().st_size,
            "mapped_bytes": None,
            "sha256": None,
        }
    )
    description_file(image).write_bytes(msgspec.json.encode(description))
