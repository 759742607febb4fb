# SPDX-License-Identifier: MIT
"""The boards whose profiles can be read: a broken file among the user's own does not stop the others."""

from __future__ import annotations

import functools
from pathlib import Path

from .base.errors import UserError
from .base.progress import say
from .catalog import BOARDS_DIR, board_file, board_names, load_board
from .profile import Board


def readable_boards() -> list[Board]:
    """Return all boards, sorted by name, but for profiles of the user's own that cannot be read.

    Each of those is named on stderr, once. Asked for by its name (``load_board``), it is an error.

    Raises:
        UserError: a shipped profile is broken.
    """
    boards = []
    for name in board_names():
        try:
            boards.append(load_board(name))
        except UserError as error:
            file = board_file(name)
            if file.parent == BOARDS_DIR:
                raise
            _say_passed_over(file, error.message)
    return boards


@functools.cache
def _say_passed_over(file: Path, why: str) -> None:
    say(f"passed over, as this profile cannot be read: {one_line(file, why)}")


def one_line(file: Path, why: str) -> str:
    """Return ``FILE: why`` in one line; messages of the catalog begin with the file's name or hold it."""
    text = why if str(file) in why else f"{file}: {why}"
    return " ".join(text.split())
