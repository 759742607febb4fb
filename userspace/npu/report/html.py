# SPDX-License-Identifier: MIT
"""One self-contained HTML page of a host: table, distributions, history, picture, operations, doctor.

No script, no network: pictures and plots are in the page. Everything that came from a board is escaped.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Literal

import numpy as np

from bsp.base.words import counted

from ..doctor.records import DoctorDocument
from ..model.operations import OperationRecord
from ..profile.shown import EMULATED, bars
from ..validate.judge.verdict import TOP
from ..validate.onboard.bmp import ImageError, open_bmp
from ..validate.records import RowResult, SmokeDocument
from . import svg as report_svg
from .regression import HistoryDocument
from .report import answer_of, input_notes, is_emulated

_STYLE = Path(__file__).parent / "style.css"
_PICTURE_PIXELS = 480
_CPU = ("cpu", "cpu-reference")
_TIMES = "\N{MULTIPLICATION SIGN}"


def page(
    smoke: SmokeDocument | None,
    history: HistoryDocument | None,
    medians: dict[str, list[float]],
    doctor: DoctorDocument | None,
    *,
    doctor_note: str,
    picture: bytes | None,
    made: str,
) -> str:
    """Return the page.

    Args:
        smoke: newest document of a smoke test; None: there is none.
        history: ``regression.document``.
        medians: for each series of it (``test model delegate``), all medians in ms, oldest first.
        doctor: the doctor's document; None: not asked, and ``doctor_note`` says why.
        picture: the input picture as BMP.
        made: when the page was made, in words.
    """
    named = smoke or history or doctor or {}
    host = str(named.get("host", "?"))
    body = [_head(host, smoke, history, doctor, made)]
    if smoke:
        body += [_results(smoke), _plots_and_picture(smoke, picture), _profiles(smoke)]
    body += [_history(history, medians), _doctor(doctor, doctor_note)]
    if smoke:
        body += [_operations(smoke), _versions(smoke)]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>NPU report: {escape(host)}</title>\n"
        f"<style>\n{_STYLE.read_text(encoding='utf-8')}</style>\n</head>\n<body>\n"
        + "\n".join(filter(None, body))
        + "\n</body>\n</html>\n"
    )


def badge(word: str) -> str:
    """Return a word as a coloured badge; the word itself says it, too."""
    return f'<span class="badge {escape(word.split()[-1])}">{escape(word)}</span>'


def _head(
    host: str,
    smoke: SmokeDocument | None,
    history: HistoryDocument | None,
    doctor: DoctorDocument | None,
    made: str,
) -> str:
    words = []
    if smoke:
        words.append(f"smoke test {badge(smoke['verdict'])}")
        if is_emulated(smoke):
            words.append(badge("emulated"))
    if doctor:
        words.append(f"doctor {badge(doctor['verdict'])}")
    if history and history["series"]:
        words.append(f"speed {badge(history['verdict'])}")
    board = (smoke or {}).get("board") or (doctor or {}).get("board")
    lines = [f"<header><h1>NPU report: {escape(host)}</h1>", f"<p>{' &ensp; '.join(words)}</p>"]
    about = [f"board {board}" if board else "", made]
    if smoke:
        about.insert(1, f"{smoke['test']} with {smoke['model']['name']}")
    lines.append(f'<p class="soft">{escape(" · ".join(filter(None, about)))}</p>')
    if smoke and smoke["verdict"] == "skip":
        lines.append("<p>Nothing that was asked for could run, so nothing was validated.</p>")
    notes = [smoke.get("note"), *input_notes(smoke)] if smoke else []
    lines += [f"<p>Note: {escape(note)}</p>" for note in notes if note]
    if smoke and is_emulated(smoke):
        what = "NPU" if "npu" in smoke else "board"
        lines.append(f"<p>Note: an emulated {what}; its times say nothing about hardware.</p>")
    return "".join([*lines, "</header>"])


@dataclass(frozen=True)
class _Column:
    """A column of the table of results.

    Attributes:
        cell: a row's content as HTML, from the row and the CPU's median in milliseconds.
        kind: CSS class of the cells; "n" is a number.
        label: what a cell is called where the table is shown as cards.
    """

    title: str
    cell: Callable[[RowResult, float | None], str]
    kind: str = "n"
    label: str = ""


def _time(figure: Literal["median", "p95"]) -> Callable[[RowResult, float | None], str]:
    def cell(row: RowResult, _: float | None) -> str:
        return report_svg.milliseconds(row["latency_ms"][figure]) if row["latency_ms"] else ""

    return cell


def _first_run(row: RowResult, _: float | None) -> str:
    return report_svg.milliseconds(row["first_ms"]) if row["first_ms"] is not None else ""


def _against_cpu(row: RowResult, cpu_ms: float | None) -> str:
    median = row["latency_ms"] and row["latency_ms"]["median"]
    return f"{cpu_ms / median:.2f}{_TIMES}" if median and cpu_ms else ""


def _operations_taken(row: RowResult, _: float | None) -> str:
    if row["delegated_ops"] is None:
        return ""
    driver = f" ({row['driver']})" if row["driver"] else ""
    return escape(f"{row['delegated_ops']} of {row['total_ops']}{driver}")


def _answer(row: RowResult, _: float | None) -> str:
    best = row["top"][0] if row.get("top") else None
    answer = f"{best['score']:.3f} {best['index']} {best['label']}".rstrip() if best else ""
    if not best and row["status"] == "pass":
        answer = answer_of(row)
    difference, agreed = row.get("max_abs_diff") if best else None, row.get("agreement")
    why = [
        row["reason"],
        f"at most {difference:.3f} off the reference" if difference else "",
        f"same answer on {agreed['same']} of {agreed['inputs']} crops and flips" if agreed else "",
    ]
    words = escape("; ".join(filter(None, why)))
    return escape(answer) + (f'<div class="why">{words}</div>' if words else "")


_COLUMNS = (
    _Column("delegate", lambda row, _: escape(row["delegate"]), "head word"),
    _Column("", lambda row, _: badge(row["status"]), "word"),
    _Column("median", _time("median"), label="median, ms"),
    _Column("p95", _time("p95"), label="p95, ms"),
    _Column("first run", _first_run, label="first run, ms"),
    _Column("against cpu", _against_cpu, label="against cpu"),
    _Column("operations", _operations_taken, "took", "operations"),
    _Column("top class", _answer, "wide"),
)


def _results(smoke: SmokeDocument) -> str:
    rows = smoke["results"]
    timed = (row["latency_ms"] for row in rows if row["delegate"] == "cpu" and row["latency_ms"])
    cpu_ms = next((times["median"] for times in timed), None)
    emulated = is_emulated(smoke)
    heads = "".join(
        f"<th{' class=' + chr(34) + 'n' + chr(34) if column.kind == 'n' else ''}>{column.title}"
        f"{', emulated' if emulated and column.title == 'against cpu' else ''}</th>"
        for column in _COLUMNS
    )
    body = "".join(
        f"<tr>{''.join(_cell(column, row, cpu_ms) for column in _COLUMNS)}</tr>" for row in rows
    )
    return (
        f'<h2>Results</h2><table class="cards"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table>"
        f'<p class="soft small">Times in ms{f", {EMULATED}" if emulated else ""}. "Against cpu": how '
        "many times as fast as the best CPU path. The first run compiles, and is not in the median.</p>"
    )


def _cell(column: _Column, row: RowResult, cpu_ms: float | None) -> str:
    label = f' data-t="{column.label}"' if column.label else ""
    return f'<td class="{column.kind}"{label}>{column.cell(row, cpu_ms)}</td>'


def _plots_and_picture(smoke: SmokeDocument, picture: bytes | None) -> str:
    plot = report_svg.distributions(
        [
            (row["delegate"], row.get("runs_ms") or [], row["first_ms"])
            for row in smoke["results"]
            if row["latency_ms"]
        ]
    )
    left = (
        f'<figure class="card">{plot}<figcaption>Each dot is a run, the box the middle half, the line '
        "the median, the ring the first run.</figcaption></figure>"
        if plot
        else ""
    )
    shown = [row for row in smoke["results"] if row.get("top")]
    chosen = next(
        (row for row in shown if row["delegate"] not in _CPU), shown[0] if shown else None
    )
    labels = "".join(
        f'<div class="label"><span>{escape(str(each["label"] or each["index"]))}</span>'
        f"<span>{each['score']:.3f}</span>"
        f'<div class="bar"><i style="width:{min(max(each["score"], 0), 1):.1%}"></i></div></div>'
        for each in (chosen["top"][:TOP] if chosen else [])
    )
    image = ""
    if picture:
        data = base64.b64encode(picture).decode()
        name = escape(smoke["image"]["name"])
        image = (
            f'<div class="picture"><img alt="{name}" src="data:image/png;base64,{data}">'
            f"{_boxes(chosen or {})}</div>"
        )
    right = ""
    if image or labels:
        who = escape(chosen["delegate"]) if chosen else "nobody"
        right = (
            f'<figure class="card"><div class="seen">{image}<div>{labels}</div></div>'
            f"<figcaption>{escape(smoke['image']['name'])}, as {who} sees it</figcaption></figure>"
        )
    if not left and not right:
        return ""
    return f'<h2>Latency and answer</h2><div class="pair">{left}{right}</div>'


def _profiles(smoke: SmokeDocument) -> str:
    return "".join(
        f"<h2>Time by operation: {escape(row['delegate'])}</h2>"
        f"{bars(row['profile'], emulated=is_emulated(smoke))}"
        for row in smoke["results"]
        if row.get("profile")
    )


def _boxes(row: RowResult) -> str:
    """Draw the detected objects over the picture, in shares of its sides."""
    detections = row.get("detections") or []
    if not detections:
        return ""
    parts = ['<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" aria-hidden="true">']
    for number, each in enumerate(detections):
        top, left, bottom, right = (1000 * min(max(side, 0.0), 1.0) for side in each["box"])
        parts.append(
            f'<rect class="object k{number % 6}" x="{left:.0f}" y="{top:.0f}" '
            f'width="{right - left:.0f}" height="{bottom - top:.0f}"/>'
        )
    return "".join([*parts, "</svg>"])


def _history(history: HistoryDocument | None, medians: dict[str, list[float]]) -> str:
    if not history or not history["series"]:
        return '<h2>History</h2><p class="soft">No earlier runs.</p>'
    figures = []
    for number, each in enumerate(history["series"]):
        key = f"{each['test']} {each['model']} {each['delegate']} {number}"
        plot = report_svg.series(
            each["delegate"],
            medians.get(key, []),
            baseline=each["baseline_ms"] or each["latest_ms"],
            spread=each["spread"] or 0.005,
            kind=number,
        )
        changed = f" Changed: {escape('; '.join(each['changed']))}." if each["changed"] else ""
        figures.append(
            f'<figure class="card">{plot}<figcaption>{badge(each["verdict"])} '
            f"{escape(each['model'])}: {escape(each['text'])}.{changed}</figcaption></figure>"
        )
    runs = counted(history["entries"], "run")
    torn = f", {counted(history['torn'], 'line')} could not be read" if history["torn"] else ""
    return (
        f'<h2>History</h2><p class="soft small">{runs} of smoke tests{torn}. The band '
        "is two standard deviations of single runs around the ten runs before.</p>"
        f'<div class="pair">{"".join(figures)}</div>'
    )


def _doctor(doctor: DoctorDocument | None, note: str) -> str:
    if doctor is None:
        return f'<h2>Doctor</h2><p class="soft">{escape(note or "Not asked.")}</p>'
    lines = ["<h2>Doctor</h2>"]
    if doctor["first_broken"]:
        lines.append(
            f"<p>First broken link: <b>{escape(doctor['first_broken'])}</b>. Next: "
            f"<code>{escape(doctor['next'])}</code></p>"
        )
    rows = "".join(
        f'<tr><td class="word">{escape(check["name"])}</td><td class="word">{badge(check["status"])}</td>'
        f"<td>{escape(check['found'])}</td><td>{escape(check['expected'])}</td></tr>"
        for check in doctor["checks"]
    )
    lines.append(
        '<table class="checks"><thead><tr><th>check</th><th></th><th>found</th><th>expected</th></tr>'
        f"</thead><tbody>{rows}</tbody></table>"
    )
    return "".join(lines)


def _operations(smoke: SmokeDocument) -> str:
    operations = smoke.get("operations") or []
    if not operations:
        return ""
    ran = [
        row
        for row in smoke["results"]
        if row["delegate"] not in _CPU and row.get("delegated_nodes") is not None
    ]
    parts = [f"<h2>Who ran what</h2>{_summary(operations, ran)}"]
    row = ran[0] if ran else None
    taken = _taken(row) if row else set()
    name = row["delegate"].rpartition("/")[2][:12] if row else ""
    items = []
    for each in operations:
        by = (
            f'<span class="by npu">{escape(name)}</span>'
            if each["index"] in taken
            else '<span class="by">CPU</span>'
        )
        shape = _TIMES.join(map(str, each["output"]))
        items.append(
            f"<li><span>{each['index']}</span><b>{escape(each['name'])}</b><span>{shape}</span>{by}</li>"
        )
    return "".join([*parts, f'<ol class="ops">{"".join(items)}</ol>'])


def _taken(row: RowResult) -> set[int]:
    """Indices of the operations that a delegate took."""
    return set(row.get("delegated_nodes") or [])


def _summary(operations: list[OperationRecord], ran: list[RowResult]) -> str:
    if not ran:
        return (
            '<p class="soft small">No delegate ran, or the runtime cannot tell: all operations are '
            "the CPU's.</p>"
        )
    row = ran[0]
    taken = _taken(row)
    left = [each["name"] for each in operations if each["index"] not in taken]
    kinds = ", ".join(f"{name} {_TIMES}{left.count(name)}" for name in dict.fromkeys(left))
    return (
        f'<p class="soft small">{escape(row["delegate"])} took {len(taken)} of '
        f"{len(operations)} operations; the CPU kept {escape(kinds) or 'none'}. Read from the TFLite "
        "runtime's graph.</p>"
    )


def _versions(smoke: SmokeDocument) -> str:
    machine, conditions = smoke["machine"], smoke.get("conditions") or {}
    clocks = conditions.get("npu_clocks_hz") or {}
    rows = [
        ("kernel", machine.get("kernel")),
        ("Mesa", conditions.get("mesa")),
        ("runtime", smoke.get("runtime")),
        ("Python, numpy", f"{machine.get('python')}, {machine.get('numpy')}"),
        ("machine", f"{machine.get('machine')}, {machine.get('threads')} threads"),
        ("generation", conditions.get("generation")),
        ("NPU clocks", ", ".join(f"{name} {hz / 1e6:g} MHz" for name, hz in clocks.items())),
        (
            "CPU",
            " ".join(filter(None, [conditions.get("governor"), _mhz(conditions.get("cpu_mhz"))])),
        ),
        (
            "temperature",
            f"{conditions['temperature_c']:.1f} °C" if "temperature_c" in conditions else "",
        ),
        ("load before", f"{conditions['load']:g}" if "load" in conditions else ""),
        ("model", f"{smoke['model']['name']}, SHA-256 {smoke['model']['sha256']}"),
        ("picture", f"{smoke['image']['name']}, SHA-256 {smoke['image']['sha256']}"),
        ("answer on file", smoke.get("expected")),
    ]
    items = "".join(
        f"<dt>{name}</dt><dd>{escape(str(value))}</dd>" for name, value in rows if value
    )
    return f"<h2>Versions and conditions</h2><dl>{items}</dl>"


def _mhz(value: int | None) -> str:
    return f"{value} MHz" if value else ""


def png_of(bmp: Path) -> bytes | None:
    """Return a picture, scaled down to at most 480 pixels, as PNG; None if it is not a picture.

    Raises:
        OSError: the file cannot be opened.
    """
    try:
        picture = open_bmp(bmp)
    except ImageError:
        return None
    step = -(-max(picture.height, picture.width) // _PICTURE_PIXELS)
    # A side that is shorter than a step is one square.
    (tall, height), (wide, width) = (
        (min(step, side), max(side // step, 1)) for side in (picture.height, picture.width)
    )
    pixels = np.empty((height, width, 3), np.uint8)
    for row in range(height):  # the mean of each square
        few = picture.rows(np.arange(row * tall, (row + 1) * tall))[:, : width * wide]
        pixels[row] = few.reshape(tall, width, wide, 3).mean(axis=(0, 2)).round()
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 8, 2, 0, 0, 0)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows, 9))
        + chunk(b"IEND", b"")
    )
