# SPDX-License-Identifier: MIT
"""How long a scan takes, against bare ``cpp | dtc`` of the very same files on the same cores.

.venv/bin/python -m bench.scan [--rounds N] [--json]
"""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from pathlib import Path

from .measure import Arm, Timing, arguments, measure, report

from bsp.scan.scan import scan, telling_sources  # isort: skip
from bsp.kernel.source import kernel_tree  # isort: skip

ROOT = Path(__file__).parents[1]


def first_scan(kernel: str, rounds: int, work: Path) -> list[Timing]:
    """A scan with nothing remembered, against compiling what it compiles."""
    tree = kernel_tree(kernel)
    lines = []
    for number, source in enumerate(telling_sources(tree)[1]):
        folder = f"arch/{source.arch}/boot/dts/{source.directory}"
        file = shlex.quote(f"{folder}/{source.stem}.dts")
        lines.append(
            "cpp -w -nostdinc -I scripts/dtc/include-prefixes -undef -D__DTS__ "
            f"-x assembler-with-cpp {file} | dtc -q -b 0 -i {folder} -i scripts/dtc/include-prefixes "
            f"-I dts -O dtb -o {work / 'bare'}-{number}.dtb -"
        )
    commands = "\0".join(lines).encode()

    def bare() -> None:
        # A source that this machine's dtc cannot read ends with 123; the scan has it too.
        done = subprocess.run(
            ["xargs", "-0", "-P", str(os.cpu_count()), "-I{}", "sh", "-c", "{}"],
            input=commands, cwd=tree.path, stderr=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        assert done.returncode in (0, 123)

    arms = [
        Arm(f"cpp | dtc of {len(lines)} files", bare),
        Arm("the same again (A/A)", bare),
        Arm(f"scan of Linux {tree.release}", lambda: scan(kernel, fresh=True), target=1.5),
    ]
    return measure(arms, rounds=rounds)


def second_scan(rounds: int) -> list[Timing]:
    """The whole command with everything remembered, against the empty command."""

    def command(*words: str) -> None:
        subprocess.run([ROOT / "inv", *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)

    command("boards", "--scan")
    arms = [
        Arm("./inv --version", lambda: command("--version")),
        Arm("./inv boards --scan (three kernels)", lambda: command("boards", "--scan")),
    ]
    return measure(arms, rounds=rounds)


def main() -> None:
    """Run the comparisons and print them."""
    options = arguments("Times boards --scan.", rounds=3)
    with tempfile.TemporaryDirectory(prefix="npu-bsp-bench-") as name:
        results = {
            f"first scan of {kernel}": first_scan(kernel, options.rounds, Path(name))
            for kernel in ("6.12", "7.3")
        }
    results["second scan"] = second_scan(max(options.rounds, 5))
    report(results, as_json=options.json)


if __name__ == "__main__":
    main()
