# SPDX-License-Identifier: MIT
"""``python -m commands.face.module MODULE ...``: runs a module of this project, which ends as commands do.

Errors are in words, exit codes are those of the README, a closed pipe ends it quietly.
"""

from __future__ import annotations

import runpy
import sys

from invoke.exceptions import Exit

from .command import errors_for_people


def main() -> None:
    """Run the module that the first argument names, with the others."""
    name = sys.argv.pop(1)
    try:
        with errors_for_people(as_json="--json" in sys.argv):
            runpy.run_module(name, run_name="__main__", alter_sys=True)
    except Exit as ended:
        sys.exit(ended.code)


if __name__ == "__main__":
    main()
