# SPDX-License-Identifier: MIT
"""``gate-mesa``: is a version of the delegate good, and what changed against another one?"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bsp.base.at_once import at_once
from bsp.base.cache import cache_dir, keep
from bsp.base.errors import InfrastructureError
from bsp.base.output import table
from bsp.base.progress import Step, say, step
from bsp.base.project import PROJECT
from bsp.base.words import filled
from userspace.npu.model import tflite_file
from userspace.npu.validate import models
from userspace.npu.validate.onboard import bmp, preprocess

from ..npu.identity import vivante_names
from ..npu.shim.host import PREFIX, npu_name
from . import sweep
from .build import BuiltModel, build
from .cases import sweep as chosen_cases
from .model_runner import reference, tflite_runtime
from .packages import Delegate, find_delegate, named_delegate
from .records import ChangeRecord, KindRecord, MesaGateDocument, OutcomeRecord, PackageRecord
from .sweep import CRASHES, GOOD, HANGS, REFUSED, WRONG, Outcome

FORMAT = 1
_WORST = (CRASHES, HANGS, WRONG)
_QUICK_MODELS = ("mobilenet_v1_0.25_128_quant",)
_MODELS = (*_QUICK_MODELS, "mobilenet_v1_1.0_224_quant", "mobilenet_v2_1.0_224_quant")
_IMAGE = "grace_hopper.bmp"
_SOURCES = (PROJECT / "virtual/npu", PROJECT / "virtual/gates", Path(tflite_file.__file__))


@dataclass(frozen=True)
class GateRequest:
    """What to gate.

    Attributes:
        package: a .deb file; suite: a Debian suite; mesa: as ``find_delegate`` takes it; one of them.
        against: what to compare with, as ``mesa``; "" for none.
        npu: ``virtual:NAME`` or ``all``.
        quick: about 115 cases and one small model in place of hundreds and three.
    """

    package: str = ""
    suite: str = ""
    against: str = ""
    npu: str = "all"
    quick: bool = False
    timeout_s: float = 180.0
    mesa: str = ""


def gate(request: GateRequest) -> MesaGateDocument:
    """Run the gate and return its document; ``verdict`` is ``good``, ``not good`` or ``worse``.

    Raises:
        UserError: the arguments are wrong.
        InfrastructureError: packages cannot be had, or the client does not start.
    """
    named = named_delegate(request.package, request.suite, request.mesa)
    npus = vivante_names() if request.npu == "all" else [npu_name(request.npu)]
    delegate = find_delegate(named)
    other = find_delegate(request.against) if request.against else None
    outcomes = _swept(delegate, npus, request)
    kinds = kinds_of(outcomes)
    document: MesaGateDocument = {
        "format": FORMAT,
        "package": _described(delegate),
        "npus": [PREFIX + npu for npu in npus],
        "quick": request.quick,
        "kinds": kinds,
        "cases": outcomes,
        "verdict": "not good" if any(kind["verdict"] in _WORST for kind in kinds) else "good",
    }
    if other:
        before = _swept(other, npus, request)
        changes = changes_of(before, outcomes)
        worse = [change for change in changes if change["change"] == "worse"]
        document["against"] = {
            "package": _described(other),
            "kinds": kinds_of(before),
            "changes": changes,
            "worse": len(worse),
            "better": sum(change["change"] == "better" for change in changes),
        }
        document["verdict"] = "worse" if worse else "good"
    return document


def kinds_of(outcomes: Sequence[OutcomeRecord]) -> list[KindRecord]:
    """Return a verdict for each NPU and kind of operation: the worst of its cases."""
    groups: dict[tuple[str, str], list[OutcomeRecord]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome["npu"], outcome["kind"]), []).append(outcome)
    verdicts: list[KindRecord] = []
    for (npu, kind), members in sorted(groups.items()):
        counts = {
            status: sum(member["status"] == status for member in members)
            for status in (GOOD, WRONG, REFUSED, CRASHES, HANGS)
        }
        verdict = next(
            (status for status in (*_WORST, GOOD) if counts[status]),
            REFUSED,
        )
        bad = [member for member in members if member["status"] in _WORST]
        verdicts.append(
            {
                "npu": PREFIX + npu,
                "kind": kind,
                "verdict": verdict,
                "good": counts[GOOD],
                "wrong": counts[WRONG],
                "refused": counts[REFUSED],
                "crashes": counts[CRASHES],
                "hangs": counts[HANGS],
                "blame": sorted({member["blame"] for member in bad if member["blame"]}),
                "evidence": list(dict.fromkeys(member["evidence"] for member in bad))[:3],
                "examples": [member["name"] for member in bad[:3]],
                "notes": list(dict.fromkeys(m["note"] for m in members if m["note"]))[:2],
                "hardware_error": max(member["hardware_error"] for member in members),
            }
        )
    return verdicts


def changes_of(
    before: Sequence[OutcomeRecord], after: Sequence[OutcomeRecord]
) -> list[ChangeRecord]:
    """Return what became better, worse or other between two sweeps of the same cases."""
    rank = {GOOD: 0, REFUSED: 1, WRONG: 2, HANGS: 3, CRASHES: 3}
    old = {(each["npu"], each["name"]): each for each in before}
    changes: list[ChangeRecord] = []
    for outcome in after:
        was = old.get((outcome["npu"], outcome["name"]))
        if was is None or was["status"] == outcome["status"]:
            continue
        difference = rank[outcome["status"]] - rank[was["status"]]
        # What was refused and is right now is as right as before, and newly done by the NPU.
        change = "worse" if difference > 0 else "better" if difference < 0 else "other"
        if {was["status"], outcome["status"]} == {GOOD, REFUSED}:
            change = "newly delegated" if outcome["status"] == GOOD else "no longer delegated"
        changes.append(
            {
                "npu": PREFIX + outcome["npu"],
                "kind": outcome["kind"],
                "name": outcome["name"],
                "before": was["status"],
                "after": outcome["status"],
                "change": change,
                "blame": outcome["blame"],
                "evidence": outcome["evidence"],
            }
        )
    return changes


def text_of(document: MesaGateDocument) -> str:
    """Return the document for people."""
    package = document["package"]
    lines = [f"Mesa {package['version']} ({package['origin']}): {document['verdict']}", ""]
    rows = []
    for kind in document["kinds"]:
        others = kind["wrong"] + kind["refused"] + kind["crashes"] + kind["hangs"]
        count = f"{kind['good']}/{kind['good'] + others}"
        rows.append(
            (
                kind["npu"].removeprefix(PREFIX),
                kind["kind"],
                kind["verdict"],
                count,
                ", ".join(kind["blame"]),
            )
        )
    lines.append(table(("npu", "operation", "verdict", "good", "to blame"), rows))
    for kind in document["kinds"]:
        if kind["verdict"] in _WORST:
            lines += ["", f"{kind['npu']} {kind['kind']}: {kind['verdict']}"]
            for evidence in kind["evidence"][:2]:
                lines += _wrapped(evidence)
            lines += _wrapped(f"seen with: {', '.join(kind['examples'][:2])}")
        elif kind["notes"]:
            lines += ["", f"{kind['npu']} {kind['kind']}: good, but"]
            for note in kind["notes"][:1]:
                lines += _wrapped(note)
    if "against" in document:
        against = document["against"]
        lines += ["", f"Against Mesa {against['package']['version']}:"]
        if not against["changes"]:
            lines.append("  nothing changed")
        counted: dict[tuple[str, ...], int] = {}
        for change in against["changes"]:
            verdicts = (change["before"], change["after"], change["change"])
            key = (change["npu"], change["kind"], *verdicts)
            counted[key] = counted.get(key, 0) + 1
        rows = [
            (npu.removeprefix(PREFIX), kind, f"{before} -> {after}", change, str(count))
            for (npu, kind, before, after, change), count in counted.items()
        ]
        if rows:
            lines.append(table(("npu", "operation", "verdict", "change", "cases"), rows))
    lines += [
        "",
        "An emulator's verdict: it reads what Mesa submits; silicon has the last word.",
        "refused: the delegate leaves it to the CPU, which is right but slow.",
    ]
    return "\n".join(lines)


def _wrapped(text: str) -> list[str]:
    return filled(text, first="  ", rest="    ").splitlines()


def _described(delegate: Delegate) -> PackageRecord:
    return {
        "version": delegate.version,
        "upstream": delegate.upstream,
        "origin": delegate.origin,
    }


def _swept(delegate: Delegate, npus: Sequence[str], request: GateRequest) -> list[OutcomeRecord]:
    """Return the outcomes of a sweep, from the cache if nothing that they hang on has changed."""
    documents: list[OutcomeRecord] = []
    missing = []
    for npu in npus:
        place = _cached(delegate, npu, request.quick)
        if place.exists():
            documents += json.loads(place.read_bytes())
        else:
            missing.append(npu)
    if missing:
        say(f"Mesa {delegate.version}: {', '.join(missing)}")
        with (
            at_once(len(missing)) as pool,
            step(f"Sweeping Mesa {delegate.version}") as now,
        ):
            progress = _Progress(now, len(missing))
            jobs = [pool.submit(_sweep_one, delegate, npu, request, progress) for npu in missing]
            for job in jobs:
                documents += job.result()
    return documents


class _Progress:
    def __init__(self, now: Step, sweeps: int) -> None:
        self._now = now
        self._done = 0
        self._sweeps = sweeps

    def one(self, total: int) -> None:
        """Count a case."""
        self._done += 1
        self._now.note(f"{self._done} of {total * self._sweeps}")


def _cached(delegate: Delegate, npu: str, quick: bool) -> Path:
    digest = hashlib.sha256(f"{delegate.root.name} {npu} {quick} {source_digest()}".encode())
    folder = cache_dir() / "gate"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{delegate.upstream}-{npu}-{digest.hexdigest()[:16]}.json"


@functools.cache
def source_digest() -> str:
    """Return a hash of the sources that an outcome depends on: emulator, sweep, writer of models."""
    digest = hashlib.sha256()
    for path in sorted(file for source in _SOURCES for file in (source, *source.rglob("*"))):
        if path.parent.name == "device":
            continue  # QEMU's door: no case goes through it
        if path.suffix in (".py", ".c", ".toml"):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _sweep_one(
    delegate: Delegate, npu: str, request: GateRequest, progress: _Progress
) -> list[OutcomeRecord]:
    cases = chosen_cases(quick=request.quick)
    names = _QUICK_MODELS if request.quick else _MODELS
    total = len(cases) + len(names)
    outcomes: list[Outcome] = []
    with sweep.runner(delegate, timeout_s=request.timeout_s) as runner:
        for case in cases:
            built = build(case)
            outcomes.append(runner.run(built, npu, _reference(built)))
            progress.one(total)
        for name in names:
            model = models.find(name, "model")
            content = model.path.read_bytes()
            pixels = [_picture(content)]
            expected = reference(content, pixels)
            outcomes.append(
                runner.run_file(model.path, pixels, npu, expected, name, f"model {name}")
            )
            progress.one(total)
    documents = [outcome.document() for outcome in outcomes]
    # Kept at once: what one NPU took minutes for is not lost when the other's sweep is stopped.
    keep(_cached(delegate, npu, request.quick), json.dumps(documents).encode())
    return documents


def _reference(built: BuiltModel) -> list[NDArray[Any]]:
    try:
        return reference(built.model, list(built.inputs))
    except ValueError as error:
        raise InfrastructureError(f"TFLite does not take {built.case.name}: {error}") from error


def _picture(model: bytes) -> NDArray[Any]:
    """Return the test image as a model's input."""
    module = tflite_runtime()
    source = module.Interpreter(model_content=model).get_input_details()[0]
    _, height, width, _ = (int(size) for size in source["shape"])
    pixels = bmp.open_bmp(models.find(_IMAGE, "image").path)
    resized = preprocess.resize_bilinear(pixels, height, width, fused=True)
    return preprocess.to_input(resized, np.dtype(source["dtype"]))[None]
