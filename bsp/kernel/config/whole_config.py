# SPDX-License-Identifier: MIT
"""Whole configurations that are given as fragments: a ``.config``, a ``defconfig``, packed or not.

A fragment says what somebody wants; what it leaves out is off. A ``.config`` also holds what the tools
found out (versions of the compiler) and what follows from the rest, and a ``defconfig`` leaves out whatever
has Kconfig's default. They mean something else than a fragment with the same lines, and are told by looks.
"""

from __future__ import annotations

import gzip
import re
import zlib
from enum import StrEnum
from pathlib import Path

from ...base.errors import UserError
from ...base.text import content, decoded

_HEADER = re.compile(
    r"^# Automatically generated .*edit|^# \S+ \S+ Kernel Configuration$", re.I | re.M
)
_RELEASE = re.compile(r"^# Linux/(\S+) (\S+) Kernel Configuration$", re.M)
_FACT = re.compile(r"^CONFIG_(?:CC_VERSION_TEXT|GCC_VERSION|CLANG_VERSION)=", re.M)
_LINE = re.compile(r"^(?:CONFIG_\w+=|# CONFIG_\w+ is not set$)", re.M)
_MANY_LINES = 400  # a savedefconfig of a board has so many, a fragment by hand does not

BY_ITSELF = re.compile(
    r"HAVE_\w+|HAS_\w+|ARCH_(?:HAS|HAVE|WANT|WANTS|SUPPORTS|USE|USES|ENABLE|MAY_HAVE|INLINE|MHP)_\w+|GENERIC_\w+|NEED_\w+"
    r"|(?:CC|AS|LD|RUSTC?|TOOLS|PAHOLE)_(?:HAS|HAVE|IS|CAN|SUPPORT|SUPPORTS)_\w+|CC_CAN_LINK\w*"
    r"|(?:CC|GCC|CLANG|AS|LD|LLD|RUSTC|RUSTC_LLVM|BINDGEN|PAHOLE)(?:_MAJOR)?_VERSION(?:_TEXT)?|CC_MS_EXTENSIONS"
)
"""Names that by the kernel's custom are of symbols without a prompt; for where no Kconfig file tells."""

_MAX_BYTES = 16 << 20  # whole configurations have 300 KB


class Kind(StrEnum):
    """What a file of configuration lines is."""

    FRAGMENT = "fragment"
    EXCERPT = "part of a .config"
    CONFIG = "whole .config"
    DEFCONFIG = "defconfig"


def read_text(path: Path) -> str:
    """Return the text of a file of configuration lines, unpacked where it is gzipped (``config.gz``).

    Raises:
        UserError: it cannot be read.
    """
    try:
        data = content(path, kind="a configuration", max_bytes=_MAX_BYTES)
        if data.startswith(b"\x1f\x8b"):
            with gzip.open(path) as packed:
                data = packed.read(_MAX_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"cannot read {path}: {error}", hint="--fragment FILE, lines CONFIG_X=y"
        ) from error
    text = decoded(data)
    if text is None:
        raise UserError(f"{path} is not a text", hint="--fragment FILE, lines CONFIG_X=y")
    return text


def kind_of(name: str, text: str) -> tuple[Kind, str]:
    """Return what a file is, and by what that is seen; a fragment needs no reason."""
    if _HEADER.search(text):
        release = _RELEASE.search(text)
        if not release:
            return Kind.CONFIG, "by its first lines"
        machine = "" if release[1] == "arm64" else f" for another machine, {release[1]}"
        return Kind.CONFIG, f"by its first lines, of Linux {release[2]}{machine}"
    count, has_facts = len(_LINE.findall(text)), bool(_FACT.search(text))
    if has_facts and count >= _MANY_LINES:
        return Kind.CONFIG, f"as it holds the compiler's version and {count} options"
    if "defconfig" in name.lower() and not re.search(r"\.(?:config|cfg|fragment)$", name):
        return Kind.DEFCONFIG, "by its name"
    if has_facts:
        return Kind.EXCERPT, "as it holds the compiler's version"
    if count >= _MANY_LINES:
        return Kind.DEFCONFIG, f"as it has {count} options"
    return Kind.FRAGMENT, ""


def note(name: str, kind: Kind, why: str) -> str:
    """Say what a whole configuration is taken for, and what that means."""
    meaning = {
        Kind.EXCERPT: "symbols without a prompt are left out",
        Kind.CONFIG: "symbols without a prompt are left out, and what it says is not set does not count "
        "against what the board needs",
        Kind.DEFCONFIG: "what it does not name has Kconfig's default, where a fragment would leave it off",
    }[kind]
    return f"{name} is taken for a {kind} ({why}): {meaning}"
