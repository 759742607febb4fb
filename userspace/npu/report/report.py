# SPDX-License-Identifier: MIT
"""Shows the result of a smoke test to people, in 80 columns."""

from __future__ import annotations

from bsp.base.output import table
from bsp.base.words import filled

from ..profile.shown import EMULATED
from ..profile.shown import text as profile_text
from ..validate.onboard import model_inputs
from ..validate.records import RowResult, SmokeDocument

_WIDTH = 80
_MOST_FINDINGS = 8
_HEADER = ("delegate", "result", "median", "p95", "first", "operations", "top class, or why")


def text_of(document: SmokeDocument) -> str:
    """Return the document of ``label_image.smoke_test`` as text."""
    machine = document["machine"]
    lines = [
        f"{document['test']} on {document['host']}: {document['runtime']}, "
        f"{machine['machine']}, {machine['threads']} threads",
        f"model {document['model']['name']}, image {document['image']['name']}",
    ]
    notes = [document["note"], *input_notes(document)]
    if document["expected"] is None:
        notes.append("no answer is on file for this model and image; compared with the CPU only")
    for note in filter(None, notes):
        lines.append(filled(f"note: {note}", _WIDTH))
    lines += ["", table(_HEADER, [_row(result) for result in document["results"]]), ""]
    for finding in document.get("npu", {}).get("findings", [])[:_MOST_FINDINGS]:
        lines.append(filled(f"finding: {finding}", _WIDTH, rest="  "))
    none = ": nothing that was asked for could run" if document["verdict"] == "skip" else ""
    emulation = f" ({EMULATED})" if is_emulated(document) else ""
    lines.append(filled(f"times in ms{emulation}; verdict: {document['verdict']}{none}", _WIDTH))
    for row in document["results"]:
        if row.get("profile"):
            title = f"time by operation, {row['delegate']}"
            lines += ["", profile_text(title, row["profile"], emulated=is_emulated(document))]
    return "\n".join(lines)


def is_emulated(document: SmokeDocument) -> bool:
    """Whether a smoke test ran on an emulated NPU or board; older documents say it of NPUs only."""
    return bool(document.get("emulated", "npu" in document))


def input_notes(document: SmokeDocument) -> list[str]:
    """Say what each input is given that is not given the plain picture."""
    return [
        f"input {each['name']}, {'x'.join(map(str, each['shape']))} {each['dtype']}, gets "
        f"{each['given']}"
        for each in document.get("inputs", [])  # older documents have none
        if each["given"] != model_inputs.PLAIN
    ]


def _row(result: RowResult) -> tuple[str, ...]:
    times = result["latency_ms"]
    name = result["delegate"]
    if len(name) > 16:  # a path: its end says more than its start
        name = "…" + name[-15:]
    operations = ""
    if result["delegated_ops"] is not None:
        operations = f"{result['delegated_ops']}/{result['total_ops']} {result['driver'] or ''}"
    words = result["reason"]
    if result["status"] == "pass":
        words = "; ".join(filter(None, [answer_of(result), words]))
    return (
        name,
        result["status"],
        _ms(times["median"]) if times else "",
        _ms(times["p95"]) if times else "",
        _ms(result["first_ms"]) if times and result["first_ms"] is not None else "",
        operations.strip(),
        words,
    )


def answer_of(result: RowResult) -> str:
    """Return the best class of a row; of a model that has no classes, its outputs' kinds and errors."""
    if result["top"]:
        best = result["top"][0]
        return f"{best['score']:.6g} {best['index']} {best['label']}".rstrip()
    kinds: dict[str, list[float | None]] = {}
    for each in result.get("outputs") or []:
        kinds.setdefault(each["kind"], []).append(each["error"])
    errors = [error for each in kinds.values() for error in each if error is not None]
    words = ", ".join(
        f"{len(each)} x {kind}" if len(each) > 1 else kind for kind, each in kinds.items()
    )
    return f"{words}, error {max(errors):.2g}" if errors else words


def _ms(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"
