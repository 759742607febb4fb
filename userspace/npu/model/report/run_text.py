# SPDX-License-Identifier: MIT
"""What became of a model where it was run, as text: results, bytes, times."""

from __future__ import annotations

from bsp.base.output import table
from bsp.base.words import counted

from ..estimate import estimate
from ..trial.run import WRONG, Agreement, Run
from .document import compile_ratios, percent
from .lines import count, item, line
from .report import Facts
from .shown import shown

_MOST_HEAVY = 5
_SAME_TIME = 0.25


def runs(facts: Facts) -> str:
    """What became of it on virtual NPUs."""
    if not facts.runs:
        return ""
    rows = [
        [
            run.npu,
            run.mesa,
            run.status,
            f"{run.different}/{run.values}" if run.values else "-",
            str(run.jobs),
            *(
                count(size) if run.moved_bytes else "-"
                for size in (run.coefficient_bytes, run.read_bytes, run.written_bytes)
            ),
        ]
        for run in facts.runs
    ]
    header = ["npu", "Mesa", "result", "differ", "jobs", "coefficients", "read", "written"]
    lines = [
        line(f"Run on virtual NPUs, with {'; '.join(facts.given) or 'no inputs'}:"),
        table(header, rows),
    ]
    lines += [item(note) for run in facts.runs for note in run_notes(run)]
    lines += [*_heavy(facts), *_times(facts), *_compiling(facts)]
    return "\n".join(lines)


def run_notes(run: Run) -> list[str]:
    """Return what else there is to say of a run: why it is wrong, where first, what is odd."""
    notes = (run.why, run.note, _first_wrong(run), _odd(run), *map(_agreement, run.agreement))
    return [f"{run.npu} {run.mesa}: {shown(words, 400)}" for words in notes if words]


def _agreement(each: Agreement) -> str:
    words = (
        f"output {shown(each.name, 60)!r} over {counted(each.sets, 'input')}, rounded as silicon is "
        f"predicted to: {each.different} of {each.values} values differ, by up to {each.largest:g}, "
        f"{each.mean:.3g} on average"
    )
    if each.top is not None:
        words += f"; the largest is the same for {each.top}"
        words += f" ({each.ties} with a tie)" if each.ties else ""
    return words


def _first_wrong(run: Run) -> str:
    if run.first_wrong is None:
        return ""
    each = run.operations[run.first_wrong]
    wrong = sum(other.status == WRONG for other in run.operations)
    if not each.different:
        return f"the first wrong operation is {each.index} ({each.operation})"
    others = f"; {wrong} operations have wrong values" if wrong > 1 else ""
    return (
        f"the first wrong operation is {each.index} ({each.operation}): {each.different} of "
        f"{each.values} values differ, by up to {each.largest} steps{others}"
    )


def _odd(run: Run) -> str:
    odd = [f"output {shown(each.name, 60)!r} is {each.looks}" for each in run.outputs if each.looks]
    if not odd:
        return ""
    return f"{'; '.join(odd)}, in TFLite's own values too: an NPU that answers nothing would look the same"


def _heavy(facts: Facts) -> list[str]:
    """The operations that move most bytes, of the first run that moves any."""
    run = next((run for run in facts.runs if run.moved_bytes), None)
    if run is None:
        return []
    most = sorted(run.operations, key=run.share, reverse=True)[:_MOST_HEAVY]
    words = ", ".join(
        f"{each.index} {each.operation} {percent(run.share(each))}"
        for each in most
        if run.share(each)
    )
    return [item(f"{run.npu} {run.mesa}: most bytes are moved by {words}")] if words else []


def _times(facts: Facts) -> list[str]:
    """How long an inference may take, of each NPU once: of the first run that tells."""
    lines, estimated = [], set()
    for run in facts.runs:
        guess = estimate(run)
        if run.npu in estimated or (isinstance(guess, str) and run is not facts.runs[0]):
            continue
        estimated.add(run.npu)
        if isinstance(guess, str):
            lines.append(item(f"{run.npu} {run.mesa}: no estimate of time: {guess}"))
            continue
        on_cpu = sum(facts.macs) - run.macs
        cpu = f"; without {count(on_cpu)} multiplications on the CPU" if on_cpu > 0 else ""
        lines.append(
            item(
                f"{run.npu} {run.mesa}: about {guess.likely_ms:g} ms an inference, between "
                f"{guess.low_ms:g} and {guess.high_ms:g}{cpu}: {guess.how}"
            )
        )
    return lines


def _compiling(facts: Facts) -> list[str]:
    slower = [
        f"{mesa} on {npu} {ratio:.1f} times"
        for (npu, mesa), ratio in compile_ratios(facts).items()
        if abs(ratio - 1) > _SAME_TIME
    ]
    if not slower:
        return []
    words = f"compiling at load, by CPU time, beside the oldest Mesa here: {', '.join(slower)}"
    return [item(words)]
