# SPDX-License-Identifier: MIT
"""Runs tests of Mesa's CI on virtual NPUs as the CI does on boards: the CPU's output against the NPU's.

The CPU's is computed by TFLite's optimised kernels for arm64, as on the boards: a few of the listed
failures are theirs (one value differs from the portable kernels' and the NPU's, by up to 255). They take
long under QEMU, so this machine's kernels are asked first about large models, and arm64's only if the
verdict then differs from the list's. The NPU computes in hardware mode; new buffers hold zeros.
"""

from __future__ import annotations

import queue
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bsp.base.errors import InfrastructureError

from ...npu.decoded_cache import DecodedCache
from ...npu.engines import maker_for
from ...npu.identity import load_npu
from ..model_runner import Attempt, ModelRunner, model_runner, reference
from ..packages import Delegate
from .lists import FAIL, PASS, UNJUDGED, Lists
from .source import MesaSource
from .suites import Maker, SiliconTest
from .synthetic import Synthetic

_CPU_KERNELS = "BUILTIN_WITHOUT_DEFAULT_DELEGATES"
_LARGE_MACS = 150_000_000
ARM64, HOST = "arm64", "this machine"


@dataclass(frozen=True)
class Outcome:
    """What became of one test on one virtual NPU.

    Attributes:
        verdict: ``pass`` or ``fail``, by the tolerance of Mesa's test.
        largest: by how much an output value differs from the CPU's, at most.
        beyond: values that differ by more than the tolerance, of ``values``.
        evidence: why it failed: the delegate's end, a fault, or what the audit found.
        reference: whose kernels the CPU's output is from: ``ARM64`` or ``HOST``.
    """

    npu: str
    test: str
    verdict: str
    largest: float = 0.0
    beyond: int = 0
    values: int = 0
    evidence: str = ""
    reference: str = ARM64

    def document(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self)


Pair = tuple[SiliconTest, tuple[str, ...]]
"""A test, and the NPUs on which to run it."""


def run_tests(
    pairs: Sequence[Pair],
    delegate: Delegate,
    source: MesaSource,
    *,
    lists: Mapping[str, Lists],
    workers: int,
    timeout_s: float,
    done: Callable[[Outcome], None],
    audit: bool = False,
) -> None:
    """Run tests, the shortest ones first; ``done`` gets each outcome, one at a time.

    Args:
        lists: by NPU.
        workers: tests at once.
        audit: compare each job with the model, and say in ``evidence`` what contradicts it.

    Raises:
        InfrastructureError: a client does not start, or does not answer any more.
    """
    work: queue.SimpleQueue[Pair] = queue.SimpleQueue()
    for pair in sorted(pairs, key=lambda pair: pair[0].weight):
        work.put(pair)
    lock = threading.Lock()
    errors: list[BaseException] = []

    def serve() -> None:
        try:
            with (
                model_runner(delegate, timeout_s=timeout_s) as client,
                tempfile.TemporaryDirectory(prefix="npu-bsp-silicon-") as folder,
            ):
                worker = _Worker(client, Maker(source), Path(folder), lists, audit=audit)
                while not errors:
                    try:
                        test, npus = work.get_nowait()
                    except queue.Empty:
                        return
                    for outcome in worker.run(test, npus):
                        with lock:
                            done(outcome)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=serve, daemon=True) for _ in range(min(workers, len(pairs)))]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except BaseException as error:  # Ctrl-C: the threads end after the test at hand
        errors.append(error)
        raise
    if errors:
        raise errors[0]


class _Worker:
    """Runs one test after another with a client of its own."""

    def __init__(
        self,
        client: ModelRunner,
        maker: Maker,
        folder: Path,
        lists: Mapping[str, Lists],
        *,
        audit: bool,
    ) -> None:
        self._client = client
        self._lists = lists
        self._maker = maker
        self._folder = folder
        self._audit = audit
        self._cache = DecodedCache(64 << 20)

    def run(self, test: SiliconTest, npus: Iterable[str]) -> list[Outcome]:
        path, inputs = self._maker.make(test, self._folder)
        attempts = {npu: self._attempt(path, inputs, npu) for npu in npus}
        if isinstance(test.source, Synthetic) and test.weight > _LARGE_MACS:
            expected = reference(path.read_bytes(), inputs, resolver=_CPU_KERNELS)
            outcomes = [
                judge(test, npu, attempt, expected, HOST) for npu, attempt in attempts.items()
            ]
            if all(self._agrees(outcome) for outcome in outcomes):
                return outcomes
        right = self._client.on_cpu(path, inputs, resolver=_CPU_KERNELS)
        if right.answer["status"] != "ran":
            raise InfrastructureError(
                f"TFLite does not run the model of {test.name}: {right.answer.get('message', '')}"
            )
        return [judge(test, npu, attempt, right.outputs) for npu, attempt in attempts.items()]

    def _agrees(self, outcome: Outcome) -> bool:
        return self._lists[outcome.npu].verdict(outcome.test) in (UNJUDGED, outcome.verdict)

    def _attempt(self, path: Path, inputs: list[NDArray[Any]], npu: str) -> Attempt:
        maker = maker_for(load_npu(npu), audit_for=path if self._audit else None)
        return self._client.attempt(
            path, inputs, npu, maker=maker, cache=self._cache, resolver=_CPU_KERNELS
        )


def judge(
    test: SiliconTest,
    npu: str,
    attempt: Attempt,
    expected: Sequence[NDArray[Any]],
    computed_by: str = ARM64,
) -> Outcome:
    """Judge a run as test_model of test_teflon.cpp does."""
    values = sum(each.size for each in expected)
    evidence = "; ".join([*attempt.report.faults[:1], *attempt.report.findings[:1]])
    if attempt.answer["status"] != "ran":
        ended = f"the delegate's process: {attempt.answer.get('message', '')}"
        return Outcome(
            npu, test.name, FAIL, values=values, evidence=evidence or ended, reference=computed_by
        )
    largest, beyond = 0.0, 0
    for output, right in zip(attempt.outputs, expected, strict=True):
        wide: Any = np.float32 if right.dtype == np.float32 else np.int32
        difference = np.abs(output.astype(wide) - right.astype(wide))
        largest = max(largest, float(difference.max(initial=0)))
        # What is not a number is beyond any tolerance.
        beyond += int((~(difference <= test.tolerance)).sum())
    verdict = FAIL if beyond else PASS
    return Outcome(npu, test.name, verdict, largest, beyond, values, evidence, computed_by)
