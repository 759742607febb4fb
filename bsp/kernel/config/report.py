# SPDX-License-Identifier: MIT
"""What is said of a configuration that is not as asked for: what fits a screen, and the rest in a file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from ...base.cache import cache_dir, write_atomically
from ...base.errors import UserError
from ...base.progress import say
from ...base.words import counted
from .compare import Difference
from .fragments import Asked, parse
from .judge import GaveWay
from .whole_config import Kind, kind_of, note, read_text

MOST_PARAGRAPHS = 20
_MOST_LINES = 10  # of one paragraph
_NAMED = 6


_MEND = (
    "add to the fragment what they depend on, or take them out; --explain shows what each is for"
)


def refuse(
    mismatches: Sequence[Difference], what: str, *, name: str = "kernel", hint: str = _MEND
) -> None:
    """Stop where the configuration is not as asked for.

    Args:
        what: ``Linux 6.12.107``, for people.
        name: what the file of the whole report is called after.
        hint: what to do about it.

    Raises:
        UserError: it is not; names each symbol, and why. What is too much for a screen stands in a file.
    """
    if not mismatches:
        return
    head = f"{_counted_symbols(mismatches)} not as asked for in {what}; nothing was compiled"
    raise UserError(
        _report(mismatches, head, f"{name}-not-as-asked"),
        hint=hint,
    )


def say_not_had(mismatches: Sequence[Difference], what: str, *, name: str) -> None:
    """List what no board needs, and the kernel does not have; as ``refuse``."""
    if mismatches:
        head = (
            f"{_counted_symbols(mismatches)} not available in {what}; left out, as only a whole "
            f"configuration or a preference asks for {'them' if len(mismatches) > 1 else 'it'}:"
        )
        say(_report(mismatches, head, f"{name}-not-had"))


def _counted_symbols(mismatches: Sequence[Difference]) -> str:
    return f"{counted(len(mismatches), 'symbol')} {'are' if len(mismatches) > 1 else 'is'}"


def _report(mismatches: Sequence[Difference], head: str, file_name: str) -> str:
    """Return what fits a screen; what is too much for it stands in a file that is named."""
    lines = [_cut(each.text()) for each in mismatches[:MOST_PARAGRAPHS]]
    if len(mismatches) > MOST_PARAGRAPHS or any(
        _cut(each.text()) != each.text() for each in mismatches
    ):
        file = cache_dir() / "reports" / f"{file_name}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        whole = "\n".join(each.text() for each in mismatches)
        write_atomically(file, f"{head}\n{whole}\n".encode())
        more = len(mismatches) - MOST_PARAGRAPHS
        lines.append(
            f"... and {more} more; all of them: {file}" if more > 0 else f"all of it: {file}"
        )
    return "\n".join([head, *lines])


def _cut(paragraph: str) -> str:
    lines = paragraph.splitlines()
    if len(lines) <= _MOST_LINES:
        return paragraph
    return "\n".join([*lines[:_MOST_LINES], "  ..."])


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


def say_nameless(nameless: Sequence[str]) -> None:
    """Say what is off only because this kernel does not know its name."""
    for text in nameless[:_NAMED]:
        say(f"off, but by no choice: {text}")
    if len(nameless) > _NAMED:
        say(f"off, but by no choice: {len(nameless) - _NAMED} more")


def _names(asked: Sequence[Asked]) -> str:
    names = ", ".join(each.symbol for each in asked[:_NAMED])
    return names + (f" and {len(asked) - _NAMED} more" if len(asked) > _NAMED else "")


def describe_files(files: Iterable[Path]) -> list[dict[str, str]]:
    """Say which of the user's files are whole configurations; return what each of them is, for JSON."""
    described = []
    for path in files:
        text = read_text(path)
        kind, why = kind_of(path.name, text)
        if kind is not Kind.FRAGMENT:
            say(note(path.name, kind, why))
        elif not parse(text, path.name):
            say(f"{path.name} asks for nothing: it has no line CONFIG_X=y")
        described.append({"file": str(path), "kind": str(kind)})
    return described
