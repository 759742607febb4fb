# SPDX-License-Identifier: MIT
"""Scans for people and for machines: kernels side by side, or one kernel with all that was found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..base.output import table
from ..base.words import counted, filled
from ..catalog import load_soc
from ..readable_boards import readable_boards
from .classify import Row
from .scan import Scan

_WIDTH = 80

_LEGEND = {
    "ready": "nothing to do, the kernel's own device tree is enough",
    "disabled": "./inv build-dts enables the node, then it works",
    "rates": "./inv build-dts sets the clock rates, then it works",
    "supply?": "the device tree does not say what supplies the NPU with power",
    "unknown": "the driver does not recognise this NPU (it is not in its database)",
    "untold": "the numbers by which the driver would know this NPU are not known",
    "2 owners": "the vendor's node for the NPU is switched on as well",
    "vendor": "the device tree has the NPU for the vendor's driver only",
    "no driver": "the device tree has the NPU, the kernel has no driver for it",
    "no node": "the device tree does not have the NPU",
    "no npu": "nothing in the device tree says that this chip has one",
    "?": "the source does not compile on this machine, see below",
    ".": "the kernel does not have the board",
}


_LONGEST_WORD = max(map(len, _LEGEND))


def document(scans: Sequence[Scan]) -> dict[str, Any]:
    """Return all scans as one document; ``profile`` names the board's profile, or is null."""
    profiles = profiles_by_source()
    documents = []
    for scan in scans:
        document = scan.document()
        for row in document["boards"]:
            row["profile"] = profiles.get(row["source"])
        documents.append(document)
    return {"scans": documents}


def profiles_by_source() -> dict[str, str]:
    """Return the device tree source of each shipped board to the board's name."""
    boards = {}
    for board in readable_boards():
        if board.dts:
            boards[f"{load_soc(board.soc).dts_directory}/{board.dts}"] = board.name
    return boards


def text(scans: Sequence[Scan]) -> str:
    """Return the scans as a table for 80 columns."""
    parts = [_side_by_side(scans)] if len(scans) > 1 else [_one(scans[0])]
    for scan in scans:
        parts.append(
            _wrap(
                f"Linux {scan.release}: {counted(scan.sources, 'board')}, of which {scan.compiled} may "
                f"have an NPU and were compiled; with one: {len(scan.rows)}."
            )
        )
        parts += [_wrap(line) for line in _failures(scan)]
    return "\n\n".join(parts)


def _side_by_side(scans: Sequence[Scan]) -> str:
    rows = [{row.source: row for row in scan.rows} for scan in scans]
    words: set[str] = set()
    parts = []
    labels = [_shortened(scan.kernel, 12) for scan in scans]
    left = _WIDTH - sum(max(len(label), _LONGEST_WORD) + 2 for label in labels)
    for title, sources in _groups(rows).items():
        body = []
        for source in sources:
            cells = []
            for scan, mine in zip(scans, rows, strict=True):
                row = mine.get(source)
                broken = any(source == failed_source for failed_source, _ in scan.failed)
                absent = "?" if broken else "no npu" if source in scan.boards else "."
                word = short(row) if row else absent
                words.add(word)
                cells.append(word)
            body.append([_shortened(source, max(left, 20)), *cells])
        header = [title, *labels]
        parts.append(table(header, body, width=_WIDTH))
    return "\n\n".join([*parts, _legend(words)])


def _one(scan: Scan) -> str:
    rows = {row.source: row for row in scan.rows}
    parts = []
    for title, sources in _groups([rows]).items():
        body = []
        for source in sources:
            row = rows[source]
            has_rates = any(rate_hz for _, rate_hz in row.clocks)
            clocks = "/".join(f"{rate_hz / 1e6:g}" if rate_hz else "-" for _, rate_hz in row.clocks)
            database = {True: "yes", False: "no", None: "-"}[row.in_database]
            gap = ", ".join(row.gap) or "no gap"
            remarks = f"{gap}; {clocks}" if has_rates else gap
            body.append([_shortened(source, 44), row.status or "-", database, remarks])
        driver = rows[sources[0]].driver
        node = next((rows[source].node for source in sources if rows[source].node), "no node")
        names = next((rows[source].clocks for source in sources if rows[source].clocks), ())
        about = f"{driver}, {node}, clocks {'/'.join(name for name, _ in names)}"
        header = [title, "status", "known", "gap; clocks in MHz"]
        parts.append(f"{about if names else driver}\n{table(header, body, width=_WIDTH)}")
    return "\n\n".join(parts)


def _failures(scan: Scan) -> list[str]:
    """Return one line for each reason why boards do not compile."""
    reasons: dict[str, list[str]] = {}
    for source, error in scan.failed:
        messages = error.splitlines()[1:] or [error]
        reasons.setdefault(messages[0], []).append(source.rpartition("/")[2])
    return [
        f"{', '.join(sources)}: not known, as {'it does' if len(sources) == 1 else 'they do'} not "
        f"compile on this machine: {reason}"
        for reason, sources in reasons.items()
    ]


def _groups(rows: Sequence[dict[str, Row]]) -> dict[str, list[str]]:
    """Return the sources by SoC, each once, sorted."""
    socs = {source: row.soc or row.driver for mine in rows for source, row in mine.items()}
    groups: dict[str, list[str]] = {}
    for source in sorted(socs, key=lambda source: (socs[source], source)):
        groups.setdefault(socs[source], []).append(source)
    return groups


def short(row: Row) -> str:
    """Return the gap of a row in a word that fits a column; :data:`_LEGEND` explains it."""
    if row.expectation() == "enable":
        return "rates" if row.gap == ("rates missing",) else "disabled"
    if row.expectation() == "no node" and "no node" not in row.gap:
        return "vendor"
    return {
        "works": "ready",
        "no node": "no node",
        "no driver": "no driver",
        "not recognised": "unknown",
        "cannot be told": "untold",
        "two owners": "2 owners",
        "supply missing": "supply?",
    }[row.expectation()]


def _legend(words: set[str]) -> str:
    shown = [(word, meaning) for word, meaning in _LEGEND.items() if word in words]
    width = max(len(word) for word, _ in shown)
    return "\n".join(f"  {word.ljust(width)}  {meaning}" for word, meaning in shown)


def _shortened(name: str, width: int) -> str:
    short = name.rpartition("/")[2]
    return short if len(short) <= width else f"{short[: width - 2]}.."


def _wrap(text: str) -> str:
    return filled(text, _WIDTH)
