# SPDX-License-Identifier: MIT
"""``gate-mesa --silicon``: Mesa's own tests on virtual NPUs, compared with the lists from boards."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bsp.base.cache import cache_dir
from bsp.base.errors import UserError
from bsp.base.progress import say, step
from bsp.base.project import PROJECT
from bsp.base.result import FAILED_VALIDATION, Result

from ...npu.identity import driver_of, identity_names, load_npu, vivante_names
from ...npu.shim.host import PREFIX, npu_name
from ..packages import SUITE_OF_DRIVER, Delegate, find_delegate, named_delegate
from . import report
from .explain import explain
from .lists import FAIL, UNJUDGED, Lists, read_lists
from .run import Outcome, Pair, run_tests
from .source import MesaSource, fetch_source
from .suites import MODELS, WHOLE, SiliconTest, all_tests, choose_quick

_TESTS_SUITE = "trixie"
"""The suite whose Mesa source has the tests and models that our lists name."""
_ROCKET_LISTS = Path(__file__).with_name("rocket_lists")
TFLITE_DISTRIBUTION = "bookworm"
"""Its wheel is tflite-runtime 2.14. The lists' boards computed the right answers with a TFLite of that
time: later arm64 kernels round otherwise, and MobileNetV1 alone then differs by more than is allowed."""
# Files that an outcome depends on; those that compare jobs with a model do not affect a verdict.
_SOURCES = (
    "virtual/npu/*.py",
    "virtual/npu/identities",
    "virtual/npu/shim",
    "virtual/npu/rocket",
    "virtual/npu/vivante/*.py",
    "virtual/gates/client.py",
    "virtual/gates/model_runner.py",
    "virtual/gates/silicon/lists.py",
    "virtual/gates/silicon/run.py",
    "virtual/gates/silicon/sequences.py",
    "virtual/gates/silicon/suites.py",
    "virtual/gates/silicon/synthetic.py",
    "userspace/npu/model/tflite_file.py",
    "userspace/npu/validate/onboard/output_values.py",
)
_READ = (".py", ".c", ".h", ".toml", ".txt")
_MOST_EXAMINED = 20
Run = Callable[[Sequence[Pair], Callable[[Outcome], None]], None]


_PATCHED = (
    "boards ran this Mesa without our patches, which fix its failures or leave them to the CPU"
)


@dataclass(frozen=True)
class SiliconRequest:
    """The arguments of ``gate-mesa --silicon``.

    Attributes:
        package: a .deb file of the delegate; suite: a Debian suite; mesa: as ``find_delegate`` takes it;
            at most one of them.
        npu: ``virtual:NAME`` or ``all``.
        quick: about an eighth of the tests.
    """

    package: str = ""
    suite: str = ""
    npu: str = "all"
    quick: bool = False
    timeout_s: float = 180.0
    mesa: str = ""


@dataclass(frozen=True)
class SiliconResult(Result):
    """The agreement of virtual NPUs with the lists."""

    contents: dict[str, Any]

    def document(self) -> dict[str, Any]:
        """Return the document."""
        return self.contents

    def text(self) -> str:
        """Return the text."""
        return report.text_of(self.contents)

    @property
    def exit_code(self) -> int:
        """Return 4 if a disagreement has no explanation outside of NPU and Mesa."""
        return FAILED_VALIDATION if self.contents["unexplained"] else 0


def compare_with_silicon(request: SiliconRequest) -> SiliconResult:
    """Run the tests that the request names, and compare each result with the lists.

    Raises:
        UserError: the arguments are wrong, or this Mesa has no such tests or lists.
        InfrastructureError: packages cannot be fetched, or the client does not start.
    """
    npus, delegate = _subjects(request)
    driver = driver_of(npus[0])
    source, lists = _judges(delegate, npus, driver)
    tests = all_tests(source)
    if driver == "rocket":  # its list skips all synthetic models
        tests = [test for test in tests if test.group in (MODELS, WHOLE)]
    if request.quick:
        tests = choose_quick(tests, frozenset().union(*(npu.fails for npu in lists.values())))

    def run(pairs: Sequence[Pair], done: Callable[[Outcome], None], *, audit: bool = False) -> None:
        run_tests(
            pairs,
            delegate,
            source,
            lists=lists,
            workers=os.cpu_count() or 1,
            timeout_s=request.timeout_s,
            done=done,
            audit=audit,
        )

    outcomes = _outcomes(tests, npus, _Store(delegate, source), run)
    disagreements = _disagreements(
        tests, outcomes, lists, delegate.upstream, patched=bool(delegate.patches)
    )
    _add_evidence(disagreements, tests, functools.partial(run, audit=True))
    contents = {
        "format": 1,
        "package": {
            "version": delegate.version,
            "upstream": delegate.upstream,
            "origin": delegate.origin,
        },
        "source": {"version": source.version, "suite": source.suite, "tarball": source.tarball},
        "npus": [PREFIX + npu for npu in npus],
        "lists": {PREFIX + npu: lists[npu].name for npu in npus},
        "quick": request.quick,
        "tests": len(tests),
        "agreement": report.agreement(
            tests, outcomes, lists, by=lambda test: test.group, key="group"
        ),
        "suites": report.agreement(tests, outcomes, lists, by=lambda test: test.suite, key="suite"),
        "disagreements": disagreements,
        "unexplained": sum(not disagreement["why"] for disagreement in disagreements),
    }
    return SiliconResult(contents)


def _subjects(request: SiliconRequest) -> tuple[list[str], Delegate]:
    """Return the NPUs and the delegate that the request names."""
    names = vivante_names() if request.npu == "all" else [npu_name(request.npu)]
    default_suite = SUITE_OF_DRIVER[driver_of(names[0])]
    suite = "" if request.package or request.mesa else request.suite or default_suite
    if request.suite and not suite:
        raise UserError("--package, --suite and --mesa exclude each other", hint="leave one out")
    named = named_delegate(request.package, suite, request.mesa)
    npus = [name for name in names if load_npu(name).silicon_lists]
    if not npus:
        raise UserError(
            f"Mesa has no lists of results from boards for {request.npu}",
            hint="it has some for: " + ", ".join(_with_lists()),
        )
    return npus, find_delegate(named, distribution=TFLITE_DISTRIBUTION)


def _judges(
    delegate: Delegate, npus: Sequence[str], driver: str
) -> tuple[MesaSource, dict[str, Lists]]:
    """Return the source with the tests and models, and each NPU's lists."""
    if driver == "rocket":
        tested = find_delegate(_TESTS_SUITE, distribution=TFLITE_DISTRIBUTION)
        source, folder = fetch_source(tested), _ROCKET_LISTS
    else:
        source = fetch_source(delegate)
        folder = source.lists
    return source, {npu: read_lists(folder, load_npu(npu).silicon_lists) for npu in npus}


