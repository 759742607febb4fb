# SPDX-License-Identifier: MIT
"""Tells regressions from noise. Pure: a series of latencies in, a verdict out.

The newest two or three runs are compared with the ten before them, in logarithms. What counts is the
change divided by its own uncertainty, and most of the runs have to agree: one interrupted run is not a
regression, so that the first slower run only earns a note. The spread comes from the differences between
neighbouring runs (J. von Neumann et al., "The mean square successive difference", 1941), which a step in
the past does not widen.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from bsp.base.words import counted

from ..validate.records import Conditions
from .history import History

BASELINE_RUNS = 10
LEAST_RUNS = 6
_WINDOW_RUNS = 30
# How many standard errors the mean of the newest runs has to be away, by their number; and how many
# standard deviations all but one of them (of two: both) have to be away on their own. Chosen on synthetic
# series (tests/userspace/report/test_history.py): false alarms below 1 % of runs, with outliers too.
_LIMITS = ((3, 3.1, 1.6), (2, 4.6, 2.8))
# Nobody acts on less, and a clock's resolution is not a spread.
_LEAST_CHANGE = 0.03
_LEAST_SPREAD = 0.005


@dataclass(frozen=True)
class SeriesVerdict:
    """The verdict on the newest runs of a series.

    Attributes:
        word: ``slower``, ``faster``, ``steady`` or ``too few``.
        change: relative to the baseline (0.12: 12 % slower).
        spread: of single runs, relative; one standard deviation.
        baseline: median of the runs before, in the series' unit.
        runs: how many of the newest were taken together.
    """

    word: str
    change: float
    spread: float
    baseline: float
    runs: int

    def text(self) -> str:
        """The verdict as a sentence."""
        if self.word == "too few":
            return f"too few runs for a verdict (at least {LEAST_RUNS})"
        if self.word == "steady":
            far = abs(self.change) > max(4 * self.spread, _LEAST_CHANGE)
            return f"steady: {self.change:+.1%} against the last ten, spread {self.spread:.1%}" + (
                "; the newest run alone is far out: run it again" if far else ""
            )
        return (
            f"{self.word} than the last ten by {abs(self.change):.0%}, beyond their spread "
            f"({self.spread:.1%}); {self.runs} runs agree"
        )


def judge_series(values: Sequence[float]) -> SeriesVerdict:
    """Judge the newest of a series of positive numbers, oldest first."""
    logs = [math.log(value) for value in values if value > 0 and math.isfinite(value)]
    if len(logs) < LEAST_RUNS:
        return SeriesVerdict("too few", 0.0, 0.0, values[-1] if values else 0.0, 1)
    middle, spread = _centre(logs[-1 - BASELINE_RUNS : -1]), _spread(logs[-_WINDOW_RUNS - 1 : -1])
    alone = logs[-1] - middle
    verdict = SeriesVerdict("steady", math.expm1(alone), spread, math.exp(middle), 1)
    for runs, errors, deviations in _LIMITS:
        before, newest = logs[-runs - BASELINE_RUNS : -runs], logs[-runs:]
        if len(before) < LEAST_RUNS - 2:
            continue
        middle, spread = _centre(before), _spread(logs[-_WINDOW_RUNS - runs : -runs])
        change = statistics.fmean(newest) - middle
        error = spread * math.sqrt(1 / runs + 1 / len(before)) * _small_sample(len(before))
        sign = math.copysign(1.0, change)
        agreeing = sum(sign * (value - middle) > deviations * spread for value in newest)
        if (
            agreeing >= 2
            and abs(change) > errors * error
            and abs(math.expm1(change)) >= _LEAST_CHANGE
        ):
            word = "slower" if change > 0 else "faster"
            return SeriesVerdict(word, math.expm1(change), spread, math.exp(middle), runs)
    return verdict


def _centre(logs: Sequence[float]) -> float:
    """Mean without the smallest and the largest."""
    kept = sorted(logs)[1:-1] if len(logs) >= 5 else logs
    return statistics.fmean(kept)


def _spread(logs: Sequence[float]) -> float:
    """Standard deviation of single runs, from neighbouring differences; a tenth of them is cut off."""
    steps = sorted((b - a) ** 2 for a, b in itertools.pairwise(logs))
    kept = steps[: len(steps) - len(steps) // 10]
    # Of a Gaussian's mean of squares, cutting a tenth leaves about two thirds.
    share = 1.0 if len(kept) == len(steps) else 0.66
    return max(math.sqrt(statistics.fmean(kept) / share / 2), _LEAST_SPREAD)


def _small_sample(count: int) -> float:
    """The spread of few runs is itself uncertain: demand more of them."""
    return 1.0 if count >= BASELINE_RUNS else 1.0 + 2.5 / count


class SeriesPoint(TypedDict):
    """The median of a run, when it was made, and under which conditions."""

    ms: float
    time: str
    conditions: Conditions


class SeriesRecord(TypedDict):
    """A delegate's runs of a model, and whether the newest are slower than those before; times in ms."""

    test: str
    model: str
    delegate: str
    runs: int
    latest_ms: float
    latest_time: str
    baseline_ms: float
    change: float
    spread: float
    verdict: str
    text: str
    changed: list[str]


