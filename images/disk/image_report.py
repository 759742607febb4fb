# SPDX-License-Identifier: MIT
"""The text that is printed about an image, made or planned."""

from __future__ import annotations

from bsp.base.output import table
from bsp.base.words import filled

from . import bmap
from .image import Image, description_file


def text_of(image: Image) -> str:
    """Return what an image holds (or would hold), where it is, and the command that writes it."""
    description = image.description
    mib = 1 << 20
    rows = [("0", "-", description.table.upper() + " partition table", "")]
    loader = description.bootloader
    if loader["included"]:
        rows += [(str(at), "-", "bootloader", loader["file"]) for at in loader["offsets_bytes"]]
    contents = {
        "boot": f"boot script, generation {description.generation or 'of a bundle made for it'}",
        "root": f"Debian {description.distribution}, {description.hostname}",
    }
    for part in description.partitions:
        size = f"{part['size_bytes'] // mib} MiB"
        rows.append(
            (
                str(part["start_bytes"]),
                size,
                f"{part['name']} ({part['type']})",
                contents[part["name"]],
            )
        )
    lines = [table(("at byte", "size", "what", "holds"), rows), ""]
    lines.append(f"logs in:    root, with {description.ssh_key}; no password")
    key = description.host_key or "made by the board at its first boot, printed on its console"
    lines.append(f"host key:   {key}")
    lines.append(f"cmdline:    {description.cmdline}")
    if loader.get("needs"):
        words = f"not in the image. Unless the board has one: --bootloader with {loader['needs']}"
        lines.append(filled(words, first="bootloader: ", rest=" " * 12))
    if not image.made:
        return "\n".join(
            [f"would build {image.path}, {description.size_bytes // mib} MiB", "", *lines]
        )
    size = f"{description.size_bytes // mib} MiB, {(description.mapped_bytes or 0) // mib} of them to write"
    head = [
        f"{image.path}: {size}",
        f"beside it: {bmap.map_file(image.path).name}, {description_file(image.path).name}",
        "",
    ]
    return "\n".join(
        [*head, *lines, f"write it:   ./inv flash --device DEVICE --image {image.path}"]
    )
