# SPDX-License-Identifier: MIT
"""The text that is printed about a flash, planned or done."""

from __future__ import annotations

from typing import Any

from bsp.base.output import table
from bsp.base.words import counted

from .records import PlanDocument, Span

_MIB = 1 << 20
_SHOWN = 8


def plan_text(planned: PlanDocument) -> str:
    """Describe what will be written where."""
    on = f" on {planned['host']}" if planned["host"] else ""
    has = ", ".join(planned["partitions_there"]) or "no partitions"
    model = f"{planned['model']}, " if planned["model"] else ""
    lines = [
        f"device: {planned['device']}{on}: {model}{planned['device_bytes'] // _MIB} MiB, {has}",
        f"image:  {planned['image']}: {planned['image_bytes'] // _MIB} MiB, "
        f"{planned['mapped_bytes'] // _MIB} MiB of them to write",
        f"map:    {planned['bmap'] or 'none, so that the whole image is written'}",
        "",
    ]
    spans = planned["ranges"]
    rows = [(str(span["from_byte"]), _size(span), _where(planned, span)) for span in spans[:_SHOWN]]
    if len(spans) > _SHOWN:
        rest = sum(span["to_byte"] + 1 - span["from_byte"] for span in spans[_SHOWN:])
        rows.append(("...", _bytes(rest), f"{len(spans) - _SHOWN} more ranges"))
    lines.append(table(("from byte", "size", "part of"), rows))
    if planned["resumes_at_chunk"]:
        lines.append(
            f"\nan earlier flash of this image got as far as chunk {planned['resumes_at_chunk']}; "
            "it goes on there"
        )
    return "\n".join(lines)


def result_text(result: Any) -> str:
    """Describe the result."""
    if result.outcome == "planned":
        return plan_text(result.plan) + "\n\nnothing was written"
    planned = result.plan
    on = f" on {planned['host']}" if planned["host"] else ""
    broke = f", the link broke {counted(result.reconnects, 'time')}" if result.reconnects else ""
    return (
        f"{planned['device']}{on} holds {planned['image']}: {result.verified_bytes / 1e6:.0f} MB "
        f"written and read back in {result.seconds:.1f} s\n"
        f"sent: {result.bytes_sent / 1e6:.0f} MB{broke}\nsha256: {result.sha256}"
    )


def _size(span: Span) -> str:
    return _bytes(span["to_byte"] + 1 - span["from_byte"])


def _bytes(count: int) -> str:
    return f"{count / _MIB:.1f} MiB" if count >= _MIB else f"{count / 1024:.0f} KiB"


def _where(planned: PlanDocument, span: Span) -> str:
    for part in planned["partitions"]:
        if part["start_bytes"] <= span["from_byte"] < part["start_bytes"] + part["size_bytes"]:
            return f"{part['name']} ({part['type']})"
    if not planned["partitions"]:
        return ""
    return "partition table, bootloader" if span["from_byte"] < _MIB else "second partition table"
