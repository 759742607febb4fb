# SPDX-License-Identifier: MIT
"""``gate-mesa --bisect``: which commit of Mesa made a model come out wrong?

git bisect over a copy of somebody's repository, with the virtual NPUs as the test. Each commit is built as
it is, without our patches, incrementally; one that does not build is skipped.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bsp.base.cache import cache_dir, lock
from bsp.base.errors import UserError, nearest
from bsp.base.process import Completed, run
from bsp.base.progress import say, step
from bsp.base.result import Result
from bsp.base.words import counted, filled
from userspace.npu.mesa.build import MesaRequest, build_mesa
from userspace.npu.mesa.manifest import BuiltMesa
from userspace.npu.mesa.patches import NONE
from userspace.npu.mesa.source import check_source_name

from ..npu.identity import identity_names
from ..npu.shim.host import PREFIX, npu_name
from .build import BuiltModel, build
from .cases import Case
from .cases import sweep as chosen_cases
from .mesa import changes_of
from .model_runner import model_runner, reference, tflite_runtime
from .noted_jobs import first_change, jobs_of
from .packages import from_built
from .records import BisectDocument, ChangeRecord, CommitRecord, OutcomeRecord
from .sweep import Outcome, Runner

FORMAT = 1
_GIT = {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
_FIRST_BAD = re.compile(r"^([0-9a-f]{40}) is the first bad commit", re.MULTILINE)


@dataclass(frozen=True)
class BisectRequest:
    """What is looked for.

    Attributes:
        commits: ``GOOD..BAD``.
        source: ``path:DIR``, a git repository of Mesa.
        case: name of a case of the sweep, or a part that only one name has; model: a .tflite file; neither:
            the quick sweep.
    """

    commits: str
    source: str
    case: str = ""
    model: str = ""
    npu: str = "all"
    timeout_s: float = 180.0


@dataclass(frozen=True)
class Bisected(Result):
    """The first bad commit, or the commits among which it is."""

    contents: BisectDocument

    def document(self) -> BisectDocument:
        """What ``--json`` prints."""
        return self.contents

    def text(self) -> str:
        """The same for people."""
        contents = self.contents
        if not contents["commit"]:
            lines = ["one of these made it wrong; those between them do not build:"]
            lines += [
                f"  {each['commit'][:12]} {each['subject']}" for each in contents["candidates"]
            ]
        else:
            lines = [
                f"{contents['commit'][:12]} {contents['subject']}",
                f"  {contents['author']}, {contents['date']}",
            ]
        change = contents["change"]
        words = f"{change['npu']} {change['name']}: {change['before']} -> {change['after']}"
        lines += ["", *filled(words, rest="  ").splitlines()]
        if change["evidence"]:
            lines += filled(change["evidence"], first="  ", rest="  ").splitlines()
        job = (
            contents["first_job_that_changed"]
            or "no job differs: the result is read or written otherwise"
        )
        lines += filled(f"first that changed: {job}", first="  ", rest="    ").splitlines()
        lines += [
            "",
            f"{counted(contents['tested'], 'commit')} tested, {contents['skipped']} not built",
        ]
        return "\n".join(lines)


@dataclass(frozen=True)
class _Subject:
    """A model that is run on each commit."""

    name: str
    kind: str
    model: bytes
    inputs: list[NDArray[Any]]
    expected: list[NDArray[Any]]
    built: BuiltModel | None = None


@dataclass
class _Bench:
    """What commits are tested with, and what came of it."""

    request: BisectRequest
    clone: Path
    npus: list[str]
    subjects: list[_Subject]
    builds: dict[str, BuiltMesa] = field(default_factory=dict)
    outcomes: dict[str, list[OutcomeRecord]] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)

    def test(self, commit: str) -> list[OutcomeRecord] | None:
        """Build a commit and run the models; None where it does not build."""
        if commit in self.outcomes:
            return self.outcomes[commit]
        _git(self.clone, "checkout", "--quiet", "--force", "--detach", commit)
        with step(f"Commit {commit[:12]} ({_say(self.clone, commit, '%s')[:50]})") as now:
            try:
                built = build_mesa(MesaRequest(f"path:{self.clone}", NONE))
            except UserError as error:
                now.note("does not build")
                say(error.message.splitlines()[0])
                self.skipped.append(commit)
                return None
            self.builds[commit] = built
            self.outcomes[commit] = self._run(built)
        return self.outcomes[commit]

    def _run(self, built: BuiltMesa) -> list[OutcomeRecord]:
        outcomes: list[Outcome] = []
        with model_runner(from_built(built), timeout_s=self.request.timeout_s) as models:
            runner = Runner(models)
            for subject in self.subjects:
                path = models.file(subject.model)
                outcomes += [
                    runner.run_file(path, subject.inputs, npu, subject.expected, subject.name,
                                    subject.kind, subject.built)
                    for npu in self.npus
                ]  # fmt: skip
        return [outcome.document() for outcome in outcomes]

    def first_job(self, good: str, bad: str, change: ChangeRecord) -> str:
        """Return what the first job is that two commits make otherwise of a model."""
        subject = next(each for each in self.subjects if each.name == change["name"])
        npu = change["npu"].removeprefix(PREFIX)
        jobs = []
        for commit in (good, bad):
            with model_runner(from_built(self.builds[commit]), warm=False) as models:
                jobs.append(jobs_of(models, models.file(subject.model), subject.inputs, npu))
        return first_change(*jobs)


def bisect(request: BisectRequest) -> Bisected:
    """Find the first commit with which a model comes out worse than with the good one.

    Raises:
        UserError: the arguments are wrong; an end does not build, or nothing is worse at the bad one.
        InfrastructureError: something cannot be fetched, or the client does not start.
    """
    source = _repository(request.source)
    good, bad = _ends(source, request.commits)
    npus = identity_names() if request.npu == "all" else [npu_name(request.npu)]
    subjects = _subjects(request)
    key = hashlib.sha256(str(source).encode()).hexdigest()[:12]
    clone = cache_dir() / "mesa" / f"bisect-{key}"
    with lock(clone.with_name(clone.name + ".lock")):
        _copy_repository(source, clone, (good, bad))
        bench = _Bench(request, clone, npus, subjects)
        before, worst = _end(bench, good, "good"), _end(bench, bad, "bad")
        worse = [each for each in changes_of(before, worst) if each["change"] == "worse"]
        if not worse:
            raise UserError(
                f"no model comes out worse with {bad[:12]} than with {good[:12]}",
                hint="name another case (--case) or model (--model), or commits further apart",
            )
        names = {each["name"] for each in worse}
        bench.subjects = [each for each in subjects if each.name in names]
        return Bisected(_document(bench, good, bad, _search(bench, good, bad)))


# --- the search ----------------------------------------------------------------------------------


def _search(bench: _Bench, good: str, bad: str) -> str:
    """Return the first bad commit; empty where those that do not build leave it open."""
    _git(bench.clone, "bisect", "reset")
    output = _git(bench.clone, "bisect", "start", bad, good).text
    while not (first_bad := _FIRST_BAD.search(output)):
        if "only 'skip'ped commits left" in output:
            return ""
        commit = _git(bench.clone, "rev-parse", "HEAD").text.strip()
        outcomes = bench.test(commit)
        word = "skip" if outcomes is None else "bad" if _is_worse(bench, good, outcomes) else "good"
        done = _git(bench.clone, "bisect", word, check=False)  # 2: only skipped ones are left
        output = done.text + done.stderr.decode(errors="replace")
    return first_bad[1]


def _is_worse(bench: _Bench, good: str, outcomes: list[OutcomeRecord]) -> bool:
    return any(each["change"] == "worse" for each in changes_of(bench.outcomes[good], outcomes))


def _document(bench: _Bench, good: str, bad: str, commit: str) -> BisectDocument:
    """Return the document: the commit, what it changed, and in which job."""
    last = commit or bad
    parent = _git(bench.clone, "rev-parse", f"{last}^").text.strip()
    before = parent if parent in bench.builds else good
    changes = changes_of(bench.outcomes[good], bench.outcomes[last])
    change = next(each for each in changes if each["change"] == "worse")
    candidates: list[CommitRecord] = []
    if not commit:
        listed = _git(bench.clone, "rev-list", "--reverse", f"{good}..{bad}").text.split()
        hashes = [each for each in listed if each in bench.skipped] + [bad]
        candidates = [{"commit": each, "subject": _say(bench.clone, each, "%s")} for each in hashes]
    return {
        "format": FORMAT,
        "commit": commit,
        "subject": _say(bench.clone, commit, "%s") if commit else "",
        "author": _say(bench.clone, commit, "%an") if commit else "",
        "date": _say(bench.clone, commit, "%as") if commit else "",
        "candidates": candidates,
        "good": good,
        "bad": bad,
        "change": change,
        "compared_with": before,
        "first_job_that_changed": bench.first_job(before, last, change),
        "tested": len(bench.outcomes),
        "skipped": len(bench.skipped),
    }


# --- what is given -------------------------------------------------------------------------------


def _repository(source: str) -> Path:
    if not source.startswith("path:"):
        raise UserError(
            "--bisect needs --source path:DIR, a git repository of Mesa", hint="git clone it first"
        )
    check_source_name(source)
    path = Path(source.removeprefix("path:")).expanduser().absolute()
    if run(["git", "-C", path, "rev-parse", "--git-dir"], env=_GIT, check=False).exit_code != 0:
        raise UserError(
            f"{path} is not a git repository", hint="--bisect needs a history: git clone one"
        )
    return path


def _ends(source: Path, commits: str) -> tuple[str, str]:
    good, dots, bad = commits.partition("..")
    if not dots or not good or not bad or good.startswith("-") or bad.startswith((".", "-")):
        raise UserError(
            f"--bisect {commits}: expected GOOD..BAD, two commits", hint="as in mesa-25.0.7..main"
        )
    resolved = []
    for name in (good, bad):
        done = run(["git", "-C", source, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}"],
                   env=_GIT, check=False)  # fmt: skip
        if done.exit_code != 0:
            raise UserError(
                f"{source} has no commit {name!r}", hint="git log, git tag and git branch list them"
            )
        resolved.append(done.text.strip())
    words: list[str | Path] = ["git", "-C", source, "merge-base", "--is-ancestor", *resolved]
    if resolved[0] == resolved[1] or run(words, env=_GIT, check=False).exit_code != 0:
        raise UserError(
            f"{good} does not come before {bad}",
            hint="--bisect GOOD..BAD: the good one is the older",
        )
    return resolved[0], resolved[1]


def _end(bench: _Bench, commit: str, word: str) -> list[OutcomeRecord]:
    outcomes = bench.test(commit)
    if outcomes is None:
        raise UserError(
            f"the {word} commit {commit[:12]} does not build",
            hint="the lines above say why; give one that does",
        )
    return outcomes


def _subjects(request: BisectRequest) -> list[_Subject]:
    if request.case and request.model:
        raise UserError("--case and --model exclude each other", hint="leave one out")
    if request.model:
        return [_of_file(Path(request.model).expanduser())]
    cases = chosen_cases(quick=not request.case)
    if request.case:
        cases = [_case_named(request.case, cases)]
    return [_of_case(case) for case in cases]


def _case_named(text: str, cases: Sequence[Case]) -> Case:
    exact = [case for case in cases if case.name == text]
    matches = exact or [case for case in cases if text in case.name]
    if len(matches) == 1:
        return matches[0]
    names = [case.name for case in matches]
    if names:
        raise UserError(
            f"--case {text}: {counted(len(names), 'case')} have that in their names",
            hint="one of: " + ", ".join(names[:4]),
        )
    raise UserError(
        f"there is no case {text!r}{nearest(text, [case.name for case in cases])}",
        hint="./inv gate-mesa --suite trixie --quick --json lists them",
    )


def _of_case(case: Case) -> _Subject:
    built = build(case)
    inputs = list(built.inputs)
    return _Subject(
        case.name, case.kind, built.model, inputs, reference(built.model, inputs), built
    )


def _of_file(path: Path) -> _Subject:
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    content = path.read_bytes()
    try:
        details = tflite_runtime().Interpreter(model_content=content).get_input_details()
        inputs = [_noise(each, number) for number, each in enumerate(details)]
        expected = reference(content, inputs)
    except ValueError as error:
        raise UserError(f"TFLite does not take {path}: {error}") from error
    return _Subject(path.stem, "model", content, inputs, expected)


def _noise(details: dict[str, Any], number: int) -> NDArray[Any]:
    """Return the same numbers each time, over the whole range of a type."""
    rng = np.random.default_rng(number)
    dtype = np.dtype(details["dtype"])
    if dtype.kind == "f":
        numbers: NDArray[Any] = rng.normal(size=details["shape"]).astype(dtype)
        return numbers
    whole: NDArray[Any] = rng.integers(0, 256, details["shape"]).astype(np.uint8)
    return whole.view(dtype) if dtype.itemsize == 1 else whole.astype(dtype)


# --- git -----------------------------------------------------------------------------------------


def _copy_repository(source: Path, clone: Path, commits: Sequence[str]) -> None:
    """Have a repository of our own to check out in; somebody's work tree is left alone."""
    with step("Copying the repository"):
        if not (clone / ".git").is_dir():
            run(["git", "clone", "--quiet", "--shared", "--no-checkout", source, clone], env=_GIT)
        _git(clone, "remote", "set-url", "origin", str(source))
        _git(clone, "fetch", "--quiet", "--tags", "--force", "origin", *commits)


def _say(clone: Path, commit: str, what: str) -> str:
    return _git(clone, "log", "-1", f"--format={what}", commit).text.strip()


def _git(clone: Path, *words: str, check: bool = True) -> Completed:
    return run(["git", "-C", clone, *words], env=_GIT, check=check)
