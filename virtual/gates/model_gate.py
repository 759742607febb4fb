# SPDX-License-Identifier: MIT
"""``gate-mesa --model``: is a model right, which operation is the first wrong one, which Mesa is right?"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from bsp.base.cache import cache_dir, keep
from bsp.base.errors import BspError, UserError
from bsp.base.output import table
from bsp.base.progress import say, step
from bsp.base.result import FAILED_VALIDATION, Result
from bsp.base.words import filled
from userspace.npu.model.graph import read_model
from userspace.npu.model.prefix import prefix, sources
from userspace.npu.model.trial.given import input_values
from userspace.npu.validate import models

from ..model_runs.references import references
from ..npu.identity import vivante_names
from ..npu.shim.host import PREFIX, npu_name
from ..npu.taken import not_in_the_main_graph
from .mesa import source_digest
from .model_runner import reference
from .packages import SUITES, Delegate, find_delegate
from .records import ModelGateDocument, ModelRecord, ModelRun, ModelVerdict
from .sweep import GOOD, REFUSED, Outcome, Runner, runner

DEFAULT_SUITE = "trixie"
_PICTURE = "grace_hopper.bmp"
_RIGHT = (GOOD, REFUSED)
_NOT_RUN = "not run"
"""The verdict of a model that TFLite itself refuses: there is nothing to compare with."""
_NOT_WRONG = (*_RIGHT, _NOT_RUN)
_KNOWN_SUITES = SUITES[1:]
"""What a model is compared with: bookworm-backports has another delegate, that fewer models run on."""


@dataclass(frozen=True)
class ModelGateRequest:
    """What to judge.

    Attributes:
        models: .tflite files, or names of known models.
        delegate: as ``find_delegate`` takes it.
        npu: ``virtual:NAME`` or ``all``.
        quick: leave out which other Mesa is right.
    """

    models: tuple[str, ...]
    delegate: str
    npu: str = "all"
    quick: bool = False
    timeout_s: float = 180.0


@dataclass(frozen=True)
class ModelGateResult(Result):
    """Verdicts of models."""

    contents: ModelGateDocument

    def document(self) -> ModelGateDocument:
        """Return the document."""
        return self.contents

    def text(self) -> str:
        """Return the text."""
        return _text(self.contents)

    @property
    def exit_code(self) -> int:
        """Return 4 where a model is not right."""
        return 0 if self.contents["verdict"] == "good" else FAILED_VALIDATION


def gate_models(request: ModelGateRequest) -> ModelGateResult:
    """Judge models with a Mesa on virtual NPUs, in exact mode.

    Raises:
        UserError: there is no such model, Mesa or NPU, or TFLite itself runs none of the models.
        InfrastructureError: packages cannot be had, or the client does not start.
    """
    npus = vivante_names() if request.npu == "all" else [npu_name(request.npu)]
    subjects = [_Subject.read(name) for name in request.models]
    delegate = find_delegate(request.delegate)
    runs = [(subject, _runs(subject, npus, delegate, request.timeout_s)) for subject in subjects]
    verdicts = [run["verdict"] for _, of_subject in runs for run in of_subject]
    if all(verdict == _NOT_RUN for verdict in verdicts):
        raise UserError(
            runs[0][1][0]["evidence"], hint="./inv model-report says what is odd about a model"
        )
    others = [] if request.quick else _others(delegate)
    documents: list[ModelRecord] = [
        {
            "name": subject.name,
            "sha256": subject.sha256,
            "inputs": list(subject.given),
            "runs": _with_right_versions(subject, of_subject, others, request.timeout_s),
        }
        for subject, of_subject in runs
    ]
    good = all(verdict in _RIGHT for verdict in verdicts)
    return ModelGateResult(
        {
            "format": 1,
            "package": {
                "version": delegate.version,
                "upstream": delegate.upstream,
                "origin": delegate.origin,
            },
            "npus": [PREFIX + npu for npu in npus],
            "compared_others": not request.quick,
            "models": documents,
            "verdict": "good" if good else "not good",
        }
    )


@dataclass(frozen=True)
class _Subject:
    """A model, what its inputs get, and the right outputs of its graph up to an operation."""

    name: str
    sha256: str
    content: bytes
    inputs: tuple[NDArray[Any], ...]
    given: tuple[str, ...]

    @classmethod
    def read(cls, name: str) -> _Subject:
        content = models.model_named(name).path.read_bytes()
        read_model(content, what=name)
        try:
            values, words = input_values(content, (), models.find(_PICTURE, "image").path)
        except BspError:
            values, words = input_values(content)  # no picture fits, or it cannot be had
        digest = hashlib.sha256(content).hexdigest()
        return cls(Path(name).name, digest, content, values, words)


def _with_right_versions(
    subject: _Subject, runs: list[ModelVerdict], others: Sequence[Delegate], timeout_s: float
) -> list[ModelRun]:
    """Return the runs of a model, each with the versions of Mesa that are right where it is wrong."""
    wrong = [run["npu"] for run in runs if run["verdict"] not in _NOT_WRONG]
    right: dict[str, list[str]] = {}
    for other in others:
        for run in _runs(subject, wrong, other, timeout_s, bisect=False):
            if run["verdict"] in _RIGHT:
                right.setdefault(run["npu"], []).append(other.version)
    return [
        {**run, "npu": PREFIX + run["npu"], "right_with": right.get(run["npu"], [])} for run in runs
    ]


def _others(delegate: Delegate) -> list[Delegate]:
    by_version: dict[str, Delegate] = {}
    for suite in _KNOWN_SUITES:
        try:
            other = find_delegate(suite)
        except BspError as error:
            say(f"Mesa of {suite} is not compared: {error.message}")
            continue
        if other.version != delegate.version:
            by_version.setdefault(other.version, other)
    return list(by_version.values())


def _runs(
    subject: _Subject,
    npus: Sequence[str],
    delegate: Delegate,
    timeout_s: float,
    *,
    bisect: bool = True,
) -> list[ModelVerdict]:
    """Return a model's verdict on each NPU; from the cache, if nothing that it depends on has changed."""
    places = {npu: _cached(subject, npu, delegate, bisect=bisect) for npu in npus}
    verdicts: dict[str, ModelVerdict] = {
        npu: json.loads(place.read_bytes()) for npu, place in places.items() if place.exists()
    }
    missing = [npu for npu in npus if npu not in verdicts]
    if missing:
        with (
            step(f"Running {subject.name} with Mesa {delegate.version}") as now,
            runner(delegate, timeout_s=timeout_s) as client,
        ):
            for npu in missing:
                verdict = _judged(client, subject, npu, timeout_s, bisect=bisect, note=now.note)
                text = json.dumps(verdict).encode()
                keep(places[npu], text)
                verdicts[npu] = json.loads(text)
    return [verdicts[npu] for npu in npus]


