# SPDX-License-Identifier: MIT
"""The catalog of boards and SoCs: finds the files, reads each once, and says which board is which.

``msgspec`` does the strict typing (unknown keys and wrong types are errors) and costs 10 ms to import.
"""

from __future__ import annotations

import functools
import os
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from .base.errors import UserError, nearest
from .base.progress import say
from .base.text import content, decoded
from .profile import (
    FORMAT,
    Board,
    Npu,
    NpuSettings,
    Soc,
)
from .profile_errors import ProfileError, board_mistakes, explain

BOARDS_DIR = Path(__file__).parent / "boards"
SOCS_DIR = Path(__file__).parent / "socs"

_MAX_BYTES = 1 << 20
"""Of a profile; shipped ones have at most 10 KiB, and reading 100 MB as TOML takes 18 s."""


def soc_names() -> list[str]:
    """Names of all shipped SoCs, sorted."""
    return sorted(path.stem for path in SOCS_DIR.glob("*.toml"))


def user_boards_dir() -> Path:
    """The user's own profiles: ``boards`` in ``$NPU_BSP_CONFIG``, or in ``~/.config/npu-bsp``."""
    own = os.environ.get("NPU_BSP_CONFIG")
    xdg = os.environ.get("XDG_CONFIG_HOME")
    base = Path(own) if own else (Path(xdg) if xdg else Path.home() / ".config") / "npu-bsp"
    return base.absolute() / "boards"


def board_names() -> list[str]:
    """Names of all boards, shipped and the user's own, sorted; an editor's hidden files are none."""
    shipped = {path.stem for path in BOARDS_DIR.glob("*.toml")}
    own = (path for path in user_boards_dir().glob("[!.]*.toml") if _is_profile(path))
    return sorted(shipped.union(path.stem for path in own))


def _is_profile(path: Path) -> bool:
    """Whether a path is a file, or a link to one that may be gone: reading says that, with its name."""
    return path.is_file() or path.is_symlink()


def board_file(name: str) -> Path:
    """Return the file of a board: a shipped one, else one of the user's own, else the file so named.

    Raises:
        UserError: there is no such board.
    """
    if name.endswith(".toml"):
        return Path(name).absolute()
    for folder in (BOARDS_DIR, user_boards_dir()):
        if re.fullmatch(r"[^./\0][^/\0]*", name) and _is_profile(folder / f"{name}.toml"):
            if folder == BOARDS_DIR:
                _say_passed_over(user_boards_dir() / f"{name}.toml")
            return folder / f"{name}.toml"
    raise UserError(
        f"unknown board {name!r}{nearest(name, board_names())}",
        hint="./inv boards lists the boards",
    )


@functools.cache
def _say_passed_over(own: Path) -> None:
    """Say, once, that a profile of the user's own has a shipped one's name, so that it is not read."""
    if own.is_file():
        say(
            f"{own} is not read, as a shipped profile has its name: give file and board another name, or "
            f"name the file: --board {own}"
        )


def load_board(name: str) -> Board:
    """Return the profile of a board: by its name, or by the name of its file (``./mine.toml``).

    Raises:
        UserError: there is no such board, or its file is broken.
    """
    return read_board(board_file(name))


@functools.cache
def read_board(path: Path) -> Board:
    """Return the board in a file; it need not be a shipped one."""
    board = _read(path, Board)
    if board.name != path.stem:
        raise UserError(f"{path}: name is {board.name!r}, but the file is {path.name!r}")
    if board.soc not in soc_names():
        raise ProfileError(path, "soc", unknown_soc(board.soc))
    load_soc(board.soc)
    return complete_board(board, path)


def complete_board(board: Board, path: Path) -> Board:
    """Return a board as its file has it, with what its SoC's file says of how it boots where it does not.

    The place of its own device tree is beside the file.
    """
    if board.dtb is not None:
        board = msgspec.structs.replace(board, dtb=str(path.parent / board.dtb))
    physical = board.dts is not None or board.dtb is not None
    if board.boot is None and physical and board.soc in soc_names():
        board = msgspec.structs.replace(board, boot=load_soc(board.soc).boot)
    return board


def is_own(board: Board) -> bool:
    """Whether a profile is the user's own: in the user's folder, or in a file that was named."""
    try:
        return load_board(board.name) != board or board_file(board.name).parent != BOARDS_DIR
    except UserError:
        return True  # of a file that is in no folder of profiles


def plain_string(string: str) -> str:
    """Return a ``compatible`` string as upstream writes it: vendors have ``amlogic, g12b``."""
    return string.replace(" ", "")


@functools.cache
def names_no_board(string: str) -> bool:
    """Whether a root ``compatible`` string is that of a chip, a module or a family of boards.

    Such are the strings of the SoCs, and those that shipped boards have behind their own string. Only the
    files in which the string stands are read: parsing all of them takes longer than the rest of a
    deployment that finds nothing to do.
    """
    plain = plain_string(string)
    boards = [read_board(file) for file in _files_with(BOARDS_DIR, plain)]
    if any(board.compatible[0] == plain for board in boards):
        return False
    socs = [load_soc(file.stem) for file in _files_with(SOCS_DIR, plain)]
    return any(plain in board.compatible for board in boards) or any(
        plain in (*soc.compatible, *soc.without_npu) for soc in socs
    )


