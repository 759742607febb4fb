# SPDX-License-Identifier: MIT
"""A report of 1,000 history entries, against parsing and writing the same history as JSON.

.venv/bin/python -m bench.report [--rounds N] [--json]
"""

from __future__ import annotations

import json
import os
import random
import tempfile
from pathlib import Path
from typing import Any

from userspace.npu.report import files as report_files
from userspace.npu.report import history

from .measure import Arm, arguments, measure, report

ENTRIES = 1000
LIMIT_BYTES = 2_000_000


def _document() -> Any:
    rows = [
        {
            "delegate": name, "status": "pass", "reason": "", "first_ms": 9.0, "delegated_ops": None,
            "total_ops": 31, "driver": None, "max_abs_diff": 0.0, "delegated_nodes": None,
            "top": [{"index": 653, "label": "military uniform", "score": 0.78}],
            "latency_ms": {"median": median_ms, "p95": median_ms}, "runs_ms": [median_ms] * 50,
        }
        for name, median_ms in (("cpu", 149.0), ("cpu-reference", 900.0), ("teflon", 6.6))
    ]  # fmt: skip
    return {
        "test": "label_image", "host": "bench", "board": None, "note": "", "expected": None,
        "model": {"name": "m", "sha256": "a" * 64}, "image": {"name": "i", "sha256": "b" * 64},
        "runtime": "r", "machine": {"threads": 4}, "conditions": {}, "results": rows,
        "operations": [{"index": i, "name": "CONV_2D", "output": [1, 7, 7, 8]} for i in range(31)],
        "verdict": "pass",
    }  # fmt: skip


def main() -> None:
    """Time the report and its peer; check the size."""
    options = arguments("Times a report of a long history.", rounds=10)
    with tempfile.TemporaryDirectory(prefix="npu-bsp-bench-") as folder:
        os.environ["NPU_BSP_STATE"] = folder
        document = _document()
        path = history.file_of("bench")
        path.parent.mkdir()
        rng = random.Random(1)
        with path.open("w") as file:
            for _ in range(ENTRIES):
                entry: Any = history.entry_of(document, {"load": 0.1})
                for row in entry["results"]:
                    median_ms = row["latency_ms"]["median"] * rng.uniform(0.99, 1.01)
                    row["latency_ms"] = {"median": round(median_ms, 3)}
                file.write(json.dumps(entry) + "\n")
        page = Path(folder) / "report.html"
        copy = Path(folder) / "copy.json"

        def rewrite() -> None:
            lines = path.read_text().splitlines()
            copy.write_text(json.dumps([json.loads(line) for line in lines]))

        def make() -> None:
            report_files.write("bench", page, smoke=document, findings=None)

        def small() -> None:
            size = page.stat().st_size
            assert size < LIMIT_BYTES, f"{size} bytes"

        arms = [
            Arm("read the history, write it as JSON", rewrite),
            Arm("the same again (A/A)", rewrite),
            Arm(f"report of {ENTRIES} entries", make, check=small),
        ]
        report({"report": measure(arms, rounds=options.rounds, warm_up=1)}, as_json=options.json)
        print(f"page: {page.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
