# SPDX-License-Identifier: MIT
"""A model's report as one self-contained HTML page: the answer, what to do, then a strip of operations.

No script, no network. Everything that came from the model's file is escaped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

from bsp.base.words import counted

from ...profile.shown import bar, bars
from ..estimate import Estimate, estimate
from ..graph import Tensor
from ..summary import output_of
from ..trial.run import GOOD, Run
from ..trial.run import WRONG as WRONG_VALUES
from .advice import Advice
from .document import all_advice, best, percent, verdict
from .lines import count
from .report import Facts, Version
from .run_text import run_notes
from .shown import shown
from .text import faults, last_words, left_to_cpu, measured_words
from .which_mesa import run_of

_STYLES = (
    Path(__file__).parents[2] / "report/style.css",
    Path(__file__).with_name("page.css"),
)
_NPU, _WRONGLY, _CPU = "npu", "wrongly", "cpu"
_MEANS = {_NPU: "NPU", _WRONGLY: "NPU, comes out wrong", _CPU: "CPU"}
_MOST_BARS = 60
_MOST_ROWS = 2000
_MOST_CELLS = 1000


def page(facts: Facts, *, made: str) -> str:
    """Return the page.

    Args:
        made: when it was made, in words.
    """
    name = shown(facts.path.name, 80)
    body = [
        _head(facts, name, made),
        _section("What to do", _advice(facts)),
        _section("Who runs what", _strips(facts)),
        _section("Run on virtual NPUs", _runs(facts)),
        _section("Measured on a board", _measured(facts)),
        _section("How long it may take on a board", _times(facts)),
        _section("Bytes by operation", _bytes(facts)),
        _section("Known to come out wrong", _list(faults(facts))),
        _section("Left to the CPU", _list(left_to_cpu(facts))),
        _section("Drivers and versions of Mesa", _versions(facts)),
        _section("Inputs and outputs", _ends(facts)),
        _section("Operations", _operations(facts)),
        f'<p class="soft small">{escape(last_words(facts))}</p>',
    ]
    style = "".join(each.read_text(encoding="utf-8") for each in _STYLES)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Model report: {escape(name)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        + "\n".join(filter(None, body))
        + "\n</body>\n</html>\n"
    )


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>" if content else ""


def _list(items: Sequence[str]) -> str:
    """Return lines of the text report as a list."""
    words = [" ".join(item.removeprefix("- ").split()) for item in items]
    return f"<ul>{''.join(f'<li>{escape(each)}</li>' for each in words)}</ul>" if words else ""


def _badge(word: str) -> str:
    kind = "wrong" if "wrong" in word else word.split()[0]
    return f'<span class="badge {escape(kind)}">{escape(word)}</span>'


def _head(facts: Facts, name: str, made: str) -> str:
    judgement = verdict(facts)
    about = (
        f"{facts.numbers.text}; {counted(len(facts.macs), 'operation')}, {count(sum(facts.macs))} "
        f"multiplications, {count(facts.parameters_bytes)} bytes of parameters"
    )
    return (
        f"<header><h1>Model report: {escape(name)}</h1>"
        f'<p class="answer">{_badge(judgement.answer)} {escape(judgement.why)}</p>'
        f'<p class="soft">{escape(about)} · {escape(made)}</p></header>'
    )


def _advice(facts: Facts) -> str:
    if facts.elsewhere:
        return f"<p>Run it elsewhere: {escape(facts.elsewhere)}</p>"
    items = [*_around_faults(facts), *map(_one_advice, all_advice(facts))]
    if not items:
        return "<p>Nothing that this project knows of.</p>"
    return f'<ol class="advice">{"".join(items)}</ol>'


def _around_faults(facts: Facts) -> list[str]:
    """What to do about operations that come out wrong with the Mesa and NPU of the answer."""
    version, npu = best(facts)
    run = run_of(facts, version, npu)
    if run and run.status in GOOD:
        return []
    places: dict[tuple[str, str, str], list[int]] = {}
    for index, fault in version.faults_on(npu):
        key = (facts.model.operations[index].kind, fault.what, fault.way_out)
        places.setdefault(key, []).append(index)
    return [
        _one_advice(Advice(f"{kind} {what}", way_out, tuple(indices)))
        for (kind, what, way_out), indices in places.items()
    ]


def _one_advice(each: Advice) -> str:
    places = ", ".join(map(str, each.operations[:8])) + (" ..." if len(each.operations) > 8 else "")
    where = f' <span class="soft">(operations {places})</span>' if each.operations else ""
    return f"<li><b>{escape(shown(each.what, 300))}</b>{where}: {escape(shown(each.how, 600))}</li>"


# --- the strip ---------------------------------------------------------------------------------


def _strips(facts: Facts) -> str:
    key = "".join(
        f'<span><i class="{kind}"></i>{escape(words)}</span>' for kind, words in _MEANS.items()
    )
    alike: dict[str, list[str]] = {}
    for version, npu in facts.pairs:
        alike.setdefault(_strip(facts, version, npu), []).append(f"{version.name} on {npu}")
    strips = [f"<h3>{escape(', '.join(names))}</h3>{strip}" for strip, names in alike.items()]
    return f'<p class="key">{key}</p>{"".join(strips)}'


def _strip(facts: Facts, version: Version, npu: str) -> str:
    cells = []
    for each in facts.model.operations[:_MOST_CELLS]:
        kind = who_runs(facts, version, npu, each.index)
        words = f"{each.index} {shown(each.kind, 40)}: {_MEANS[kind]}"
        cells.append(f'<li class="{kind}" title="{escape(words)}">{each.index}</li>')
    more = len(facts.macs) - _MOST_CELLS
    rest = f"<p>and {more} more</p>" if more > 0 else ""
    return f'<ul class="strip">{"".join(cells)}</ul>{rest}'


def who_runs(facts: Facts, version: Version, npu: str, index: int) -> str:
    """Return who runs an operation: ``npu``, ``wrongly`` (the NPU, with wrong values) or ``cpu``.

    What a run has shown counts before what is known in general.
    """
    if version.refusals[index] is not None:
        return _CPU
    run = run_of(facts, version, npu)
    if run and run.operations:
        return _WRONGLY if run.operations[index].status == WRONG_VALUES else _NPU
    faulty = {number for number, _ in version.faults_on(npu)}
    return _WRONGLY if index in faulty else _NPU


# --- runs and times ----------------------------------------------------------------------------


def _runs(facts: Facts) -> str:
    if not facts.runs:
        return f"<p>{escape(facts.not_run)}</p>" if facts.not_run else ""
    columns: Sequence[tuple[str, str, Callable[[Run], str]]] = (
        ("NPU", "head", lambda run: escape(run.npu)),
        ("Mesa", "", lambda run: escape(run.mesa)),
        ("result", "", lambda run: _badge(run.status)),
        ("differ", "n", lambda run: f"{run.different} of {run.values}" if run.values else ""),
        ("jobs", "n", lambda run: str(run.jobs)),
        ("coefficients", "n", lambda run: count(run.coefficient_bytes)),
        ("read", "n", lambda run: count(run.read_bytes)),
        ("written", "n", lambda run: count(run.written_bytes)),
    )
    head = "".join(f'<th class="{kind}">{title}</th>' for title, kind, _ in columns)
    rows = "".join(
        "<tr>"
        + "".join(
            f'<td class="{kind}" data-t="{title}">{cell(run)}</td>' for title, kind, cell in columns
        )
        + "</tr>"
        for run in facts.runs
    )
    notes = [note for run in facts.runs for note in run_notes(run)]
    inputs = escape("; ".join(facts.given) or "no inputs")
    return (
        f'<p class="soft">With {inputs}. Coefficients, read and written are bytes of an inference.</p>'
        f'<table class="cards"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{_list(notes)}'
    )


def _measured(facts: Facts) -> str:
    measured = facts.measured
    if measured is None:
        return ""
    profile = measured.row.get("profile")
    shown_bars = bars(profile, emulated=measured.emulated) if profile else ""
    return f"<p>{_badge(measured.row['status'])} {escape(measured_words(measured))}</p>{shown_bars}"


def _times(facts: Facts) -> str:
    """One estimate for the Mesas that share it; none where the result is wrong."""
    alike: dict[tuple[str, Estimate], list[str]] = {}
    for run in facts.runs:
        guess = estimate(run)
        if isinstance(guess, Estimate) and run.status in GOOD:
            alike.setdefault((run.npu, guess), []).append(run.mesa)
    return "".join(
        _range(f"{npu}, Mesa {', '.join(mesas)}", guess) for (npu, guess), mesas in alike.items()
    )


def _range(title: str, guess: Estimate) -> str:
    end = guess.high_ms * 1.15
    left, width = 100 * guess.low_ms / end, 100 * (guess.high_ms - guess.low_ms) / end
    likely = 100 * guess.likely_ms / end
    return (
        f"<h3>{escape(title)}</h3>"
        f'<div class="range" role="img" aria-label="{guess.low_ms:g} to {guess.high_ms:g} ms">'
        f'<i style="left:{left:.1f}%;width:{width:.1f}%"></i><b style="left:{likely:.1f}%"></b></div>'
        f"<p>about <b>{guess.likely_ms:g} ms</b>, between {guess.low_ms:g} and {guess.high_ms:g} ms</p>"
        f'<p class="why">{escape(guess.how)}</p>'
    )


def _bytes(facts: Facts) -> str:
    run = next((run for run in facts.runs if run.moved_bytes), None)
    if run:
        title = f"read and written by its jobs, {run.npu}, Mesa {run.mesa}"
        sizes = [each.read_bytes + each.written_bytes for each in run.operations]
    else:
        title, sizes = "parameters in the file; it was not run", list(facts.parameters)
    total, largest = sum(sizes), max(sizes, default=0)
    if not largest:
        return ""
    heavy = sorted(range(len(sizes)), key=lambda index: -sizes[index])[:_MOST_BARS]
    drawn = [
        bar(
            f"{index} {shown(facts.model.operations[index].kind, 40)}",
            f"{count(sizes[index])} · {percent(sizes[index] / total)}",
            sizes[index] / largest,
        )
        for index in sorted(heavy)
        if sizes[index]
    ]
    return f'<p class="soft">{escape(title)}</p><ul class="bars">{"".join(drawn)}</ul>'


# --- tables ------------------------------------------------------------------------------------


def _versions(facts: Facts) -> str:
    rows = []
    for version in (*facts.versions, *facts.others):
        warning = f'<br><span class="why">{escape(version.rules.warning)}</span>'
        rows.append(
            f'<tr><td class="head wide">{escape(version.name)}'
            f"{warning if version.rules.warning else ''}</td>"
            f'<td class="n" data-t="taken">{len(version.taken)} of {len(facts.macs)}</td>'
            f'<td class="n" data-t="multiplications">{percent(facts.share(version))}</td>'
            f'<td class="n" data-t="partitions">{len(version.partitions)}</td>'
            f'<td class="n" data-t="crossings">{version.crossings}</td>'
            f'<td class="n" data-t="bytes across">{count(version.bytes_across)}</td></tr>'
        )
    head = "".join(
        f'<th class="{"n" if place else ""}">{title}</th>'
        for place, title in enumerate(
            ("driver, Mesa", "taken", "multiplications", "partitions", "crossings", "bytes across")
        )
    )
    return (
        f'<table class="cards"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    )


def _ends(facts: Facts) -> str:
    rows = [
        f"<tr><td>{what}</td><td>{escape(shown(tensor.name, 80))}</td><td>{_shape(tensor)}</td>"
        f"<td>{escape(tensor.dtype)}</td></tr>"
        for what, tensors in (("input", facts.model.inputs), ("output", facts.model.outputs))
        for tensor in tensors[:_MOST_CELLS]
    ]
    head = "<tr><th></th><th>name</th><th>shape</th><th>type</th></tr>"
    return f'<div class="scroll"><table><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table></div>'


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, (tensor.signature or tensor.shape)[:16])) or "scalar"


def _operations(facts: Facts) -> str:
    rows = []
    for each in facts.model.operations[:_MOST_ROWS]:
        output = output_of(each)
        advice = facts.by_operation[each.index]
        rows.append(
            f'<tr><td class="n">{each.index}</td><td>'
            f"{escape(shown(f'{each.kind} {each.custom}'.strip(), 60))}</td>"
            f"<td>{_shape(output) if output else ''}</td>"
            f'<td class="n">{count(facts.macs[each.index])}</td>'
            f'<td class="n">{count(facts.parameters[each.index])}</td>'
            f'<td class="why">{escape(shown(advice, 300))}</td></tr>'
        )
    head = (
        '<tr><th class="n">#</th><th>operation</th><th>output</th><th class="n">multiplications</th>'
        '<th class="n">bytes</th><th>advice</th></tr>'
    )
    more = len(facts.macs) - _MOST_ROWS
    rest = f"<p>and {more} more</p>" if more > 0 else ""
    return (
        f"<details><summary>{counted(len(facts.macs), 'operation')}</summary>"
        f'<div class="scroll"><table><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table></div>'
        f"{rest}</details>"
    )