def _cached(subject: _Subject, npu: str, delegate: Delegate, *, bisect: bool) -> Path:
    text = f"{subject.sha256} {subject.given} {delegate.root.name} {npu} {bisect} {source_digest()}"
    folder = cache_dir() / "gate" / "models"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"


def _judged(
    client: Runner,
    subject: _Subject,
    npu: str,
    timeout_s: float,
    *,
    bisect: bool,
    note: Callable[[str], None],
) -> ModelVerdict:
    def run(model: bytes) -> Outcome:
        right = _right(subject, model, timeout_s)
        return client.run_model(model, list(subject.inputs), npu, right, subject.name, "model")

    note(npu)
    try:
        outcome = run(subject.content)
    except UserError as error:
        outcome = Outcome(npu, subject.name, "model", _NOT_RUN, evidence=error.message)
    document: ModelVerdict = {
        "npu": npu,
        "verdict": outcome.status,
        "different": outcome.different,
        "values": outcome.values,
        "largest": outcome.largest,
        "blame": outcome.blame,
        "evidence": outcome.evidence,
        "note": outcome.note,
        "first_wrong": None,
    }
    if bisect and outcome.status not in _NOT_WRONG:
        needs = sources(subject.content)
        first, runs = first_wrong(
            needs,
            lambda index: _is_wrong(run, subject.content, index, npu, note),
        )
        if first is not None:
            operation = read_model(subject.content).operations[first]
            document["first_wrong"] = {"index": first, "operation": operation.kind, "runs": runs}
            own = run(prefix(subject.content, first))
            evidence = renumbered(own.evidence, needs[first]) or outcome.evidence
            document["blame"] = own.blame or outcome.blame
            document["evidence"] = evidence
    return document


