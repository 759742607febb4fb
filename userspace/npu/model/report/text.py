# SPDX-License-Identifier: MIT
"""A model's report as text of at most 80 columns: the answer, what to do, then the details."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bsp.base.output import table
from bsp.base.words import counted

from ...profile.measured import Measured
from ...profile.shown import EMULATED
from ...profile.shown import text as profile_text
from ..faults import known_faults
from ..graph import Tensor
from ..summary import output_of
from .document import all_advice, percent, verdict
from .lines import count, item, line, places, section
from .report import Facts, Version
from .run_text import runs
from .shown import shown

_NAME_COLUMNS = 20
_SHAPE_COLUMNS = 18
_NUMBER_COLUMNS = 14


def text(facts: Facts) -> str:
    """Return the report."""
    judgement = verdict(facts)
    head = [
        line(f"{shown(facts.path.name, 60)}: {judgement.answer}: {judgement.why}"),
        line(
            f"{facts.numbers.text}; {counted(len(facts.macs), 'operation')}, "
            f"{count(sum(facts.macs))} multiplications, {count(facts.parameters_bytes)} bytes of parameters"
        ),
    ]
    parts = [
        "\n".join(head),
        _versions(facts),
        runs(facts),
        _measured(facts),
        section("What to do", _advice(facts)),
        section("Known to come out wrong (seen on virtual NPUs; docs/findings)", faults(facts)),
        section("Left to the CPU", left_to_cpu(facts)),
        _ends(facts),
        _operations(facts),
        line(last_words(facts)),
    ]
    return "\n\n".join(part for part in parts if part)


def _measured(facts: Facts) -> str:
    measured = facts.measured
    if measured is None:
        return ""
    words = line(f"Measured on {measured_words(measured)}")
    profile = measured.row.get("profile")
    shown_profile = (
        profile_text("Time by operation", profile, emulated=measured.emulated) if profile else ""
    )
    return "\n".join(filter(None, [words, shown_profile]))


def measured_words(measured: Measured) -> str:
    """Return what came out on a board, in a sentence."""
    row = measured.row
    words = f"{measured.where}: {row['status']}"
    if row["latency_ms"]:
        times = row["latency_ms"]
        words += f", {times['median']:.4g} ms an inference (median of {times['n']})"
    if row["first_ms"] is not None:
        words += f", {row['first_ms']:.4g} ms the first"
    words += f": {shown(row['reason'], 400)}" if row["reason"] else ""
    return words + (f" (times are {EMULATED})" if measured.emulated else "")


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
        item(f"{version.name}: {version.rules.warning}")
        for version in facts.versions
        if version.rules.warning
    ]
    return "\n".join([table(header, rows), *warnings])


def _known_wrong(facts: Facts, version: Version) -> str:
    npus = [npu for each, npu in facts.pairs if each is version]
    counts = []
    for npu in npus:
        count = len({index for index, _ in version.faults_on(npu)})
        if known_faults.is_swept(version.mesa, npu):
            counts.append(f"{npu} {count}")
        elif count:
            counts.append(f"{npu} {count} or more")
    return ", ".join(counts) or "not known"


def _advice(facts: Facts) -> list[str]:
    if facts.elsewhere:
        return [item(f"run it elsewhere: {facts.elsewhere}")]
    return [item(f"{each.what}{places(each.operations)}: {each.how}") for each in all_advice(facts)]


def last_words(facts: Facts) -> str:
    """Return what the report rests on."""
    sentences = [
        "Run on emulated NPUs: silicon has the last word."
        if facts.runs
        else "This is what the rules and known faults say.",
        f"{facts.not_run[0].upper()}{facts.not_run[1:]}." if facts.not_run else "",
        "" if facts.runs else "No run, no estimate of time.",
    ]
    return " ".join(filter(None, sentences))


def faults(facts: Facts) -> list[str]:
    """Return what is known to come out wrong, as items."""
    npus_of: dict[tuple[str, str, str], dict[str, None]] = {}
    indices: dict[tuple[str, str, str], set[int]] = {}
    for version in facts.versions:
        for npu, index, fault in version.faults:
            key = (facts.model.operations[index].kind, fault.what, fault.way_out)
            npus_of.setdefault(key, {})[f"{npu} {version.mesa}"] = None
            indices.setdefault(key, set()).add(index)
    return [
        item(f"{kind}{places(sorted(indices[key]))} {what}. On {', '.join(where)}: {way_out}")
        for key, where in npus_of.items()
        for kind, what, way_out in [key]
    ]


def left_to_cpu(facts: Facts) -> list[str]:
    """Return what no NPU takes, and why, as items."""
    by_reason: dict[tuple[str, str], dict[int, list[str]]] = {}
    for version in facts.versions:
        for index, refusal in enumerate(version.refusals):
            if refusal:
                key = (facts.model.operations[index].kind, refusal.why)
                by_reason.setdefault(key, {}).setdefault(index, []).append(_short(version))
    lines = []
    for (kind, why), by_index in by_reason.items():
        versions = sorted({name for names in by_index.values() for name in names})
        alone = "" if len(versions) == len(facts.versions) else f" ({_mesas(versions)})"
        lines.append(item(f"{kind}{places(sorted(by_index))}: {shown(why, 200)}{alone}"))
    return lines


def _short(version: Version) -> str:
    return version.mesa if version.rules.driver == "etnaviv" else version.name


def _mesas(names: Sequence[str]) -> str:
    return f"{'Mesa ' if names[0][:1].isdigit() else ''}{', '.join(names)}"


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
