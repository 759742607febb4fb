# SPDX-License-Identifier: MIT
"""What is wrong with a profile, and what it lacks: ``board NAME --check``.

All of it at once, each with the key in the file and what to write there.
"""

from __future__ import annotations

import copy
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from .base.output import table
from .base.result import FAILED_VALIDATION, Result
from .catalog import board_file, complete_board, read_toml, soc_names
from .profile import Board
from .profile_errors import board_mistakes, explain
from .profile_mistakes import Missing, mistakes, wrong_soc
from .profile_tree_check import tree_mistakes

_MOST_MISTAKES = 50
_COMMANDS = ("dtc", "fdtput", "findmnt", "gzip", "lsmod")


@dataclass(frozen=True)
class Checked(Result):
    """What came out of checking a profile.

    Attributes:
        missing: what is wrong or lacking, in the order of the checks.
        unchecked: what could not be looked at, and why.
    """

    board: str
    missing: tuple[Missing, ...]
    unchecked: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 where nothing is missing."""
        return FAILED_VALIDATION if self.missing else 0

    def document(self) -> dict[str, Any]:
        """Return the document that ``--json`` prints."""
        return {
            "board": self.board,
            "missing": [asdict(each) for each in self.missing],
            "unchecked": list(self.unchecked),
        }

    def text(self) -> str:
        """Return the result for people."""
        notes = [f"not checked: {each}" for each in self.unchecked]
        return "\n".join([missing_text(self.board, self.missing), *notes])


def check_profile(name: str) -> Checked:
    """Check a profile: by its name, or by the name of its file.

    Raises:
        UserError: there is no such board, or its file cannot be read as TOML.
    """
    file = board_file(name)
    data, text = read_toml(file)
    board, missing = _readable(data, text, file)
    unchecked: tuple[str, ...] = ()
    if board is not None:
        # What is said of these does not follow from the file.
        unread = {each.key for each in missing}
        missing += [each for each in mistakes(board, text) if each.key not in unread]
        keys = {each.key for each in missing}
        if board.soc in soc_names() and not {"dts", "dtb", "kernel"} & keys:
            more, unchecked = tree_mistakes(board, rates="npu.rates_hz" not in keys)
            missing += [each for each in more if each.key not in keys]
    return Checked(file.stem, _each_once(missing), unchecked)


def _each_once(missing: Iterable[Missing]) -> tuple[Missing, ...]:
    return tuple({(each.key, each.why): each for each in missing}.values())


# --- what cannot be read


def _readable(data: dict[str, Any], text: str, file: Path) -> tuple[Board | None, list[Missing]]:
    """Return the board without the keys that cannot be read, and what is wrong with these.

    None where too little is left for a board.
    """
    rest = copy.deepcopy(data)
    missing = []
    for key, mistake in list(board_mistakes(rest)):
        missing.append(Missing(key, mistake.removeprefix("[expect]: "), "correct it"))
        if key.startswith("expect"):
            rest.pop("expect", None)
        else:
            _drop(rest, key)
    board, dropped = None, set[str]()
    for _ in range(_MOST_MISTAKES):
        try:
            board = msgspec.convert(rest, Board, strict=True)
            break
        except msgspec.ValidationError as error:
            key, words = explain(str(error), Board, text)
            if key in dropped:  # required, and its value was wrong: that is listed already
                break
            missing.append(Missing(key, words, "correct it"))
            dropped.add(key)
            if not _drop(rest, key):
                break
    if board is None:
        soc = data.get("soc")
        soc_is_right = not isinstance(soc, str) or soc in soc_names()
        return None, missing if soc_is_right else [*missing, wrong_soc(str(soc))]
    if board.name != file.stem:
        missing.append(
            Missing("name", f"it is {board.name!r}, the file is {file.name!r}", "make them agree")
        )
    return complete_board(board, file), missing


def _drop(data: dict[str, Any], key: str) -> bool:
    """Take a key out of nested tables; return whether it was there."""
    *tables, last = re.sub(r"\[.*?\]", "", key).split(".")  # of lists and tables: [2], [...]
    place: Any = data
    for part in tables:
        place = place.get(part) if isinstance(place, dict) else None
    if not isinstance(place, dict) or last not in place:
        return False
    del place[last]
    return True


# --- in words


def _ended(sentence: str) -> str:
    return sentence if sentence.endswith((".", "?")) else f"{sentence}."


def _sentence(text: str) -> str:
    """Return a clause with a capital, unless it begins with a command."""
    first = text.partition(" ")[0]
    return text if first in _COMMANDS or not first.isalpha() else f"{text[:1].upper()}{text[1:]}"


def missing_text(name: str, lacks: Sequence[Missing]) -> str:
    """Return what a profile lacks as a table for 80 columns."""
    if not lacks:
        return f"nothing is missing in the profile of {name}"
    rows = [[each.key, f"{_ended(each.why)} {_ended(_sentence(each.next))}"] for each in lacks]
    return table(
        ["WRONG OR MISSING", "WHAT AND WHY"],
        rows,
        width=min(80, shutil.get_terminal_size().columns),
    )