def _with_lists() -> list[str]:
    return [PREFIX + name for name in identity_names() if load_npu(name).silicon_lists]


def _outcomes(
    tests: Sequence[SiliconTest], npus: Sequence[str], store: _Store, run: Run
) -> dict[tuple[str, str], Outcome]:
    """Return the outcome of each test on each NPU; only those that are not in the cache are computed."""
    outcomes = store.read()
    pairs: list[Pair] = []
    for test in tests:
        missing = tuple(npu for npu in npus if (npu, test.name) not in outcomes)
        if missing:
            pairs.append((test, missing))
    total = sum(len(missing) for _, missing in pairs)
    if pairs:
        if cached := len(tests) * len(npus) - total:
            say(f"{cached} results are known from an earlier run")
        with step(f"Running the tests of Mesa {store.version}") as progress, store:
            count = 0

            def done(outcome: Outcome) -> None:
                nonlocal count
                count += 1
                outcomes[outcome.npu, outcome.test] = outcome
                store.add(outcome)
                progress.note(f"{count} of {total}")

            run(pairs, done)
    return outcomes


class _Store:
    """Outcomes in the cache, one per line, keyed by all that they depend on; a stopped run can resume."""

    def __init__(self, delegate: Delegate, source: MesaSource) -> None:
        digest = hashlib.sha256(f"{delegate.root.name} {source.folder.name}".encode())
        for path in sorted(_source_files()):
            digest.update(path.name.encode() + path.read_bytes())
        folder = cache_dir() / "silicon"
        folder.mkdir(parents=True, exist_ok=True)
        self.version = source.version
        self._path = folder / f"outcomes-{source.version}-{digest.hexdigest()[:16]}.jsonl"

    def read(self) -> dict[tuple[str, str], Outcome]:
        outcomes = {}
        if self._path.exists():
            for line in self._path.read_text(encoding="utf-8").splitlines():
                try:
                    outcome = Outcome(**json.loads(line))
                except (ValueError, TypeError):
                    continue  # a truncated line
                outcomes[outcome.npu, outcome.test] = outcome
        return outcomes

    def __enter__(self) -> None:
        self._file = self._path.open("a", encoding="utf-8")

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, outcome: Outcome) -> None:
        self._file.write(json.dumps(outcome.document()) + "\n")
        self._file.flush()


def _source_files() -> Iterable[Path]:
    for pattern in _SOURCES:
        for path in PROJECT.glob(pattern):
            yield from (source for source in path.rglob("*") if source.suffix in _READ)
            if path.is_file():
                yield path


def _disagreements(
    tests: Sequence[SiliconTest],
    outcomes: Mapping[tuple[str, str], Outcome],
    lists: Mapping[str, Lists],
    version: str,
    *,
    patched: bool,
) -> list[dict[str, Any]]:
    disagreements = []
    for npu, listed in lists.items():
        for test in tests:
            silicon, outcome = listed.verdict(test.name), outcomes[npu, test.name]
            if silicon in (UNJUDGED, outcome.verdict):
                continue
            why = explain(test, npu, listed, version)
            if patched and silicon == FAIL:
                why = why or _PATCHED
            disagreements.append(
                {
                    "npu": PREFIX + npu,
                    "group": test.group,
                    "test": test.name,
                    "silicon": silicon,
                    "virtual": outcome.verdict,
                    "why": why,
                    "largest": outcome.largest,
                    "beyond": outcome.beyond,
                    "values": outcome.values,
                    "evidence": outcome.evidence,
                    "reference": outcome.reference,
                }
            )
    return disagreements


def _add_evidence(
    disagreements: Sequence[dict[str, Any]], tests: Sequence[SiliconTest], run: Run
) -> None:
    """Run again the tests that fail only here, and record how their submissions contradict the model."""
    failures = {
        (disagreement["npu"].removeprefix(PREFIX), disagreement["test"]): disagreement
        for disagreement in disagreements
        if disagreement["virtual"] == FAIL and not disagreement["evidence"]
    }
    if not failures:
        return
    pairs: list[Pair] = []
    for test in tests:
        npus = tuple(npu for npu, name in failures if name == test.name)
        if npus:
            pairs.append((test, npus))

    def done(outcome: Outcome) -> None:
        failures[outcome.npu, outcome.test]["evidence"] = outcome.evidence

    with step("Examining the disagreements"):
        run(pairs[:_MOST_EXAMINED], done)
