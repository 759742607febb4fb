# SPDX-License-Identifier: MIT
"""Plots as inline SVG: latency distributions, and a series over time. Pure: numbers in, text out.

Drawn 380 units wide with 11-unit letters, so that they can be read on a phone, and side by side on a desk.
Colours come from the page's style sheet (classes), so that dark mode and print are its matter.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from html import escape

from bsp.base.words import counted

_WIDTH = 380
_ROW = 46
_SIDE = 8.0  # left and right of the distributions
_DOTS = 120


def _ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 steps of a logarithmic axis, within the limits; fewer over many decades."""
    decades = math.log10(high / low)
    steps = (1, 2, 5) if decades < 2.2 else (1,)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    ticks = [step * 10.0**power for power in range(first, last + 1) for step in steps]
    return [tick for tick in ticks if low <= tick <= high]


def milliseconds(value: float) -> str:
    """Three significant digits, without exponents."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def distributions(rows: Sequence[tuple[str, Sequence[float], float | None]]) -> str:
    """Draw latencies, a row a delegate: each run a dot, the middle half a box, the median a line.

    Args:
        rows: (delegate, runs in ms, first run in ms or None: drawn as a ring).
    """
    rows = [row for row in rows if row[1]]
    values = [value for _, runs, first in rows for value in (*runs, *([first] if first else []))]
    values = [value for value in values if value > 0]
    if not values:
        return ""
    low, high = min(values) / 1.25, max(values) * 1.25
    if high / low < 2:
        low, high = low / 1.3, high * 1.3
    left, right = _SIDE, _WIDTH - _SIDE

    def place(value: float) -> float:
        share = math.log(max(value, low) / low) / math.log(high / low)
        return round(left + share * (right - left), 1)

    height = _ROW * len(rows) + 34
    bottom = _ROW * len(rows) + 4
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="Latency of each run, '
        'logarithmic, in milliseconds">'
    ]
    for tick in _ticks(low, high):
        x = place(tick)
        parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="2" y2="{bottom}"/>')
        parts.append(f'<text class="tick" x="{x}" y="{bottom + 14}">{tick:g}</text>')
    parts.append(f'<text class="unit" x="{right}" y="{bottom + 25}">ms, logarithmic</text>')
    for number, (name, runs, first) in enumerate(rows):
        parts += _distribution(name, runs, first, number, place)
    return "".join([*parts, "</svg>"])


def _distribution(
    name: str,
    runs: Sequence[float],
    first: float | None,
    number: int,
    place: Callable[[float], float],
) -> list[str]:
    """One row of ``distributions``; ``place`` gives the x of a value in ms."""
    left, right = _SIDE, _WIDTH - _SIDE
    top = number * _ROW
    ordered = sorted(runs)
    middle = top + 30
    median = statistics.median(ordered)
    q1, q3 = ordered[len(ordered) // 4], ordered[(3 * len(ordered)) // 4]
    kind = f"k{number % 6}"
    parts = [f'<text class="name" x="{left}" y="{top + 15}">{escape(name)}</text>']
    parts.append(
        f'<text class="value" x="{right}" y="{top + 15}">median {milliseconds(median)} ms</text>'
    )
    parts.append(
        f'<rect class="box {kind}" x="{place(q1)}" y="{middle - 8}" rx="2" height="16" '
        f'width="{max(round(place(q3) - place(q1), 1), 2)}"/>'
    )
    step = max(len(ordered) / _DOTS, 1)
    dots = [ordered[int(index * step)] for index in range(min(len(ordered), _DOTS))]
    parts.append(f'<g class="dots {kind}">')
    for index, value in enumerate(dots):
        wave = (index * 7) % 5 - 2
        parts.append(f'<circle cx="{place(value)}" cy="{middle + 1.6 * wave:.1f}" r="2"/>')
    parts.append("</g>")
    x = place(median)
    parts.append(f'<line class="median" x1="{x}" x2="{x}" y1="{middle - 10}" y2="{middle + 10}"/>')
    if first:
        parts.append(
            f'<circle class="first {kind}" cx="{place(first)}" cy="{middle}" r="4.5">'
            f"<title>first run: {milliseconds(first)} ms</title></circle>"
        )
    return parts


def series(name: str, values: Sequence[float], *, baseline: float, spread: float, kind: int) -> str:
    """Draw medians over runs, oldest left: the line, the last ten's mean with a band of two spreads."""
    values = [value for value in values if value > 0]
    if not values:
        return ""
    height, top, bottom, left, right = 122, 32.0, 100.0, 40.0, _WIDTH - 10.0
    ordered = sorted(values)
    # A single disturbed run must not flatten the rest; it is drawn at the edge.
    low = min(ordered[len(ordered) // 50], baseline * (1 - 3 * spread))
    high = max(ordered[-1 - len(ordered) // 50], baseline * (1 + 3 * spread))
    room = max(high - low, 0.02 * high) * 0.12
    low, high = low - room, high + room

    def x_of(index: int) -> float:
        return round(left + (right - left) * (index / max(len(values) - 1, 1)), 1)

    def y_of(value: float) -> float:
        share = min(max((value - low) / (high - low), 0), 1)
        return round(bottom - share * (bottom - top), 1)

    band = y_of(baseline * (1 - 2 * spread)) - y_of(baseline * (1 + 2 * spread))
    points = " ".join(f"{x_of(index)},{y_of(value)}" for index, value in enumerate(values))
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(name)}: medians of '
        f'{counted(len(values), "run")}">',
        f'<text class="name" x="8" y="14">{escape(name)}</text>',
        f'<text class="value" x="{right}" y="14">newest {milliseconds(values[-1])} ms</text>',
        f'<rect class="band" x="{left}" width="{right - left}" '
        f'y="{y_of(baseline * (1 + 2 * spread))}" height="{max(round(band, 1), 1)}"/>'
        if len(values) > 1
        else "",
        f'<line class="grid" x1="{left}" x2="{right}" y1="{bottom}" y2="{bottom}"/>',
    ]
    for value in (high, low):
        parts.append(
            f'<text class="scale" x="{left - 5}" y="{y_of(value) + 4}">{milliseconds(value)}</text>'
        )
    parts.append(f'<polyline class="line k{kind % 6}" points="{points}"/>')
    if len(values) <= 60:
        parts.append(f'<g class="dots k{kind % 6}">')
        parts += [
            f'<circle cx="{x_of(index)}" cy="{y_of(value)}" r="2.2"/>'
            for index, value in enumerate(values)
        ]
        parts.append("</g>")
    parts.append(
        f'<circle class="newest k{kind % 6}" cx="{x_of(len(values) - 1)}" '
        f'cy="{y_of(values[-1])}" r="4"/>'
    )
    shown = counted(len(values), "run") + (", oldest left" if len(values) > 1 else "")
    parts.append(f'<text class="unit" x="{right}" y="{bottom + 14}">{shown}</text>')
    return "".join([*parts, "</svg>"])
