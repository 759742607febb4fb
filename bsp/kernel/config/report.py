# SPDX-License-Identifier: MIT
"""The refusal of a configuration that is not as asked for: what fits a screen, and the rest in a file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from ...base.cache import cache_dir, write_atomically
from ...base.errors import UserError
from ...base.progress import say
from .compare import Difference
from .fragments import Asked
from .judge import GaveWay
from .whole_config import Kind, kind_of, note, read_text

MOST_PARAGRAPHS = 20
_MOST_LINES = 10  # of one paragraph
_NAMED = 6


def refuse(
    found: Sequence[Difference], what: str, *, name: str = "kernel", given: Iterable[Path] = ()
) -> None:
    """Stop where the configuration is not as asked for.

    Args:
        what: ``Linux 6.12.107``, for people.
        name: what the file of the whole report is called after.
        given: the user's fragments.

    Raises:
        UserError: it is not; names each symbol, and why. What is too much for a screen stands in a file.
    """
    if not found:
        return
    count = f"{len(found)} symbol{'s are' if len(found) > 1 else ' is'}"
    head = f"{count} not as asked for in {what}; nothing was compiled"
    lines = [_cut(each.text()) for each in found[:MOST_PARAGRAPHS]]
    hint = "add to the fragment what they depend on, or take them out; --explain shows what each is for"
    if len(found) > MOST_PARAGRAPHS or any(_cut(each.text()) != each.text() for each in found):
        file = cache_dir() / "reports" / f"{name}-not-as-asked.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        whole = "\n".join(each.text() for each in found)
        write_atomically(file, f"{head}\n{whole}\n".encode())
        more = len(found) - MOST_PARAGRAPHS
        lines.append(
            f"... and {more} more; all of them: {file}" if more > 0 else f"all of it: {file}"
        )
    fitted = [_without(path, found, name) for path in given]
    copies = [str(path) for path in fitted if path is not None]
    if copies:
        hint += f"; --fragment {','.join(copies)} is without them"
    raise UserError("\n".join([head, *lines]), hint=hint)


def _cut(paragraph: str) -> str:
    lines = paragraph.splitlines()
    if len(lines) <= _MOST_LINES:
        return paragraph
    return "\n".join([*lines[:_MOST_LINES], "  ..."])


def _without(path: Path, found: Sequence[Difference], name: str) -> Path | None:
    """Write a whole configuration without the lines that were refused; None for a fragment by hand."""
    text = read_text(path)
    kind = kind_of(path.name, text)[0]
    where = re.compile(rf"(?:^|, ){re.escape(path.name)}:\d+$")
    refused = {each.asked.symbol for each in found if where.search(each.asked.where)}
    if kind is Kind.FRAGMENT or not refused:
        return None
    kept = [line for line in text.splitlines() if _symbol_of(line) not in refused]
    copy_name = path.name.removesuffix(".gz")
    if kind is Kind.DEFCONFIG and kind_of(copy_name, "")[0] is not kind:
        copy_name = (
            f"{copy_name.partition('.')[0]}_defconfig"  # it may have too few lines now to be told
        )
    copy = cache_dir() / "reports" / f"{name}-fitted" / copy_name
    copy.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(copy, ("\n".join(kept) + "\n").encode())
    return copy


def _symbol_of(line: str) -> str:
    match = re.match(r"(?:# )?CONFIG_(\w+)", line.strip())
    return match[1] if match else ""


def say_left_out(left_out: Sequence[Asked]) -> None:
    """Say which symbols of the user's were not compared, as nobody can ask for them."""
    if left_out:
        say(
            f"left out, as they have no prompt and nobody can ask for them: {_names(left_out)} "
            "(the compiler and the other options decide them)"
        )


def say_gave_way(gave_way: Sequence[GaveWay]) -> None:
    """Say which lines gave way to later fragments."""
    for each in gave_way[:_NAMED]:
        say(f"gives way: {each.text()}")
    if len(gave_way) > _NAMED:
        say(f"gives way: {len(gave_way) - _NAMED} more")


def _names(asked: Sequence[Asked]) -> str:
    names = ", ".join(each.symbol for each in asked[:_NAMED])
    return names + (f" and {len(asked) - _NAMED} more" if len(asked) > _NAMED else "")


def describe_files(given: Iterable[Path]) -> list[dict[str, str]]:
    """Say which of the user's files are whole configurations; return what each of them is, for JSON."""
    described = []
    for path in given:
        kind, why = kind_of(path.name, read_text(path))
        if kind is not Kind.FRAGMENT:
            say(note(path.name, kind, why))
        described.append({"file": str(path), "kind": str(kind)})
    return described
