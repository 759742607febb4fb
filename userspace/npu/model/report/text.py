# SPDX-License-Identifier: MIT
"""A model's report as text of at most 80 columns: the answer, what to do, then the details."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bsp.base.output import table
from bsp.base.words import counted, filled

from .. import known_faults
from ..estimate import estimate
from ..graph import Tensor
from ..summary import output_of
from ..trial.run import WRONG, Run
from .document import compile_ratios, percent, verdict
from .report import Facts, Version
from .shown import shown

_WIDTH = 80
_MOST_NAMED = 6
_MOST_HEAVY = 5
_SAME_TIME = 0.25
_NAME_COLUMNS = 20
_SHAPE_COLUMNS = 18
_NUMBER_COLUMNS = 14


def text(facts: Facts) -> str:
    """Return the report."""
    found = verdict(facts)
    head = [
        _line(f"{shown(facts.path.name, 60)}: {found.answer}: {found.why}"),
        _line(
            f"{facts.numbers.text}; {counted(len(facts.macs), 'operation')}, "
            f"{count(sum(facts.macs))} multiplications, {count(facts.parameters_bytes)} bytes of parameters"
        ),
    ]
    parts = [
        "\n".join(head),
        _versions(facts),
        _runs(facts),
        _section("What to do", _advice(facts)),
        _section("Known to come out wrong (seen on virtual NPUs; docs/findings)", _faults(facts)),
        _section("Left to the CPU", _refused(facts)),
        _ends(facts),
        _operations(facts),
        _line(_last_words(facts)),
    ]
    return "\n\n".join(part for part in parts if part)


def count(number: int) -> str:
    """Return a number in four characters or so: 1234, 56.8 k, 569 M."""
    if number < 10_000:
        return str(number)
    for unit in ("k", "M", "G", "T"):
        number_in_unit = number / 1000 ** ("kMGT".index(unit) + 1)
        if number_in_unit < 1000 or unit == "T":
            break
    return f"{number_in_unit:.3g} {unit}" if number_in_unit < 1000 else "many"


def _line(words: str, rest: str = "  ") -> str:
    return filled(words, _WIDTH, rest=rest)


def _section(title: str, lines: Sequence[str]) -> str:
    return "\n".join([f"{title}:", *lines]) if lines else ""


def _item(words: str) -> str:
    return filled(words, _WIDTH, first="- ", rest="  ")


def _versions(facts: Facts) -> str:
    rows = []
    for version in (*facts.versions, *facts.others):
        rows.append(
            [
                version.name,
                f"{len(version.taken)}/{len(facts.macs)}",
                percent(facts.share(version)),
                str(len(version.partitions)),
                str(version.crossings),
                f"{count(version.bytes_across)}",
                _known_wrong(facts, version),
            ]
        )
    share = "macs" if sum(facts.macs) else "of all"
    header = ["driver, Mesa", "taken", share, "parts", "crossings", "bytes", "known wrong"]
    warnings = [
        _item(f"{version.name}: {version.rules.warning}")
        for version in facts.versions
        if version.rules.warning
    ]
    return "\n".join([table(header, rows), *warnings])


def _known_wrong(facts: Facts, version: Version) -> str:
    npus = [npu for each, npu in facts.pairs if each is version]
    if not any(known_faults.is_swept(version.mesa, npu) for npu in npus):
        return "not known"
    return ", ".join(
        f"{npu} {len({index for index, _ in version.faults_on(npu)})}"
        for npu in npus
        if known_faults.is_swept(version.mesa, npu)
    )


def _advice(facts: Facts) -> list[str]:
    if facts.elsewhere:
        return [_item(f"run it elsewhere: {facts.elsewhere}")]
    return [_item(f"{each.what}{_places(each.operations)}: {each.how}") for each in facts.advice]


def _runs(facts: Facts) -> str:
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
            count(run.coefficient_bytes),
            count(run.read_bytes),
            count(run.written_bytes),
        ]
        for run in facts.runs
    ]
    header = ["npu", "Mesa", "result", "differ", "jobs", "coefficients", "read", "written"]
    lines = [
        _line(f"Run on virtual NPUs, with {'; '.join(facts.given) or 'no inputs'}:"),
        table(header, rows),
    ]
    for run in facts.runs:
        for words in (run.why, run.note, _first_wrong(run), _odd(run)):
            if words:
                lines.append(_item(f"{run.npu} {run.mesa}: {shown(words, 400)}"))
    lines += [*_heavy(facts), *_times(facts), *_compiling(facts)]
    return "\n".join(lines)


def _first_wrong(run: Run) -> str:
    if run.first_wrong is None:
        return ""
    each = run.operations[run.first_wrong]
    wrong = sum(other.status == WRONG for other in run.operations)
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
    return [_item(f"{run.npu} {run.mesa}: most bytes are moved by {words}")] if words else []


def _times(facts: Facts) -> list[str]:
    """How long an inference may take, of each NPU once: of the first run that tells."""
    lines, told = [], set()
    for run in facts.runs:
        guess = estimate(run)
        if run.npu in told or (isinstance(guess, str) and run is not facts.runs[0]):
            continue
        told.add(run.npu)
        if isinstance(guess, str):
            lines.append(_item(f"{run.npu} {run.mesa}: no estimate of time: {guess}"))
            continue
        on_cpu = sum(facts.macs) - run.macs
        cpu = f"; without {count(on_cpu)} multiplications on the CPU" if on_cpu > 0 else ""
        lines.append(
            _item(
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
    return [_item(words)]


def _last_words(facts: Facts) -> str:
    said = [
        "Run on emulated NPUs: silicon has the last word."
        if facts.runs
        else "This is what the rules and known faults say.",
        f"{facts.not_run[0].upper()}{facts.not_run[1:]}." if facts.not_run else "",
        "" if facts.runs else "No run, no estimate of time.",
    ]
    return " ".join(filter(None, said))


def _faults(facts: Facts) -> list[str]:
    found: dict[tuple[str, str, str], dict[str, None]] = {}
    places: dict[tuple[str, str, str], set[int]] = {}
    for version in facts.versions:
        for npu, index, fault in version.faults:
            key = (facts.model.operations[index].kind, fault.what, fault.way_out)
            found.setdefault(key, {})[f"{npu} {version.mesa}"] = None
            places.setdefault(key, set()).add(index)
    return [
        _item(f"{kind}{_places(sorted(places[key]))} {what}. On {', '.join(where)}: {way_out}")
        for key, where in found.items()
        for kind, what, way_out in [key]
    ]


def _refused(facts: Facts) -> list[str]:
    found: dict[tuple[str, str], dict[int, list[str]]] = {}
    for version in facts.versions:
        for index, refusal in enumerate(version.refusals):
            if refusal:
                key = (facts.model.operations[index].kind, refusal.why)
                found.setdefault(key, {}).setdefault(index, []).append(_short(version))
    lines = []
    for (kind, why), by_index in found.items():
        versions = sorted({name for names in by_index.values() for name in names})
        alone = "" if len(versions) == len(facts.versions) else f" ({_mesas(versions)})"
        lines.append(_item(f"{kind}{_places(sorted(by_index))}: {shown(why, 200)}{alone}"))
    return lines


def _short(version: Version) -> str:
    return version.mesa if version.rules.driver == "etnaviv" else version.name


def _mesas(names: Sequence[str]) -> str:
    return f"{'Mesa ' if names[0][:1].isdigit() else ''}{', '.join(names)}"


def _places(indices: Sequence[int]) -> str:
    if not indices:
        return ""
    named = ", ".join(map(str, indices[:_MOST_NAMED]))
    more = len(indices) - _MOST_NAMED
    return f" ({named}{f' and {more} more' if more > 0 else ''})"


def _ends(facts: Facts) -> str:
    rows = [
        [
            what,
            shown(tensor.name, _NAME_COLUMNS),
            _shape(tensor.signature or tensor.shape),
            tensor.dtype,
            _scale(tensor),
        ]
        for what, tensors in (("input", facts.model.inputs), ("output", facts.model.outputs))
        for tensor in tensors
    ]
    return table(["", "name", "shape", "type", "scale, zero point"], rows) if rows else ""


def _scale(tensor: Tensor) -> str:
    if not tensor.scales:
        return "not quantised"
    if len(tensor.scales) > 1:
        return f"{len(tensor.scales)} scales"
    zero_point = str(tensor.zero_points[0] if tensor.zero_points else 0)
    return f"{tensor.scales[0]:.6g}, {shown(zero_point, _NUMBER_COLUMNS)}"


def _shape(shape: Iterable[int]) -> str:
    sizes = [str(each) for each in shape]
    text = "x".join(sizes) or "scalar"
    return text if len(text) <= _SHAPE_COLUMNS else f"{len(sizes)} dimensions"


def _operations(facts: Facts) -> str:
    rows = []
    for each in facts.model.operations:
        output = output_of(each)
        taken = [
            _short(version) for version in facts.versions if version.refusals[each.index] is None
        ]
        runs = "NPU" if taken else "CPU"
        if 0 < len(taken) < len(facts.versions):
            runs = f"NPU with {', '.join(taken)}"
        rows.append(
            [
                str(each.index),
                shown(f"{each.kind} {each.custom}".strip(), _NAME_COLUMNS),
                _shape(output.shape) if output else "none",
                count(facts.macs[each.index]),
                count(facts.parameters[each.index]),
                runs,
            ]
        )
    return table(["#", "operation", "output", "macs", "bytes", "runs on"], rows)