def renumbered(text: str, operations: Sequence[int]) -> str:
    """Return what was said of a prefix with the operations' places in the whole model."""

    def whole(match: re.Match[str]) -> str:
        place = int(match[1])
        return f"operation {operations[place] if place < len(operations) else place} ("

    return re.sub(r"operation (\d+) \(", whole, text)


def _right(subject: _Subject, model: bytes, timeout_s: float) -> list[NDArray[Any]]:
    """Return what TFLite's portable kernels make of a subject's model, or of a part of it."""
    if why := not_in_the_main_graph(read_model(model)):
        raise UserError(f"{subject.name}: {why}", hint="smoke-test --host runs it on a board")
    try:
        if model is subject.content:  # it may crash TFLite; of what does not, no part does
            whole = references(
                model, read_model(model), subject.inputs, timeout_s=timeout_s, outputs_only=True
            )
            return whole.outputs
        return reference(model, list(subject.inputs))
    except ValueError as error:
        raise UserError(
            f"TFLite itself does not run {subject.name}: {error}",
            hint="./inv model-report says what is odd about a model",
        ) from error


def _is_wrong(
    run: Callable[[bytes], Outcome],
    model: bytes,
    index: int,
    npu: str,
    note: Callable[[str], None],
) -> bool:
    note(f"{npu}: running up to operation {index}")
    return run(prefix(model, index)).status not in _RIGHT


def first_wrong(
    needs: Sequence[Sequence[int]], is_wrong: Callable[[int], bool]
) -> tuple[int | None, int]:
    """Return the first operation up to which a graph is wrong, and how many prefixes were run.

    Where a graph is right up to an operation, all that it needs is taken for right. None: each prefix is
    right, only the whole is not.

    Args:
        needs: of each operation the operations that it needs, itself among them, in order.
        is_wrong: whether the graph up to an operation comes out wrong.
    """
    candidates = list(range(len(needs)))
    wrong: int | None = None
    count = 0
    while candidates:
        # Of the last one known to be wrong everything else is right: that is the one.
        if wrong is not None and candidates == [wrong]:
            return wrong, count
        others = [each for each in candidates if each != wrong]
        middle = others[len(others) // 2]
        count += 1
        if is_wrong(middle):
            wrong = middle
            candidates = [each for each in candidates if each in set(needs[middle])]
        else:
            candidates = [each for each in candidates if each not in set(needs[middle])]
    return wrong, count


def _text(document: ModelGateDocument) -> str:
    package = document["package"]
    lines = [f"Mesa {package['version']} ({package['origin']}): {document['verdict']}", ""]
    rows = []
    for model in document["models"]:
        for run in model["runs"]:
            first = run["first_wrong"]
            rows.append(
                (
                    model["name"],
                    run["npu"].removeprefix(PREFIX),
                    run["verdict"],
                    f"{run['different']} of {run['values']}" if run["values"] else "",
                    f"{first['index']} {first['operation']}" if first else "",
                    ", ".join(run["right_with"]),
                )
            )
    lines.append(
        table(("model", "npu", "verdict", "differ", "first wrong operation", "right with"), rows)
    )
    for model in document["models"]:
        for run in model["runs"]:
            words = run["evidence"] if run["verdict"] not in _RIGHT else run["note"]
            if words:
                text = filled(words, first="  ", rest="    ")
                lines += ["", f"{model['name']} on {run['npu']}:", *text.splitlines()]
    lines += ["", "An emulator's verdict: it reads what Mesa submits; silicon has the last word."]
    return "\n".join(lines)
