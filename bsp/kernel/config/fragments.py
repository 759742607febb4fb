# SPDX-License-Identifier: MIT
"""Fragments of kernel configuration: what we ask for, and why.

A fragment is what the kernel's own tools read (``CONFIG_X=y``, ``# CONFIG_X is not set``). The comment
above a group of symbols says what they are for; one that begins with ``Prefer:`` marks choices about
our own builds that a kernel of somebody else's need not share, and that gives way to later fragments.
Later fragments win: base, then the SoC's, the board's, and the user's in the order in which they are given.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ...base.errors import UserError
from ...profile import Board
from .whole_config import Kind, kind_of, read_text

FOLDER = Path(__file__).parents[1] / "fragments"

_SET = re.compile(r"CONFIG_(\w+)=(\S.*|)$")
_UNSET = re.compile(r"# CONFIG_(\w+) is not set$")
_NEARLY_UNSET = re.compile(
    r"#\s*(?:CONFIG_)?([A-Z]\w*) (?:is )?not set\.?$|#?\s*CONFIG_(\w+) is not set\b"
)
_VALUE = re.compile(r'[ymn]|-?\d+|0[xX][0-9a-fA-F]+|".*"|')
_MEANT = {"yes": "y", "true": "y", "on": "y", "y": "y", "module": "m", "mod": "m", "m": "m",
          "no": "n", "false": "n", "off": "n", "n": "n"}  # fmt: skip
_NEARLY_SET = re.compile(
    r"(?:export\s+)?(?:CONFIG_)?(\w+)\s*(?:[:=]|\s)\s*([^\s#;,]+|\".*\")[;,]?(?:\s+#.*)?$", re.I
)
_PREFERENCE = "Prefer:"
# First words of lines in files of other programs, and what to do with such a file.
_OTHER_FORMATS = (
    (
        re.compile(r"(?:define K|kconf |include |patch |branch )"),
        "this is a description of Yocto's (.scc): give the .cfg files that it names",
    ),
    (
        re.compile(r"(?:---|\+\+\+|@@|diff |[+-]\s*CONFIG_|[+-]# CONFIG_)"),
        "this is a patch: give its lines without + in front, or apply it to the kernel's source",
    ),
    (
        re.compile(r"(?:\w+ = (?:lib\.|freeform |mkForce )|structuredExtraConfig|[{}\]])"),
        "this is Nix: yes is CONFIG_X=y, module is CONFIG_X=m, no is '# CONFIG_X is not set'",
    ),
)


@dataclass(frozen=True)
class Asked:
    """One symbol of a fragment.

    Attributes:
        symbol: without ``CONFIG_``.
        value: as in a ``.config``: ``y``, ``m``, ``n``, a number or a quoted string.
        purpose: the comment above it.
        where: ``base.config:12``.
        rank: how late the file comes that named it last; later ones have more.
        kind: what that file is.
        insisted: a later file names it again, without ``Prefer:``.
        needed: a fragment by hand asks for the same, whatever file names it last.
        overruled: an earlier line that this one takes back.
    """

    symbol: str
    value: str
    purpose: str
    where: str
    rank: int = 0
    kind: Kind = Kind.FRAGMENT
    insisted: bool = False
    needed: bool = False
    overruled: Asked | None = None

    @property
    def preferred_only(self) -> bool:
        """Whether it gives way to later fragments, and a kernel of somebody else's may do without."""
        return self.purpose.startswith(_PREFERENCE) and not self.insisted

    @property
    def is_unset_in_passing(self) -> bool:
        """Whether a whole ``.config`` says that it is off, as it does of whatever nobody asked for."""
        return self.kind is Kind.CONFIG and self.value == "n"

    @property
    def may_be_missing(self) -> bool:
        """Whether only a whole configuration has it, perhaps of another kernel."""
        return self.kind in (Kind.CONFIG, Kind.DEFCONFIG) and not self.needed

    def loses_to(self, later: Asked) -> bool:
        """Whether a line of a fragment is taken back: in the same file, or by one that switches it off."""
        if self.kind is not Kind.FRAGMENT or self.preferred_only:
            return False
        return self.value != later.value and (later.value == "n" or self.rank == later.rank)

    def line(self) -> str:
        """The line of a ``.config``."""
        if self.value == "n":
            return f"# CONFIG_{self.symbol} is not set"
        return f"CONFIG_{self.symbol}={self.value}"


def fragment_files(board: Board, extra: Iterable[Path] = ()) -> list[Path]:
    """Return the fragments of a board, in the order in which they are merged; not all boards have one.

    Raises:
        UserError: one that the user gives is not there.
    """
    files = [FOLDER / f"{name}.config" for name in ("base", board.soc, board.name)]
    files = [file for file in files if file.is_file()]
    for path in extra:
        if not path.is_file():
            if path.is_fifo():
                raise UserError(
                    f"{path} is a pipe, and a fragment is read more than once",
                    hint="write it to a file: --fragment FILE",
                )
            raise UserError(f"there is no file {path}", hint="--fragment FILE, lines CONFIG_X=y")
        files.append(path)
    return files


