# SPDX-License-Identifier: MIT
"""How long check-dts takes for a board, against dt-validate of the two trees that it compares.

.venv/bin/python -m bench.check_dts [--rounds N] [--json]
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from .measure import Arm, arguments, measure, report

from bsp.base.cache import remove  # isort: skip
from bsp.dts.bindings import schema  # isort: skip
from bsp.dts.build import build_dts  # isort: skip
from bsp.catalog import load_board, load_soc

from bsp.kernel.source import kernel_tree  # isort: skip
from bsp.dts.compiler.compile import compile_dts  # isort: skip

BOARD, KERNEL = "vim3", "6.12"
_VALIDATE = "from dtschema.dtb_validate import main; main()"


def main() -> None:
    """Run the comparison and print it."""
    options = arguments("Times check-dts.", rounds=3)
    board = load_board(BOARD)
    schema.check_dts(board, kernel=KERNEL)  # installs dtschema, processes the bindings
    processed, python = schema.processed_bindings(kernel_tree(KERNEL, bindings=True))
    with tempfile.TemporaryDirectory(prefix="npu-bsp-bench-") as name:
        base = Path(name) / "base.dtb"
        assert board.dts
        compile_dts(kernel_tree(KERNEL), load_soc(board.soc).dts_directory or ".", board.dts, base)
        changed = build_dts(board, kernel=KERNEL, base_dtb=None, target_dir=Path(name)).dtb

        def validate() -> None:
            command: list[str | Path] = [python, "-c", _VALIDATE, "-s", processed, base, changed]
            subprocess.run(command, check=True, capture_output=True)

        arms = [
            Arm("dt-validate of both trees", validate),
            Arm("the same again (A/A)", validate),
            Arm(
                "check_dts, bindings processed",
                lambda: schema.check_dts(board, kernel=KERNEL),
                prepare=lambda: remove(processed.with_suffix("")),
            ),
            Arm("check_dts again", lambda: schema.check_dts(board, kernel=KERNEL)),
        ]
        report({f"{BOARD} on {KERNEL}": measure(arms, rounds=options.rounds)}, as_json=options.json)


if __name__ == "__main__":
    main()
