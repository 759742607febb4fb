# SPDX-License-Identifier: MIT
"""How long a device tree takes: against bare ``cpp | dtc``, and against the kernel's own make.

    .venv/bin/python -m bench.build_dts [--rounds N] [--json]

Needs bison and flex for the kernel's make, and 1.7 GB in the cache for its whole source.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from .measure import Arm, Timing, arguments, measure, report

from bsp.dts.build import build_dts  # isort: skip
from bsp.catalog import load_board, load_soc
from bsp.kernel.source import kernel_tree

ROOT = Path(__file__).parents[1]


def inside(kernel: str, rounds: int, work: Path) -> list[Timing]:
    """``build_dts`` in this process, against the two programs that it cannot do without."""
    board = load_board("vim3")
    folder = f"arch/arm64/boot/dts/{load_soc(board.soc).dts_directory}"
    tree = kernel_tree(kernel).path
    bare_line = (
        "cpp -nostdinc -I scripts/dtc/include-prefixes -undef -D__DTS__ -x assembler-with-cpp "
        f"{folder}/{board.dts}.dts | dtc -q -@ -b 0 -i {folder} -i scripts/dtc/include-prefixes "
        f"-I dts -O dtb -o {work / 'bare.dtb'} -"
    )

    def bare() -> None:
        subprocess.run(["sh", "-c", bare_line], cwd=tree, check=True)

    target = work / "ours" / f"{board.dts}.dtb"

    def ours(source: str) -> None:
        build_dts(board, kernel=source, base_dtb=None, target_dir=target.parent)

    def removed() -> None:
        target.unlink(missing_ok=True)

    arms = [
        Arm("cpp | dtc", bare),
        Arm("cpp | dtc again (A/A)", bare),
        Arm(f"build_dts, --kernel {kernel}", lambda: ours(kernel), removed, 1.3),
        # Trees in the cache are compiled once, other ones each time.
        Arm("build_dts, --kernel path:DIR", lambda: ours(f"path:{tree}"), removed, 1.3),
    ]
    return measure(arms, rounds=rounds, warm_up=3)


def command(rounds: int, work: Path) -> list[Timing]:
    """The whole command, against make in a tree where everything else is built already."""
    board = load_board("vim3")
    target = f"{load_soc(board.soc).dts_directory}/{board.dts}.dtb"
    out = work / "warm"
    make = _make(out)
    subprocess.run([*make, "defconfig"], check=True, stderr=subprocess.DEVNULL)
    subprocess.run([*make, target], check=True, stderr=subprocess.DEVNULL)
    built = out / "arch/arm64/boot/dts" / target

    def ours() -> None:
        subprocess.run(
            [ROOT / "inv", "build-dts", "--board", "vim3", "--output", work / "ours"],
            cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def warm() -> None:
        subprocess.run([*make, target], check=True, stderr=subprocess.DEVNULL)

    arms = [
        Arm("./inv build-dts --board vim3", ours),
        Arm("the same again (A/A)", ours),
        Arm("make X.dtb, warm", warm, prepare=built.unlink, target=-3),
    ]
    return measure(arms, rounds=rounds)


def clean(rounds: int, work: Path) -> list[Timing]:
    """The whole command, against make from nothing."""
    board = load_board("vim3")
    target = f"{load_soc(board.soc).dts_directory}/{board.dts}.dtb"
    out = work / "clean"

    def ours() -> None:
        subprocess.run(
            [ROOT / "inv", "build-dts", "--board", "vim3", "--output", work / "ours"],
            cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def from_nothing() -> None:
        for goal in ("defconfig", target):
            subprocess.run([*_make(out), goal], check=True, stderr=subprocess.DEVNULL)

    arms = [
        Arm("./inv build-dts --board vim3", ours),
        Arm("the same again (A/A)", ours),
        Arm("make defconfig X.dtb, clean", from_nothing,
            prepare=lambda: shutil.rmtree(out, ignore_errors=True), target=-30),
    ]  # fmt: skip
    return measure(arms, rounds=rounds, warm_up=0)


def _make(out: Path) -> list[str]:
    whole = kernel_tree("6.12", whole=True).path
    return ["make", "-s", "-C", str(whole), f"O={out}", "ARCH=arm64", f"-j{os.cpu_count()}"]


def main() -> None:
    """Run all three comparisons and print them."""
    options = arguments("Times build-dts.", rounds=30)
    with tempfile.TemporaryDirectory(prefix="npu-bsp-bench-") as name:
        work = Path(name)
        results = {
            "inside the process, vim3 on 6.12 (one change)": inside("6.12", options.rounds, work),
            "inside the process, vim3 on 7.3 (no change)": inside("7.3", options.rounds, work),
            "whole command, warm make": command(max(options.rounds // 3, 3), work),
            "whole command, clean make": clean(3, work),
        }
    report(results, as_json=options.json)


if __name__ == "__main__":
    main()