def _files_with(folder: Path, string: str) -> list[Path]:
    """Return the profiles in a folder in which a string stands in quotes."""
    quoted = f'"{string}"'.encode()
    return [file for file, content in _contents(folder).items() if quoted in content]


@functools.cache
def _contents(folder: Path) -> dict[Path, bytes]:
    """Return the shipped profiles in a folder as they are; many strings are looked for in them."""
    return {file: file.read_bytes() for file in sorted(folder.glob("*.toml"))}


def runs_as(board: Board, compatible: Sequence[str], model: str) -> bool:
    """Whether a machine is a board that still runs its maker's tree, without a string of its own.

    Args:
        compatible: the machine's root strings.
        model: its root's ``model``.
    """

    def plain(text: str) -> str:
        return " ".join(text.lower().split())

    identity = board.identity
    return tuple(compatible[:1]) == (identity.runs_as,) and plain(model) in map(
        plain, identity.models
    )


@functools.cache
def load_soc(name: str) -> Soc:
    """Return the profile of a shipped SoC.

    Raises:
        UserError: there is no such SoC, or its file is broken.
    """
    path = SOCS_DIR / f"{name}.toml"
    if not path.exists():
        raise UserError(
            f"unknown SoC {name!r}{nearest_soc(name)}", hint=f"there are {', '.join(soc_names())}"
        )
    return _read(path, Soc)


def unknown_soc(word: str) -> str:
    """Say that there is no such SoC, which one may be meant, and which there are."""
    return f"unknown SoC {word!r}{nearest_soc(word)} (known: {', '.join(soc_names())})"


def nearest_soc(word: str) -> str:
    """Return ``; did you mean X?`` for the SoC nearest to a name, a title or a compatible string."""

    def plain(text: str) -> str:
        return re.sub(r"[^a-z0-9]", "", text.lower())

    wanted, spellings = plain(word), dict[str, str]()
    for name in soc_names():
        soc = load_soc(name)
        titles = soc.title.removeprefix(soc.vendor).split("/")
        strings = [text.rpartition(",")[2] for text in soc.compatible]
        for text in (name, soc.title, *titles, *strings):
            spellings.setdefault(plain(text), name)
    inside = [
        name for text, name in spellings.items() if wanted and (wanted in text or text in wanted)
    ]
    exact = spellings.get(wanted) or (inside[0] if len(set(inside)) == 1 else None)
    if exact:
        return f"; did you mean {exact!r}?"
    import difflib

    near = difflib.get_close_matches(wanted, list(spellings), n=1, cutoff=0.6)
    return f"; did you mean {spellings[near[0]]!r}?" if near else ""


def npu_of(board: Board) -> Npu | None:
    """Return the NPU of a board, with the board's own settings applied; None where it has none.

    Raises:
        UserError: the settings name a clock that the NPU does not have.
    """
    npu = load_soc(board.soc).npu
    if npu is None:
        if board.npu != NpuSettings():
            raise UserError(f"board {board.name} has [npu] settings, but its SoC has no NPU")
        return None
    names = [clock.name for clock in npu.clocks]
    for name in board.npu.rates_hz:
        if name not in names:
            raise UserError(
                f"board {board.name}, [npu.rates_hz]: the NPU has no clock {name!r}"
                f"{nearest(name, names)}",
                hint=f"its clocks are {', '.join(names)}",
            )
    clocks = tuple(
        msgspec.structs.replace(clock, rate_hz=board.npu.rates_hz.get(clock.name, clock.rate_hz))
        for clock in npu.clocks
    )
    enabled = npu.enabled and board.npu.enabled
    return msgspec.structs.replace(npu, clocks=clocks, enabled=enabled)


_T = TypeVar("_T", Board, Soc)


def _read(path: Path, kind: type[_T]) -> _T:
    data, text = read_toml(path)
    for key, mistake in board_mistakes(data) if kind is Board else ():
        raise ProfileError(path, key, mistake)
    try:
        return msgspec.convert(data, kind, strict=True)
    except msgspec.ValidationError as error:
        raise ProfileError(path, *explain(str(error), kind, text)) from error


def read_toml(path: Path) -> tuple[dict[str, Any], str]:
    """Return the content of a profile's file as TOML has it, and its text.

    Raises:
        UserError: it cannot be read, is not TOML, or has another format.
    """
    try:
        text = decoded(content(path, kind="a profile", max_bytes=_MAX_BYTES))
        if text is None:
            raise UserError(f"{path} is not a text", hint="a profile is a TOML file, in UTF-8")
        data = tomllib.loads(text)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except RecursionError as error:
        raise UserError(
            f"{path}: not valid TOML: tables or lists are nested too deep",
            hint="a profile is a TOML file of a dozen lines: ./inv new-board writes one",
        ) from error
    except tomllib.TOMLDecodeError as error:
        hint = 'text is quoted, versions too: kernel = "6.12"'
        if re.search("twice|overwrite", str(error)):
            hint = "a key or a table stands there twice: remove one"
        raise UserError(f"{path}: not valid TOML: {error}", hint=hint) from error
    if data.get("format") != FORMAT:
        raise UserError(
            f"{path}: format is {data.get('format')!r}, this version reads format {FORMAT}",
            hint=f"start the file with: format = {FORMAT}",
        )
    return data, text
