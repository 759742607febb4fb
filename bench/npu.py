# SPDX-License-Identifier: MIT
"""How long the virtual NPU takes for an inference, against TFLite's portable kernels on this machine.

.venv/bin/python -m bench.npu [--rounds N] [--json]

Records a trace of each model once (into the cache; that needs the models and the arm64 userspace), then
runs its last inference again and again, without delegate and kernel: with decoded coefficients at hand,
and with an empty cache.
"""

from __future__ import annotations

import resource
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from bsp.base.cache import cache_dir, lock
from bsp.base.output import print_text
from userspace.npu.validate import models
from userspace.npu.validate.onboard.environment import load_runtime
from virtual.gates.packages import SUITE_OF_DRIVER, find_delegate
from virtual.npu.decoded_cache import DecodedCache
from virtual.npu.identity import Identity, driver_of
from virtual.npu.memory import Buffers
from virtual.npu.rocket.engine import Engine as RocketEngine
from virtual.npu.shim import host
from virtual.npu.traces.replay import Machine, submissions
from virtual.npu.traces.trace import Job, Submit, header_of, read
from virtual.npu.vivante.engine import Engine

from .measure import Arm, Timing, arguments, measure, report

NPUS = ("a311d", "imx8mp", "rk3588")
# Seconds: with decoded coefficients, and with none.
TARGETS = {
    ("mobilenet_v1_0.25_128_quant", "a311d"): (0.5, 0.5),
    ("mobilenet_v1_0.25_128_quant", "imx8mp"): (0.5, 0.5),
    ("mobilenet_v1_0.25_128_quant", "rk3588"): (0.5, 0.5),
    ("mobilenet_v1_1.0_224_quant", "a311d"): (1.0, 3.0),
    ("mobilenet_v1_1.0_224_quant", "imx8mp"): (1.0, 4.0),
    ("mobilenet_v1_1.0_224_quant", "rk3588"): (2.0, 2.0),
    ("mobilenet_v2_1.0_224_quant", "a311d"): (1.2, 3.0),
    ("mobilenet_v2_1.0_224_quant", "imx8mp"): (1.2, 4.0),
    ("mobilenet_v2_1.0_224_quant", "rk3588"): (2.0, 2.0),
}


class Inference:
    """The last inference of a trace, ready to be run again and again."""

    def __init__(self, path: Path) -> None:
        """Read the trace and put memory into the state that its last inference left."""
        records = read(path)
        header = header_of(records, path)
        machine = Machine(path)
        kept: list[tuple[int, Submit]] = []
        for submit, parts in submissions(records, path):
            machine.space(submit)
            first = None
            for part in parts:
                if isinstance(part, Job):
                    first = first if first is not None else part.address
                    machine.put(submit.client, [*part.before, *part.after])
            if first is not None:
                kept.append((first, submit))
        # An inference begins where the first descriptor of all is used again.
        start = max(index for index, (first, _) in enumerate(kept) if first == kept[0][0])
        self._parts = [
            (machine.buffers(submit), np.frombuffer(submit.stream, "<u4"))
            for _, submit in kept[start:]
        ]
        self._engine: Engine | RocketEngine
        if isinstance(header.npu, Identity):
            self._engine = Engine(header.npu, Buffers([]))
        else:
            self._engine = RocketEngine(Buffers([]))
        self.cpu_s: dict[str, list[float]] = {"warm": [], "cold": []}

    def warm(self) -> None:
        """Run it with all coefficients decoded."""
        self._run("warm")

    def cold(self) -> None:
        """Run it with no coefficients decoded."""
        self._engine.cache = DecodedCache()
        self._run("cold")

    def _run(self, kind: str) -> None:
        started = time.process_time()
        for buffers, stream in self._parts:
            self._engine.memory = buffers
            self._engine.submit(stream)
        self.cpu_s[kind].append(time.process_time() - started)


def trace_of(npu: str, model: str) -> Path:
    """Return a trace of a model on an NPU, recorded once."""
    folder = cache_dir() / "traces"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{npu}-{model}.npu"
    with lock(folder / f"{path.name}.lock"):
        if not path.exists():
            inputs = models.choose(model, None)
            delegate = find_delegate(SUITE_OF_DRIVER[driver_of(npu)])
            mesa = host.System(delegate.root, delegate.version)
            with host.virtual_host(npu, record=path, mesa=mesa) as there:
                given = ["--model", str(inputs.model.path), "--image", str(inputs.image.path)]
                there.machine.run_runner(
                    [*given, "--delegate", "teflon", "--runs", "1"], timeout_s=600
                )
    return path


def reference(model: str) -> Any:
    """Return a function that runs a model once on TFLite's portable kernels, on one core."""
    module, _ = load_runtime()
    interpreter = module.Interpreter(
        str(models.choose(model, None).model.path),
        experimental_op_resolver_type=module.OpResolverType.BUILTIN_REF,
        num_threads=1,
    )
    interpreter.allocate_tensors()
    return interpreter.invoke


def main() -> None:
    """Measure each model on each NPU."""
    options = arguments("Times the virtual NPU's engine.", rounds=5)
    results: dict[str, list[Timing]] = {}
    lines = []
    for model in dict.fromkeys(model for model, _ in TARGETS):
        invoke = reference(model)
        arms = [Arm("TFLite, portable kernels", invoke), Arm("the same again (A/A)", invoke)]
        inferences = {npu: Inference(trace_of(npu, model)) for npu in NPUS}
        for npu, inference in inferences.items():
            arms.append(Arm(f"{npu}, coefficients decoded", inference.warm))
            arms.append(Arm(f"{npu}, nothing decoded", inference.cold))
        results[model] = measure(arms, rounds=options.rounds)
        for npu, inference in inferences.items():
            for kind, limit in zip(("warm", "cold"), TARGETS[model, npu], strict=True):
                median_s = statistics.median(inference.cpu_s[kind])
                verdict = "met" if median_s <= limit else "MISSED"
                lines.append(
                    f"{model}, {npu}, {kind}: {median_s:.3f} s, at most {limit}: {verdict}"
                )
    report(results, as_json=options.json)
    if options.json:
        return
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    load = Path("/proc/loadavg").read_text(encoding="ascii").split()[0]
    lines.append(f"peak memory of this process, TFLite included: {peak:.0f} MiB; load {load}")
    print_text("\nSeconds of processor time, all threads, median:\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