def merge(files: Iterable[Path]) -> dict[str, Asked]:
    """Return what fragments ask for together, by symbol.

    Raises:
        UserError: a line is not one of a fragment.
    """
    merged: dict[str, Asked] = {}
    for rank, file in enumerate(files):
        text = read_text(file)
        kind = kind_of(file.name, text)[0]
        for asked in parse(text, file.name):
            asked = replace(asked, rank=rank, kind=kind)
            if kind is not Kind.FRAGMENT:
                asked = replace(
                    asked, purpose=""
                )  # its comments are headings of the kernel's menus
            before = merged.get(asked.symbol)
            if before is not None and asked.is_unset_in_passing and _is_needed(before):
                continue
            if before is not None and before.loses_to(asked):
                asked = replace(asked, overruled=before)
            if before is not None and before.value == asked.value:
                by_hand = before.kind is Kind.FRAGMENT and not before.preferred_only
                asked = replace(asked, needed=before.needed or by_hand)
            if before is not None and before.value == asked.value and before.purpose:
                asked = replace(
                    before,
                    where=f"{before.where}, {asked.where}",
                    rank=rank,
                    kind=kind,
                    insisted=not asked.preferred_only,
                    needed=asked.needed,
                )
            merged.pop(asked.symbol, None)  # the kernel's tools take the last member of a choice
            merged[asked.symbol] = asked
    return merged


def _is_needed(asked: Asked) -> bool:
    return not asked.preferred_only and asked.kind is not Kind.CONFIG and asked.value != "n"


def parse(text: str, name: str) -> list[Asked]:
    """Return the symbols of one fragment.

    Raises:
        UserError: a line is not one of a fragment.
    """
    symbols: list[Asked] = []
    comment: list[str] = []
    in_group = False
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        unset = _UNSET.match(line)
        nearly = _NEARLY_UNSET.match(line)
        if unset is None and nearly:
            raise UserError(
                f"{name}:{number}: {line!r} switches nothing off: to the kernel's tools, or the newer ones "
                "of them, it is a comment, or nothing",
                hint=f"write: # CONFIG_{nearly[1] or nearly[2]} is not set",
            )
        if unset is None and line.startswith("#"):
            comment = [*([] if in_group else comment), line.lstrip("#").strip()]
            in_group = False
            continue
        if not line:
            comment, in_group = [], False
            continue
        set_ = _SET.match(line)
        if unset is None and set_ is None:
            raise UserError(
                f"{name}:{number}: expected CONFIG_X=VALUE or '# CONFIG_X is not set', found {line!r}",
                hint=_other_format(line)
                or _meant_line(line)
                or "comments have a line of their own, beginning with #",
            )
        symbol, value = (unset.group(1), "n") if unset else _pair(set_)
        if value[:1] != '"' and re.search(r"\s", value):
            raise UserError(
                f"{name}:{number}: CONFIG_{symbol} has the value {value!r}",
                hint="comments have a line of their own; strings are quoted",
            )
        if not _VALUE.fullmatch(value):
            meant = _MEANT.get(value.lower().strip("'"))
            raise UserError(
                f"{name}:{number}: CONFIG_{symbol} has the value {value!r}, which no option can have",
                hint=f"did you mean CONFIG_{symbol}={meant}?"
                if meant
                else 'values are y, m, n, numbers (hexadecimal: 0x...), and "text" in double quotes',
            )
        in_group = True
        symbols.append(Asked(symbol, value or "n", " ".join(comment), f"{name}:{number}"))
    return symbols


def _other_format(line: str) -> str | None:
    """What to do with a line of another program's file; None where it is of none that is known."""
    return next((hint for pattern, hint in _OTHER_FORMATS if pattern.match(line)), None)


def _meant_line(line: str) -> str | None:
    """The line that was meant by ``CONFIG_X = y``, ``x=y``, ``X: y``... None where nothing tells."""
    match = _NEARLY_SET.match(line)
    if not match or match[1] == "CONFIG_":
        return None
    value = _MEANT.get(match[2].lower().strip("'"), match[2])
    if not _VALUE.fullmatch(value):
        return None
    return f"did you mean CONFIG_{match[1].upper()}={value}?"


def _pair(match: re.Match[str] | None) -> tuple[str, str]:
    if not match:
        raise RuntimeError("a line matched neither pattern")
    return match.group(1), match.group(2)


def base_target(asked: Mapping[str, Asked]) -> str:
    """Return the target of the kernel's Makefile that gives what no fragment names its value."""
    whole = any(each.kind in (Kind.CONFIG, Kind.DEFCONFIG) for each in asked.values())
    return "alldefconfig" if whole else "allnoconfig"


def render(asked: Mapping[str, Asked]) -> str:
    """Return merged fragments as one, for the kernel's own tools."""
    return "".join(f"{each.line()}\n" for each in asked.values())


def explanation(asked: Mapping[str, Asked]) -> list[dict[str, str]]:
    """What each symbol is for: ``symbol``, ``value``, ``purpose``, ``where``."""
    return [
        {"symbol": each.symbol, "value": each.value, "purpose": each.purpose, "where": each.where}
        for each in asked.values()
    ]


def changes(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Return the lines that make one configuration of another."""
    lines = []
    for symbol in sorted({*before, *after}):
        value = after.get(symbol, "n")
        if value != before.get(symbol, "n"):
            lines.append(Asked(symbol, value, "", "").line())
    return lines
