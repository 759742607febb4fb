# SPDX-License-Identifier: MIT
"""``python -m virtual.boards.reset NAME``: a virtual board's reset button, its host's ``power`` command."""

from __future__ import annotations

import sys

from bsp.base.errors import BspError

from .boards import reset


def main() -> int:
    """Reset the board named on the command line."""
    if len(sys.argv) != 2:
        sys.stderr.write("usage: python -m virtual.boards.reset NAME\n")
        return 2
    try:
        reset(sys.argv[1])
    except BspError as error:
        sys.stderr.write(f"error: {error.message}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
