# SPDX-License-Identifier: MIT
"""The history of a host: one JSON line for each run.

The file only grows. A line that a power cut tore is skipped when reading, and ended before the next one is
written, so that it costs itself and nothing else.
"""

from __future__ import annotations

import datetime
import fcntl
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, cast

from bsp.base.cache import state_dir
from bsp.base.errors import InfrastructureError, UserError, nearest
from bsp.base.output import finite

from ..validate.records import Conditions, RowResult, SmokeDocument

FORMAT = 1
THIS_MACHINE = "this machine"
_KEPT = ("delegate", "status", "reason", "latency_ms", "first_ms", "delegated_ops", "total_ops",
         "driver", "max_abs_diff", "agreement", "profile")  # fmt: skip


class HistoryEntry(TypedDict, total=False):
    """A line: what is kept of a smoke test; of each row, what ``_KEPT`` names and is not None."""

    format: int
    time: str
    host: str
    board: str | None
    test: str
    model: str
    model_sha256: str
    image_sha256: str
    verdict: str
    runtime: str
    threads: int | None
    conditions: Conditions
    results: list[RowResult]


@dataclass(frozen=True)
class History:
    """Entries of one host, oldest first, and how many lines could not be read."""

    host: str
    entries: tuple[HistoryEntry, ...]
    torn: int = 0


def folder() -> Path:
    """Return the folder of the histories: one file for each host."""
    return state_dir() / "history"


def file_of(host: str) -> Path:
    """Return the file of a host; different names have different files."""
    safe = re.sub(r"[^\w.@-]", lambda match: f"%{ord(match[0]):02x}", host)
    return folder() / f"{safe.lstrip('.') or '%'}.jsonl"


def entry_of(document: SmokeDocument, conditions: Conditions) -> HistoryEntry:
    """Return what is kept of a smoke test's document."""
    return {
        "format": FORMAT,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "host": document["host"],
        "board": document["board"],
        "test": document["test"],
        "model": document["model"]["name"],
        "model_sha256": document["model"]["sha256"],
        "image_sha256": document["image"]["sha256"],
        "verdict": document["verdict"],
        "runtime": document["runtime"],
        "threads": document["machine"].get("threads"),
        "conditions": conditions,
        "results": [
            cast(
                RowResult,
                {key: value for key, value in row.items() if key in _KEPT and value is not None},
            )
            for row in document["results"]
        ],
    }


def append(host: str, entry: HistoryEntry) -> Path:
    """Add one line to a host's history; it is on the disk when this returns.

    Raises:
        InfrastructureError: it cannot be written.
    """
    path = file_of(host)
    line = json.dumps(finite(entry), separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            size = file.seek(0, os.SEEK_END)
            if size:
                file.seek(size - 1)
                if file.read(1) != b"\n":
                    line = b"\n" + line
            file.write(line)  # at the end, whatever was read before
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise InfrastructureError(
            f"cannot add to the history {path}: {error.strerror}", hint="df; ls -l"
        ) from error
    return path


def read(host: str) -> History:
    """Return a host's history; empty where there is none.

    Raises:
        InfrastructureError: it cannot be read.
    """
    try:
        lines = file_of(host).read_bytes().split(b"\n")
    except FileNotFoundError:
        return History(host, ())
    except OSError as error:
        raise InfrastructureError(
            f"cannot read the history {file_of(host)}: {error.strerror}"
        ) from error
    entries, torn = [], 0
    for line in lines:
        if not line.strip():
            continue
        entry = _parse(line)
        if entry is None:
            torn += 1
        else:
            entries.append(entry)
    return History(host, tuple(entries), torn)


def known_hosts() -> list[str]:
    """Hosts that have a history."""
    names = []
    for file in sorted(folder().glob("*.jsonl")):
        names.append(re.sub(r"%([0-9a-f]{2})", lambda match: chr(int(match[1], 16)), file.stem))
    return names


def need(host: str) -> History:
    """Return a host's history.

    Raises:
        UserError: there is none.
    """
    history = read(host)
    if not history.entries:
        hosts = known_hosts()
        flag = "" if host == THIS_MACHINE else f" --host {host}"
        raise UserError(
            f"there is no history of {host}{nearest(host, hosts)}",
            hint=f"./inv smoke-test label_image{flag} adds to it"
            + (f"; there is one of: {', '.join(hosts)}" if hosts else ""),
        )
    return history


def _parse(line: bytes) -> HistoryEntry | None:
    try:
        entry = json.loads(line)
        if entry["format"] != FORMAT:
            return None
        [row["delegate"] for row in entry["results"]]  # it has what is read below
        entry["time"], entry["model_sha256"], entry["image_sha256"], entry["conditions"]
    except (ValueError, KeyError, TypeError):
        return None
    return cast(HistoryEntry, entry)
