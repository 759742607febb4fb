# SPDX-License-Identifier: MIT
"""Why device tree source does not compile, where dtc says no more than "syntax error".

The preprocessor leaves a macro that no header defines as it is, and dtc then meets a word in the place of a
number.
"""

from __future__ import annotations

import re
from pathlib import Path

from ...base.errors import nearest

_ERROR = re.compile(r"(\S+):(\d+)\.(\d+)\S* syntax error")
_WORD = re.compile(r'"[^"]*"|/\*.*?\*/|//.*|&\{[^}]*\}|&?\b[A-Za-z_]\w*')
# What macros look like: `IMX8MP_CLK_ML_CORE`, `PWRC_G12A_NNA_ID`; a single letter is none.
_MACRO = re.compile(r"[A-Z_][A-Z0-9_]{2,}")
_DEFINE = re.compile(r"^[ \t]*#[ \t]*define[ \t]+(\w+)", re.M)
_HEADERS = ("include/dt-bindings",)


def undefined_macro(tree: Path, message: str) -> str:
    """Return "FILE:LINE: the macro X is not defined..."; empty where a syntax error has another reason.

    Args:
        tree: folder that the file names in dtc's message are relative to.
        message: dtc's message.
    """
    match = _ERROR.search(message)
    if match is None:
        return ""
    file = tree / match[1]
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    number = int(match[2])
    # dtc points at the word itself, or at what comes behind it, which may be on the next line.
    near = lines[max(number - 2, 0) : number]
    words = [word for line in reversed(near) for word in _macros(line)]
    if not words:
        return ""
    defined = _defined(tree, file.parent)
    unknown = next((word for word in words if word not in defined), None)
    if unknown is None:
        return ""
    at = next(
        (place for place in (number, number - 1) if unknown in _macros(lines[place - 1])), number
    )
    similar = nearest(unknown, sorted(defined))
    return f"{match[1]}:{at}: the macro {unknown} is not defined{similar}"


def _macros(line: str) -> list[str]:
    """Words of a line that can be macros: not within strings, comments or references."""
    if line.lstrip().startswith("#"):
        return []
    return [word for word in _WORD.findall(line) if _MACRO.fullmatch(word)]


def _defined(tree: Path, folder: Path) -> set[str]:
    """Names of the macros in the headers that a kernel tree's device trees include."""
    files = [file for top in _HEADERS for file in (tree / top).rglob("*.h")]
    files += [*folder.glob("*.h"), *folder.glob("*.dtsi"), *folder.glob("*.dts")]
    macros: set[str] = set()
    for file in files:
        try:
            macros.update(_DEFINE.findall(file.read_text(encoding="utf-8", errors="replace")))
        except OSError:
            continue
    return macros
