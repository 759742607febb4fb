# SPDX-License-Identifier: MIT
"""What of a C source the compiler sees: without comments, and without what ``#if`` leaves out. Pure.

No preprocessor runs: an old tree's headers may be missing. Conditions that nothing here decides, such as
``#ifdef CONFIG_X``, leave both branches in.
"""

from __future__ import annotations

import re

_COMMENT_OR_STRING = re.compile(
    r"/\*.*?(?:\*/|\Z)|//(?:\\\n|[^\n])*|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'", re.S
)
_DIRECTIVE = re.compile(r"[ \t]*#[ \t]*(if|ifdef|ifndef|elif|else|endif|define|undef)\b(.*)")
_NAME = re.compile(r"\b[A-Za-z_]\w*")
_NUMBER = re.compile(r"\(*\s*(0[xX][0-9a-fA-F]+|\d+)[uUlL]*\s*\)*")


def integer(text: str) -> int:
    """Return a number as C writes it: ``0x9000U``, ``017``."""
    digits = text.rstrip("uUlL")
    return int(digits, 8 if re.fullmatch("0[0-7]+", digits) else 0)


def without_comments(source: str) -> str:
    """Return a source with a blank for each comment; strings stay, whatever is in them."""
    return _COMMENT_OR_STRING.sub(
        lambda match: " " if match[0].startswith("/") else match[0], source
    )


def seen_by_compiler(source: str, *, keep_defines: bool = False) -> str:
    """Return the lines of a source that are compiled, with names of numbers replaced by the numbers.

    Args:
        keep_defines: with its ``#define`` lines, as a header is looked into for what it defines.
    """
    numbers: dict[str, str] = {}
    defined: set[str] = set()
    # Of each #if: whether the branch at hand is in, and whether one so far was (None: perhaps).
    open_blocks: list[tuple[bool, bool | None]] = []
    lines = []
    for line in without_comments(source).replace("\\\n", " ").splitlines():
        match = _DIRECTIVE.match(line)
        if not match:
            if all(within for within, _ in open_blocks):
                lines.append(_NAME.sub(lambda name: numbers.get(name[0], name[0]), line))
            continue
        word, rest = match[1], match[2].strip()
        if word in ("if", "ifdef", "ifndef"):
            truth = _truth(word, rest, defined)
            open_blocks.append((truth is not False, truth))
        elif word == "endif" and open_blocks:
            open_blocks.pop()
        elif word in ("elif", "else") and open_blocks:
            before = open_blocks[-1][1]
            truth = True if word == "else" else _truth("if", rest, defined)
            within = before is not True and truth is not False
            open_blocks[-1] = (within, before if before is not False else truth)
        elif word == "define" and all(within for within, _ in open_blocks):
            if keep_defines:
                lines.append(line)
            name, _, value = rest.partition(" ")
            defined.add(name)
            number = _NUMBER.fullmatch(value.strip())
            if number:
                numbers[name] = number[1]
        elif word == "undef":
            defined.discard(rest)
            numbers.pop(rest, None)
    return "\n".join(lines)


def _truth(word: str, condition: str, defined: set[str]) -> bool | None:
    """Whether a condition holds; None where this file does not decide it."""
    if word == "if":
        number = _NUMBER.fullmatch(condition)
        return integer(number[1]) != 0 if number else None
    if condition in defined:
        return word == "ifdef"
    if condition.startswith(("CONFIG_", "__")):
        return None
    # A name of no header's that is not set here is how people leave something out.
    return word == "ifndef"
