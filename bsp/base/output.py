# SPDX-License-Identifier: MIT
"""Results on stdout: one JSON document for machines, or text that reads well at 80 columns."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from .errors import InfrastructureError
from .words import filled


def json_text(document: Any, *, indent: int | None = 2) -> str:
    """Return one JSON document as text; a number that is not finite becomes null.

    JSON (RFC 8259, section 6) has neither NaN nor Infinity, and strict parsers refuse them.
    """
    return json.dumps(finite(document), indent=indent, default=str, allow_nan=False)


def finite(value: Any) -> Any:
    """Return a document with None in place of each number that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


class ReaderGoneError(KeyboardInterrupt):
    """Whoever read stdout has closed it (``| head``): what goes on ends as with Ctrl-C, silently."""

    def __init__(self) -> None:
        super().__init__(signal.SIGPIPE)


def print_json(document: Any) -> None:
    """Print one JSON document on stdout."""
    _print(json_text(document))


def print_text(text: str) -> None:
    """Print text on stdout."""
    _print(text.rstrip("\n"))


def print_error(text: str) -> None:
    """Print a line on stderr, if anybody reads it."""
    try:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
    except OSError:
        pass


def give_up_stdout(error: OSError) -> int:
    """Have nothing more written to stdout, which failed; return the exit code that says so.

    Python would try again at its end, and complain.
    """
    from .terminal.screen import silence

    silence(1)
    if isinstance(error, BrokenPipeError):
        return 128 + signal.SIGPIPE
    print_error(f"error: cannot write the result: {error.strerror}")
    return InfrastructureError.exit_code


def _print(text: str) -> None:
    drawing = sys.modules.get("bsp.base.terminal.screen")  # not imported for what draws nothing
    try:
        with drawing.screen.paused() if drawing else contextlib.nullcontext():
            sys.stdout.write(f"{text}\n")
            sys.stdout.flush()
    except BrokenPipeError as error:
        give_up_stdout(error)
        raise ReaderGoneError from None
    except OSError as error:
        give_up_stdout(error)
        raise SystemExit(InfrastructureError.exit_code) from None


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, width: int = 80) -> str:
    """Return a table with aligned columns; the last column is wrapped to fit ``width``, between words."""
    cells = [list(header), *(list(row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    indent = sum(widths[:-1]) + 2 * (len(header) - 1)
    last_width = max(width - indent, 16)
    lines: list[str] = []
    for number, row in enumerate(cells):
        wrapped = filled(row[-1], last_width).splitlines() or [""]
        start = "  ".join(cell.ljust(widths[column]) for column, cell in enumerate(row[:-1]))
        lines.append(f"{start}  {wrapped[0]}".rstrip() if len(row) > 1 else wrapped[0])
        lines.extend(" " * indent + line for line in wrapped[1:])
        if number == 0:
            rule = [*widths[:-1], min(widths[-1], last_width)]
            lines.append("  ".join("-" * length for length in rule))
    return "\n".join(lines)