class HistoryDocument(TypedDict):
    """What ``./inv history --json`` prints; ``torn``: lines that could not be read."""

    host: str
    entries: int
    torn: int
    series: list[SeriesRecord]
    verdict: str


def series_of(history: History) -> dict[tuple[str, str, str, str], list[SeriesPoint]]:
    """Return passing runs by (test, model, delegate, what else has to be equal), oldest first."""
    series: dict[tuple[str, str, str, str], list[SeriesPoint]] = {}
    for entry in history.entries:
        same = f"{entry['model_sha256'][:12]}/{entry['image_sha256'][:12]}/{entry.get('threads')}"
        for row in entry["results"]:
            times = row.get("latency_ms")
            if row.get("status") != "pass" or not times:
                continue
            key = (entry.get("test", ""), entry.get("model", ""), row["delegate"], same)
            point = SeriesPoint(
                ms=float(times["median"]), time=entry["time"], conditions=entry["conditions"]
            )
            series.setdefault(key, []).append(point)
    return series


def document(history: History) -> HistoryDocument:
    """Return what ``./inv history --json`` prints."""
    series: list[SeriesRecord] = []
    for (test, model, delegate, _), points in series_of(history).items():
        verdict = judge_series([point["ms"] for point in points])
        newest = points[-1]
        earlier = points[-verdict.runs - BASELINE_RUNS : -verdict.runs]
        series.append(
            {
                "test": test,
                "model": model,
                "delegate": delegate,
                "runs": len(points),
                "latest_ms": newest["ms"],
                "latest_time": newest["time"],
                "baseline_ms": round(verdict.baseline, 3),
                "change": round(verdict.change, 4),
                "spread": round(verdict.spread, 4),
                "verdict": verdict.word,
                "text": verdict.text(),
                "changed": changed_conditions(newest["conditions"], earlier),
            }
        )
    words = {each["verdict"] for each in series}
    return {
        "host": history.host,
        "entries": len(history.entries),
        "torn": history.torn,
        "series": series,
        "verdict": next(
            (word for word in ("slower", "faster", "steady") if word in words), "too few"
        ),
    }


def changed_conditions(now: Mapping[str, Any], earlier: Sequence[SeriesPoint]) -> list[str]:
    """Say which conditions of a run are new: versions, governor, clocks; a much higher load or heat."""
    changed = []
    then: list[Mapping[str, Any]] = [point["conditions"] for point in earlier]
    for name in ("generation", "kernel", "mesa", "governor", "npu_clocks_hz"):
        before = [conditions.get(name) for conditions in then]
        if name in now and before and now[name] not in before:
            changed.append(f"{name} {_shown(before[-1])} -> {_shown(now[name])}")
    for name, unit, step in (("load", "", 1.0), ("temperature_c", " °C", 10.0)):
        past = [value for conditions in then if (value := conditions.get(name)) is not None]
        if name in now and past and now[name] > max(past) + step:
            changed.append(f"{name} {now[name]:g}{unit}, at most {max(past):g}{unit} before")
    return changed


def text(document: HistoryDocument) -> str:
    """Return the document for 80 columns."""
    from bsp.base.output import table

    rows = [
        (
            f"{each['delegate'] if len(each['delegate']) <= 16 else '…' + each['delegate'][-15:]}",
            str(each["runs"]),
            f"{each['latest_ms']:.4g}",
            f"{each['baseline_ms']:.4g}",
            f"{each['model']}: {each['text']}"
            + (f"; changed: {'; '.join(each['changed'])}" if each["changed"] else ""),
        )
        for each in document["series"]
    ]
    lines = [f"{document['host']}: {counted(document['entries'], 'run')} of smoke tests"]
    if document["torn"]:
        lines.append(f"note: {counted(document['torn'], 'line')} of the history could not be read")
    if rows:
        lines += ["", table(("delegate", "runs", "newest", "before", "verdict"), rows), ""]
        lines.append("medians in ms")
    return "\n".join([*lines, f"verdict: {document['verdict']}"])


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {rate_hz / 1e6:g} MHz" for name, rate_hz in value.items())
    return str(value) if value is not None else "unknown"
